"""Writing files so that a crash leaves either the old or the new content, and saying so when the disk is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from evomerge.errors import DiskFull

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def disk_full_is_told(path: Path) -> Iterator[None]:
    """Turn "no space left" inside the block into `DiskFull`; every other error passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise DiskFull(
            "The disk is full.",
            got=f"{error.strerror} while writing {path}",
            allowed="a file system with free space and quota",
            fix="free some space, then run `evomerge resume` on the run directory; nothing acknowledged is lost.",
        ) from error


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` in one step: write beside it, fsync, rename, fsync the folder.

    Raises:
        DiskFull: when there is no space; the old file is untouched and no temporary file stays behind.
    """
    raw = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_full_is_told(path), ExitStack() as undo:
        undo.callback(temporary.unlink, missing_ok=True)
        with temporary.open("wb") as f:
            f.write(raw)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
        undo.pop_all()
    fsync_folder(path.parent)
