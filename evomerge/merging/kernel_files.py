"""Shared objects on a disk that several machines may share: found by what they were made for, trusted with care.

A shared object that is loaded is code that runs. So the folder, and the file, must belong to this user or root and be
writable by nobody else; and the file's name ends in the sha256 of its bytes, so that one that was cut short or altered
is made anew. The name begins with a digest of the source, the compiler's flags, the processor, the system and its C
library: a machine never finds what another kind of machine made.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from evomerge.digest import digest_file
from evomerge.ownership import why_shared

_DIGITS: Final = 32


def processor() -> str:
    """What `-march=native` looks at, as text."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _c_library() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, AttributeError, OSError):
        return ""


def machine_key(parts: Sequence[str]) -> str:
    """A digest of what something is compiled from, and of the machine that it is compiled for."""
    own = (platform.machine(), platform.system(), _c_library(), processor())
    return hashlib.sha256(chr(0).join((*parts, *own)).encode()).hexdigest()[:_DIGITS]


def find(folder: Path, key: str) -> Path | None:
    """A sound shared object of this key; None where there is none. The folder was opened. Raises OSError."""
    for path in sorted(folder.glob(f"kernel-{key}-*.so")):
        mine = why_shared(path, follow=False) is None and path.is_file()
        if mine and path.name == _name(path, key):
            return path
    return None


def _name(file: Path, key: str) -> str:
    return f"kernel-{key}-{digest_file(file)[:_DIGITS]}.so"


def keep(made: Path, folder: Path, key: str) -> Path:
    """Give a shared object that was just made its name, whatever stands there. Raises OSError."""
    made.chmod(0o700)
    library = folder / _name(made, key)
    made.replace(library)
    return library
