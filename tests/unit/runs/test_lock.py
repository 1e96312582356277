"""Who may write: one process on this host, at once; another host's silence; and what the dead leave behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.errors import RunLocked
from evomerge.runs import epochs
from evomerge.runs import lock as lock_module
from evomerge.runs.lock import LOCK_FILE, SILENCE_S, RunLock, writer_of
from evomerge.runs.writer import Writer

_HOLDER = """
import sys, time
from pathlib import Path
from evomerge.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def _claim(folder: Path, writer: Writer, silent_s: float) -> int:
    """The claim of another process, whose last heartbeat was `silent_s` ago; its number."""
    home = folder / epochs.FOLDER
    home.mkdir(exist_ok=True)
    before = epochs.latest(home)
    number = 1 if before is None else before.number + 1
    drafted = epochs.draft(home, writer)
    assert epochs.claim(home, number, drafted)
    drafted.unlink()
    then = time.time() - silent_s
    os.utime(home / f"{number:06d}.json", (then, then))
    return number


THERE = Writer(1, "another-host", "b", 1, "t", "n")


def test_a_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    assert (lock.epoch, lock.in_order) == (1, True)
    with pytest.raises(RunLocked, match=rf"is held by process {os.getpid()} on "):
        RunLock(tmp_path)
    held = writer_of(tmp_path)
    assert held is not None
    assert held.pid == os.getpid()
    lock.release()
    lock.release()
    assert writer_of(tmp_path) is None
    again = RunLock(tmp_path)
    assert (again.epoch, again.in_order) == (2, True)
    again.release()
    assert not list((tmp_path / epochs.FOLDER).glob(".*"))


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
    started = time.monotonic()
    lock = RunLock(tmp_path)
    assert time.monotonic() - started < 5.0
    assert (lock.epoch, lock.in_order) == (2, False)
    lock.release()
    holder.communicate()


def test_a_crashed_writer_of_this_host_counts_as_gone(tmp_path: Path) -> None:
    me = Writer.of_this_process()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for stale in (replace(me, pid=gone.pid), replace(me, started=me.started + 1)):
        for kernel in (True, False):
            _claim(tmp_path, stale, 0.0)
            assert stale.lives(me) is False
            assert writer_of(tmp_path) is None
            started = time.monotonic()
            lock = RunLock(tmp_path, kernel=kernel)
            assert time.monotonic() - started < 1.0
            assert not lock.in_order
            lock.release()


def test_a_machine_that_only_looks_alike_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    me = Writer.of_this_process()
    for other in (replace(me, boot="another boot"), replace(me, host="elsewhere"), replace(me, namespace="pid:[1]")):
        assert other.lives(me) is None
        _claim(tmp_path, other, SILENCE_S + 1)
        assert writer_of(tmp_path) is None
        RunLock(tmp_path).release()


def test_a_zombie_counts_as_gone() -> None:
    me = Writer.of_this_process()
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 10.0
    stat = Path(f"/proc/{zombie.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert replace(me, pid=zombie.pid, started=0).lives(me) is False
    zombie.wait()


def test_a_live_process_of_this_host_holds_without_the_kernels_lock(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, kernel=False)
    with pytest.raises(RunLocked, match=rf"is held by process {os.getpid()} on "):
        RunLock(tmp_path, kernel=False)
    lock.release()


def test_another_host_is_believed_while_its_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = _claim(tmp_path, THERE, SILENCE_S - 10)
    assert writer_of(tmp_path) == THERE
    threading.Timer(0.2, epochs.beat, (tmp_path / epochs.FOLDER, number)).start()
    started = time.monotonic()
    with pytest.raises(RunLocked, match="is held by process 1 on another-host"):
        RunLock(tmp_path)
    assert time.monotonic() - started < 2.0
    monkeypatch.setattr(lock_module, "SILENCE_S", 0.5)
    started = time.monotonic()
    lock = RunLock(tmp_path)  # waits for the rest of the silence
    assert time.monotonic() - started < 2.0
    assert not lock.in_order
    lock.release()


@pytest.mark.kill
def test_a_suspended_holder_is_told_with_what_wakes_it(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        holder.send_signal(signal.SIGSTOP)
        os.waitpid(holder.pid, os.WUNTRACED)  # it stands still
        said = rf"suspended process[\s\S]*process {holder.pid} on [\s\S]*-CONT {holder.pid}[\s\S]*-KILL {holder.pid}"
        with pytest.raises(RunLocked, match=said):
            RunLock(tmp_path)
        holder.send_signal(signal.SIGCONT)
        os.waitpid(holder.pid, os.WCONTINUED)
        with pytest.raises(RunLocked, match="Another process writes"):
            RunLock(tmp_path)
    finally:
        holder.kill()
        holder.communicate()


def test_a_kernels_lock_of_a_silent_host_is_passed_over(tmp_path: Path) -> None:
    """A server may keep the lock of a client that is gone."""
    kept = lock_module.KernelLock(tmp_path / LOCK_FILE)
    kept.attempt()
    _claim(tmp_path, THERE, SILENCE_S + 1)
    lock = RunLock(tmp_path)
    assert lock.epoch == 2
    lock.release()
    kept.release()


def test_a_kernels_lock_without_claim_gets_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_DYING_S", 0.2)
    kept = lock_module.KernelLock(tmp_path / LOCK_FILE)
    kept.attempt()
    with pytest.raises(RunLocked, match="is held by another process"):
        RunLock(tmp_path)
    kept.release()
    RunLock(tmp_path).release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_claim_that_cannot_be_read_is_judged_by_its_heartbeat(tmp_path: Path, text: str) -> None:
    home = tmp_path / epochs.FOLDER
    number = _claim(tmp_path, THERE, 0.0)
    path = home / f"{number:06d}.json"
    path.write_text(text)
    assert writer_of(tmp_path) is None
    os.utime(path, (time.time() - SILENCE_S - 1,) * 2)
    lock = RunLock(tmp_path)
    assert lock.epoch == number + 1
    lock.release()


def test_claims_without_hard_links_are_exclusive_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    lock = RunLock(tmp_path)
    assert writer_of(tmp_path) == Writer.of_this_process().__class__(**vars(lock._me))
    drafted = epochs.draft(tmp_path / epochs.FOLDER, THERE)
    assert not epochs.claim(tmp_path / epochs.FOLDER, 1, drafted)
    drafted.unlink()
    lock.release()


def test_a_claim_whose_answer_was_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    lock = RunLock(tmp_path)
    assert lock.epoch == 1
    lock.check()
    lock.release()


def test_the_heart_beats_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_HEARTBEAT_S", 0.02)
    before = threading.active_count()
    lock = RunLock(tmp_path)
    path = tmp_path / epochs.FOLDER / "000001.json"
    os.utime(path, (1.0, 1.0))
    deadline = time.monotonic() + 5.0
    while path.stat().st_mtime == 1.0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > 1.0
    lock.release()
    assert threading.active_count() == before


def test_a_holder_notices_that_it_was_replaced(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.check()
    _claim(tmp_path, THERE, 0.0)
    with pytest.raises(RunLocked, match="is held by process 1 on another-host"):
        lock.check()
    lock.release()
    assert writer_of(tmp_path) == THERE  # the other one's claim is not ours to give back


def test_a_run_whose_claims_were_removed_is_no_longer_ours(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    (tmp_path / epochs.FOLDER / "000001.json").unlink()
    with pytest.raises(RunLocked, match="is held by another process"):
        lock.check()
    lock.release()
