"""One writer per run directory.

On one host the kernel keeps the lock (`flock` on `.lock`) and gives it up when the holder dies, however it dies.
Between hosts, where a shared file system may not carry that lock, a heartbeat decides: the holder touches
`.writer.json` every few seconds, and a holder on another host that has been silent for 30 s is taken for dead. The
clock that counts is the file system's own, so that hosts need not agree on the time.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import uuid
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, final

from filelock import FileLock, Timeout

from evomerge.errors import RunLocked
from evomerge.files import disk_full_is_told

LOCK_FILE: Final = ".lock"
WRITER_FILE: Final = ".writer.json"
SILENCE_S: Final = 30.0
_HEARTBEAT_S: Final = 5.0
_DYING_S: Final = 5.0


@dataclass(frozen=True)
class Writer:
    """Who writes to a run directory.

    Attributes:
        pid: process id on its host.
        host: name of the machine.
        boot: identifies the host's present boot, empty where the system does not tell.
        started: the process's start time in clock ticks since boot, 0 where the system does not tell.
        token: unique for this hold of the lock.
    """

    pid: int
    host: str
    boot: str
    started: int
    token: str

    @classmethod
    def of_this_process(cls) -> Writer:
        """This process, with a fresh token."""
        pid = os.getpid()
        return cls(pid, socket.gethostname(), _boot(), _start_ticks(pid), uuid.uuid4().hex)

    def lives_here(self) -> bool | None:
        """Whether the process lives, None when it belongs to another host."""
        if self.host != socket.gethostname():
            return None
        if self.boot != _boot():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return self.started == _start_ticks(self.pid)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_ticks(pid: int) -> int:
    """Field 22 of /proc/PID/stat; a zombie counts as gone and gives -1."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return -1 if after_name[0] in {"Z", "X"} else int(after_name[19])


def _is_being_killed(pid: int) -> bool:
    """Whether SIGKILL is on its way to a process of this host: on a busy machine it takes a moment to arrive."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (signal.SIGKILL - 1) & 1 for mask in masks)


def _read(folder: Path) -> Writer | None:
    try:
        return Writer(**json.loads((folder / WRITER_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _silent_s(folder: Path) -> float:
    """Seconds since the last heartbeat, by the file system's clock; infinite without one."""
    probe = folder / f".clock.{os.getpid()}.{threading.get_ident()}"
    try:
        probe.touch()
        return probe.stat().st_mtime - (folder / WRITER_FILE).stat().st_mtime
    except FileNotFoundError:
        return float("inf")
    finally:
        probe.unlink(missing_ok=True)


def writer_of(folder: Path) -> Writer | None:
    """Who writes to `folder` now, as far as can be told without disturbing the lock; None when nobody does."""
    writer = _read(folder)
    if writer is None:
        return None
    lives = writer.lives_here()
    if lives is None:
        try:
            lives = time.time() - (folder / WRITER_FILE).stat().st_mtime < SILENCE_S
        except FileNotFoundError:
            return None
    return writer if lives else None


def _locked(folder: Path, holder: Writer | None) -> RunLocked:
    who = f"process {holder.pid} on {holder.host}" if holder else "another process"
    return RunLocked(
        "Another process writes to this run directory.",
        got=f"{folder} is held by {who}",
        allowed="one writer at a time",
        fix=f"wait for it or stop it (kill -TERM {holder.pid if holder else 'PID'}), then try again; "
        f"a writer on another host that died counts as gone after {SILENCE_S:.0f} s.",
    )


@final
class RunLock:
    """Exclusive right to write to a run directory, from construction to `release`.

    Args:
        folder: the run directory; it must exist.

    Raises:
        RunLocked: when another process holds it.
        DiskFull: when the claim cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / LOCK_FILE, thread_local=False)
        self._acquire()
        with ExitStack() as undo:
            undo.callback(self._lock.release)
            holder = _read(folder)
            if holder is not None and holder.lives_here() is None and _silent_s(folder) < SILENCE_S:
                raise _locked(folder, holder)
            self._me = Writer.of_this_process()
            with disk_full_is_told(folder / WRITER_FILE):
                (folder / WRITER_FILE).write_text(json.dumps(asdict(self._me)))
            undo.pop_all()
        self._stop = threading.Event()
        self._last_beat = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name="evomerge-heartbeat", daemon=True)
        self._thread.start()

    def _acquire(self) -> None:
        """Take the kernel's lock; a holder that is dying (just killed) gets a moment to be gone."""
        deadline = time.monotonic() + _DYING_S
        while True:
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                holder = _read(self._folder)
                lives = None if holder is None else holder.lives_here()
                dying = holder is not None and (lives is False or (lives is True and _is_being_killed(holder.pid)))
                if not dying or time.monotonic() > deadline:
                    raise _locked(self._folder, holder) from error
                time.sleep(0.05)
            else:
                return

    def _beat(self) -> None:
        while not self._stop.wait(_HEARTBEAT_S):
            with suppress(OSError):  # a hiccup of the file system; `check` notices when it lasts
                self._touch()

    def _touch(self) -> None:
        if _read(self._folder) == self._me:
            os.utime(self._folder / WRITER_FILE)
            self._last_beat = time.monotonic()

    def check(self) -> None:
        """Make sure that the lock is still ours; free of cost while the heart beats.

        Raises:
            RunLocked: when this process was silent for so long (suspended, cut off) that another one took over.
        """
        if time.monotonic() - self._last_beat > SILENCE_S / 2:
            if _read(self._folder) != self._me:
                raise _locked(self._folder, _read(self._folder))
            self._touch()

    def moved_to(self, folder: Path) -> None:
        """The locked folder was renamed; the lock stays held all along."""
        self._folder = folder

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        if _read(self._folder) == self._me:
            (self._folder / WRITER_FILE).unlink(missing_ok=True)
        self._lock.release()
