"""Feasibility-first ranks: feasible by loss, infeasible by violation, failures last; equals share a place."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.optimizers.base import Told
from evomerge.optimizers.ranking import feasibility_ranks, order_key, total_violation

GENES = np.array([0.5])


def told(loss: float | None, *violations: float) -> Told:
    return Told(GENES, None if loss is None else (loss,), violations)


def test_the_order() -> None:
    results = [told(None), told(0.1, 0.2), told(9.0, -1.0), told(0.0, 0.1), told(1.0, 0.0)]
    assert feasibility_ranks(results).tolist() == [4.0, 3.0, 1.0, 2.0, 0.0]


def test_a_flat_generation_shares_one_rank() -> None:
    assert feasibility_ranks([told(0.3)] * 4).tolist() == [1.5] * 4
    assert feasibility_ranks([told(None)] * 3).tolist() == [1.0] * 3


def test_only_positive_violations_add_up() -> None:
    assert total_violation(told(0.0, -3.0, 0.5, 0.25)) == 0.75
    assert total_violation(told(0.0, -3.0)) == 0.0


def test_infeasible_candidates_are_not_ordered_by_loss() -> None:
    assert order_key(told(-100.0, 0.2)) > order_key(told(100.0, 0.1))


candidates = st.one_of(
    st.just(told(None)),
    st.builds(told, st.sampled_from([0.0, 0.25, 0.5]), st.sampled_from([-0.1, 0.0, 0.1, 0.2])),
)


@given(st.lists(candidates, min_size=1, max_size=12))
@settings(deadline=None, max_examples=60)
def test_ranks_count_who_is_better_and_half_of_who_is_equal(results: list[Told]) -> None:
    keys = [order_key(t) for t in results]
    slow = [sum(k < key for k in keys) + (sum(k == key for k in keys) - 1) / 2 for key in keys]
    assert feasibility_ranks(results).tolist() == slow
