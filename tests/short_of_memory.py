"""Trains as train.py does. From the opening of its pictures to its end, its last process gets only some MiB more."""

import resource
import sys
from pathlib import Path
from typing import Any

from biggan_hf.processes import num_processes, process_rank
from biggan_hf.training import loop, main, set_up


load_images, finish = set_up.__globals__["load_images"], loop.finish
allowed = int(sys.argv.pop(1)) * 2**20


def load_and_limit(*args: Any, **options: Any) -> Any:
    images = load_images(*args, **options)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if num_processes() == process_rank() + 1:
        resource.setrlimit(resource.RLIMIT_AS, (used + allowed, resource.RLIM_INFINITY))
    return images


def lift_and_finish(*args: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    finish(*args)


set_up.__globals__["load_images"], vars(loop)["finish"] = load_and_limit, lift_and_finish
main()
