"""Costs in races: known from the first rung on, told once, and the same after a resume."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from race_world import TASKS, live, result, setup, weights_of
from race_world import scorer as plain_scorer

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import ConstraintSpec, CostObjective, ObjectiveSpec, Relative
from evomerge.loop import SearchSetup
from evomerge.runs.beliefs import recorded_value
from evomerge.runs.records import Evaluated
from evomerge.runs.replay import History
from evomerge.types import EvalTask, Evaluation

SCORER = "test_race_costs:scorer"
SKILL, DEPTH = ObjectiveSpec("both", TASKS), CostObjective("depth", "hops")
GOALS = Goals((SKILL, DEPTH), (ConstraintSpec("cost", "hops", "at_most", Relative("best_parent", 3.0)),))


def hops(task: EvalTask) -> float:
    """Heavier merges run more layers."""
    return float(1 + round(sum(weights_of(task.recipe))))


def scorer() -> Callable[[EvalTask], Evaluation]:
    """The world's scorer; costs are told when they are asked for."""
    plain = plain_scorer()

    def score(task: EvalTask) -> Evaluation:
        return replace(plain(task), costs={"hops": (hops(task), 0.0)} if task.costs else {})

    return score


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def plan(race: str) -> SearchSetup:
    return setup("nsga2", GOALS, budget=20, population=6, race=race)


def records(history: History) -> list[Evaluated]:
    return [r for parts in history.parts.values() for r in parts if isinstance(r, Evaluated)]


@pytest.mark.parametrize("race", ["halving", "elimination", "none"])
def test_every_increment_has_the_costs_of_its_model(tmp_path: Path, race: str) -> None:
    history = live(tmp_path / "run", plan(race), score=SCORER)
    found = records(history)
    assert any(r.part > 0 for r in found)
    assert {len({p.costs["hops"] for p in parts if isinstance(p, Evaluated)}) for parts in history.parts.values()} == {
        1
    }
    for row in (row for e in history.estimated.values() for row in e.rows):
        record = history.record(row.recipe, "search")
        assert record is not None
        assert row.values["cost hops"] == record.costs["hops"] == recorded_value(DEPTH, record)


def test_a_cut_race_with_costs_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    calm = live(tmp_path / "calm", plan("halving"), score=SCORER)
    lines = (tmp_path / "calm" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for cut in range(5, len(lines), 17):
        shutil.copytree(tmp_path / "calm", tmp_path / "cut")
        (tmp_path / "cut" / "journal.jsonl").write_bytes(b"".join(lines[:cut]))
        resumed = live(tmp_path / "cut", plan("halving"), score=SCORER)
        assert result(resumed) == result(calm), cut
        assert {r.costs["hops"] for r in records(resumed)} == {r.costs["hops"] for r in records(calm)}
        shutil.rmtree(tmp_path / "cut")


def test_cheap_models_survive_beside_good_ones(tmp_path: Path) -> None:
    """A race under two objectives keeps whoever no one beats in both: the cheapest of a generation is not dropped."""
    history = live(tmp_path / "run", plan("halving"), score=SCORER)
    dropped = 0
    for (batch, number), rung in history.rungs.items():
        following = history.rungs.get((batch, number + 1))
        if following is not None:
            recipes = {c.id: c.recipe for c in history.batches[batch].candidates}
            outcomes = {i: history.outcomes[(recipes[i], "search")] for i in rung.alive}
            cost = {i: o.costs["hops"][0] for i, o in outcomes.items() if isinstance(o, Evaluated)}
            assert min(cost.values()) == min(cost[i] for i in following.alive)
            dropped += len(rung.alive) - len(following.alive)
    assert dropped > 0
