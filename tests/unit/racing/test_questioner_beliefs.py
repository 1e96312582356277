"""When partial asking begins, what is asked, and how near to the truth the beliefs from few answers come."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from race_world import N_ITEMS, ONE_GOAL, TASKS, answered, items_of, pool_of, two_goals

from evomerge.errors import EvaluationError
from evomerge.evaluation.beliefs import Beliefs, believed, feasibility, feasible, losses
from evomerge.evaluation.goals import BoundGoals, Goals
from evomerge.evaluation.measures import Measure
from evomerge.evaluation.objectives import ConstraintSpec, CustomObjective, ObjectiveSpec
from evomerge.irt.fit import fit
from evomerge.irt.responses import Responses
from evomerge.racing.questioner import CALIBRATION_MODELS, Pool, Questioner
from evomerge.racing.spec import load_questions
from evomerge.runs.partial import restrict
from evomerge.types import Digest, Evaluation

MANY = 80


def questioner(value: Any, goals: Goals = ONE_GOAL, n: int = N_ITEMS, seed: int = 1, **pool: Any) -> Questioner:
    return Questioner(load_questions(value), pool_of(goals, n, **pool), seed)


def model(i: int, n: int = N_ITEMS, level: float = 0.5) -> Evaluation:
    return answered(f"m{i}", {"add": 0.3 * i - 1 + level, "rev": 0.8 - 0.25 * i + level}, n=n)


def learned(value: Any, n_models: int, goals: Goals = ONE_GOAL, **pool: Any) -> Questioner:
    found = questioner(value, goals, **pool)
    for i in range(n_models):
        found.learn(Digest(f"m{i}"), model(i))
    return found


# -- when --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["all", 1.0, {"number": N_ITEMS}, {"number": 99, "race": "halving"}, "auto"])
def test_everything_is_never_asked_in_part(value: Any) -> None:
    """`auto` among them: the sets of 24 are too small to save anything."""
    asker = learned(value, 30)
    assert not asker.partial
    assert not any(asker.ready(batch) for batch in range(5))
    assert asker.mean_questions == asker.n_items == 2 * N_ITEMS


@pytest.mark.parametrize("order", ["auto", "uncertainty", "information", "stratified", "random"])
def test_nobody_is_asked_in_part_before_calibration(order: str) -> None:
    for known in (0, 4, 5, CALIBRATION_MODELS - 1, CALIBRATION_MODELS, CALIBRATION_MODELS + 3):
        asker = learned({"number": 6, "order": order}, known)
        asker.refit(0)
        assert asker.partial
        assert not asker.ready(0)  # the first generation is calibration
        asker.refit(1)
        assert asker.ready(1) is (known >= CALIBRATION_MODELS)


@pytest.mark.parametrize("order", ["stratified", "random"])
@pytest.mark.parametrize("estimator", ["mean", "stratified"])
def test_without_a_bank_partial_asking_begins_at_once(order: str, estimator: str) -> None:
    asker = learned({"number": 6, "order": order, "estimator": estimator}, 1)
    asker.refit(0)
    assert asker.ready(0)
    assert asker.estimators == dict.fromkeys(TASKS, estimator)
    nobody = learned({"number": 6, "order": order, "estimator": estimator}, 0)
    nobody.refit(0)
    assert not nobody.ready(0)  # nothing is known that an estimate could lean on


def test_calibration_is_as_long_as_was_said() -> None:
    for known, ready in ((4, False), (6, False), (7, True), (9, True)):
        asker = learned({"number": 6, "calibrate": 7}, known)
        asker.refit(0)
        assert asker.ready(0) is ready
    for known, ready in ((4, False), (5, True)):
        short = learned({"number": 6, "calibrate": 0}, known)  # a bank is not fitted to less than five
        short.refit(0)
        assert short.ready(0) is ready


def test_partial_answers_do_not_calibrate() -> None:
    asker = questioner({"number": 6})
    for i in range(30):
        some = {t: items[:5] for t, items in items_of("search").items()}
        asker.learn(Digest(f"m{i}"), restrict(model(i), some))
    asker.refit(1)
    assert not asker.ready(1)


@cache
def imported_banks() -> dict[str, Any]:
    rows = [model(i, level=0.2) for i in range(12)]
    return {
        t: fit(
            Responses(
                np.array([e.answers[t].scores for e in rows]), tuple(f"x{i}" for i in range(12)), items_of("search")[t]
            )
        ).bank
        for t in TASKS
    }


def test_banks_from_elsewhere_are_used_at_once() -> None:
    asker = learned({"number": 6}, 5, banks=imported_banks())
    asker.refit(0)
    assert asker.ready(0)
    bank = asker.bank("add")
    assert bank is not None
    np.testing.assert_array_equal(bank.slopes, imported_banks()["add"].slopes)
    one = learned({"number": 6}, 8, banks={"add": imported_banks()["add"]})
    one.refit(0)
    one.refit(1)
    assert not one.ready(0)
    assert not one.ready(1)


def test_banks_are_fitted_on_a_schedule() -> None:
    asker = learned({"number": 6, "refit": 3}, 6)
    assert set(asker.refit(1)) == set(TASKS)  # none yet: whatever the schedule
    for i in range(6, 12):
        asker.learn(Digest(f"m{i}"), model(i))
    assert asker.refit(2) == {}
    assert set(asker.refit(3)) == set(TASKS)
    assert asker.refit(6) == {}  # nothing new


# -- what --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["uncertainty", "information", "stratified", "random"])
def test_subsets_rotate_unless_told_not_to(order: str) -> None:
    for rotate in (True, False):
        asker = learned({"number": 6, "order": order, "rotate": rotate}, 8)
        asker.generation([Digest("m3"), Digest("m4")])
        asker.refit(1)
        asked = [asker.asking(batch).upto(12).items for batch in range(1, 6)]
        assert asked[0] == asker.asking(1).upto(12).items
        if rotate:
            assert len({str(a) for a in asked}) == 5
        else:
            assert all(a == asked[0] for a in asked)


@pytest.mark.parametrize("order", ["uncertainty", "information", "stratified", "random"])
def test_orders_are_nested_over_all_tasks(order: str) -> None:
    asker = learned({"number": 6, "order": order}, 8)
    asker.refit(1)
    asking, before = asker.asking(1), {t: frozenset[int]() for t in TASKS}
    for k in range(4, asker.n_items + 1):
        asked = asking.upto(k)
        assert sum(map(len, asked.items.values())) == k
        for task in TASKS:
            assert before[task] <= set(asked.items[task])
            before[task] = frozenset(asked.items[task])
            assert np.all(asked.inclusion[task][list(asked.items[task])] > 0)


# -- what answers mean -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constrained", [True, False])
def test_full_answers_are_believed_exactly(constrained: bool) -> None:
    goals = two_goals(constrained=constrained)
    asker = learned({"number": 6}, 8, goals)
    asker.refit(1)
    bound = goals.bound({"a": model(0), "b": model(1)})
    evaluations = {Digest(f"m{i}"): model(i) for i in range(8)}
    assert asker.believe(evaluations, bound, None) == {r: believed(bound, e) for r, e in evaluations.items()}


N_SIBLINGS = 30
SEEDS = range(5)

MEASURED = {
    "score": ObjectiveSpec("o", TASKS),
    "margin": ObjectiveSpec("o", TASKS, measure=Measure("margin")),
    "flips": ObjectiveSpec("o", ("add",), direction="minimize", measure=Measure("flips", "a")),
    "ability": ObjectiveSpec("o", TASKS, measure=Measure("ability")),
    "min": ObjectiveSpec("o", TASKS, "min"),
}


class Siblings:
    """A questioner after calibration, siblings that were asked a quarter of 80 items, and the truth."""

    def __init__(
        self, objective: Any, constraints: tuple[ConstraintSpec, ...] = (), seed: int = 1, **questions: Any
    ) -> None:
        goals = Goals((objective,), constraints)
        rng = np.random.default_rng([8, seed])
        self.asker = questioner({"number": 20, "race": "none", **questions}, goals, MANY, seed)
        parents = {n: answered(n, {"add": x, "rev": 0.9 - x}, n=MANY) for n, x in (("a", 1.2), ("b", -0.3))}
        for name, evaluation in parents.items():
            self.asker.learn(Digest(name), evaluation)
        for i in range(16):
            self.asker.learn(Digest(f"c{i}"), self.draw(f"c{i}", rng))
        self.goals = goals.bound(parents)
        self.asker.generation([Digest(f"c{i}") for i in range(16)])
        self.asker.refit(1)
        self.whole = {Digest(f"s{i}"): self.draw(f"s{i}", rng) for i in range(N_SIBLINGS)}
        asked = self.asker.asking(1).upto(self.asker.mean_questions)
        names = items_of("search", MANY)
        items = {t: [names[t][i] for i in index] for t, index in asked.items.items()}
        self.part = {recipe: restrict(e, items) for recipe, e in self.whole.items()}
        for recipe, evaluation in self.part.items():
            self.asker.learn(recipe, evaluation)
        self.beliefs = self.asker.believe(self.part, self.goals, asked)
        self.truth = {recipe: believed(self.goals, e) for recipe, e in self.whole.items()}

    @staticmethod
    def draw(name: str, rng: np.random.Generator) -> Evaluation:
        x, y = rng.normal(0.6, 0.5), rng.normal(0.0, 0.25)
        return answered(name, {"add": x + y, "rev": x - y}, n=MANY)

    def values(self, found: dict[Digest, Beliefs] | None = None) -> np.ndarray:
        return -np.array([losses(self.goals, b)[0] for b in (found or self.beliefs).values()])

    @property
    def plain(self) -> np.ndarray:
        """The mean of the same answers."""
        return self.values({recipe: believed(self.goals, e) for recipe, e in self.part.items()})

    @property
    def z(self) -> np.ndarray:
        """Errors in units of what was stated; the truth is that of this item set."""
        se = np.array([b.of("o", self.goals.objectives[0]).se for b in self.beliefs.values()])
        return (self.values() - self.values(self.truth)) / se


@cache
def siblings(kind: str, estimator: str = "auto") -> list[Siblings]:
    """Several families: what all siblings are asked is one draw, whose error they share."""
    return [Siblings(MEASURED[kind], seed=seed, estimator=estimator) for seed in SEEDS]


def mean_error(found: list[Siblings], values: list[np.ndarray]) -> float:
    """Mean absolute error in units of the siblings' true spread."""
    rows = zip(found, values, strict=True)
    return float(np.mean([np.abs(v - f.values(f.truth)).mean() / f.values(f.truth).std() for f, v in rows]))


