"""Writing files so that a crash leaves either the old or the new content, and saying so when the disk is full."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from evomerge.errors import DiskFull, StorageLost
from evomerge.failpoints import reach

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_TEMPORARY: Final = ".*.tmp"
_ABANDONED_S: Final = 3600.0


_AGAIN: Final = "free some space, then run the same command again."
_RESUME: Final = "run `evomerge resume` on the run directory; nothing acknowledged is lost."


@contextmanager
def disk_full_is_told(path: Path) -> Iterator[None]:
    """Turn "no space left" inside the block into `DiskFull`; every other error passes.

    The fix is the same command again; around the files of a run that goes on, `lost_storage_is_told` names another.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise DiskFull(
            "The disk is full.",
            got=f"{error.strerror} while writing {path}",
            allowed="a file system with free space and quota",
            fix=_AGAIN,
        ) from error


@contextmanager
def path_is_told(path: Path) -> Iterator[None]:
    """Give errors of the system inside the block the path that they are about, where they name none.

    Reads and writes through a descriptor (an I/O error, a file system that has become read-only) name no file; with
    one, the command line can tell which place cannot be used.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def lost_storage_is_told(path: Path) -> Iterator[None]:
    """For files of a run that goes on: every error of the system inside the block becomes one that can be resumed from.

    Raises:
        DiskFull: for "no space left".
        StorageLost: for an I/O error, a file system that became read-only or went away, a lost permission, a limit.
    """
    try:
        with disk_full_is_told(path):
            yield
    except DiskFull as full:
        fix = f"free some space, then {_RESUME}"
        raise DiskFull(full.what, got=full.got, allowed=full.allowed, fix=fix) from full
    except OSError as error:
        raise StorageLost(
            "The run directory can no longer be written.",
            got=f"{error.strerror or error} while writing {path}",
            allowed="a file system that takes writes, for as long as the run lasts",
            fix=f"mend it (mount, permissions, limits, the disk), then {_RESUME}",
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
    # process ids of two hosts may be equal: names of temporary files are random
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with disk_full_is_told(path), path_is_told(path), ExitStack() as undo:
        undo.callback(_forget, temporary)
        with temporary.open("wb") as f:
            f.write(raw)
            f.flush()
            reach("before-file-sync")
            os.fsync(f.fileno())
        reach("before-rename")
        temporary.replace(path)
        undo.pop_all()
        reach("after-rename")
        fsync_folder(path.parent)


def _forget(temporary: Path) -> None:
    """Remove what is left of a file that was not finished; on a file system that takes no change it stays."""
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def sweep_temporary(folder: Path) -> None:
    """Remove what killed processes left of `write_atomic` in `folder` more than an hour ago; errors are no matter."""
    for left in folder.glob(_TEMPORARY):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                left.unlink()
