"""What a model costs is told once, recorded, and not asked again: in races, after a resume, and when files are lost."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

import pytest

from evomerge.digest import digest_json
from evomerge.execution.ledger import Ledger, Request, recorded_outcomes
from evomerge.execution.pool import Completed, EvaluationPool
from evomerge.runs.records import Evaluated, Opened
from evomerge.runs.replay import History, read_history
from evomerge.runs.store import JOURNAL, RESPONSES, RunStore
from evomerge.types import CandidateId, EvalTask, Evaluation, Outcome, SetName, TaskAnswers

ORDER = {s: {"add": tuple(f"{s}{i}" for i in range(6))} for s in ("search", "select")}
MODEL = Request(CandidateId("m"), digest_json({"m": 1}), {"m": 1})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


class Stopwatch(EvaluationPool):
    """Every measurement gives another latency."""

    n_workers = 1
    measured = 0

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self._waiting: deque[EvalTask] = deque()

    def submit(self, task: EvalTask) -> None:
        self._waiting.append(task)

    def next_outcome(self, timeout_s: float | None = None) -> Completed | None:
        task = self._waiting.popleft()
        self.asked.append(task.costs)
        items = (task.items or ORDER[task.set_name])["add"]
        costs: dict[str, tuple[float, float]] = {}
        if task.costs:
            Stopwatch.measured += 1
            costs = {"hops": (3.0, 0.0), "latency": (float(Stopwatch.measured), 0.5)}
        answers = {"add": TaskAnswers("add", items, tuple(1.0 for _ in items))}
        return Completed(task, Evaluation(task.set_name, answers, costs=costs), "w", 1)

    def drop_waiting(self) -> tuple[EvalTask, ...]:
        return ()

    def close(self) -> None:
        self._waiting.clear()


class Watch:
    def __call__(self) -> bool:
        return False

    def phase(self, name: str, total: int, done: int) -> None:
        pass

    def batch(self, number: int) -> None:
        pass

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        pass


def life(folder: Path, *steps: tuple[SetName, list[int] | None]) -> tuple[list[Evaluation], list[bool], History]:
    """One life: what each step was told, whether costs were asked with it, and the journal."""
    pool = Stopwatch()
    exists = (folder / JOURNAL).exists()
    with RunStore.open(folder, write=True) if exists else RunStore.create(folder, {"job": ""}) as store:
        history = read_history(store.entries())
        store.append(Opened(len(history.lives) + 1, exists, "host", 1))
        ledger = Ledger(
            store, pool, known=recorded_outcomes(store, history), reused=history.reused, stop=Watch(), drain_s=0.0,
            failure_share=1.0, watcher=Watch(), order=ORDER,
        )  # fmt: skip
        told = []
        for set_name, places in steps:
            items = None if places is None else {"add": tuple(ORDER[set_name]["add"][i] for i in places)}
            (outcome,) = ledger.score([MODEL], set_name, items=items)
            assert isinstance(outcome, Evaluation)
            told.append(outcome)
        return told, pool.asked, read_history(store.entries())


def latencies(told: list[Evaluation]) -> list[float]:
    return [e.costs["latency"][0] for e in told]


def test_increments_keep_the_first_measurement(tmp_path: Path) -> None:
    told, asked, history = life(tmp_path / "run", ("search", [0]), ("search", [1, 2]), ("search", None))
    assert asked == [True, False, False]
    assert len(set(latencies(told))) == 1
    parts = history.parts[(MODEL.digest, "search")]
    assert [p.costs for p in parts if isinstance(p, Evaluated)] == [told[0].costs] * 3
    record = history.record(MODEL.digest, "search")
    assert record is not None
    assert record.costs == told[0].costs


def test_a_resumed_run_does_not_measure_again(tmp_path: Path) -> None:
    steps: tuple[tuple[SetName, list[int] | None], ...] = (("search", [0]), ("search", [1, 2]))
    calm, _, _ = life(tmp_path / "run", *steps)
    again, asked, _ = life(tmp_path / "run", *steps, ("search", None))
    assert again[:2] == calm
    assert asked == [False]
    assert set(latencies(again)) == set(latencies(calm))


@pytest.mark.parametrize("whole", [False, True])
def test_costs_outlive_the_answers(tmp_path: Path, whole: bool) -> None:
    step: tuple[SetName, list[int] | None] = ("search", None if whole else [0, 1])
    calm, _, _ = life(tmp_path / "run", step)
    for path in (tmp_path / "run" / RESPONSES).glob("*-search-*.json"):
        path.unlink()
    again, asked, _ = life(tmp_path / "run", step)
    assert again == calm
    assert asked == [False]


def test_every_set_has_a_measurement_of_its_own(tmp_path: Path) -> None:
    told, asked, _ = life(tmp_path / "run", ("search", None), ("select", None))
    assert asked == [True, True]
    assert len(set(latencies(told))) == 2
