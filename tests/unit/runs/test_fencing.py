"""Two can never both write: every interleaving of claims, hosts that are suspended, files that were replaced."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import RunLocked, StoreError
from evomerge.runs import epochs
from evomerge.runs import lock as lock_module
from evomerge.runs import store as store_module
from evomerge.runs.lock import RunLock
from evomerge.runs.records import Note
from evomerge.runs.store import JOURNAL, RunStore
from evomerge.runs.writer import Writer
from evomerge.testing.store_suite import FILES


def _host(name: str) -> Writer:
    """A process of another machine."""
    return replace(Writer.of_this_process(), host=name, boot=name, token=f"token-of-{name}")


def _open(folder: Path, host: str) -> RunStore:
    """What a driver on `host` does to write, on a file system that has no locks."""
    lock = RunLock(folder, me=_host(host), kernel=False)
    try:
        return RunStore(folder, lock)
    except BaseException:
        lock.release()
        raise


def _topics(folder: Path) -> list[str]:
    return [r.topic for r in RunStore.open(folder, write=False).records() if isinstance(r, Note)]


# -- the claims' steps, in every order --------------------------------------------------------------------------------

STEPS = ("look", "judge", "claim", "verify")


def _claimant(epochs_: Path, drafted: Path, *, kind: str) -> Iterator[str]:
    """One claimant's steps on the real functions, stopping before each: what it believes at the end is its last word.

    The judgement is left out on purpose: every claimant thinks that the holder before is gone, as if all clocks and
    heartbeats were wrong at once.
    """
    yield "ready"
    found = epochs.latest(epochs_)
    yield "looked"
    number = 1 if found is None else found.number + 1
    won = (
        epochs.claim(epochs_, number, drafted)
        if kind == "link"
        else epochs._claim_without_links(epochs_ / epochs._name(number), drafted)
    )
    yield f"won {number}" if won else "lost"
    if won:
        yield f"holds {number}" if epochs.is_latest(epochs_, number) else f"overtaken {number}"


def _walk(folder: Path, n: int, order: Sequence[int], kind: str) -> tuple[list[str], int]:
    """Let `n` claimants take their steps in the order given; their last words, and the latest number."""
    folder.mkdir()
    claimants = [
        _claimant(folder, epochs.draft(folder, replace(_host(f"h{i}"), token=f"t{i}")), kind=kind) for i in range(n)
    ]
    words = [""] * n
    for who in order:
        with suppress(StopIteration):
            words[who] = next(claimants[who])
    latest = epochs.latest(folder)
    return words, 0 if latest is None else latest.number


def _check(words: Sequence[str], latest: int) -> None:
    numbers = [word.split()[1] for word in words if word.startswith(("won", "holds", "overtaken"))]
    assert len(set(numbers)) == len(numbers), words  # a number is given out once
    # whoever makes sure now finds that it holds the latest number, or that it was overtaken
    assert [w for w in words if w == f"holds {latest}"] in ([], [f"holds {latest}"]), words


@pytest.mark.parametrize("kind", ["link", "exclusive"])
def test_every_interleaving_of_two_claimants_has_one_holder(tmp_path: Path, kind: str) -> None:
    n = 0
    for places in itertools.combinations(range(8), 4):
        order = [0 if i in places else 1 for i in range(8)]
        words, latest = _walk(tmp_path / str(n), 2, order, kind)
        _check(words, latest)
        assert latest >= 1
        assert any(word in (f"holds {latest}", f"won {latest}") for word in words), words
        n += 1
    assert n == 70


@settings(deadline=None, max_examples=150)
@given(st.permutations([who for who in range(3) for _ in STEPS]))
def test_three_claimants_in_any_order_have_one_holder(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    words, latest = _walk(tmp_path_factory.mktemp("e") / "e", 3, order, "link")
    _check(words, latest)


# -- the whole of it: claims and writes in any order ------------------------------------------------------------------


def _paused(store: RunStore, topic: str, reached: threading.Event, go: threading.Event) -> Callable[[], None]:
    """Appends a note in another thread, whose write waits for `go`: a process suspended between check and write."""
    write = store._write

    def wait(data: bytes) -> None:
        reached.set()
        assert go.wait(10)
        write(data)

    store._write = wait  # type: ignore[method-assign]
    return lambda: store.append(Note(topic))


def _take_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other host counts as silent."""
    monkeypatch.setattr(lock_module, "SILENCE_S", -1e9)


