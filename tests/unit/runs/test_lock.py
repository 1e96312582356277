"""Who may write: one process on this host, at once; another host's silence; and what the dead leave behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from evomerge.errors import RunLocked
from evomerge.runs import lock as lock_module
from evomerge.runs.lock import SILENCE_S, WRITER_FILE, RunLock, Writer, writer_of

_HOLDER = """
import sys, time
from pathlib import Path
from evomerge.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def _claim(folder: Path, writer: Writer, silent_s: float) -> None:
    """Write a claim whose heartbeat was `silent_s` ago."""
    path = folder / WRITER_FILE
    path.write_text(json.dumps(asdict(writer)))
    then = time.time() - silent_s
    os.utime(path, (then, then))


def test_a_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(RunLocked, match=rf"is held by process {os.getpid()} on "):
        RunLock(tmp_path)
    held = writer_of(tmp_path)
    assert held is not None
    assert held.pid == os.getpid()
    lock.release()
    lock.release()
    assert writer_of(tmp_path) is None
    RunLock(tmp_path).release()


@pytest.mark.kill
def test_a_second_process_is_refused_at_once_and_a_killed_one_is_forgotten_at_once(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    started = time.monotonic()
    with pytest.raises(RunLocked, match=f"is held by process {holder.pid} on {socket.gethostname()}"):
        RunLock(tmp_path)
    assert time.monotonic() - started < 3.0
    assert RunLocked.exit_code == 5
    assert writer_of(tmp_path) is not None
    holder.kill()  # not waited for: the lock must come free while the process is still being taken down
    RunLock(tmp_path).release()
    holder.communicate()


def test_a_crashed_writer_of_this_host_counts_as_gone(tmp_path: Path) -> None:
    me = Writer.of_this_process()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for stale in (replace(me, pid=gone.pid), replace(me, boot="another boot"), replace(me, started=me.started + 1)):
        _claim(tmp_path, stale, 0.0)
        assert stale.lives_here() is False
        assert writer_of(tmp_path) is None
        RunLock(tmp_path).release()


def test_a_zombie_counts_as_gone() -> None:
    me = Writer.of_this_process()
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 10.0
    stat = Path(f"/proc/{zombie.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    claim = replace(me, pid=zombie.pid, started=0)
    assert claim.lives_here() is False
    zombie.wait()


def test_another_host_is_believed_while_its_heart_beats(tmp_path: Path) -> None:
    there = Writer(1, "another-host", "b", 1, "t")
    _claim(tmp_path, there, SILENCE_S - 10)
    assert writer_of(tmp_path) == there
    with pytest.raises(RunLocked, match="is held by process 1 on another-host"):
        RunLock(tmp_path)
    _claim(tmp_path, there, SILENCE_S + 1)
    assert writer_of(tmp_path) is None
    lock = RunLock(tmp_path)
    assert writer_of(tmp_path) is not None
    lock.release()


def test_a_damaged_claim_does_not_lock_anybody_out(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"pid": 1}'):
        (tmp_path / WRITER_FILE).write_text(text)
        assert writer_of(tmp_path) is None
        RunLock(tmp_path).release()


def test_the_heart_beats_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_HEARTBEAT_S", 0.02)
    before = threading.active_count()
    lock = RunLock(tmp_path)
    os.utime(tmp_path / WRITER_FILE, (1.0, 1.0))
    deadline = time.monotonic() + 5.0
    while (tmp_path / WRITER_FILE).stat().st_mtime == 1.0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / WRITER_FILE).stat().st_mtime > 1.0
    lock.release()
    assert threading.active_count() == before


def test_a_writer_that_was_suspended_notices_that_it_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "_HEARTBEAT_S", 1e6)
    lock = RunLock(tmp_path)
    lock.check()
    monkeypatch.setattr(lock_module, "SILENCE_S", 0.0)
    lock.check()  # nobody took over: it goes on
    _claim(tmp_path, Writer(1, "another-host", "b", 1, "t"), 0.0)
    with pytest.raises(RunLocked, match="is held by process 1 on another-host"):
        lock.check()
    lock.release()
    assert (tmp_path / WRITER_FILE).exists()  # the other one's claim is not ours to remove
