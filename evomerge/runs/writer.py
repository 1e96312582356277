"""Who a process is, as other processes on this and on other machines can tell."""

from __future__ import annotations

import os
import signal
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Writer:
    """Who writes to a run directory.

    Attributes:
        pid: process id on its host.
        host: name of the machine.
        boot: identifies the host's present boot, empty where the system does not tell.
        started: the process's start time in clock ticks since boot, 0 where the system does not tell.
        token: unique for this hold of the lock.
        namespace: of its process ids (containers have their own), empty where the system does not tell.
    """

    pid: int
    host: str
    boot: str
    started: int
    token: str
    namespace: str = ""

    @classmethod
    def of_this_process(cls) -> Writer:
        """This process, with a fresh token."""
        pid = os.getpid()
        return cls(pid, socket.gethostname(), _boot(), _start_ticks(pid), uuid.uuid4().hex, _namespace())

    def lives(self, viewer: Writer) -> bool | None:
        """Whether the process lives; None where `viewer` cannot tell.

        A viewer can tell of processes under its own kernel whose ids it shares. An equal host name with another boot
        may be this machine before it was rebooted, or a second machine of that name: nobody can tell which.
        """
        if (self.host, self.boot, self.namespace) != (viewer.host, viewer.boot, viewer.namespace):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return self.started == _start_ticks(self.pid)

    def is_suspended(self) -> bool:
        """Whether it was stopped (Ctrl-Z, SIGSTOP) or is held by a debugger. Asked of processes of this host only."""
        return _state(self.pid) in {"T", "t"}

    def is_being_killed(self) -> bool:
        """Whether SIGKILL is on its way to it: on a busy machine that takes a moment. Asked of own processes only."""
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except OSError:
            return False
        masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
        return any(mask >> (signal.SIGKILL - 1) & 1 for mask in masks)


def _state(pid: int) -> str:
    """Field 3 of /proc/PID/stat; empty where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _start_ticks(pid: int) -> int:
    """Field 22 of /proc/PID/stat; a zombie counts as gone and gives -1."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return -1 if after_name[0] in {"Z", "X"} else int(after_name[19])