def test_what_a_suspended_writer_writes_late_is_nowhere_and_it_learns_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _take_over_at_once(monkeypatch)
    RunStore.create(tmp_path / "run", FILES).close()
    first = _open(tmp_path / "run", "a")
    first.append(Note("early"))
    reached, go = threading.Event(), threading.Event()
    late = _paused(first, "late", reached, go)
    caught: list[RunLocked] = []

    def suspended() -> None:
        try:
            late()
        except RunLocked as error:
            caught.append(error)

    thread = threading.Thread(target=suspended)
    thread.start()
    assert reached.wait(10)  # it has made sure that nobody took over, and is about to write
    second = _open(tmp_path / "run", "b")
    second.append(Note("mine"))
    held = (tmp_path / "run" / JOURNAL).read_bytes()
    go.set()
    thread.join()
    assert "is held by process" in str(caught[0])
    assert "on b" in str(caught[0])
    assert (tmp_path / "run" / JOURNAL).read_bytes() == held
    second.append(Note("more"))
    second.close()
    first.close()
    assert _topics(tmp_path / "run") == ["early", "mine", "more"]
    with RunStore.open(tmp_path / "run", write=True) as third:
        assert third.epoch == 4


@pytest.mark.parametrize("at", ["open", "replace"])
@pytest.mark.parametrize("closed", [False, True])
def test_a_takeover_that_was_suspended_does_not_replace_the_journal_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, *, closed: bool
) -> None:
    """A dies; B takes over and is suspended before it prepares its copy, or before it moves it; C takes over from B."""
    _take_over_at_once(monkeypatch)
    folder = tmp_path / "run"
    RunStore.create(folder, FILES).close()
    first = _open(folder, "a")
    first.append(Note("early"))
    reached, go = threading.Event(), threading.Event()
    real = getattr(Path, at)

    def slow(self: Path, *arguments: object, **more: object) -> object:
        if threading.current_thread().name == "b" and self.suffix == ".copy":
            reached.set()
            assert go.wait(60)
        return real(self, *arguments, **more)

    monkeypatch.setattr(Path, at, slow)
    refused: list[RunLocked] = []

    def suspended() -> None:
        try:
            _open(folder, "b")
        except RunLocked as error:
            refused.append(error)

    thread = threading.Thread(target=suspended, name="b")
    thread.start()
    assert reached.wait(60)
    third = _open(folder, "c")
    third.append(Note("c"))
    if closed:
        third.close()
    go.set()
    thread.join()
    assert "on c" in refused[0].got
    if not closed:
        third.append(Note("more"))
        third.close()
    first.close()
    assert _topics(folder) == ["early", "c", *([] if closed else ["more"])]
    with RunStore.open(folder, write=True) as fourth:
        fourth.append(Note("last"))
    assert _topics(folder)[-1] == "last"


def test_a_holder_that_never_opened_the_journal_does_not_open_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B takes over from A, which is only suspended, and ends before it has replaced the journal; C knows that."""
    _take_over_at_once(monkeypatch)
    RunStore.create(tmp_path / "run", FILES).close()
    first = _open(tmp_path / "run", "a")
    inode = (tmp_path / "run" / JOURNAL).stat().st_ino
    between = RunLock(tmp_path / "run", me=_host("b"), kernel=False)
    between.release()  # without having settled
    third = _open(tmp_path / "run", "c")
    assert (tmp_path / "run" / JOURNAL).stat().st_ino != inode
    third.append(Note("c"))
    with pytest.raises(RunLocked, match="on c"):
        first.append(Note("a"))
    third.close()
    first.close()
    assert _topics(tmp_path / "run") == ["c"]


def test_a_run_that_was_given_back_in_order_keeps_its_journal_file(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", FILES).close()
    inode = (tmp_path / "run" / JOURNAL).stat().st_ino
    for _ in range(2):
        RunStore.open(tmp_path / "run", write=True).close()
    assert (tmp_path / "run" / JOURNAL).stat().st_ino == inode


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["open", "append", "pause", "close"])), max_size=14))
def test_writers_in_any_order_leave_one_history(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[int, str]]
) -> None:
    """Three hosts that all believe every other one dead: what was acknowledged is all there, and nothing else."""
    folder = tmp_path_factory.mktemp("fence") / "run"
    with pytest.MonkeyPatch.context() as patch:
        _take_over_at_once(patch)
        patch.setattr(store_module.os, "fsync", lambda fd: None)
        patch.setattr(lock_module, "_HEARTBEAT_S", 1e6)
        RunStore.create(folder, FILES).close()
        stores: dict[int, RunStore] = {}
        acknowledged: list[str] = []
        for n, (who, what) in enumerate(script):
            if what == "open" or who not in stores:
                if who in stores:
                    stores.pop(who).close()
                stores[who] = _open(folder, f"h{who}")
            elif what == "close":
                stores.pop(who).close()
            else:
                intruder = (who + 1) % 3
                if what == "pause" and intruder not in stores:  # suspended between its check and its write
                    _interrupt(stores[who], lambda i=intruder: stores.__setitem__(i, _open(folder, f"h{i}")))
                with suppress(StoreError):  # RunLocked the first time, not open from then on
                    stores[who].append(Note(f"n{n}"))
                    acknowledged.append(f"n{n}")
        for store in stores.values():
            store.close()
        found = _topics(folder)
    assert found == acknowledged


def _interrupt(store: RunStore, do: Callable[[], None]) -> None:
    write = store._write

    def late(data: bytes) -> None:
        store._write = write  # type: ignore[method-assign]
        do()
        write(data)

    store._write = late  # type: ignore[method-assign]


# -- processes --------------------------------------------------------------------------------------------------------

_HOST = """
import sys, time
from dataclasses import replace
from pathlib import Path
from evomerge.errors import RunLocked
from evomerge.runs import lock as lock_module
from evomerge.runs.lock import RunLock
from evomerge.runs.records import Note
from evomerge.runs.store import RunStore
from evomerge.runs.writer import Writer
folder, host, silence, beat = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
lock_module.SILENCE_S, lock_module._HEARTBEAT_S = silence, beat
started = time.monotonic()
try:
    me = replace(Writer.of_this_process(), host=host, boot=host)
    store = RunStore(folder, RunLock(folder, me=me, kernel=False))
    print(f"open {store.epoch} {time.monotonic() - started:.2f}", flush=True)
    for line in sys.stdin:
        store.append(Note(line.strip()))
        print("wrote", flush=True)
    store.close()
