"""The times that are promised when two drivers meet, with the real heartbeat and the real silence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evomerge.runs.lock import SILENCE_S
from evomerge.runs.records import Note
from evomerge.runs.store import RunStore
from evomerge.testing.store_suite import FILES

pytestmark = [pytest.mark.chaos, pytest.mark.kill]

_DRIVER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from evomerge.errors import RunLocked
from evomerge.runs.lock import RunLock
from evomerge.runs.records import Note
from evomerge.runs.store import RunStore
from evomerge.runs.writer import Writer
folder, host, kernel = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "locks"
me = Writer.of_this_process()
me = replace(me, host=host, boot=host) if host else me
started = time.monotonic()
try:
    store = RunStore(folder, RunLock(folder, me=me, kernel=kernel))
except RunLocked:
    print(f"refused {time.monotonic() - started:.2f}", flush=True)
    sys.exit(5)
print(f"opened {time.monotonic() - started:.2f}", flush=True)
for line in sys.stdin:
    store.append(Note(line.strip()))
    print("wrote", flush=True)
"""


class Driver:
    """A driver on `host` (this one if empty)."""

    def __init__(self, folder: Path, host: str, locks: str) -> None:
        command = [sys.executable, "-c", _DRIVER, str(folder), host, locks]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def says(self) -> tuple[str, float]:
        assert self.process.stdout is not None
        what, _, seconds = self.process.stdout.readline().strip().partition(" ")
        return what, float(seconds or 0)

    def end(self) -> None:
        self.process.communicate()


@pytest.mark.parametrize("locks", ["locks", "no-locks"])
@pytest.mark.parametrize(("first", "second"), [("", ""), ("a", "b")])
def test_refused_and_recovered_in_time(tmp_path: Path, locks: str, first: str, second: str) -> None:
    if first and locks == "locks":
        pytest.skip("two hosts under one kernel share its locks")
    run = tmp_path / "run"
    RunStore.create(run, FILES).close()
    holder = Driver(run, first, locks)
    assert holder.says()[0] == "opened"
    refused = Driver(run, second, locks)
    what, seconds = refused.says()
    assert (what, seconds < 5.0) == ("refused", True)
    print(f"\n{first or 'this host'}, {locks}: refused after {seconds:.2f} s")  # noqa: T201
    refused.end()
    os.kill(holder.process.pid, signal.SIGKILL)
    killed = time.monotonic()
    heir = Driver(run, second, locks)
    what, _ = heir.says()
    took = time.monotonic() - killed
    print(f"{first or 'this host'}, {locks}: recovered {took:.2f} s after the kill")  # noqa: T201
    assert what == "opened"
    assert took < (SILENCE_S + 2.0 if first else 5.0)  # 2 s: the heir's own start
    holder.end()
    heir.end()


def test_a_driver_that_sleeps_too_long_is_replaced_and_writes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    RunStore.create(run, FILES).close()
    sleeper = Driver(run, "a", "no-locks")
    assert sleeper.says()[0] == "opened"
    os.kill(sleeper.process.pid, signal.SIGSTOP)
    heir = Driver(run, "b", "no-locks")
    assert heir.says()[0] == "opened"
    assert heir.process.stdin is not None
    heir.process.stdin.write("heir\n")
    heir.process.stdin.flush()
    assert heir.says()[0] == "wrote"
    held = (run / "journal.jsonl").read_bytes()
    os.kill(sleeper.process.pid, signal.SIGCONT)
    sleeper.process.communicate("late\n")
    assert sleeper.process.returncode == 1  # RunLocked
    assert (run / "journal.jsonl").read_bytes() == held
    heir.end()
    assert [r.topic for r in RunStore.open(run, write=False).records() if isinstance(r, Note)] == ["heir"]
