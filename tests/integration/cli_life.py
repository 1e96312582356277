"""One life of the `evomerge` command, forked by a warm server: as killable as a fresh process, far sooner up."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["evomerge.api", "evomerge.evaluation.lm_eval", "lm_eval.tasks", "transformers"])


def _main(arguments: tuple[str, ...], log: str) -> None:
    """The process: its own session, its output in a file, the command line."""
    os.setsid()
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    from evomerge.cli.main import run

    sys.exit(run(arguments))


class Life:
    """A running command; its output goes to `log`."""

    def __init__(self, *arguments: object, log: Path) -> None:
        self.log = log
        self._process = _SERVER.Process(target=_main, args=(tuple(str(a) for a in arguments), str(log)))
        self._process.start()
        self.pid = self._process.pid

    def until(self, condition: Callable[[], object], limit_s: float = 60) -> bool:
        """Wait until the condition holds; False when the process ended before."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if condition():
                return True
            if not self._process.is_alive():
                return bool(condition())
            time.sleep(0.002)
        raise AssertionError(f"nothing happened for {limit_s} s: {self.log.read_text()}")

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the process or to its process group."""
        (os.killpg if group else os.kill)(self.pid, number)

    def end(self, limit_s: float = 60) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        self._process.join(limit_s)
        code = self._process.exitcode
        if code is None:
            self.signal(signal.SIGKILL, group=True)
            self._process.join()
            raise AssertionError(f"still running after {limit_s} s: {self.log.read_text()}")
        return code

    @property
    def alive(self) -> bool:
        return self._process.is_alive()


def journal(run: Path) -> bytes:
    """The bytes of a run's journal; none before there is one."""
    try:
        return (run / "journal.jsonl").read_bytes()
    except FileNotFoundError:
        return b""


def recorded(run: Path) -> int:
    """How many outcomes the journal holds."""
    return sum(journal(run).count(tag) for tag in (b'"t":"evaluated"', b'"t":"failed"'))


def begun(run: Path) -> int:
    """How many evaluations the workers of all lives began."""
    return sum(log.read_text().count(" begins ") for log in (run / "logs").glob("*.log"))


def workers_of(driver: int) -> list[int]:
    """Ids of the worker processes that were started by `driver`, which stands in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"evomerge.execution.child" in line and str(driver).encode() in line:
                found.append(int(entry.name))
    return found
