"""Searches in stages: budgets add up, elites are handed on, resume is exact, and nothing that was found is lost."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_search_loop import BUDGET, SPACE, TASKS, goals, live, recipe_of, result, setup

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import ObjectiveSpec
from evomerge.loop import SearchSetup, Stage, StagePlan
from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.registry import make_optimizer
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.serialize import recipe_digest, recipe_from_json
from evomerge.runs.records import Evaluated
from evomerge.runs.replay import History
from evomerge.types import Vector

ONE = Goals((ObjectiveSpec("both", TASKS),))


def weights_of(recipe: Recipe) -> Vector:
    """The genes of a recipe of `recipe_of`; the start for a parent."""
    if len(recipe.rules) < 2:
        return SPACE.start
    values = [rule.per_parent[p]["weight"] for rule in recipe.rules for p in ("a", "b")]
    return SPACE.encode(dict(zip(SPACE.names, map(float, values), strict=True)))


def opened(elites: tuple[Recipe, ...], n_objectives: int, name: str) -> Stage:
    """A later stage: around the best merge so far, with smaller steps."""
    start = weights_of(elites[0])
    problem = Problem(
        dim=SPACE.dim,
        n_objectives=n_objectives,
        n_constraints=0,
        start=start,
        spread=np.array(SPACE.spread) / 2,
        step=SPACE.step,
        budget=BUDGET,
        seed=5,
        injected=(start,),
    )

    def make() -> Optimizer:
        return make_optimizer(name, problem, {"population": 6})

    return Stage(SPACE, recipe_of, make)


def staged(aims: Goals, until: tuple[int, ...] = (16, 28, BUDGET)) -> SearchSetup:
    name = "cma" if len(aims.objectives) == 1 else "nsga2"
    plain = setup(name, aims)
    later = [StagePlan(f"s{i}", n, lambda e: opened(e, len(aims.objectives), name)) for i, n in enumerate(until)]
    return replace(plain, stages=(StagePlan("first", until[0], lambda _e: plain.first), *later[1:]), budget=until[-1])


def best_until(history: History, stage: int) -> float:
    """The best search score of all models that were scored by the end of a stage."""
    begun = history.stages.get(stage + 1)
    known = {b.recipe for b in history.baselines.values() if b.kind == "parent"}
    known |= {c.recipe for b in history.batches if begun is None or b.number < begun.first_batch for c in b.candidates}
    records = (history.outcomes.get((recipe, "search")) for recipe in known)
    return max(np.mean([t.mean for t in r.tasks.values()]) for r in records if isinstance(r, Evaluated))


@pytest.mark.parametrize("aims", [ONE, goals()], ids=["one objective", "two"])
def test_stages_follow_each_other_and_hand_on_their_elites(tmp_path: Path, aims: Goals) -> None:
    history = live(tmp_path / "run", staged(aims))
    assert history.counts.evaluated == BUDGET
    assert [s.name for _, s in sorted(history.stages.items())] == ["first", "s1", "s2"]
    assert history.stages[0].elites == ()
    for number in (1, 2):
        begun = history.stages[number]
        batch = next(b for b in history.batches if b.number == begun.first_batch)
        handed = recipe_from_json(dict(begun.elites[0]))
        # the winner of the stages before is the first that the new optimizer asks: told, not scored again
        assert batch.candidates[0].recipe == recipe_digest(recipe_of(weights_of(handed)))
    means = [i for i, b in history.baselines.items() if b.kind == "mean"]
    assert len({i.split("-")[1] for i in means}) == len(means)  # a stage may spend nothing, so its number is in the id
    assert sorted(history.won) == [0, 1, 2]
    reported = {digest for digest, set_name in history.outcomes if set_name == "report"}
    assert {w.recipe for w in history.won.values()} <= reported
    assert history.chosen is not None
    assert history.won[2].recipe == history.chosen.recipe


def test_no_stage_loses_what_was_found_before(tmp_path: Path) -> None:
    history = live(tmp_path / "run", staged(ONE))
    best = [best_until(history, stage) for stage in range(3)]
    assert best == sorted(best)
    for number in (1, 2):
        elite = recipe_digest(recipe_from_json(dict(history.stages[number].elites[0])))
        record = history.outcomes[(elite, "search")]
        assert isinstance(record, Evaluated)
        # the mean of a stage is no candidate, but may be its elite
        assert np.mean([t.mean for t in record.tasks.values()]) >= best[number - 1]


def test_every_stage_resumes(tmp_path: Path) -> None:
    whole = live(tmp_path / "calm", staged(ONE))
    lines = (tmp_path / "calm" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines), 9):
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path / "calm", folder)
        (folder / "journal.jsonl").write_bytes(b"".join(lines[:cut]))
        resumed = live(folder, staged(ONE))
        assert result(resumed) == result(whole)
        assert (resumed.stages, resumed.won, resumed.counts.repeated) == (whole.stages, whole.won, 0)
        shutil.rmtree(folder)


def test_a_larger_budget_goes_to_the_last_stage(tmp_path: Path) -> None:
    live(tmp_path / "run", staged(ONE))
    longer = live(tmp_path / "run", staged(ONE, (16, 28, BUDGET + 12)))
    # the mean of the shorter search was scored, too, and is no part of the longer one
    assert longer.counts.evaluated == BUDGET + 12 + 1
    assert len(longer.stages) == 3
