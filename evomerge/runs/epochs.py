"""Epochs of a run directory: numbered claims, of which every number is given out once.

A claim is the file `.epochs/000007.json` that names its holder. It comes into being with all its content in one step
(`link`, which local and network file systems carry out atomically), and is never removed: so whoever holds number N is
overtaken exactly when number N + 1 exists, whatever any clock says. The file's modification time is its holder's
heartbeat, or one of two days in the year 2000 once the holder has given it back: that needs no space on a full disk.

A holder that must replace the journal prepares its copy as `.epochs/000007.copy`, a name that it uses once. Its
successors make a folder of that name: from then on it can neither prepare the copy nor, if it was suspended or its
request was on its way, move it into the journal's place, since no folder replaces a file.
"""

from __future__ import annotations

import errno
import json
import os
import re
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final, NamedTuple

from evomerge.failpoints import reach
from evomerge.files import fsync_folder
from evomerge.runs.writer import Writer

FOLDER: Final = ".epochs"

_NAME: Final = re.compile(r"(\d{6,})\.json")
_GIVEN_BACK: Final = 946_728_000.0  # noon of 1 January 2000, in every time zone a day that no heartbeat has
_ABANDONED: Final = _GIVEN_BACK + 86_400.0
_DAY: Final = 43_200.0
BARRED: Final = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""What a holder meets that a later one has barred."""
_NO_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


class Claim(NamedTuple):
    """A claim as it was found.

    Attributes:
        number: of the epoch, from 1.
        writer: its holder, None where the file does not tell.
        touched: unix time of its last heartbeat, by the clock of the file system.
    """

    number: int
    writer: Writer | None
    touched: float

    @property
    def given_back(self) -> bool:
        """Whether the holder is done, in good order: no byte of it can still arrive."""
        return abs(self.touched - _GIVEN_BACK) < _DAY

    @property
    def abandoned(self) -> bool:
        """Whether the holder is done, but had not made sure that earlier holders write no more."""
        return abs(self.touched - _ABANDONED) < _DAY


def _name(number: int) -> str:
    return f"{number:06d}.json"


def _copy_name(number: int) -> str:
    return f"{number:06d}.copy"


def latest(epochs: Path) -> Claim | None:
    """The claim with the highest number, None before the first."""
    try:
        found = [int(match[1]) for path in epochs.iterdir() if (match := _NAME.fullmatch(path.name))]
    except FileNotFoundError:
        return None
    return _read(epochs, max(found)) if found else None


def _read(epochs: Path, number: int) -> Claim:
    # opened, not only looked up: that is when a network file system asks its server for the present time of the file
    with (epochs / _name(number)).open("rb") as file:
        touched = os.fstat(file.fileno()).st_mtime
        try:
            writer = Writer(**json.loads(file.read()))
        except (ValueError, TypeError):
            writer = None
    return Claim(number, writer, touched)


def draft(epochs: Path, writer: Writer) -> Path:
    """A file that can become a claim; its time is that of the file system's clock."""
    path = epochs / f".{writer.token}.tmp"
    with path.open("wb") as file:
        file.write(json.dumps(asdict(writer)).encode())
        file.flush()
        os.fsync(file.fileno())
    return path


def time_of(path: Path) -> float:
    """The file system's present time in unix seconds, told through `path`, which is touched."""
    os.utime(path)
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime


def claim(epochs: Path, number: int, drafted: Path) -> bool:
    """Try to become the holder of `number`; False when somebody else is. At most one caller ever gets True."""
    path = epochs / _name(number)
    try:
        os.link(drafted, path)
    except FileExistsError:
        # a network file system may have carried out a request whose first answer was lost
        return drafted.stat().st_nlink > 1
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _claim_without_links(path, drafted)
    return True


def _claim_without_links(path: Path, drafted: Path) -> bool:
    """The same where files have one name only: created exclusively, then filled; until then it has no holder."""
    content = drafted.read_bytes()
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def is_latest(epochs: Path, number: int) -> bool:
    """Whether nobody has claimed the number behind `number`.

    Raises:
        OSError: when the file system does not answer.
    """
    # the folder is opened, so that a network file system does not answer from what it knew before
    fd = os.open(epochs, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _exists(number, fd) and not _exists(number + 1, fd)
    finally:
        os.close(fd)


def bar(epochs: Path, number: int) -> None:
    """Make sure that no holder before `number` can replace the journal any more, however late it tries.

    Raises:
        OSError: when the file system takes no folder.
    """
    for earlier in range(number - 1, 0, -1):
        with suppress(FileNotFoundError):
            if _read(epochs, earlier).given_back:
                return  # whoever gives back in order has barred those before, or had nobody to bar
        _bar_one(epochs / _copy_name(earlier))


def _bar_one(copy: Path) -> None:
    while not copy.is_dir():
        with suppress(FileExistsError):
            copy.mkdir()
            return
        with suppress(IsADirectoryError):
            copy.unlink(missing_ok=True)


def replace_by_copy(epochs: Path, number: int, file: Path) -> None:
    """Put a copy of `file` in its place, unless a later holder has barred this one.

    Raises:
        FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError: when one has.
        OSError: when there is no space, or the file system does not answer.
    """
    copy = epochs / _copy_name(number)
    with ExitStack() as undo:
        undo.callback(_forget, copy)
        with copy.open("xb") as out:
            out.write(file.read_bytes())
            out.flush()
            os.fsync(out.fileno())
        reach("before-takeover")
        copy.replace(file)
        undo.pop_all()
    fsync_folder(file.parent)


def _forget(copy: Path) -> None:
    """Remove a copy that was not finished, so that it takes no space; what bars it stays."""
    with suppress(OSError):
        copy.unlink()


def _exists(number: int, folder: int) -> bool:
    try:
        os.stat(_name(number), dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def beat(epochs: Path, number: int) -> None:
    """A sign of life."""
    os.utime(epochs / _name(number))


def give_back(epochs: Path, number: int, *, in_order: bool) -> None:
    """Mark a claim as done; where that fails its holder counts as dead once it is, or is silent."""
    moment = _GIVEN_BACK if in_order else _ABANDONED
    with suppress(OSError):
        os.utime(epochs / _name(number), (moment, moment))
