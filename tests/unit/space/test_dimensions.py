"""Dimensions: quantised, total, invertible."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import SpaceError
from evomerge.space.dimension import decode, encode, holds, quantise
from evomerge.space.dimensions import Choice, Gate, Integer, Real
from evomerge.space.space import SearchSpace

GENES = st.floats(0, 1)
MODEST = settings(deadline=None, max_examples=60)


@st.composite
def linear_reals(draw):
    step = draw(st.sampled_from([0.01, 0.02, 0.05, 0.1, 1 / 60, 1 / 3, 0.25, 1e-3]))
    low = draw(st.integers(-300, 300)) / 100
    return Real("w", low, low + step * draw(st.integers(1, 400)), step)


@st.composite
def log_reals(draw):
    low = draw(st.floats(1e-4, 10))
    return Real("d", low, low * draw(st.floats(1.01, 1e4)), draw(st.sampled_from([0.01, 0.05, 0.5])), "log")


DIMENSIONS = st.one_of(
    linear_reals(),
    log_reals(),
    st.builds(lambda low, n: Integer("i", low, low + n), st.integers(-50, 50), st.integers(1, 40)),
    st.lists(st.one_of(st.integers(0, 99), st.text(max_size=3)), min_size=2, max_size=6, unique=True).map(
        lambda options: Choice("c", tuple(options))
    ),
    st.builds(Gate, st.just("g"), st.booleans()),
)


@MODEST
@given(DIMENSIONS, GENES)
def test_every_gene_decodes_and_quantises_to_itself(dimension, gene):
    value = decode(dimension, gene)
    assert holds(dimension, value)
    assert encode(dimension, value) == quantise(dimension, gene)
    assert quantise(dimension, quantise(dimension, gene)) == quantise(dimension, gene)
    assert abs(quantise(dimension, gene) - gene) <= dimension.gene_step / 2 + 1e-12


@MODEST
@given(DIMENSIONS, st.data())
def test_every_value_comes_back(dimension, data):
    index = data.draw(st.integers(0, dimension.n_values - 1))
    value = dimension.value_at(index)
    gene = encode(dimension, value)
    assert 0 <= gene <= 1
    back = decode(dimension, gene)
    assert (type(back), back) == (type(value), value)


@MODEST
@given(DIMENSIONS)
def test_values_are_distinct_and_ends_are_held(dimension):
    values = [dimension.value_at(i) for i in range(min(dimension.n_values, 500))]
    assert len({(type(v), v) for v in values}) == len(values)
    assert decode(dimension, 0.0) == dimension.value_at(0)
    assert decode(dimension, 1.0) == dimension.value_at(dimension.n_values - 1)
    assert holds(dimension, dimension.start_value)
    assert dimension.gene_spread > 0


@MODEST
@given(linear_reals())
def test_linear_values_are_short_decimals_in_order(real):
    values = [real.value_at(i) for i in range(real.n_values)]
    assert values == sorted(values)
    assert all(-Decimal(repr(v)).as_tuple().exponent <= 10 for v in values)
    assert all(math.copysign(1, v) > 0 for v in values if v == 0)


def test_the_grid_is_what_it_says():
    real = Real("w", 0, 1.5, 0.1, start=0.6, spread=0.3)
    assert [real.value_at(i) for i in range(4)] == [0.0, 0.1, 0.2, 0.3]  # not 0.30000000000000004
    assert real.value_at(15) == 1.5
    assert real.start_value == 0.6
    assert real.gene_spread == pytest.approx(0.2)
    assert real.gene_step == pytest.approx(1 / 15)
    assert decode(real, 0.033) == 0.0
    assert decode(real, 0.034) == 0.1


def test_a_grid_of_sixtieths_holds_thirds_quarters_and_tenths():
    real = Real("w", 0, 1.5, 1 / 60)
    assert all(holds(real, round(v, 10)) for v in (1 / 3, 1 / 4, 1 / 2, 0.3, 0.7, 1.0, 2 / 3))
    assert not holds(real, 0.01)


def test_log_scale_has_equal_ratios():
    real = Real("d", 0.05, 1, 0.05, "log", start=0.5, spread=1.0)
    values = np.array([real.value_at(i) for i in range(real.n_values)])
    assert np.allclose(values[1:] / values[:-1], 20 ** (1 / (real.n_values - 1)), rtol=3e-3)
    assert (values[0], values[-1]) == (0.05, 1.0)
    assert real.gene_spread == pytest.approx(math.log(2) / math.log(20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 1), "low 1, high 1"),
        ((2, 1), "empty range"),
        ((0, math.nan), "nan"),
        ((0, 1, 0), "unusable step"),
        ((0, 1, 0.03), r"high 0\.99 for instance"),
        ((0, 1, 2), "whole number of steps"),
        ((0, 1, 1e-9), "at most 1000000 steps"),
        ((0, 1, 0.1, "log"), "low > 0"),
        ((0.1, 1, 1e-4, "log"), "too fine"),
        ((0, 1, 0.1, "cubic"), "'cubic'"),
        ((0, 1, 0.1, "linear", 3), r"number in \[0, 1\]"),
        ((0, 1, 0.1, "linear", 0.5, 0), "unusable spread"),
    ],
)
def test_unusable_ranges_are_refused(arguments, message):
    with pytest.raises(SpaceError, match=message):
        Real("w", *arguments)


@pytest.mark.parametrize("gene", [-1e-9, 1.0000001, math.nan, math.inf])
def test_genes_outside_the_cube_are_refused(gene):
    with pytest.raises(SpaceError, match="illegal gene"):
        decode(Real("w", 0, 1), gene)


@pytest.mark.parametrize(
    ("dimension", "value", "message"),
    [
        (Real("w", 0, 1, 0.1), 0.15, r"0\.15"),
        (Real("w", 0, 1, 0.1), True, "True"),
        (Real("w", 0, 1, 0.1), "0.1", "'0.1'"),
        (Real("w", 0, 1, 0.1), math.nan, "nan"),
        (Integer("i", 0, 3), 1.5, r"1\.5"),
        (Integer("i", 0, 3), 4, "0 to 3"),
        (Choice("c", (1, 2)), True, "True"),
        (Gate("g"), 1, "true or false"),
    ],
)
def test_values_off_the_grid_are_refused(dimension, value, message):
    assert not holds(dimension, value)
    with pytest.raises(SpaceError, match=message):
        encode(dimension, value)


def test_cells_share_the_cube_equally():
    choice = Choice("c", ("x", "y", "z"))
    drawn = [decode(choice, g) for g in np.linspace(0, 1, 3001)]
    assert [drawn.count(o) for o in "xyz"] == [1000, 1000, 1001]
    assert (decode(Gate("g"), 0.499), decode(Gate("g"), 0.5)) == (False, True)


@pytest.mark.parametrize("options", [(), (1,), (1, 1), ("a", "a", "b")])
def test_choices_must_be_distinct(options):
    with pytest.raises(SpaceError, match="two or more, distinct"):
        Choice("c", options)


def space():
    return SearchSpace((Real("w", -1, 1, 0.1), Gate("g", True), Integer("i", 0, 9), Choice("c", ("x", "y"))))


@MODEST
@given(st.lists(GENES, min_size=4, max_size=4))
def test_spaces_are_total_and_invertible(genes):
    s = space()
    vector = np.array(genes)
    values = s.decode(vector)
    assert list(values) == list(s.names)
    quantised = s.quantise(vector)
    assert np.array_equal(s.encode(values), quantised)
    assert s.decode(quantised) == values
    assert not quantised.flags.writeable


def test_space_arrays():
    s = space()
    assert s.dim == 4
    assert s.decode(s.start) == {"w": 0.0, "g": True, "i": 4, "c": "x"}
    assert np.array_equal(s.quantise(s.start), s.start)
    assert np.allclose(s.step, [0.05, 0.5, 0.1, 0.5])
    assert (s.spread > 0).all()


def test_space_digests_follow_meaning():
    assert space().digest == space().digest
    others = [
        SearchSpace(space().dimensions[::-1]),
        SearchSpace(space().dimensions[1:]),
        SearchSpace((Real("w", -1, 1, 0.05), *space().dimensions[1:])),
        SearchSpace((Real("w", -1, 1, 0.1, start=0.5), *space().dimensions[1:])),
    ]
    assert len({space().digest, *(o.digest for o in others)}) == 5


def test_unusable_spaces_vectors_and_values_are_refused():
    with pytest.raises(SpaceError, match="nothing to search"):
        SearchSpace(())
    with pytest.raises(SpaceError, match=r"one name.\n  Got: g"):
        SearchSpace((Gate("g"), Gate("g")))
    with pytest.raises(SpaceError, match=r"shape \(3,\)"):
        space().decode(np.zeros(3))
    with pytest.raises(SpaceError, match="'g' is missing"):
        space().encode({"w": 0.0, "i": 1, "c": "x"})
    with pytest.raises(SpaceError, match="'h' is unknown"):
        space().encode({"w": 0.0, "g": True, "i": 1, "c": "x", "h": 1})
