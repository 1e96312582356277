"""Trackers hear what the watcher hears, in numbers; one that fails is told once and never heard of again."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import pytest

from evomerge.api import Quiet
from evomerge.errors import DiskFull
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import CustomObjective, ObjectiveSpec
from evomerge.execution.ledger import Request
from evomerge.runs.records import Note
from evomerge.runs.store import RunStore
from evomerge.testing.store_suite import FILES
from evomerge.tracking import opening
from evomerge.tracking.tracker import Tracker
from evomerge.tracking.watcher import TrackedWatcher, Trackers
from evomerge.types import CandidateId, Digest, Evaluation, Failure, TaskAnswers

REQUEST = Request(CandidateId("c"), Digest("0" * 64), {})
GOALS = Goals((ObjectiveSpec("skills", ("add",)), ObjectiveSpec("slips", ("add",), direction="minimize")))


@final
class Recording(Tracker):
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.logged.append((step, dict(values)))

    def finish(self, notes: Mapping[str, str]) -> None:
        raise AssertionError("not asked for")

    def close(self) -> None:
        self.closed += 1


@final
class Broken(Tracker):
    def __init__(self, at: str) -> None:
        self.at = at
        self.calls = 0

    def _may_raise(self, at: str) -> None:
        self.calls += 1
        if at == self.at:
            raise ConnectionError(f"no network in {at}\nand more")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._may_raise("log")

    def finish(self, notes: Mapping[str, str]) -> None:
        self._may_raise("finish")

    def close(self) -> None:
        self._may_raise("close")


def answers(*scores: float) -> Evaluation:
    items = tuple(f"i{n}" for n in range(len(scores)))
    return Evaluation("search", {"add": TaskAnswers("add", items, scores)})


def test_numbers_of_a_search() -> None:
    tracker = Recording()
    watcher = TrackedWatcher(Quiet(), Trackers({"here": lambda: tracker}, pytest.fail), GOALS, n_items=2)
    watcher.phase("search", 10, 3)
    watcher.outcome(REQUEST, "search", answers(1.0, 0.0))
    watcher.outcome(REQUEST, "search", answers(1.0))  # asked in part: no best
    watcher.outcome(REQUEST, "search", Failure("nan", "m"))
    watcher.batch(4)
    watcher.phase("select", 2, 0)
    watcher.outcome(REQUEST, "select", answers(1.0, 1.0))
    best = {"best/skills": 0.5, "best/slips": 0.5}
    assert tracker.logged == [
        (4, {"search/questions": 2.0, "search/skills": 0.5, "search/slips": 0.5, "search/failed": 0.0, **best}),
        (5, {"search/questions": 1.0, "search/skills": 1.0, "search/slips": 1.0, "search/failed": 0.0, **best}),
        (6, {"search/failed": 1.0}),
        (6, {"search/generation": 4.0}),
    ]


def test_the_best_goes_the_way_of_the_objective() -> None:
    tracker = Recording()
    watcher = TrackedWatcher(Quiet(), Trackers({"here": lambda: tracker}, pytest.fail), GOALS, n_items=2)
    for scores in ((1.0, 0.0), (1.0, 1.0), (0.0, 0.0)):
        watcher.outcome(REQUEST, "search", answers(*scores))
    assert [(v["best/skills"], v["best/slips"]) for _, v in tracker.logged] == [(0.5, 0.5), (1.0, 0.5), (1.0, 0.0)]


def test_objectives_that_partial_answers_cannot_tell_are_left_out() -> None:
    def function(_: Evaluation) -> float:
        return float("nan")

    tracker = Recording()
    goals = Goals((CustomObjective("mine", function),))
    watcher = TrackedWatcher(Quiet(), Trackers({"here": lambda: tracker}, pytest.fail), goals, n_items=1)
    watcher.outcome(REQUEST, "search", answers(1.0))
    assert tracker.logged == [(1, {"search/questions": 1.0, "search/failed": 0.0})]


@pytest.mark.parametrize("at", ["log", "close"])
def test_a_tracker_that_raises_is_told_once_and_left_out(at: str) -> None:
    told: list[str] = []
    broken, other = Broken(at), Recording()
    trackers = Trackers({"net": lambda: broken, "here": lambda: other}, told.append)
    for step in range(3):
        trackers.log(step, {"search/failed": 0.0, "search/bad": float("nan")})
    trackers.close()
    assert told == [f"net is left out from here on: ConnectionError: no network in {at}"]
    assert broken.calls == (1 if at == "log" else 4)
    assert [values for _, values in other.logged] == [{"search/failed": 0.0}] * 3
    assert other.closed == 1


def test_a_tracker_that_cannot_begin_is_told() -> None:
    told: list[str] = []

    def refuse() -> Tracker:
        raise PermissionError("no key")

    Trackers({"net": refuse}, told.append).log(1, {})
    assert told == ["net is left out from here on: PermissionError: no key"]


def test_a_full_disk_is_told_though_a_tracker_fails_of_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "TRACKERS", {"tensorboard": lambda _: Broken("close")})
    monkeypatch.setattr(opening, "_tracked_run", lambda *_: object())
    job: Any = SimpleNamespace(resolved=SimpleNamespace(job=SimpleNamespace(track=["tensorboard"])))
    warned: list[str] = []

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunStore.create(tmp_path / "run", FILES) as store:
        trackers = opening.open_trackers(job, store, warned.append)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DiskFull, match="The disk is full"), closing(trackers):
            store.append(Note("any"))
    assert warned == ["tensorboard is left out from here on: ConnectionError: no network in close"]
