"""Joining sheets: who is who, which answer counts, and what cannot be calibrated."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.calibration.sheets import Sheet, SourceFacts, pool_sheets
from evomerge.errors import ConfigError

HOLE = np.nan


def sheet(scores: list[list[float]], keys: str, items: str, *, source: str = "a", metric: str = "") -> Sheet:
    names = tuple(f"name {k}" for k in keys)
    return Sheet(source, "matrix", "t", metric, tuple(keys), names, tuple(items), np.array(scores, dtype=float))


def test_sheets_are_joined_by_key_and_item() -> None:
    first = sheet([[1, 0], [HOLE, 1]], "mn", "xy")
    second = sheet([[0, 1], [1, 0]], "no", "xz", source="b")
    pool = pool_sheets("t", [first, second])
    expected = [[1, 0, HOLE], [0, 1, 1], [1, HOLE, 0]]
    np.testing.assert_array_equal(pool.responses.scores, expected)
    assert pool.responses.models == ("name m", "name n", "name o")
    assert pool.responses.items == ("x", "y", "z")
    assert pool.sources == (SourceFacts("a", "matrix", 2, 3), SourceFacts("b", "matrix", 2, 4))
    assert pool.notes == ()


def test_of_two_answers_the_first_counts_and_a_difference_is_told() -> None:
    pool = pool_sheets("t", [sheet([[1, 0], [0, 0]], "mn", "xy"), sheet([[0, 0]], "m", "xy", source="b")])
    assert pool.responses.scores.tolist() == [[1, 0], [0, 0]]
    assert "Given twice with different scores: 1 answer; the first ones count." in pool.notes


def test_different_models_of_one_name_stay_apart() -> None:
    a, b = sheet([[1, 0]], "m", "xy"), sheet([[0, 0]], "n", "xy")
    twin = Sheet(b.source, "matrix", "t", "", b.keys, a.names, b.items, b.scores)
    assert pool_sheets("t", [a, twin]).responses.models == ("name m", "name m (2)")


def test_rows_and_columns_without_answers_go() -> None:
    pool = pool_sheets("t", [sheet([[1, 0, HOLE], [0, 1, HOLE], [HOLE, HOLE, HOLE]], "mno", "xyz")])
    assert pool.responses.scores.shape == (2, 2)
    assert "Left out: 1 model without any answer." in pool.notes


def test_constant_rows_are_kept_and_told() -> None:
    pool = pool_sheets("t", [sheet([[1, 1], [0, 1]], "mn", "xy")])
    assert pool.responses.models == ("name m", "name n")
    assert pool.notes[0].startswith("1 model answered every item alike")


def test_runs_tell_metrics_without_filters() -> None:
    sheets = [sheet([[1, 0]], "m", "xy", metric="acc"), sheet([[0, 0]], "n", "xy", metric="acc,none")]
    assert pool_sheets("t", sheets).metric == "acc,none"


@pytest.mark.parametrize("metrics", [("acc,none", "acc_norm,none"), ("em,strict", "em,flexible")])
def test_metrics_do_not_mix(metrics: tuple[str, str]) -> None:
    sheets = [sheet([[1, 0]], "m", "xy", metric=metrics[0]), sheet([[0, 0]], "n", "xy", metric=metrics[1], source="b")]
    with pytest.raises(ConfigError, match=f"different metrics(.|\n)*{metrics[0]} in a, {metrics[1]} in b"):
        pool_sheets("t", sheets)


def test_one_model_is_too_few() -> None:
    with pytest.raises(ConfigError, match=r"too few models(.|\n)*answers of 1 model to 2 items(.|\n)*at least 2"):
        pool_sheets("t", [sheet([[1, 0]], "m", "xy")])


def test_models_without_common_items_are_refused() -> None:
    apart = [sheet([[1, 0], [0, 0]], "mn", "xy"), sheet([[1, 0], [0, 1]], "op", "zw")]
    with pytest.raises(ConfigError, match=r"without common items(.|\n)*2 of 4 models(.|\n)*'name o'"):
        pool_sheets("t", apart)
    linked = [*apart, sheet([[1, 1]], "q", "yz")]
    assert len(pool_sheets("t", linked).responses.models) == 5


def test_items_that_all_answer_alike_teach_nothing() -> None:
    with pytest.raises(ConfigError, match=r"Nothing can be learned(.|\n)*2 items, each answered alike"):
        pool_sheets("t", [sheet([[1, 0], [1, 0]], "mn", "xy")])
