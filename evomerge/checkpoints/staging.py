"""A folder that appears complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge.errors import ConfigError
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
        ConfigError: when it is a file or holds anything.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise _unusable(folder, "it is a file")
        if folder.is_dir() and any(folder.iterdir()):
            raise _unusable(folder, "it is not empty")
    except OSError as error:
        raise _unusable(folder, str(error.strerror)) from error


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder` that takes its place when the block ends without an error.

    Files written inside must be synced by the caller; the renaming is made durable here. After an error the temporary
    folder is removed and the target is as it was.

    Raises:
        ConfigError: when the target is not new or empty, or must not be written.
        DiskFull: when there is no space.
    """
    target = folder.resolve()
    check_target(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with disk_full_is_told(folder):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
    except OSError as error:
        raise _unusable(folder, str(error.strerror)) from error
    try:
        with disk_full_is_told(folder):
            yield temporary
            fsync_folder(temporary)
            try:
                temporary.rename(target)
            except OSError as error:
                raise _unusable(folder, str(error.strerror)) from error
            fsync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
