"""Gains and input scales: grids that hold 1, closed forms, prefixes, and back."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from path_cases import path

from evomerge.recipe.path import gains_of_scales
from evomerge.space.dimension import holds
from evomerge.space.gains import LIMIT, NoGains, PlaceGains, PlaceScales, TransitionScales, scaled_gains
from evomerge.space.steps import Step, StepPlace

SCALES = st.lists(st.integers(0, 55).map(lambda k: round(0.4 + 0.02 * k, 10)), min_size=1, max_size=30)


def gain_grid(**gains):
    return path(genotype="skips", gains=gains).paths.gains.range


def scale_grid(**scales):
    return path(genotype="skips", scales=scales).paths.gains.range


@settings(deadline=None, max_examples=60)
@given(st.just(1) | st.floats(0.001, 0.98), st.just(1) | st.floats(1.02, 1000), st.floats(0.01, 0.5))
def test_the_grid_of_gains_is_even_and_holds_1(low, high, step):
    high = 2 if low == high else high
    grid = gain_grid(low=low, high=high, step=step)
    values = [grid.value_at(k) for k in range(grid.n_values)]
    assert 1.0 in values
    assert grid.start_value == 1.0
    assert values[0] == pytest.approx(low, rel=1e-6)
    ratio = (values[-1] / values[0]) ** (1 / (len(values) - 1))
    assert all(b / a == pytest.approx(ratio, rel=2e-3) for a, b in pairwise(values))
    assert abs(math.log(values[-1] / high)) <= max(math.log1p(step), math.log(ratio)) * 1.01


def test_the_usual_grids():
    grid = gain_grid(low=0.5, high=2)
    assert (grid.low, grid.high, grid.n_values) == (0.5, 2.0, 91)
    assert grid.value_at(46) / grid.value_at(45) - 1 == pytest.approx(1 / 64, rel=0.03)
    assert grid.value_at(45) == 1.0
    up = gain_grid(low=1, high=2)
    assert (up.low, up.start_value, up.value_at(0)) == (1.0, 1.0, 1.0)
    scales = scale_grid(low=0.4, high=1.5)
    assert (scales.n_values, scales.start_value, scales.scale) == (56, 1.0, "linear")


@settings(deadline=None, max_examples=60)
@given(SCALES)
def test_gains_of_scales_are_one_over_their_products(scales):
    product, slow = 1.0, []
    for scale in scales:
        product *= scale
        slow.append(1 / product)
    gains = scaled_gains(scales)
    if all(1 / LIMIT < g < LIMIT for g in slow):
        assert gains == pytest.approx(slow, rel=5e-4)
        assert gains == pytest.approx(gains_of_scales(scales), rel=5e-4)
    assert all(1 / LIMIT <= g <= LIMIT for g in gains)
    for k in range(len(scales)):
        assert scaled_gains(scales[:k]) == gains[:k], "what comes later changes nothing before it"


def test_scales_stay_within_the_range_of_useful_numbers():
    assert scaled_gains([0.4] * 1000)[-1] == LIMIT
    assert scaled_gains([1.5] * 1000)[-1] == 1 / LIMIT
    assert scaled_gains([0.4] * 1000 + [2.0])[-1] == LIMIT / 2


STEPS = (Step("a", 0, "p0"), Step("b", 1, "p1"), Step("a", 0, "p2"), Step("b", 1, "p3"))
PLACES = tuple(StepPlace(f"p{i}", "a", f"layer{i}") for i in range(5))
GRID = scale_grid(low=0.4, high=1.5)


def test_gains_belong_to_places():
    gains = PlaceGains(PLACES, gain_grid(low=0.5, high=2))
    two, half = gains.range.high, gains.range.low
    values = gains.encode(STEPS, (two, 1.0, half, 1.0))
    assert values == {"gain.p0": 2.0, "gain.p1": 1.0, "gain.p2": 0.5, "gain.p3": 1.0, "gain.p4": 1.0}
    assert gains.of(STEPS, values) == (2.0, 1.0, 0.5, 1.0)
    assert gains.of((Step("a", 0, "elsewhere"),), values) == (1.0,)
    assert gains.encode(STEPS, (0.5001, 1.0, 1.0, 1.0)) is None
    assert gains.encode((Step("a", 0, "elsewhere"),), (2.0,)) is None
    assert [(g.gene.place, g.gene.parent, g.gene.parameter) for g in gains.genes][2] == ("layer2", "a", "gain")


def test_scales_belong_to_places():
    scales = PlaceScales(PLACES, GRID)
    values = {f"scale.p{i}": v for i, v in enumerate((0.5, 1.0, 1.2, 0.8, 0.4))}
    assert scales.of(STEPS, values) == (2.0, 2.0, 1.667, 2.083)
    assert scales.encode(STEPS, (2.0, 2.0, 1.667, 2.083)) == {**values, "scale.p4": 1.0}
    assert scales.encode(STEPS, (2.0, 2.0, 1.66, 2.083)) is None
    assert scales.encode(STEPS, (-2.0, 1.0, 1.0, 1.0)) is None
    assert scales.encode((Step("a", 0, "elsewhere"),), (2.0,)) is None
    assert scales.encode((Step("a", 0, "elsewhere"),), (1.0,)) == {f"scale.p{i}": 1.0 for i in range(5)}


def test_the_matrix_of_the_paper_scales_transitions():
    matrix = TransitionScales((("a", 0), ("b", 1)), GRID)
    names = [g.gene.name for g in matrix.genes]
    assert names == [f"scale.{i}.to.{j}" for i in ("a.layer0", "b.layer1") for j in ("a.layer0", "b.layer1")]
    values = dict(zip(names, (0.4, 0.5, 0.8, 1.4), strict=True))
    assert matrix.of(STEPS, values) == (1.0, 2.0, 2.5, 5.0), "a to b twice, b to a once; the first hop has none"
    assert matrix.encode(STEPS, (1.0, 2.0, 2.5, 5.0)) == {**values, names[0]: 1.0, names[3]: 1.0}
    assert matrix.encode(STEPS, (1.0, 2.0, 2.5, 2.5)) is None, "one transition has one scale"
    assert matrix.encode(STEPS, (2.0, 2.0, 2.0, 2.0)) is None, "nothing comes before the first hop"


def test_without_genes_all_gains_are_1():
    assert NoGains().of(STEPS, {}) == (1.0,) * 4
    assert NoGains().encode(STEPS, (1.0,) * 4) == {}
    assert NoGains().encode(STEPS, (1.0, 1.0, 1.0, 0.5)) is None


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 55), min_size=4, max_size=4))
def test_scales_come_back_exactly(indices):
    scales = PlaceScales(PLACES, GRID)
    values = {f"scale.p{i}": GRID.value_at(k) for i, k in enumerate([*indices, 30])}
    assert holds(GRID, 1.0)
    assert scales.encode(STEPS, scales.of(STEPS, values)) == values
