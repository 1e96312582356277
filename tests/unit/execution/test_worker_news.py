"""What happens to workers reaches the journal and whoever watches, and changes nothing that is found out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.cli.console import make_console
from evomerge.cli.running import Bars
from evomerge.digest import digest_json
from evomerge.evaluation.goals import Goals
from evomerge.execution.inline import InlinePool
from evomerge.execution.lazy import LazyPool
from evomerge.execution.ledger import Ledger, Request, recorded_outcomes
from evomerge.execution.pool import Completed, EvaluationPool, WorkerEvent
from evomerge.runs.replay import read_history
from evomerge.runs.store import RunStore
from evomerge.runs.worker_records import WorkerNews
from evomerge.testing.pool_suite import fake_spec
from evomerge.tracking.watcher import TrackedWatcher, Trackers
from evomerge.types import CandidateId, EvalTask, Evaluation, Outcome, SetName

JOINED = WorkerEvent("joined", "worker-0", "gpu-1", "H200", "log: there", versions={"torch": "2.13.0"})
REFUSED = WorkerEvent("refused", "worker-1", "gpu-2", "A100", "A100 instead of H200")
LOST = WorkerEvent("lost", "worker-0", "gpu-1", "H200", "x" * 500, "m1")


class EventfulPool(EvaluationPool):
    """One worker, of which more is told than happens."""

    n_workers = 1

    def __init__(self, events: list[WorkerEvent]) -> None:
        self._inner = InlinePool(fake_spec())
        self._events = events

    def submit(self, task: EvalTask) -> None:
        self._inner.submit(task)

    def next_outcome(self, timeout_s: float | None = None) -> Completed | None:
        return self._inner.next_outcome(timeout_s)

    def drop_waiting(self) -> tuple[EvalTask, ...]:
        return self._inner.drop_waiting()

    def news(self) -> tuple[WorkerEvent, ...]:
        told, self._events = tuple(self._events), []
        return told

    def close(self) -> None:
        self._inner.close()


class Watching:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def phase(self, name: str, total: int, done: int) -> None:
        """Not kept."""

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        """Not kept."""

    def batch(self, number: int) -> None:
        """Not kept."""

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create(tmp_path / "run", {"job.yaml": "", "manifest.json": "{}"}) as opened:
        yield opened


def scored(store: RunStore, pool: EvaluationPool, watcher: Watching) -> tuple[Outcome | None, ...]:
    recipes = [{"weights": [number / 7]} for number in range(3)]
    requests = [Request(CandidateId(f"m{i}"), digest_json(recipe), recipe) for i, recipe in enumerate(recipes)]
    history = read_history(store.entries())
    ledger = Ledger(
        store,
        pool,
        known=recorded_outcomes(store, history),
        reused=history.reused,
        stop=lambda: False,
        drain_s=0.0,
        failure_share=1.0,
        watcher=watcher,
    )
    return ledger.score(requests, "search")


def test_events_are_journalled_once_and_refusals_are_told(store: RunStore) -> None:
    watcher = Watching()
    found = scored(store, EventfulPool([JOINED, REFUSED, LOST]), watcher)
    assert all(isinstance(outcome, Evaluation) for outcome in found)
    records = [record for record in store.records() if isinstance(record, WorkerNews)]
    assert [record.kind for record in records] == ["joined", "refused", "lost"]
    assert records[0] == WorkerNews(**vars(JOINED))
    assert (records[2].candidate, records[2].detail) == ("m1", "x" * 200)
    assert watcher.notes == ["worker-1 on gpu-2 is left idle: A100 instead of H200"]


def test_what_a_journal_tells_of_workers_changes_nothing_else(tmp_path: Path) -> None:
    histories = []
    for name, events in (("calm", []), ("eventful", [JOINED, LOST, REFUSED])):
        with RunStore.create(tmp_path / name, {"job.yaml": "", "manifest.json": "{}"}) as store:
            scored(store, EventfulPool(list(events)), Watching())
            histories.append(read_history(store.entries()))
    calm, eventful = histories
    assert calm.counts == eventful.counts
    assert list(calm.outcomes) == list(eventful.outcomes)
    assert [r.tasks for r in calm.outcomes.values()] == [r.tasks for r in eventful.outcomes.values()]  # type: ignore[union-attr]


def test_a_pool_that_has_not_begun_has_no_news_and_expects_what_it_is_told() -> None:
    pool = LazyPool(lambda: EventfulPool([JOINED]), lambda: 7)
    assert (pool.news(), pool.n_workers) == ((), 7)
    pool.submit(EvalTask(CandidateId("c"), {"weights": [0.5]}, "search"))
    assert (pool.news(), pool.news(), pool.n_workers) == ((JOINED,), (), 1)
    pool.close()


class WaitingPool(EventfulPool):
    """A pool that waits for a larger node at first."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__([])
        self._waits = waits

    def waits_for(self) -> str:
        return self._waits.pop(0) if self._waits else ""


class WaitingWatching(Watching):
    def waiting(self, why: str) -> None:
        self.notes.append(f"waiting: {why}")


def test_what_a_pool_waits_for_is_told_when_it_changes(store: RunStore) -> None:
    watcher = WaitingWatching()
    scored(store, LazyPool(lambda: WaitingPool(["8 GPUs", "8 GPUs"]), lambda: 1), watcher)
    assert watcher.notes == ["waiting: 8 GPUs", "waiting: "]


def test_a_watcher_that_only_takes_notes_is_told_by_one() -> None:
    for watcher, told in (
        (Watching(), ["Waiting for workers: 8 GPUs."]),
        (WaitingWatching(), ["waiting: 8 GPUs", "waiting: "]),
    ):
        tracked = TrackedWatcher(watcher, Trackers({}, watcher.note), Goals(()), 0)
        tracked.waiting("8 GPUs")
        tracked.waiting("")
        assert watcher.notes == told


def test_the_bar_says_that_it_waits(capsys: pytest.CaptureFixture[str]) -> None:
    bars = Bars(make_console(width=300))
    bars.phase("search", 10, 0)
    bars.waiting("8 GPUs")
    assert bars._progress.tasks[-1].fields["note"] == "waits for a larger node"
    assert "Waiting for workers: 8 GPUs." in capsys.readouterr().out
    bars.waiting("")
    assert bars._progress.tasks[-1].fields["note"] == "workers start"