except RunLocked as error:
    print(f"refused {time.monotonic() - started:.2f} {error.got}", flush=True)
    sys.exit(5)
"""


class Host:
    """A driver on a machine of its own, as far as the run directory can tell."""

    def __init__(self, folder: Path, name: str, silence_s: float = 1.0, beat_s: float = 0.1) -> None:
        command = [sys.executable, "-c", _HOST, str(folder), name, str(silence_s), str(beat_s)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def write(self, topic: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(topic + "\n")
        self.process.stdin.flush()

    def end(self) -> int:
        self.process.communicate()
        return self.process.returncode


@pytest.mark.kill
def test_a_stopped_driver_that_wakes_up_on_another_host_writes_nothing(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", FILES).close()
    first = Host(tmp_path / "run", "a")
    assert first.says().startswith("open 2")
    first.write("one")
    assert first.says() == "wrote"
    second = Host(tmp_path / "run", "b")
    assert second.says().startswith("refused")  # while the first one's heart beats
    assert second.end() == 5
    os.kill(first.process.pid, signal.SIGSTOP)
    third = Host(tmp_path / "run", "c")
    assert third.says().startswith("open 3")
    third.write("two")
    assert third.says() == "wrote"
    os.kill(first.process.pid, signal.SIGCONT)
    first.write("late")
    assert "on c" in first.says()
    assert first.end() == 5
    third.write("three")
    assert third.says() == "wrote"
    assert third.end() == 0
    assert _topics(tmp_path / "run") == ["one", "two", "three"]


def test_many_hosts_at_once_one_opens(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", FILES).close()
    locks: list[RunLock] = []
    refused: list[RunLocked] = []
    barrier = threading.Barrier(8)

    def claim(host: str) -> None:
        barrier.wait()
        try:
            locks.append(RunLock(tmp_path / "run", me=_host(host), kernel=False))
        except RunLocked as error:
            refused.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock_module, "_HEARTBEAT_S", 0.1)
        threads = [threading.Thread(target=claim, args=(f"h{i}",)) for i in range(8)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (len(locks), len(refused)) == (1, 7)
    assert time.monotonic() - started < 5.0
    locks[0].release()


def test_the_times_that_are_promised() -> None:
    """Refused within 5 s: two heartbeats of another host fit; a dying process of this host gets less than that."""
    assert 2 * lock_module._HEARTBEAT_S + lock_module._POLL_S < 5.0
    assert lock_module._DYING_S < 5.0
    assert lock_module.SILENCE_S == 30.0


def test_clocks_of_hosts_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever claims has a clock that is a day ahead, or a day behind: the file system's own counts."""
    RunStore.create(tmp_path / "run", FILES).close()
    monkeypatch.setattr(lock_module, "_HEARTBEAT_S", 0.1)
    store = _open(tmp_path / "run", "a")
    real = time.time
    for skew in (86_400.0, -86_400.0):
        monkeypatch.setattr(time, "time", lambda skew=skew: real() + skew)
        with pytest.raises(RunLocked, match="on a"):
            RunLock(tmp_path / "run", me=_host("b"), kernel=False)
        store.append(Note("still mine"))
    store.close()