@pytest.mark.parametrize("estimator", ["auto", "p-irt"])
def test_estimates_beat_the_mean_of_the_same_answers(estimator: str) -> None:
    """Uncertain items are asked, whose mean is not that of all items."""
    found = siblings("score", estimator)
    assert mean_error(found, [f.values() for f in found]) < 0.85 * mean_error(found, [f.plain for f in found])


@pytest.mark.parametrize("kind", list(MEASURED))
def test_measures_from_few_answers_come_near_the_truth(kind: str) -> None:
    found = siblings(kind)
    assert np.mean([np.corrcoef(f.values(), f.values(f.truth))[0, 1] for f in found]) > 0.7
    assert mean_error(found, [f.values() for f in found]) < 0.65
    bias = [(f.values() - f.values(f.truth)).mean() / f.values(f.truth).std() for f in found]
    assert abs(np.mean(bias)) < 0.35


@pytest.mark.parametrize("kind", list(MEASURED))
def test_stated_errors_are_right_on_average(kind: str) -> None:
    z = np.concatenate([f.z for f in siblings(kind)])
    assert np.mean(np.abs(z) < 2) > 0.9
    assert 0.4 < np.sqrt(np.mean(z**2)) < 1.3


def test_constraints_from_few_answers() -> None:
    bounds = (
        ConstraintSpec("task", "add", "at_most", 0.2, measure=Measure("flips", "a")),
        ConstraintSpec("task", "rev", "at_least", 0.55),
    )
    chances, facts = [], []
    for seed in SEEDS:
        found = Siblings(MEASURED["score"], bounds, seed)
        chances += [feasibility(found.goals, b) for b in found.beliefs.values()]
        facts += [feasible(found.goals, b) for b in found.truth.values()]
    chance, truth = np.array(chances), np.array(facts)
    assert 0.15 < truth.mean() < 0.85
    assert chance[truth].mean() > chance[~truth].mean() + 0.25
    assert np.mean((chance > 0.5) == truth) > 0.75


