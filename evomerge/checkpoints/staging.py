"""A folder that appears complete or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from evomerge.checkpoints.opened import OpenParent
from evomerge.errors import ConfigError
from evomerge.failpoints import reach
from evomerge.files import disk_full_is_told, fsync_folder


def _unusable(folder: Path, got: str) -> ConfigError:
    return ConfigError(
        "The target folder cannot be used.",
        got=f"{folder}: {got}",
        allowed="a folder that does not exist yet or is empty, where files may be written",
        fix="name another folder, or empty this one.",
    )


def check_target(folder: Path) -> None:
    """Refuse a target that is not new or empty.

    Raises:
        ConfigError: when it is a link to nothing, a file, or holds anything.
    """
    try:
        if folder.is_symlink() and not folder.exists():
            raise _unusable(folder, "it is a link to nothing")
        if folder.exists() and not folder.is_dir():
            raise _unusable(folder, "it is a file")
        if folder.is_dir() and any(folder.iterdir()):
            raise _unusable(folder, "it is not empty")
    except OSError as error:
        raise _unusable(folder, str(error.strerror)) from error


def check_apart(folder: Path, parents: Iterable[OpenParent]) -> None:
    """Refuse a target inside a parent's folder, which would change what the parent is.

    Raises:
        ConfigError: naming the parent's folder.
    """
    target = folder.resolve()
    for parent in parents:
        for owned in {parent.folder.resolve(), parent.tokenizer_folder.resolve()}:
            if target.is_relative_to(owned):
                raise _unusable(folder, f"it lies in the folder of a parent, {owned}")


def _try_lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder; None when somebody else holds it, or it cannot be locked."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _remove_abandoned(target: Path) -> None:
    """Remove what killed processes left beside `target`: their temporary folders, which nobody has locked any more."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        lock = _try_lock(left) if left.is_dir() and not left.is_symlink() else None
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder` that takes its place when the block ends without an error.

    Files written inside must be synced by the caller; the renaming is made durable here. After an error the temporary
    folder is removed and the target is as it was; after a kill, the next attempt removes it.

    Raises:
        ConfigError: when the target is not new or empty, or must not be written.
        DiskFull: when there is no space.
    """
    check_target(folder)
    target = folder.resolve()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    lock: int | None = None
    try:
        with disk_full_is_told(folder), ExitStack() as undo:
            undo.callback(shutil.rmtree, temporary, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(target)
            unnamed = temporary.with_suffix(".new")  # locked before anybody takes it for an abandoned one
            undo.callback(shutil.rmtree, unnamed, ignore_errors=True)
            unnamed.mkdir()
            lock = _try_lock(unnamed)
            unnamed.rename(temporary)
            yield temporary
            fsync_folder(temporary)
            reach("before-export")
            temporary.rename(target)
            reach("after-export")
            undo.pop_all()
            fsync_folder(target.parent)
    except OSError as error:
        raise _unusable(folder, str(error)) from error
    finally:
        if lock is not None:
            os.close(lock)
