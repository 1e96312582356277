"""The folder that runs go to: what kind of file system it is, and whether it keeps what the run directory needs."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from evomerge.checkup.finding import Finding

_NETWORK: Final = {"nfs", "nfs4", "lustre", "beegfs", "gpfs", "cifs", "smb3", "ceph", "9p", "glusterfs", "afs"}
_SHARED_BY_FUSE: Final = "fuse."
_SKEW_S: Final = 2.0
_LOCK_FIX: Final = "mount the file system with locks, or start one driver"


def kind_of(folder: Path, mounts: str) -> str:
    """The kind of the file system that holds `folder`.

    Args:
        folder: an absolute path that exists.
        mounts: the text of /proc/self/mounts.
    """
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        cells = line.split()
        if len(cells) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), cells[1])
        inside = folder == Path(point) or Path(point) in folder.parents
        if inside and len(point) >= len(best):
            best, kind = point, cells[2]
    return kind


def run_folder(folder: Path) -> Iterator[Finding]:
    """What the file system of `folder` promises; a temporary folder in it is made and removed."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir()).resolve()
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        mounts = ""
    kind = kind_of(there, mounts)
    is_network = kind in _NETWORK or kind.startswith(_SHARED_BY_FUSE)
    where = "on a network: other nodes may see it" if is_network else "local: other nodes do not see it"
    yield Finding("run folder", "file system", "ok", f"{kind}, {where} ({there})")
    try:
        with tempfile.TemporaryDirectory(prefix=".evomerge-doctor-", dir=there) as made:
            yield from _promises(Path(made))
    except OSError as error:
        yield Finding(
            "run folder",
            "writing",
            "missing",
            f"{there}: {error.strerror}",
            "choose a folder that this user may write to, with --run-dir",
        )


def _promises(folder: Path) -> Iterator[Finding]:
    probe, other = folder / "a", folder / "b"
    before = time.time()
    probe.write_text("new")
    stamp, after = probe.stat().st_mtime, time.time()
    other.write_text("old")
    probe.replace(other)
    if other.read_text() == "new" and not probe.exists():
        yield Finding("run folder", "renaming", "ok", "replaces files in one step")
    else:
        yield Finding("run folder", "renaming", "missing", "leaves the old file", "put runs on another file system")
    yield locking(other)
    yield clock(stamp, before, after)


def locking(path: Path) -> Finding:
    """Whether `flock` refuses a second holder."""
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding("run folder", "locking", "ok", "flock refuses a second writer")
        text = "flock lets two writers in; runs are guarded by epochs and a heartbeat alone"
        return Finding(
            "run folder", "locking", "warning", text, "mount the file system with locks, or start one driver"
        )
    except OSError as error:
        text = f"no flock ({error.strerror}); runs are guarded by epochs and a heartbeat alone"
        return Finding(
            "run folder", "locking", "warning", text, "mount the file system with locks, or start one driver"
        )
    finally:
        os.close(first)
        os.close(second)


def clock(stamp: float, before: float, after: float) -> Finding:
    """Whether the clock of the file system agrees with ours.

    Args:
        stamp: unix time that the file system gave a file.
        before: our time just before the file was written.
        after: our time just after.
    """
    skew = stamp - after if stamp > after else min(0.0, stamp - before)
    if abs(skew) > _SKEW_S:
        text = f"the file system's clock differs by {skew:+.1f} s"
        return Finding("run folder", "clock", "warning", text, "set the clocks of nodes and servers by NTP")
    return Finding("run folder", "clock", "ok", "the file system's clock agrees")
