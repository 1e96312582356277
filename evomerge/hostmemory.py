"""Memory that this process may still take, on this machine or in its control group."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
_GROUPS: Final = (Path("/sys/fs/cgroup"),)


def host_free() -> int:
    """Bytes of memory that this process may still take: what the system has available, or its control group allows."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, StopIteration):
        line = next(entry for entry in _MEMINFO.read_text().splitlines() if entry.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
    for group in _GROUPS:
        with suppress(OSError, ValueError, StopIteration):
            limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
            stat = (group / "memory.stat").read_text().splitlines()
            cached = next(int(entry.split()[1]) for entry in stat if entry.startswith("file "))
            free = min(free, max(0, limit - used + cached))
    return free
