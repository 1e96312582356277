"""A job's questions against its plan: banks that fit or do not, functions that need every answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from race_world import N_ITEMS, ONE_GOAL, TASKS, items_of, two_goals

from evomerge.config.questions import Questions, choose_questions
from evomerge.errors import ConfigError
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.measures import Measure
from evomerge.evaluation.objectives import CustomObjective, ObjectiveSpec
from evomerge.irt.bank_files import write_bank
from evomerge.irt.fit import fit
from evomerge.irt.responses import Responses
from evomerge.racing.spec import load_questions


class Plan:
    """The part of an evaluation plan that is looked at."""

    def __init__(self, n: int) -> None:
        self._n = n

    def task(self, name: str) -> Any:
        return SimpleNamespace(kind="multiple_choice", metric=SimpleNamespace(aggregation="mean"))

    def items(self, set_name: Any) -> dict[str, tuple[str, ...]]:
        return items_of(set_name, self._n)


def chosen(value: Any, goals: Goals = ONE_GOAL, n: int = N_ITEMS) -> Questions:
    return choose_questions(load_questions(value), Plan(n), goals)  # type: ignore[arg-type]


def write(path: Path, items: tuple[str, ...]) -> Path:
    rng = np.random.default_rng(0)
    scores = (rng.random((12, len(items))) < rng.uniform(0.2, 0.8, (12, 1))).astype(float)
    write_bank(path, fit(Responses(scores, tuple(f"m{i}" for i in range(12)), items)).bank)
    return path


def test_the_pool_is_the_search_set_with_its_weights() -> None:
    found = chosen(6, two_goals(constrained=True))
    assert dict(found.pool.items) == items_of("search")
    assert found.pool.importance == {"add": 1.5, "rev": 1.5}
    assert found.pool.margins == frozenset()
    assert found.notes == ()
    assert found.partial
    assert found.per_candidate(TASKS) == 12
    assert found.per_candidate(("rev",)) == 6
    assert not chosen("all").partial
    assert not chosen("auto").partial  # small sets
    assert chosen("auto", n=200).partial


def test_margins_are_named() -> None:
    goals = Goals((ObjectiveSpec("m", ("rev",), measure=Measure("margin")),))
    assert chosen(6, goals).pool.margins == {"rev"}


def test_functions_need_every_answer_unless_told_otherwise() -> None:
    goals = Goals((CustomObjective("f", lambda e: 0.0),))
    found = chosen("auto", goals, n=200)
    assert found.spec.whole
    assert not found.partial
    assert "Python function" in found.notes[0]
    assert chosen(6, goals).partial


def test_banks_that_hold_the_items_are_used(tmp_path: Path) -> None:
    items = items_of("search")["add"]
    more = write(tmp_path / "more.npz", (*items[::-1], "another"))
    found = chosen({"number": 6, "banks": [more]})
    assert set(found.pool.banks) == {"add"}
    assert found.pool.banks["add"].items == items  # reordered
    assert found.digests.keys() == {"add"}
    assert "more.npz (12 models) is used for add" in found.notes[0]


def test_the_first_bank_that_fits_is_used(tmp_path: Path) -> None:
    items = items_of("search")["add"]
    one, two = write(tmp_path / "one.npz", items), write(tmp_path / "two.json", items)
    found = chosen({"number": 6, "banks": [one, two]})
    other = chosen({"number": 6, "banks": [two, one]})
    assert "one.npz" in found.notes[0]
    assert "two.json" in other.notes[0]
    assert found.digests != other.digests


def test_banks_of_other_questions_are_ignored_with_a_word(tmp_path: Path) -> None:
    items = items_of("search")["add"]
    most = write(tmp_path / "most.npz", (*items[:-1], "another"))
    found = chosen({"number": 6, "banks": [most]})
    assert found.pool.banks == {}
    assert found.digests == {}
    assert "most.npz is ignored: it holds 23 of 24" in found.notes[0]


def test_banks_are_not_read_when_everything_is_asked(tmp_path: Path) -> None:
    assert chosen({"number": "all", "banks": [tmp_path / "missing.npz"]}).notes == ()


def test_banks_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)missing.npz.*evomerge calibrate"):
        chosen({"number": 6, "banks": [tmp_path / "missing.npz"]})
    (tmp_path / "damaged.json").write_text("{")
    with pytest.raises(ConfigError, match=r"damaged\.json"):
        chosen({"number": 6, "banks": [tmp_path / "damaged.json"]})
