"""Scan: every combination once, in one order; what cannot be scanned is refused."""

import math

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.optimizers.registry import make_optimizer
from evomerge.optimizers.scan import MOST_COMBINATIONS, stride
from evomerge.testing.optimizer_suite import drive
from evomerge.testing.problems import mixed_sphere, sphere
from evomerge.types import Vector

KNOWN = mixed_sphere(6)  # 4 * 6 * 2 * 4 = 192 combinations, two real genes


def asked(budget: int, spent: int, injected: tuple[Vector, ...] = ()) -> list[Vector]:
    trace, _ = drive(make_optimizer("scan", KNOWN.problem(budget=budget, injected=injected), {}), KNOWN, spent)
    return [v for batch in trace for v in batch]


def test_every_combination_is_asked_once_and_then_it_stops() -> None:
    optimizer = make_optimizer("scan", KNOWN.problem(budget=500), {})
    trace, results = drive(optimizer, KNOWN, 500)
    vectors = [v for batch in trace for v in batch]
    assert len({v.tobytes() for v in vectors}) == len(vectors) == len(results) == 192
    assert optimizer.should_stop() == "all 192 combinations were asked"
    assert all(np.array_equal(v, KNOWN.quantise(v)) for v in vectors)
    assert {(v[0], v[4]) for v in vectors} == {(0.4, 0.4)}


def test_neighbours_share_their_first_genes_when_the_budget_holds_all() -> None:
    vectors = asked(budget=192, spent=192)
    assert [v[5] for v in vectors[:4]] == [0.125, 0.375, 0.625, 0.875]
    assert len({v[1] for v in vectors[:48]}) == 1


def test_a_small_budget_is_spread_evenly() -> None:
    """Of 48 in 192, every value of every gene gets its share, within a third of it."""
    vectors = asked(budget=48, spent=48)
    for column, kind in enumerate(KNOWN.kinds):
        if kind.type == "real":
            continue
        cells = [int(v[column] * kind.n_values) for v in vectors]
        share = len(vectors) / kind.n_values
        assert all(share * 2 / 3 <= cells.count(k) <= share * 4 / 3 for k in range(kind.n_values))


def test_injected_vectors_come_first() -> None:
    corner = np.zeros(6)
    vectors = asked(budget=500, spent=20, injected=(corner,))
    assert np.array_equal(vectors[0], corner)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 48, 99, 100, 192, 30030, 99_999, 100_000])
def test_strides_reach_everything(n: int) -> None:
    assert math.gcd(stride(n), n) == 1
    assert 1 <= stride(n) <= n


def test_a_space_without_a_discrete_gene_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to go through"):
        make_optimizer("scan", sphere(4).problem(), {})


def test_too_many_combinations_are_refused_with_their_number() -> None:
    big = mixed_sphere(16)
    n = math.prod(k.n_values for k in big.kinds if k.type != "real")
    assert n > MOST_COMBINATIONS
    with pytest.raises(ConfigError, match="too many combinations") as error:
        make_optimizer("scan", big.problem(), {})
    assert f"{n:.3g}" in error.value.got
