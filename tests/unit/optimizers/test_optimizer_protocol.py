"""The protocol around a strategy: folding, own samples, sizes of first batches, stale searches."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.optimizers.base import Told
from evomerge.optimizers.protocol import (
    STALE_BATCHES,
    AskTell,
    gaussian_vectors,
    n_fresh,
    own_sample,
    read_only,
    reflect,
)
from evomerge.optimizers.random_search import RandomStrategy, random_search
from evomerge.testing.problems import sphere


@pytest.mark.parametrize(
    ("value", "folded"), [(0.0, 0.0), (0.3, 0.3), (1.0, 1.0), (1.25, 0.75), (-0.25, 0.25), (2.5, 0.5), (-1.75, 0.25)]
)
def test_reflect_mirrors_at_both_ends(value: float, folded: float) -> None:
    assert reflect(np.array([value]))[0] == folded


@given(st.floats(0, 1))
@settings(deadline=None, max_examples=50)
def test_reflect_is_the_identity_inside(value: float) -> None:
    assert reflect(np.array([value]))[0] == value


@given(st.floats(-1e6, 1e6))
@settings(deadline=None, max_examples=50)
def test_reflect_always_lands_inside(value: float) -> None:
    assert 0 <= reflect(np.array([value]))[0] <= 1


def test_gaussian_vectors_have_the_asked_centre_and_spread() -> None:
    problem = replace(sphere(2).problem(), start=np.array([0.4, 0.6]), spread=np.array([0.05, 0.1]))
    drawn = gaussian_vectors(problem, 20_000, np.random.default_rng(0))
    assert np.allclose(drawn.mean(axis=0), [0.4, 0.6], atol=0.003)
    assert np.allclose(drawn.std(axis=0), [0.05, 0.1], rtol=0.03)
    narrow = gaussian_vectors(problem, 20_000, np.random.default_rng(0), scale=0.5)
    assert np.allclose(narrow.std(axis=0), [0.025, 0.05], rtol=0.03)


@pytest.mark.parametrize(("n_injected", "fresh"), [(0, 9), (3, 6), (4, 5), (5, 5), (40, 5)])
def test_a_first_batch_keeps_room_for_half_a_population(n_injected: int, fresh: int) -> None:
    assert n_fresh(sphere(3).problem(injected=[np.zeros(3)] * n_injected), 9) == fresh


def test_a_quantised_sample_is_still_ones_own() -> None:
    problem = sphere(2).problem()
    asked = np.array([0.123, 0.5])
    near = Told(np.array([0.12, 0.5]), (0.0,))
    far = Told(np.array([0.13, 0.5]), (0.0,))
    assert own_sample(problem, asked, near) is asked
    assert own_sample(problem, asked, far) is far.vector


def test_read_only_copies_and_clips() -> None:
    source = np.array([-1e-12, 0.5, 1.0 + 1e-12])
    vector = read_only(source)
    assert vector.tolist() == [0.0, 0.5, 1.0]
    source[1] = 0.9
    assert vector[1] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1.0


def test_a_search_that_only_repeats_itself_stops() -> None:
    known = sphere(2)
    optimizer = random_search(known.problem(), {"population": 2})
    for _ in range(STALE_BATCHES):
        optimizer.tell([Told(np.zeros(2), (0.0,)) for _ in optimizer.ask()])
        assert optimizer.should_stop() is None
    optimizer.tell([Told(np.zeros(2), (0.0,)) for _ in optimizer.ask()])
    assert optimizer.should_stop() == f"the last {STALE_BATCHES} batches held only candidates that were known"
    optimizer.tell([Told(np.ones(2), (0.0,)) for _ in optimizer.ask()])
    assert optimizer.should_stop() is None


def test_random_batches_do_not_depend_on_what_was_told() -> None:
    problem = sphere(3).problem(seed=4)
    one, two = AskTell(problem, RandomStrategy(problem, 5)), AskTell(problem, RandomStrategy(problem, 5))
    one.tell([Told(v, (0.0,)) for v in one.ask()])
    two.tell([Told(v, None) for v in two.ask()])
    assert np.array_equal(one.ask(), two.ask())
