"""Whole searches with partial asking: budgets, failures, rotation, what is chosen, and what the driver costs."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from race_world import N_ITEMS, SPACE, TASKS, Stop, live, result, scorer, setup, two_goals, weights_of

from evomerge.execution.ledger import Ledger
from evomerge.optimizers.base import Optimizer
from evomerge.racing.spec import QuestionsSpec
from evomerge.runs.records import Evaluated, Failed
from evomerge.runs.replay import History
from evomerge.runs.store import RunStore

ALL = N_ITEMS * len(TASKS)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def asked_of(history: History) -> dict[str, int]:
    """Recipe -> items answered on the search set, over all increments."""
    return {
        recipe: sum(p.n_questions for p in parts if isinstance(p, Evaluated))
        for (recipe, set_name), parts in history.parts.items()
        if set_name == "search"
    }


@pytest.mark.parametrize("race", ["halving", "elimination", "none"])
@pytest.mark.parametrize("name", ["nsga2", "cma", "random"])
def test_budgets_count_models_and_questions_stay_below_the_mean(tmp_path: Path, name: str, race: str) -> None:
    plan = setup(name, budget=24, population=6, race=race)
    history = live(tmp_path / "run", plan)
    assert history.counts.evaluated == 24
    assert history.counts.repeated == 0
    assert {key[1] for key in history.outcomes} == {"search", "select", "report"}
    asked = asked_of(history)
    assert max(asked.values()) == ALL
    new = {c.recipe for number, _ in history.rungs for c in history.batches[number].candidates}
    partly = [asked[r] for r in new if 0 < asked.get(r, 0) < ALL]
    assert len(partly) >= 5
    # on average at most the mean per generation; a cut one asks less, repeats a little more
    whole_batches = sorted({number for number, _ in history.rungs} - {-2 - n for n in history.estimated if n < 0})
    for number in whole_batches:
        last = max(r for n, r in history.rungs if n == number)
        rungs = [history.rungs[(number, r)] for r in range(last + 1)]
        sizes = [sum(map(len, r.items.values())) for r in rungs]
        alive = [len(r.alive) for r in rungs]
        spent = sum((q - p) * n for p, q, n in zip([0, *sizes], sizes, alive, strict=False))
        assert spent <= 12 * alive[0]


def test_asking_everything_is_the_search_without_questions(tmp_path: Path) -> None:
    plan = setup("nsga2", budget=16, population=5)
    everything = replace(plan, questions=QuestionsSpec(number="all"))
    large = replace(plan, questions=QuestionsSpec(number=N_ITEMS, race="halving"))
    without = replace(everything, pool=type(plan.pool)({}, {}))
    found = [live(tmp_path / str(i), p) for i, p in enumerate((everything, large, without))]
    assert result(found[0]) == result(found[1]) == result(found[2])
    assert found[0].rungs == {}
    assert found[0].estimated == {}
    assert found[0].banks == {}


@pytest.mark.parametrize("order", ["uncertainty", "random"])
def test_generations_are_asked_other_questions(tmp_path: Path, order: str) -> None:
    rotated = live(tmp_path / "rotated", setup("cma", race="none", order=order))
    fixed = live(tmp_path / "fixed", setup("cma", race="none", order="random", rotate=False))
    sets = [str(rung.items) for rung in rotated.rungs.values()]
    assert len(set(sets)) == len(sets) >= 3
    assert len({str(rung.items) for rung in fixed.rungs.values()}) == 1


def test_failures_in_races_are_told_as_failures(tmp_path: Path) -> None:
    plan = setup("nsga2", two_goals(constrained=True), race="halving", number=10, budget=40)
    log: list[Any] = []

    def make() -> Any:
        optimizer = plan.make_optimizer()
        tell = optimizer.tell
        optimizer.tell = lambda told: (log.extend(told), tell(told))
        return optimizer

    history = live(tmp_path / "run", replace(plan, make_optimizer=make), score="race_world:crashing_scorer")
    failed = {key[0] for key, found in history.outcomes.items() if isinstance(found, Failed)}
    later = [r for r in failed if any(isinstance(p, Evaluated) for p in history.parts[(r, "search")])]
    assert later  # some failed after they had answered
    told = {tuple(t.vector): t.losses for t in log}
    recipes = {tuple(c.genes): c.recipe for batch in history.batches if batch.told for c in batch.candidates}
    assert len(recipes) > 10
    for genes, recipe in recipes.items():
        assert (told[genes] is None) is (recipe in failed)
    assert not any(set_name != "search" and recipe in failed for recipe, set_name in history.outcomes)
    assert all(row.recipe not in failed for e in history.estimated.values() for row in e.rows)


class Script(Optimizer):
    """Asks what it is given, one batch after another."""

    def __init__(self, *batches: list[float]) -> None:
        self._batches = list(batches)

    def ask(self) -> list[np.ndarray]:
        return [SPACE.encode({f"w{i}": w for i in range(4)}) for w in self._batches.pop(0)]

    def tell(self, told: object) -> None:
        pass

    def should_stop(self) -> str | None:
        return None if self._batches else "the script has ended"

    def mean(self) -> None:
        return None


def weary_scorer() -> Any:
    """Candidates heavier than 1.4 fail in their second increment."""
    healthy = scorer()
    seen: set[str] = set()

    def score(task: Any) -> Any:
        if weights_of(task.recipe)[0] > 1.4 and str(task.recipe) in seen:
            raise RuntimeError("weary")
        seen.add(str(task.recipe))
        return healthy(task)

    return score


def test_who_fails_after_a_score_is_no_finalist(tmp_path: Path) -> None:
    """The heavy one leaves its first race early, with a score, and fails when it is asked again."""
    plan = setup("cma", race="halving", calibrate=6)
    batches = [0.4, 0.6, 0.8], [1.5, 0.5, 0.4, 0.6], [1.5, 0.5, 0.4, 0.6]
    plan = replace(plan, make_optimizer=lambda: Script(*batches))
    history = live(tmp_path / "run", plan, score=f"{__name__}:weary_scorer")
    weary = history.batches[1].candidates[0].recipe
    assert weary == history.batches[2].candidates[0].recipe
    assert weary in {row.recipe for row in history.estimated[1].rows}
    assert isinstance(history.outcomes[(weary, "search")], Failed)
    selected = {recipe for recipe, set_name in history.outcomes if set_name == "select"}
    assert history.batches[0].candidates[0].recipe in selected
    assert weary not in selected


def test_estimates_are_what_readers_see(tmp_path: Path) -> None:
    history = live(tmp_path / "run", setup("cma", race="halving"))
    (recipe, set_name), row = next(
        (key, row) for key, row in history.estimates.items() if 0 < row.tasks["add"].n < N_ITEMS
    )
    assert set_name == "search"
    record = history.record(recipe, "search")
    assert record is not None
    assert record.tasks == row.tasks
    assert row.tasks["add"].n + row.tasks["rev"].n == asked_of(history)[recipe]


def test_banks_are_journaled_once_with_their_models(tmp_path: Path) -> None:
    plan = setup("cma", race="halving", estimator="auto")
    history = live(tmp_path / "run", plan)
    assert {task for _, task in history.banks} == set(TASKS)
    models = [bank.n_models for (_, task), bank in history.banks.items() if task == "add"]
    assert models == sorted(models)
    assert models[0] >= 5
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    live(tmp_path / "run", plan)
    assert (tmp_path / "run" / "journal.jsonl").read_bytes()[len(before) :].count(b"bank-fitted") == 0


def test_the_choice_is_made_on_whole_sets(tmp_path: Path) -> None:
    history = live(tmp_path / "run", setup("nsga2", race="halving"))
    assert history.chosen is not None
    for (_, set_name), found in history.outcomes.items():
        if set_name != "search":
            assert isinstance(found, Evaluated)
            assert found.n_questions == ALL


def test_the_driver_costs_little_beside_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits, orders, rankings and estimates: time outside of scoring and of the journal, per candidate."""
    spent = [0.0]

    def timed(owner: type, name: str) -> None:
        inner = getattr(owner, name)

        def call(*arguments: Any, **more: Any) -> Any:
            started = time.process_time()
            try:
                return inner(*arguments, **more)
            finally:
                spent[0] += time.process_time() - started

        monkeypatch.setattr(owner, name, call)

    timed(Ledger, "score")
    timed(RunStore, "create")
    plan = setup("cma", budget=40, race="halving", estimator="auto")
    started = time.process_time()
    live(tmp_path / "run", plan, Stop())
    per_candidate = (time.process_time() - started - spent[0]) / 40
    assert per_candidate < 0.15  # some 15 ms on an idle machine
