"""Batch norm across processes: the paper's cross-replica batch norm (appendix C). It works with gloo and with NCCL."""

import torch
import torch.distributed as dist

from ..layers import BatchNorm2d, ConditionalBatchNorm2d
from ..modeling_biggan import BigGANModel
from ..processes import add_up, num_processes


def replica_group_size(setting: str, total: int) -> int:
    """
    How many processes normalise their batches as one: 1 for "off", all for "on", or the number that was given.

    Raises:
        ValueError: The setting is none of these, or the number does not divide the number of processes.
    """
    if setting in ("off", "on"):
        return 1 if setting == "off" else total
    if not setting.isdecimal() or int(setting) < 1:
        raise ValueError(f"cross_replica_batch_norm must be 'off', 'on' or a number of processes, got {setting!r}")
    if total % int(setting):
        raise ValueError(f"cross_replica_batch_norm={setting} does not divide the number of processes, {total}")
    return int(setting)


def set_cross_replica_batch_norm(generator: BigGANModel, group_size: int) -> None:
    """Joins neighbouring processes in groups. Every process calls this, after `torch.distributed` is initialised."""
    if group_size == 1:
        return
    group, _ = dist.new_subgroups(group_size)
    for module in generator.modules():
        if isinstance(module, BatchNorm2d | ConditionalBatchNorm2d):
            module.process_group = group


@torch.no_grad()
def average_running_statistics(generator: BigGANModel) -> None:
    """
    Replaces running statistics by their means over all processes, where a batch norm sees only some of them. So every
    process holds, averages, evaluates and saves the same generator.
    """
    processes = num_processes()
    norms = [module for module in generator.modules() if isinstance(module, BatchNorm2d | ConditionalBatchNorm2d)]
    joined = 1 if norms[0].process_group is None else dist.get_world_size(norms[0].process_group)
    if joined == processes:
        return
    statistics = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
    mean = torch.cat(statistics)
    add_up([mean])
    mean /= processes
    torch._foreach_copy_(statistics, mean.split([len(statistic) for statistic in statistics]))
