"""Who goes on in a race, what failures and repeats come to, what is believed of those that left early."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from race_world import N_ITEMS, ONE_GOAL, TASKS, Remembered, Stand, direct, recipe_digest

from evomerge.evaluation.beliefs import feasibility
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.measures import Measure
from evomerge.evaluation.objectives import ConstraintSpec, ObjectiveSpec
from evomerge.irt.estimators import calibration
from evomerge.irt.fit import fit
from evomerge.irt.race import halving_schedule
from evomerge.racing import task_model
from evomerge.racing.race import LOOKS
from evomerge.types import Evaluation, Failure

FITS = Remembered(fit)
ALL = len(TASKS) * N_ITEMS
ADD = Goals((ObjectiveSpec("add", ("add",)),))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk, and equal banks are fitted once."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for module in (task_model, calibration):
        monkeypatch.setattr(module, "fit", FITS)


def n_answers(outcome: object) -> int:
    assert isinstance(outcome, Evaluation)
    return outcome.n_questions


# -- halving -----------------------------------------------------------------------------------------------------------


def test_halving_keeps_the_able_ones_and_the_mean(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "run")
    ability = [-3.0, 2.5, -2.0, -2.5, 3.0, -1.5, -3.0, -2.2]
    found = stand.run([direct(x, x + 0.01 * i) for i, x in enumerate(ability)])
    schedule = halving_schedule(8, ALL, mean_questions=12, final=2)
    assert [len(a) for a in stand.alive()] == [rung.keep for rung in schedule] == [8, 4, 2]
    assert stand.questions() == [rung.questions for rung in schedule]
    assert stand.alive()[-1] == [1, 4]
    asked = [n_answers(outcome) for outcome in found.outcomes]
    assert asked[1] == asked[4] == max(asked) == schedule[-1].questions
    assert np.mean(asked) <= 12
    assert len(found.beliefs) == 8  # those that left early have a score, too
    values = [found.beliefs[recipe_digest(direct(x, x + 0.01 * i))].tasks["add"].value for i, x in enumerate(ability)]
    assert min(values[1], values[4]) > max(v for i, v in enumerate(values) if i not in (1, 4))


def test_beliefs_are_as_sure_as_answers_are_many(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "run")
    recipes = [direct(x, x) for x in np.linspace(-0.5, 0.5, 8)]
    found = stand.run(recipes)
    last, first = stand.alive()[-1][0], next(i for i in range(8) if i not in stand.alive()[1])
    surely, hardly = (found.beliefs[recipe_digest(recipes[i])].tasks["add"] for i in (last, first))
    assert surely.n > hardly.n
    assert 0 < surely.se < hardly.se
    row = stand.history.estimates[(recipe_digest(recipes[last]), "search")]
    assert row.tasks["add"] == (surely.value, surely.se, surely.n)


def test_without_a_race_everybody_is_asked_the_mean(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "run", race="none")
    found = stand.run([direct(x + 0.5, x) for x in range(-3, 3)])
    assert stand.alive() == [list(range(6))]
    assert [n_answers(o) for o in found.outcomes] == [12] * 6


def test_few_candidates_do_not_race(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "run")
    stand.run([direct(-1.0, 0.0), direct(0.0, 1.0), direct(1.0, 2.0)])
    assert stand.alive() == [[0, 1, 2]]
    assert stand.questions() == [12]


def test_the_first_generation_is_asked_everything(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "run")
    assert stand.alive() == []
    assert stand.history.counts.questions == (3 + 8) * ALL
    assert stand.history.estimated == {}


# -- elimination -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goals", [ADD, ONE_GOAL], ids=["sign test", "two tasks"])
def test_elimination_drops_the_hopeless_and_asks_the_others_more(tmp_path: Path, goals: Goals) -> None:
    stand = Stand(tmp_path / "run", goals, race="elimination", number=10, alpha=0.1)
    ability = [5.0, -5.0, 5.1, -5.1, 5.2, -5.2, 5.3, -5.3]
    found = stand.run([direct(x, x) for x in ability])
    alive = stand.alive()
    assert alive[0] == list(range(8))
    assert alive[-1] == [0, 2, 4, 6]
    asked = [n_answers(o) for o in found.outcomes]
    assert np.mean(asked) <= 20
    assert min(asked[::2]) > 20 > max(asked[1::2])


def test_elimination_drops_nobody_among_equals_and_keeps_the_mean(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "run", race="elimination", number=10)
    found = stand.run([direct(1.0 + 1e-6 * i, 1.0) for i in range(6)])
    assert [len(a) for a in stand.alive()] == [6] * LOOKS
    assert [n_answers(o) for o in found.outcomes] == [20] * 6
    assert stand.questions()[0] == 10


def test_elimination_compares_common_items_only(tmp_path: Path) -> None:
    """Repeats, of recipes that were asked all or other items, have answered more than the newcomers."""
    stand = Stand(tmp_path / "run", ADD, race="elimination", number=8)
    stand.run([direct(x, 0.0) for x in (0.2, 0.4, 0.6, 0.8)])
    soup = direct(0.0, 0.0)
    found = stand.run([direct(0.2, 0.0), soup, direct(1.0, 0.0), direct(-6.0, 0.1), direct(6.0, 0.2)])
    assert all(isinstance(o, Evaluation) for o in found.outcomes)
    assert n_answers(found.outcomes[1]) == ALL
    assert n_answers(found.outcomes[0]) > n_answers(found.outcomes[2])
    assert found.beliefs[recipe_digest(soup)].tasks["add"].n == N_ITEMS


def test_elimination_needs_scores(tmp_path: Path) -> None:
    goals = Goals((ObjectiveSpec("m", ("add",), measure=Measure("margin")),))
    stand = Stand(tmp_path / "run", goals, race="elimination")
    stand.run([direct(x, 0.0) for x in (-5.0, 5.0, -5.1, 5.1)])
    assert stand.alive()[-1] == [0, 1, 2, 3]


def test_elimination_follows_the_direction(tmp_path: Path) -> None:
    goals = Goals((ObjectiveSpec("add", ("add",), direction="minimize"),))
    stand = Stand(tmp_path / "run", goals, race="elimination", number=10, alpha=0.1)
    stand.run([direct(x, 0.0) for x in (5.0, -5.0, 5.1, -5.1, 5.2, -5.2)])
    assert stand.alive()[-1] == [1, 3, 5]


def test_elimination_follows_the_sign_of_the_weights(tmp_path: Path) -> None:
    goals = Goals((ObjectiveSpec("o", TASKS, "weighted", (1.0, -2.0)),))
    stand = Stand(tmp_path / "run", goals, race="elimination", number=16, alpha=0.3)
    stand.run([direct(x, y) for x, y in ((6, -6), (-6, 6), (6, -6.1), (-6, 6.1), (6, -6.2), (-6, 6.2))])
    assert stand.alive()[-1] == [0, 2, 4]


@pytest.mark.parametrize(
    ("goals", "best", "rival"),
    [
        (Goals(ADD.objectives, (ConstraintSpec("task", "rev", "at_least", 0.5),)), (-5.0, 5.0), (5.0, -5.0)),
        (Goals((ObjectiveSpec("worst", TASKS, "min"),)), (-1.5, -1.5), (9.0, -2.5)),
    ],
    ids=["constraint", "minimum"],
)
def test_elimination_drops_nobody_where_it_cannot_tell_the_best(
    tmp_path: Path, goals: Goals, best: tuple[float, float], rival: tuple[float, float]
) -> None:
    """The best by a bound or by the worst task may be behind on what the paired tests compare."""
    stand = Stand(tmp_path / "run", goals, race="elimination", number=18, alpha=0.5)
    stand.run([direct(*best), *(direct(rival[0] + 0.01 * i, rival[1]) for i in range(5))])
    assert stand.alive()[-1] == list(range(6))


# -- several objectives, constraints -----------------------------------------------------------------------------------


def test_the_front_survives(tmp_path: Path) -> None:
    goals = Goals(tuple(ObjectiveSpec(t, (t,)) for t in TASKS))
    stand = Stand(tmp_path / "run", goals, number=10)
    recipes = [direct(*x) for x in ((-4, -4), (4, -3), (-3, -4), (-4, -3), (-3, 4), (-5, -4), (-4, -5), (-5, -5))]
    stand.run(recipes)
    assert stand.alive()[-1] == [1, 4]


def test_with_several_objectives_nobody_races_unless_asked_to(tmp_path: Path) -> None:
    goals = Goals(tuple(ObjectiveSpec(t, (t,)) for t in TASKS))
    stand = Stand(tmp_path / "run", goals, race="auto")
    stand.run([direct(x, -x) for x in (-1.0, 0.0, 1.0, 2.0, 3.0)])
    assert len(stand.alive()) == 1


def test_who_breaks_a_bound_does_not_go_on(tmp_path: Path) -> None:
    goals = Goals(ADD.objectives, (ConstraintSpec("task", "rev", "at_least", 0.5),))
    stand = Stand(tmp_path / "run", goals, number=10)
    recipes = [direct(*x) for x in ((5, -5), (0.5, 4), (4.5, -4), (0.4, 5), (4, -5), (4.2, -6), (4.1, -5), (4.4, -5))]
    found = stand.run(recipes)
    assert stand.alive()[-1] == [1, 3]
    chances = [feasibility(stand.goals, found.beliefs[recipe_digest(r)]) for r in recipes]
    assert min(chances[1], chances[3]) > 0.5 > max(c for i, c in enumerate(chances) if i not in (1, 3))


# -- failures ----------------------------------------------------------------------------------------------------------


def clumsy_scorer():  # type: ignore[no-untyped-def]
    """The ability of `rev` says in which increment a candidate fails: 7 at once, 8 in the second."""
    from race_world import scorer, weights_of

    healthy = scorer()
    seen: dict[str, int] = {}

    def score(task):  # type: ignore[no-untyped-def]
        kind = weights_of(task.recipe)[1]
        seen[str(task.recipe)] = seen.get(str(task.recipe), 0) + 1
        if task.items is not None and kind >= 7 and seen[str(task.recipe)] >= kind - 6:
            raise RuntimeError("clumsy")
        return healthy(task)

    return score


@pytest.mark.parametrize("race", ["halving", "elimination", "none"])
def test_failures_are_failures_at_any_rung(tmp_path: Path, race: str) -> None:
    stand = Stand(tmp_path / "run", ADD, f"{__name__}:clumsy_scorer", race=race)
    recipes = [direct(3.0, 7.0), direct(3.1, 8.0), *(direct(x, 0.0) for x in (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0))]
    found = stand.run(recipes)
    failed = [isinstance(o, Failure) for o in found.outcomes]
    later = len(stand.alive()) > 1  # the able one goes on, and fails then
    assert failed == [True, later] + [False] * 6
    assert recipe_digest(recipes[0]) not in found.beliefs
    assert (recipe_digest(recipes[1]) in found.beliefs) is not later
    assert all(0 not in alive for alive in stand.alive()[1:])
    assert all(1 not in alive for alive in stand.alive()[2:])
    rows = {row.recipe for row in stand.history.estimated[1].rows}
    assert rows == set(found.beliefs)


@pytest.mark.parametrize("rotate", [True, False])
def test_who_failed_once_gets_no_score_from_earlier_answers(tmp_path: Path, rotate: bool) -> None:
    """With the same questions in every generation, the first rung asks what the candidate had answered."""
    stand = Stand(tmp_path / "run", ADD, f"{__name__}:clumsy_scorer", rotate=rotate, order="random")
    clumsy = direct(0.5, 8.0)
    first = stand.run([*(direct(x, 0.0) for x in (-6.0, -7.0, -8.0, -9.0, -5.0)), clumsy])
    assert isinstance(first.outcomes[-1], Failure)
    assert len(stand.alive()) > 1  # it was able enough to go on, and failed then
    again = stand.run([*(direct(x, 0.1) for x in (6.0, 7.0, 8.0, 9.0, 5.0)), clumsy])
    assert (stand.history.rungs[(1, 0)].items == stand.history.rungs[(2, 0)].items) is not rotate
    assert isinstance(again.outcomes[-1], Failure)
    assert recipe_digest(clumsy) not in again.beliefs


@pytest.mark.parametrize("race", ["halving", "elimination"])
def test_a_generation_that_fails_altogether(tmp_path: Path, race: str) -> None:
    stand = Stand(tmp_path / "run", ADD, f"{__name__}:clumsy_scorer", race=race)
    for kind in (7.0, 8.0):
        found = stand.run([direct(float(i), kind) for i in range(6)])
        if kind == 7.0:
            assert all(isinstance(o, Failure) for o in found.outcomes)
            assert found.beliefs == {}
            assert len(stand.alive()) == 1
        else:
            assert sum(isinstance(o, Failure) for o in found.outcomes) >= 3
            assert len(stand.alive()) == 2
    assert len(stand.run([direct(float(i), 0.5) for i in range(6)]).beliefs) == 6


# -- repeats, budgets --------------------------------------------------------------------------------------------------


def answered_items(stand: Stand) -> dict[str, int]:
    """Recipe -> answers over all increments, each of which must be new."""
    found: dict[str, set[str]] = {}
    for (recipe, _), parts in stand.history.parts.items():
        for part in parts:
            evaluation = stand.store.load_responses(part)
            new = {f"{t}/{i}" for t, a in evaluation.answers.items() for i in a.items}
            assert not new & found.setdefault(recipe, set())
            found[recipe] |= new
    return {recipe: len(items) for recipe, items in found.items()}


def test_repeats_go_on_where_they_stopped(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "run")
    recipes = [direct(x, x) for x in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    results = [stand.run(recipes) for _ in range(5)]
    answered = answered_items(stand)
    assert max(answered.values()) <= ALL
    assert sum(answered.values()) == stand.history.counts.questions
    for recipe in recipes:
        digest = recipe_digest(recipe)
        counts = [found.beliefs[digest].tasks["add"].n for found in results]
        assert counts == sorted(counts)
        assert answered[digest] == sum(b.n for b in results[-1].beliefs[digest].tasks.values())
    assert stand.history.counts.repeated == 0


def test_a_repeat_that_was_asked_everything_is_believed_exactly(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "run")
    found = stand.run([stand.first[0], stand.first[7], *(direct(x, 0.0) for x in (0.0, 1.0, 2.0))])
    evaluation = found.outcomes[0]
    assert isinstance(evaluation, Evaluation)
    belief = found.beliefs[recipe_digest(stand.first[0])].tasks["add"]
    assert belief == (evaluation.answers["add"].mean, evaluation.answers["add"].se, N_ITEMS)


def test_equal_recipes_take_one_place(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "run")
    best, good = direct(4.0, 4.0), direct(3.0, 3.0)
    found = stand.run([best, direct(-3.0, -3.0), best, direct(-2.0, -2.0), best, good])
    assert stand.alive()[0] == list(range(6))
    assert stand.alive()[-1] == [0, 2, 4, 5]
    assert [len(set(stand.alive()[k])) for k in range(len(stand.alive()))] == [6, 4]
    assert n_answers(found.outcomes[0]) == n_answers(found.outcomes[2]) == n_answers(found.outcomes[5])
    assert len(found.beliefs) == 4
    assert len(answered_items(stand)) == 3 + 8 + 4


def test_equal_recipes_agree_when_they_leave(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "run")
    worst = direct(-4.0, -4.0)
    found = stand.run([worst, direct(2.0, 2.0), worst, direct(3.0, 3.0), direct(2.5, 2.5)])
    assert all(0 not in a and 2 not in a for a in stand.alive()[1:])
    assert found.outcomes[0] == found.outcomes[2]
    belief = found.beliefs[recipe_digest(worst)]
    assert sum(b.n for b in belief.tasks.values()) == n_answers(found.outcomes[0])


@pytest.mark.parametrize("race", ["halving", "elimination", "none"])
def test_a_limit_cuts_the_generation_in_its_first_rung(tmp_path: Path, race: str) -> None:
    stand = Stand(tmp_path / "run", race=race)
    soup, recipes = direct(0.0, 0.0), [direct(1.0, 1.0), direct(2.0, 2.0), direct(3.0, 3.0)]
    found = stand.run([soup, *recipes], limit=1)
    assert [o is None for o in found.outcomes] == [False, False, True, True]
    assert len(stand.alive()) == 1
    assert set(found.beliefs) == {recipe_digest(soup), recipe_digest(recipes[0])}
    assert 1 not in stand.history.estimated
    assert {row.recipe for row in stand.history.estimated[-3].rows} == set(found.beliefs)


def test_calibration_may_take_more_generations(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "run", calibrate=14)
    stand.run([direct(x, 0.1) for x in (-1.0, 0.0, 1.0, 2.0)])  # 11 models have answered everything, 15 after this
    assert stand.alive() == []
    stand.run([direct(x, 0.2) for x in (-1.0, 0.0, 1.0, 2.0)])
    assert len(stand.alive()) > 0
