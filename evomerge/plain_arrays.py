"""Archives of arrays from strangers: what they would unpack to is known, and bounded, before anything is."""

from __future__ import annotations

import math
import zipfile
from typing import IO, Final

import numpy as np

MOST_BYTES: Final = 1 << 30
MOST_MEMBERS: Final = 64


def check_npz(file: IO[bytes]) -> None:
    """Refuse an npz whose arrays are larger than its members, or all together than `MOST_BYTES`; nothing is unpacked.

    Args:
        file: open for reading, at its beginning; its position is the same afterwards. What is no zip is passed over.

    Raises:
        ValueError: saying which member.
        zipfile.BadZipFile: for a damaged archive.
    """
    at = file.tell()
    is_zip = zipfile.is_zipfile(file)
    file.seek(at)
    if not is_zip:
        return
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        total = sum(m.file_size for m in members)
        if len(members) > MOST_MEMBERS or total > MOST_BYTES:
            raise ValueError(f"{len(members)} members of {total} bytes, at most {MOST_MEMBERS} of {MOST_BYTES}")
        for member in members:
            _check_member(archive, member)
    file.seek(at)


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    with archive.open(member) as f:
        version = np.lib.format.read_magic(f)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(f)
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename} of {member.file_size} bytes claims the shape {shape}")
