"""Pages of mapped files, given back to the system as soon as they have been read."""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@cache
def _libc() -> Any | None:
    """The C library where it has `madvise` with Linux's meaning; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.madvise.restype = ctypes.c_int
    return library


def release(mapped: torch.Tensor) -> None:
    """Drop the pages of a mapped file from this process; they are read again, from the file, when they are touched.

    Without it a process that reads a checkpoint from end to end has all of it in its resident set. The system's cache
    of the file stays as it is.

    Args:
        mapped: contiguous, a view of a private map of a file that nobody has written to. On any other memory this
            would lose data.
    """
    library = _libc()
    if library is None or not mapped.numel():
        return
    start = mapped.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    stop = mapped.data_ptr() + mapped.numel() * mapped.element_size()
    library.madvise(start, stop - start, mmap.MADV_DONTNEED)
