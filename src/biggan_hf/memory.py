"""Out of memory: how errors tell of it."""

import errno

import torch


# Words in a `RuntimeError` of torch, of oneDNN or of CUDA's libraries.
OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "could not create a primitive",
    "could not create a memory",
    "could not execute a primitive",
    "bad_alloc",
    "out of memory",
    "ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, of torch or of a library that torch uses tells that memory is short."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):  # a fork, or a file that is mapped
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(message in str(error) for message in OUT_OF_MEMORY)
