"""Batch norm across processes: the paper's cross-replica batch norm (appendix C), which works on gloo and NCCL."""

import torch.distributed as dist

from ..layers import BatchNorm2d, ConditionalBatchNorm2d
from ..modeling_biggan import BigGANModel


def replica_group_size(setting: str, num_processes: int) -> int:
    """
    How many processes normalise their batches as one: of "off" 1, of "on" all, of a number that many.

    Raises:
        ValueError: Another setting, or a number that does not divide the processes.
    """
    if setting in ("off", "on"):
        return 1 if setting == "off" else num_processes
    if not setting.isdecimal() or int(setting) < 1:
        raise ValueError(f"cross_replica_batch_norm must be 'off', 'on' or a number of processes, got {setting!r}")
    if num_processes % int(setting):
        raise ValueError(
            f"cross_replica_batch_norm={setting} does not divide the number of processes, {num_processes}"
        )
    return int(setting)


def set_cross_replica_batch_norm(generator: BigGANModel, group_size: int) -> None:
    """Joins neighbouring processes in groups; every process must call this, with the process group initialised."""
    if group_size == 1:
        return
    group, _ = dist.new_subgroups(group_size)
    for module in generator.modules():
        if isinstance(module, BatchNorm2d | ConditionalBatchNorm2d):
            module.process_group = group