def test_a_small_task_may_be_asked_in_full_beside_a_large_one() -> None:
    """Also by the check on held-out models, before the first estimate."""
    items = {"add": items_of("search", MANY)["add"], "rev": items_of("search")["rev"]}

    def whole(i: int) -> Evaluation:
        ability = {"add": 0.1 * i - 1, "rev": 0.8 - 0.1 * i}
        large, small = answered(f"w{i}", ability, n=MANY), answered(f"w{i}", ability)
        return Evaluation("search", {"add": large.answers["add"], "rev": small.answers["rev"]})

    asker = Questioner(load_questions({"number": 30, "order": "stratified"}), Pool(items, dict.fromkeys(TASKS, 1.0)), 1)
    for i in range(CALIBRATION_MODELS):
        asker.learn(Digest(f"w{i}"), whole(i))
    asker.refit(1)
    assert asker.ready(1)
    asked = asker.asking(1).upto(asker.mean_questions)
    assert [len(asked.items[t]) for t in TASKS] == [30, 24]
    new = whole(99)
    part = restrict(new, {t: [items[t][i] for i in index] for t, index in asked.items.items()})
    asker.learn(Digest("new"), part)
    (belief,) = asker.believe({Digest("new"): part}, ONE_GOAL.bound({"a": whole(0)}), asked).values()
    assert belief.tasks["rev"].value == pytest.approx(new.answers["rev"].mean)
    assert belief.tasks["add"].n == 30


