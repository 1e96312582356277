"""Data files that a task names: which of them datasets may read, looked at before it opens any.

The library takes names for patterns, unpacks archives, and asks Arrow to read whatever it finds. A file is read where
it is named in full, lies in a folder of the suite, and holds plain data of a size and depth that the readers survive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

MOST_DATA_BYTES: Final = 4 << 30
MOST_DEPTH: Final = 256
"""Of lists and objects in a line of data."""
MOST_LINE: Final = 1 << 28
_MAGIC: Final = "*?["
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')
_PACKED: Final = (
    *(b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"),
    *(b"\x04\x22\x4d\x18", b"7z\xbc\xaf", b"Rar!", b"\x80\x04", b"\x80\x05"),
)
"""How archives and pickles begin; datasets unpacks the former by itself."""


def names_files(config: Mapping[str, Any]) -> bool:
    """Whether files are named; datasets would look for some in the working directory."""
    settings = config.get("dataset_kwargs")
    return isinstance(settings, Mapping) and bool(settings.get("data_files"))


def relative_files(member: Mapping[str, Any]) -> list[str]:
    """Files that would be looked for in the working directory: lm-eval takes a group's members as they are."""
    settings = member.get("dataset_kwargs")
    waiting = [settings.get("data_files")] if isinstance(settings, Mapping) else []
    found = []
    while waiting:
        files = waiting.pop()
        if isinstance(files, Mapping):
            waiting += files.values()
        elif isinstance(files, list):
            waiting += files
        elif isinstance(files, str) and not files.startswith("/"):
            found.append(files)
    return found


def odd_data_files(files: Any, at: Path, folders: Sequence[Path]) -> list[str]:
    """Why files of data are not read, one reason each.

    Args:
        files: `data_files` of a task: a name, or lists and mappings of names.
        at: the task's file.
        folders: of the suite; the files must lie in one of them.
    """
    if files is None:
        return []
    if isinstance(files, Mapping):
        return [why for value in files.values() for why in odd_data_files(value, at, folders)]
    if isinstance(files, list):
        return [why for value in files for why in odd_data_files(value, at, folders)]
    if not isinstance(files, str) or "://" in files or "::" in files or "\0" in files:
        return [f"{files!r} is no file"[:200]]
    if any(c in files for c in _MAGIC):  # datasets would look for files of such names, and through links
        return [f"{files!r} is a pattern: name the files"[:200]]
    path = (at.parent / files).resolve()
    if not any(path.is_relative_to(f.resolve()) for f in (*folders, at.parent)):
        return [f"{files!r} lies outside the folders of the suite"]
    if not path.exists():
        return []  # lm-eval says that it is not there
    return _odd_file(path)


def _odd_file(path: Path) -> list[str]:
    """Why a data file is not read: no regular file, enormous, or an archive that could unpack to anything."""
    if not path.is_file():
        return [f"{path} is no regular file"]
    if path.stat().st_size > MOST_DATA_BYTES:
        return [f"{path} has more than {MOST_DATA_BYTES} bytes"]
    with path.open("rb") as f:
        head = f.read(8)
    if head.startswith(_PACKED):
        return [f"{path} is packed"]
    return _unpacked_size(path) if head.startswith(b"PAR1") else _depth(path)


def _depth(path: Path) -> list[str]:
    """Arrow's reader of JSON recurses without a limit of its own, and takes the whole process with it."""
    with path.open("rb") as f:
        for number, line in enumerate(iter(lambda: f.readline(MOST_LINE), b""), start=1):
            if len(line) == MOST_LINE:
                return [f"{path} has a line of over {MOST_LINE} bytes"]
            if line.count(b"[") + line.count(b"{") > MOST_DEPTH and _nesting(line) > MOST_DEPTH:
                return [f"{path} is nested more than {MOST_DEPTH} deep in line {number}"]
    return []


def _nesting(line: bytes) -> int:
    steps = np.frombuffer(_STRING.sub(b"", line), dtype=np.uint8)
    up = np.isin(steps, np.frombuffer(b"[{", dtype=np.uint8))
    down = np.isin(steps, np.frombuffer(b"]}", dtype=np.uint8))
    return int(np.cumsum(up.astype(np.int64) - down).max(initial=0))


def _unpacked_size(path: Path) -> list[str]:
    """A parquet file says in its footer what it unpacks to."""
    import pyarrow
    from pyarrow import parquet

    try:
        footer = parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError) as error:
        return [f"{path} is no parquet file ({str(error).splitlines()[0]})"]
    size = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    rows = footer.num_rows
    return [f"{path} unpacks to {size} bytes in {rows} rows"] if size > MOST_DATA_BYTES or rows > 50_000_000 else []
