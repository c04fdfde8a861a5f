"""Batch norm across processes: the paper's cross-replica batch norm (appendix C), which works on gloo and NCCL."""

import torch
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


@torch.no_grad()
def average_running_statistics(generator: BigGANModel) -> None:
    """
    Replaces the running statistics of batch norms that see less than all processes by their means over processes,
    so that every process holds, averages, evaluates and saves one and the same generator.
    """
    processes = dist.get_world_size() if dist.is_initialized() else 1
    norms = [module for module in generator.modules() if isinstance(module, BatchNorm2d | ConditionalBatchNorm2d)]
    joined = 1 if norms[0].process_group is None else dist.get_world_size(norms[0].process_group)
    if joined == processes:
        return
    statistics = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
    mean = torch.cat(statistics)
    dist.all_reduce(mean)
    mean /= processes
    torch._foreach_copy_(statistics, mean.split([len(statistic) for statistic in statistics]))