def test_tasks_are_estimated_with_their_numbers_of_answers() -> None:
    found = siblings("score")[0]
    for recipe, beliefs in found.beliefs.items():
        for task in TASKS:
            assert beliefs.tasks[task].n == len(found.part[recipe].answers[task].items) < MANY
            assert 0 <= beliefs.tasks[task].value <= 1.0
            assert beliefs.tasks[task].se > 0


def test_answers_that_no_design_could_have_chosen() -> None:
    """A repeat brings answers from an earlier generation; the present order had no chance for these items yet."""
    asker = learned({"number": 6, "order": "information", "estimator": "stratified"}, 8)
    asker.refit(1)
    asked = asker.asking(1).upto(2)
    hole = {t: c.copy() for t, c in asked.inclusion.items()}
    names = items_of("search")
    alien = {t: [names[t][i] for i in np.flatnonzero(c <= 0)[:4]] for t, c in hole.items()}
    assert any(alien.values())
    items = {t: [*alien[t], *(names[t][i] for i in asked.items[t])] for t in TASKS}
    part = restrict(model(20), items)
    asker.learn(Digest("m20"), part)
    goals = ONE_GOAL.bound({"a": model(0)})
    (belief,) = asker.believe({Digest("m20"): part}, goals, asked).values()
    assert all(np.isfinite(b.value) and b.n == len(items[t]) for t, b in belief.tasks.items())


def test_a_task_without_margins_says_so() -> None:
    goals = Goals((ObjectiveSpec("o", ("add",), measure=Measure("margin")),))
    asker = questioner({"number": 6}, goals)
    plain = {t: replace(a, margins=()) for t, a in model(0).answers.items()}
    evaluation = Evaluation("search", plain)
    asker.learn(Digest("m0"), evaluation)
    with pytest.raises(EvaluationError, match="no margins"):
        asker.believe({Digest("m0"): evaluation}, goals.bound({"a": evaluation}), None)


def test_functions_see_what_was_answered() -> None:
    custom = CustomObjective("o", lambda e: float(e.n_questions))
    asker = learned({"number": 6}, 8, Goals((custom,)))
    asker.refit(1)
    asked = asker.asking(1).upto(12)
    part = restrict(model(9), {t: [items_of("search")[t][i] for i in index] for t, index in asked.items.items()})
    asker.learn(Digest("m9"), part)
    goals = BoundGoals((custom,), (), ())
    (belief,) = asker.believe({Digest("m9"): part}, goals, asked).values()
    assert losses(goals, belief) == (-12.0,)


def test_no_belief_is_far_off() -> None:
    """A handful of unlikely items must not speak for all others: `auto` is p-IRT where items were chosen."""
    asker = questioner({"number": 16}, n=MANY)
    for i in range(24):
        asker.learn(Digest(f"m{i}"), model(i % 8, MANY, 0.05 * i))
    goals = ONE_GOAL.bound({})
    whole = {Digest(f"s{i}"): answered(f"s{i}", {"add": 2.0 + 0.1 * i, "rev": 2.5}, n=MANY) for i in range(8)}
    asker.generation(tuple(Digest(f"m{i}") for i in range(16, 24)))
    for batch in range(1, 6):
        asker.refit(batch)
        asked = asker.asking(batch).upto(16)
        items = {t: tuple(items_of("search", MANY)[t][i] for i in chosen) for t, chosen in asked.items.items()}
        part = {Digest(f"{r}-{batch}"): restrict(e, items) for r, e in whole.items()}
        for recipe, evaluation in part.items():
            asker.learn(recipe, evaluation)
        believed_now = asker.believe(part, goals, asked)
        errors = [
            abs(b.tasks[t].value - whole[Digest(r.rpartition("-")[0])].answers[t].mean)
            for r, b in believed_now.items()
            for t in TASKS
        ]
        assert max(errors) < 0.3
        assert asker.estimators == dict.fromkeys(TASKS, "p-irt")
