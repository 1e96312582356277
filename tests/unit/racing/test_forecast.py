"""What a plan says a search will ask."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.racing.forecast import Field, Forecast, forecast
from evomerge.racing.questioner import Pool, Questioner
from evomerge.racing.spec import QuestionsSpec

FIELD = Field(budget=200, known=8, first=6, population=12, mean=True)
ITEMS = {task: tuple(f"{task}{i}" for i in range(100)) for task in ("add", "rev", "srt", "addx")}


def told(field: Field = FIELD, *, imported: bool = False, **spec: Any) -> Forecast:
    questions = QuestionsSpec(**{"number": 15, **spec})
    pool = Pool(ITEMS, dict.fromkeys(ITEMS, 1.0))
    return forecast(Questioner(questions, pool, 0), questions, field, imported=imported)


def test_baselines_generation_zero_and_the_mean_are_asked_everything() -> None:
    found = told()
    # generation 0 of 6 is not enough to calibrate with, another 12 are; and the mean
    # 173 candidates are left: fifteen generations of twelve, the last of them cut
    assert found == Forecast(60, 400, 27, 27 * 400 + 15 * 12 * 60, 80_000)


def test_asking_everything_costs_everything() -> None:
    assert told(number="all") == Forecast(400, 400, 200, 80_000, 80_000)


def test_imported_banks_save_the_first_generation() -> None:
    assert told(imported=True).whole == 9


def test_few_known_models_cost_more_generations() -> None:
    assert told(Field(200, 1, 3, 12, False)).whole == 1 + 3 + 12 + 12


@pytest.mark.parametrize(("wanted", "whole"), [(0, 9), (9, 15), (15, 27)])
def test_wanted_calibration_models(wanted: int, whole: int) -> None:
    assert told(calibrate=wanted).whole == whole


def test_estimators_that_need_no_bank_need_no_calibration() -> None:
    assert told(estimator="mean", order="random").whole == 9


def test_elimination_asks_the_mean_at_most() -> None:
    assert told(race="elimination") == told()


def test_never_more_than_everything() -> None:
    assert told(Field(16, 8, 6, 12, True)).at_most == 16 * 400
    assert told(Field(5, 8, 6, 12, True)) == Forecast(60, 400, 5, 2000, 2000)


def test_every_task_is_asked_a_little() -> None:
    assert told(number=1).at_most == 27 * 400 + 15 * 12 * 8
