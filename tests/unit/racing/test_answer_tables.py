"""Answers of candidates as matrices, and how much each task matters."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.measures import Measure
from evomerge.evaluation.objectives import ConstraintSpec, CustomObjective, ObjectiveSpec
from evomerge.racing.answers import AnswerTable
from evomerge.racing.importance import CONSTRAINT, importance_of, margin_tasks
from evomerge.types import Digest, Evaluation, TaskAnswers

ITEMS = ("x", "y", "z", "w")


def given_answers(items: str, scores: list[float], margins: list[float] | None = None) -> Evaluation:
    return Evaluation("search", {"add": TaskAnswers("add", tuple(items), tuple(scores), tuple(margins or ()))})


def name(text: str) -> Digest:
    return Digest(text)


def test_answers_stand_where_their_items_do() -> None:
    table = AnswerTable("add", ITEMS)
    table.learn(name("one"), given_answers("wx", [1.0, 0.0]))
    table.learn(name("two"), given_answers("xyzw", [1.0, 1.0, 0.0, 0.5]))
    np.testing.assert_array_equal(
        table.rows([name("two"), name("one")]), [[1.0, 1.0, 0.0, 0.5], [0.0, np.nan, np.nan, 1.0]]
    )
    assert table.recipes == ("one", "two")
    assert table.complete == ("two",)
    assert table.asked(name("one")).tolist() == [True, False, False, True]
    responses = table.responses([name("one")])
    assert responses.items == ITEMS
    assert responses.models == ("one",)


def test_tables_only_grow() -> None:
    table = AnswerTable("add", ITEMS)
    table.learn(name("one"), given_answers("x", [1.0]))
    rows = table.rows([name("one")])
    rows[:] = 9.0  # a copy
    table.learn(name("one"), given_answers("yzw", [0.0, 0.0, 1.0]))
    assert table.rows([name("one")]).tolist() == [[1.0, 0.0, 0.0, 1.0]]
    assert table.complete == table.recipes == ("one",)


def test_item_means_lean_on_the_mean_of_all() -> None:
    table = AnswerTable("add", ITEMS)
    assert table.item_means().tolist() == [0.0] * 4  # nothing known: all alike
    table.learn(name("one"), given_answers("xy", [1.0, 0.0]))
    table.learn(name("two"), given_answers("xz", [1.0, 0.0]))
    np.testing.assert_allclose(table.item_means(), [(2 + 0.5) / 3, 0.25, 0.25, 0.5])


def test_margins_have_their_own_table_and_may_be_missing() -> None:
    table = AnswerTable("add", ITEMS, "margin")
    table.learn(name("one"), given_answers("xy", [1.0, 0.0], [0.7, -0.2]))
    table.learn(name("two"), given_answers("xy", [1.0, 0.0]))
    table.learn(name("three"), Evaluation("search", {}))
    np.testing.assert_array_equal(table.rows(table.recipes)[:, :2], [[0.7, -0.2], [np.nan] * 2, [np.nan] * 2])
    assert table.complete == ()


def test_tables_of_nobody() -> None:
    assert AnswerTable("add", ITEMS).rows([]).shape == (0, 4)
    with pytest.raises(KeyError, match="one"):
        AnswerTable("add", ITEMS).asked(name("one"))


def test_importance_is_the_share_in_objectives() -> None:
    tasks = ("a", "b", "c", "d")
    mean = ObjectiveSpec("m", ("a", "b"))
    assert importance_of(Goals((mean,)), tasks) == {"a": 0.5, "b": 0.5, "c": 0.0, "d": 0.0}
    worst = ObjectiveSpec("w", ("b", "c"), "min")
    assert importance_of(Goals((mean, worst)), tasks) == {"a": 0.5, "b": 1.5, "c": 1.0, "d": 0.0}
    weighted = ObjectiveSpec("v", ("a", "c"), "weighted", (3.0, -1.0))
    assert importance_of(Goals((weighted,)), tasks) == {"a": 0.75, "b": 0.0, "c": 0.25, "d": 0.0}


def test_bounded_tasks_matter_half() -> None:
    tasks = ("a", "b")
    goals = Goals((ObjectiveSpec("m", ("a",)),), (ConstraintSpec("task", "b", "at_least", 0.5),))
    assert importance_of(goals, tasks) == {"a": 1.0, "b": CONSTRAINT}
    on_objective = Goals((ObjectiveSpec("m", ("a", "b")),), (ConstraintSpec("objective", "m", "at_least", 0.5),))
    assert importance_of(on_objective, tasks) == {"a": 0.5 + CONSTRAINT / 2, "b": 0.5 + CONSTRAINT / 2}


def test_nobody_knows_what_a_function_looks_at() -> None:
    goals = Goals((ObjectiveSpec("m", ("a",)), CustomObjective("f", lambda e: 0.0)))
    assert importance_of(goals, ("a", "b")) == {"a": 1.0, "b": 1.0}


def test_margin_tasks_are_those_of_objectives_and_bounds() -> None:
    margin = Measure("margin")
    bounded = ConstraintSpec("task", "c", "at_least", 0.0, measure=margin)
    goals = Goals((ObjectiveSpec("m", ("a",)), ObjectiveSpec("n", ("b",), measure=margin)), (bounded,))
    assert margin_tasks(goals) == {"b", "c"}
    assert margin_tasks(Goals((CustomObjective("f", lambda e: 0.0),))) == frozenset()
