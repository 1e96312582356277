"""Folders that nobody else writes to: what is loaded from them as code, or believed without being read again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_FOREIGN = stat.S_IWGRP | stat.S_IWOTH


def why_shared(path: Path, *, follow: bool = True) -> str | None:
    """Why somebody else may have written a file or folder; None when only this user, or root, can have.

    Args:
        path: exists.
        follow: whether a link is followed; a link that is not is nobody's.

    Raises:
        OSError: when it cannot be looked at.
    """
    found = path.stat() if follow else path.lstat()
    if found.st_uid not in (os.geteuid(), 0):
        return f"{path} belongs to user {found.st_uid}, and this is user {os.geteuid()}"
    if stat.S_ISLNK(found.st_mode):
        return f"{path} is a link"
    if found.st_mode & _FOREIGN:
        return f"{path} may be written by others (mode {stat.S_IMODE(found.st_mode):03o})"
    return None


def private_folder(path: Path) -> str | None:
    """Make a folder that is this user's alone, if it is not there; why somebody else may write to it, or None.

    Raises:
        OSError: when it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    if not path.is_dir():
        return f"{path} is no folder"
    return why_shared(path)
