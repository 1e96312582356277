"""This machine: cores, memory, limits, and a compiler for the merge kernels."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from evomerge.checkup.finding import Finding, in_gib
from evomerge.hostmemory import host_free

_LEAST_MEMORY: Final = 2 * 2**30
_LEAST_SHM: Final = 2**30
_LEAST_FILES: Final = 4096
_LEAST_DISK: Final = 5 * 2**30
_CGROUP: Final = Path("/sys/fs/cgroup")


def this_machine() -> Iterator[Finding]:
    """Cores, memory, shared memory, open files, a C compiler."""
    yield cores(_CGROUP)
    yield memory(host_free(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), _memory_limit(_CGROUP))
    yield shared_memory(Path("/dev/shm"))
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield compiler(os.environ.get("CC", "cc"))


def cores(cgroup: Path) -> Finding:
    """The cores that this process may use, and what its control group leaves of them."""
    usable = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS")
    text = f"{usable} of {os.cpu_count()} ({platform.machine()})"
    text += f", OMP_NUM_THREADS={threads}" if threads else ""
    quota = _cpu_quota(cgroup)
    if quota is not None and quota < usable:
        return Finding(
            "machine",
            "cores",
            "warning",
            f"{text}; the control group allows {quota:g}",
            f"set cluster.workers to {max(1, int(quota))}, or ask for more cores",
        )
    return Finding("machine", "cores", "ok", text)


def _cpu_quota(cgroup: Path) -> float | None:
    """Cores that a control group allows; None when it does not say."""
    with suppress(OSError, ValueError):
        allowed, period = (cgroup / "cpu.max").read_text().split()
        return None if allowed == "max" else int(allowed) / int(period)
    return None


def _memory_limit(cgroup: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int((cgroup / "memory.max").read_text())
    return None


def memory(free: int, whole: int, limit: int | None) -> Finding:
    """Memory that can still be taken."""
    text = f"{in_gib(free)} of {in_gib(whole)} free"
    if limit is not None and limit < whole:
        text += f", the control group allows {in_gib(limit)}"
    if free < _LEAST_MEMORY:
        return Finding("machine", "memory", "warning", text, "free some: every worker keeps a model in memory")
    return Finding("machine", "memory", "ok", text)


def shared_memory(folder: Path) -> Finding:
    """Shared memory, which Ray and the local workers use."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return Finding("machine", str(folder), "warning", "not there", "mount a tmpfs there; Ray falls back to a disk")
    text = f"{in_gib(usage.free)} of {in_gib(usage.total)} free"
    if usage.total < _LEAST_SHM:
        return Finding("machine", str(folder), "warning", text, "start the container with --shm-size=8g, or --ipc=host")
    return Finding("machine", str(folder), "ok", text)


def open_files(limit: int) -> Finding:
    """How many files a process may have open; Ray has many."""
    if limit == resource.RLIM_INFINITY:
        return Finding("machine", "open files", "ok", "no limit")
    if limit < _LEAST_FILES:
        return Finding("machine", "open files", "warning", f"{limit} at most", "ulimit -n 65536 before the search")
    return Finding("machine", "open files", "ok", f"{limit} at most")


def compiler(name: str) -> Finding:
    """A C compiler, for merge kernels on CPUs."""
    found = shutil.which(name)
    if found is None:
        return Finding(
            "machine",
            "C compiler",
            "warning",
            f"no {name}: merges on CPUs run without compiled kernels, slower",
            "install gcc, or point CC to a compiler",
        )
    return Finding("machine", "C compiler", "ok", found)


def disk(name: str, folder: Path) -> Finding:
    """Free space where `folder` is, or will be."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    usage = shutil.disk_usage(there)
    text = f"{in_gib(usage.free)} of {in_gib(usage.total)} free in {folder}"
    if usage.free < _LEAST_DISK:
        return Finding("disk", name, "warning", text, "free some space: a full disk stops a search, resumably")
    return Finding("disk", name, "ok", text)
