"""Weights on a grid, and what a request to weigh must not say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.config.weighing import Weighing, rounded_row
from evomerge.errors import ConfigError

POSITIVE = st.lists(st.floats(0.01, 10.0), min_size=1, max_size=6)
UNITS = st.sampled_from([1000, 200, 100, 50, 40, 20, 10])


@settings(deadline=None, max_examples=100)
@given(POSITIVE, UNITS)
def test_rounded_shares_add_up_to_one_and_stay_within_a_step(values: list[float], unit: int) -> None:
    shares = [v / math.fsum(values) for v in values]
    found = rounded_row(shares, unit)
    assert sum(round(f * unit) for f in found) == unit
    for share, value in zip(shares, found, strict=True):
        assert abs(value - share) < 1 / unit + 1e-9
        assert value == round(value * unit) / unit


def test_other_numbers_are_rounded_one_by_one() -> None:
    assert rounded_row((0.32, 0.33, 0.0), 20) == (0.3, 0.35, 0.0)
    assert rounded_row((0.334, 0.333, 0.333), 10) == (0.4, 0.3, 0.3)
    assert rounded_row((0.5, 0.25, 0.25), 20) == (0.5, 0.25, 0.25)


@pytest.mark.parametrize(
    ("by", "prompts", "settings_", "match"),
    [
        ("adamergin", None, {}, "no way 'adamergin'(.|\n)*adamerging"),
        ("metagpt", 3, {}, "number of prompts(.|\n)*weights alone"),
        ("lm_cocktail", 0, {}, "number of prompts(.|\n)*1 or more"),
        ("metagpt", None, {"steps": 3.0}, "metagpt has no settings"),
    ],
)
def test_what_does_not_fit_is_refused(by: str, prompts: int | None, settings_: dict[str, float], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Weighing(by, prompts, settings_)
