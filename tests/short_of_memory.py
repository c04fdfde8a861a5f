"""Trains as train.py does. From the time when its pictures are open, its last process gets only so many MiB more."""

import resource
import sys
from pathlib import Path
from typing import Any

from biggan_hf.processes import num_processes, process_rank
from biggan_hf.training import main, set_up


load_images = set_up.__globals__["load_images"]
allowed = int(sys.argv.pop(1)) * 2**20


def load_and_limit(*args: Any, **options: Any) -> Any:
    images = load_images(*args, **options)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if num_processes() == process_rank() + 1:
        resource.setrlimit(resource.RLIMIT_AS, (used + allowed, resource.RLIM_INFINITY))
    return images


set_up.__globals__["load_images"] = load_and_limit
main()
