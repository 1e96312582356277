"""Room for numbers that do not fit beside a model in memory: pages of a file that the machine may write out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.files import disk_full_is_told

if TYPE_CHECKING:
    import torch


def zeros_in_file(path: Path, size: int) -> torch.Tensor:
    """Zeros in the pages of a new file, fp32, which the machine may write out when memory is short.

    Args:
        path: of the file; the tensor lives as long as somebody holds it, the file until it is removed.
        size: entries.

    Raises:
        DiskFull: when there is no room for them.
    """
    import torch

    with disk_full_is_told(path), path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4 * size, 1))
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.float32)
