"""Batch norm across processes: the paper's cross-replica batch norm (appendix C). It works with gloo and with NCCL."""

from typing import Any

import torch
import torch.distributed as dist

from ..layers import BatchNorm2d, ConditionalBatchNorm2d
from ..modeling_biggan import BigGANModel
from ..processes import add_up, num_processes


def join_batch_norms(generator: BigGANModel, setting: str) -> None:
    """
    Joins neighbouring processes in groups whose batches are normalised as one: all processes ("on"), none ("off"), or
    groups of a number that divides theirs. Every process calls this, after `torch.distributed` is initialised.
    """
    total = num_processes()
    size = {"off": 1, "on": total}.get(setting) or (int(setting) if setting.isdecimal() else 0)
    if not size:
        raise ValueError(f"cross_replica_batch_norm must be 'off', 'on' or a number of processes, got {setting!r}")
    if total % size:
        raise ValueError(f"cross_replica_batch_norm={setting} does not divide the number of processes, {total}")
    if size > 1:
        group, _ = dist.new_subgroups(size)
        for norm in batch_norms(generator):
            norm.process_group = group


def batch_norms(generator: BigGANModel) -> list[Any]:
    return [module for module in generator.modules() if isinstance(module, BatchNorm2d | ConditionalBatchNorm2d)]


@torch.no_grad()
def average_running_statistics(generator: BigGANModel) -> None:
    """
    Replaces running statistics by their means over all processes, where a batch norm sees only some of them. So every
    process holds, averages, evaluates and saves the same generator.
    """
    processes, norms = num_processes(), batch_norms(generator)
    joined = 1 if norms[0].process_group is None else dist.get_world_size(norms[0].process_group)
    if joined == processes or not norms[0].training:  # beside adapters they stand still
        return
    statistics = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
    mean = torch.cat(statistics)
    add_up([mean])
    mean /= processes
    torch._foreach_copy_(statistics, mean.split([len(statistic) for statistic in statistics]))
