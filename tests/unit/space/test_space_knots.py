"""Control points that are read off the values between them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from path_cases import decoded, parse

from evomerge.space.dimension import decode, encode
from evomerge.space.dimensions import Integer, Real
from evomerge.space.knots import Between, solve_knots

GRID = Real("g", 0, 1, 0.125)


def made(a, b, left, right):
    gene = left * encode(GRID, GRID.value_at(a)) + right * encode(GRID, GRID.value_at(b))
    return GRID.index_of(decode(GRID, min(1.0, gene)))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 8), min_size=3, max_size=3),
    st.lists(st.integers(0, 8), min_size=3, max_size=3),
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.25, 0.5, 0.4, 0.9])), max_size=4),
    st.sets(st.integers(0, 2), max_size=2),
)
def test_as_trying_everything(true, guesses, places, known):
    between = {}
    for k, left in places:
        between.setdefault(k, []).append(Between(left, 1 - left, made(true[k], true[k + 1], left, 1 - left)))
    fixed = {k: true[k] for k in known}
    found = solve_knots(GRID, guesses, fixed, between)

    def fits(points):
        told = all(points[k] == v for k, v in fixed.items())
        return told and all(
            made(points[k], points[k + 1], b.left, b.right) == b.value for k, bs in between.items() for b in bs
        )

    def cost(points):
        return sum(abs(p - g) for p, g in zip(points, guesses, strict=True))

    assert fits(true)
    assert fits(found)
    assert cost(found) == min(cost(p) for p in product(range(9), repeat=3) if fits(p))


def test_nothing_fits():
    assert solve_knots(GRID, [0, 0], {0: 0, 1: 8}, {0: [Between(0.5, 0.5, 0)]}) is None
    assert solve_knots(Integer("i", 0, 5000), [0, 0], {}, {}) is None


@pytest.mark.parametrize(
    ("method", "knots", "n_layers"), [("task_arithmetic", 4, 9), ("ties", 3, 6), ("linear", 4, 32)]
)
def test_smooth_merges_come_back_though_no_layer_stands_at_a_knot(method, knots, n_layers):
    weight = {"low": 0, "high": 1.5, "step": "1/60"}
    density = {"density": {"low": 0.1, "high": 1, "start": 0.5}} if method == "ties" else {}
    space = parse({"method": method, "depth": {"knots": knots}, "parameters": {"weight": weight, **density}}, n_layers)
    random = np.random.default_rng(4)
    for _ in range(3):
        recipe = decoded(space, random.random(space.space.dim))
        assert decoded(space, space.encode_recipe(recipe, seed=3)) == recipe
