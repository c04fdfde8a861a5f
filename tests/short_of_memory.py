"""Trains as train.py does, with so many MiB of address space from the time when the pictures are open."""

import resource
import sys
from pathlib import Path
from typing import Any

from biggan_hf.training import main, set_up


load_images = set_up.__globals__["load_images"]
allowed = int(sys.argv.pop(1)) * 2**20


def load_and_limit(*args: Any, **options: Any) -> Any:
    images = load_images(*args, **options)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + allowed, resource.RLIM_INFINITY))
    return images


set_up.__globals__["load_images"] = load_and_limit
main()
