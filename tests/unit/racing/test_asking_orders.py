"""Which questions a generation is asked: totals, limits, proportions, nestedness."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.irt.weighted import WeightedDesign, inclusion_probabilities, sizes_of
from evomerge.racing.asking import LEAST_PER_TASK, Asked, PooledAsking, SplitAsking, divided

proportions = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5).map(
    lambda pairs: ([min(a, b) for a, b in pairs], [max(a, b) for a, b in pairs])
)


@settings(deadline=None, max_examples=60)
@given(shape=proportions, total=st.integers(1, 220))
def test_a_total_is_divided_exactly_within_the_limits(shape: tuple[list[int], list[int]], total: int) -> None:
    numbers, limits = shape
    parts = divided(total, numbers, limits)
    assert sum(parts) == max(len(numbers), min(total, sum(limits)))
    assert all(1 <= p <= most for p, most in zip(parts, limits, strict=True))


@settings(deadline=None, max_examples=60)
@given(shape=proportions, total=st.integers(1, 200))
def test_a_larger_total_takes_from_none(shape: tuple[list[int], list[int]], total: int) -> None:
    numbers, limits = shape
    for one, more in zip(divided(total, numbers, limits), divided(total + 1, numbers, limits), strict=True):
        assert one <= more <= one + 1


@settings(deadline=None, max_examples=60)
@given(numbers=st.lists(st.integers(1, 9), min_size=1, max_size=5), times=st.integers(1, 6))
def test_multiples_of_the_proportions_are_met_exactly(numbers: list[int], times: int) -> None:
    wanted = [n * times for n in numbers]
    assert divided(sum(wanted), numbers, [100] * len(numbers)) == tuple(wanted)


@settings(deadline=None, max_examples=60)
@given(numbers=st.lists(st.integers(1, 30), min_size=2, max_size=5), total=st.integers(20, 200))
def test_parts_are_near_their_exact_shares(numbers: list[int], total: int) -> None:
    parts = divided(total, numbers, [1000] * len(numbers))
    exact = np.array(numbers) * total / sum(numbers)
    assert np.all(np.abs(np.array(parts) - exact) < max(1.0, len(numbers) / 2))


def test_the_house_that_grows_takes_no_seat() -> None:
    """6 : 6 : 2 is the textbook's paradox of largest remainders: 10 seats give 4, 4, 2, and 11 would give 5, 5, 1."""
    assert [divided(total, [6, 6, 2], [99] * 3)[2] for total in range(3, 15)] == sorted(
        divided(total, [6, 6, 2], [99] * 3)[2] for total in range(3, 15)
    )


def split(numbers: dict[str, int], counts: dict[str, int], seed: int = 0) -> SplitAsking:
    rng = np.random.default_rng(seed)
    designs = {t: WeightedDesign(rng.permutation(n), np.ones(n)) for t, n in counts.items()}
    return SplitAsking(designs, numbers, counts)


def pooled(uncertainty: dict[str, list[float]], importance: dict[str, float], seed: int = 0) -> PooledAsking:
    values = {t: np.array(u) for t, u in uncertainty.items()}
    return PooledAsking(values, importance, np.random.default_rng(seed))


def check_nested(upto: dict[int, Asked], counts: dict[str, int]) -> None:
    before = {t: frozenset[int]() for t in counts}
    for asked in upto.values():
        assert list(asked.items) == list(counts)
        for task, n in counts.items():
            items, chance = asked.items[task], asked.inclusion[task]
            assert list(items) == sorted(set(items))
            assert all(0 <= i < n for i in items)
            assert before[task] <= set(items)
            before[task] = frozenset(items)
            assert chance.shape == (n,)
            assert np.all((chance >= 0) & (chance <= 1))
            assert np.all(chance[list(items)] > 0)


@settings(deadline=None, max_examples=25)
@given(shape=proportions, seed=st.integers(0, 99))
def test_split_orders_are_nested_and_exact(shape: tuple[list[int], list[int]], seed: int) -> None:
    numbers = {f"t{i}": n for i, n in enumerate(shape[0])}
    counts = {f"t{i}": n for i, n in enumerate(shape[1])}
    asking = split(numbers, counts, seed)
    upto = {k: asking.upto(k) for k in range(1, sum(counts.values()) + 2)}
    check_nested(upto, counts)
    for k, asked in upto.items():
        total = sum(map(len, asked.items.values()))
        assert total == max(len(counts), min(k, sum(counts.values())))
        assert sum(c.sum() for c in asked.inclusion.values()) == pytest.approx(total)
    mean = asking.upto(sum(numbers.values()))
    assert {t: len(items) for t, items in mean.items.items()} == numbers


@settings(deadline=None, max_examples=25)
@given(
    uncertainty=st.lists(
        st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=1, max_size=20), min_size=1, max_size=4
    ),
    importance=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
def test_pooled_orders_are_nested_and_exact(uncertainty: list[list[float]], importance: list[float], seed: int) -> None:
    tasks = {f"t{i}": u for i, u in enumerate(uncertainty)}
    counts = {t: len(u) for t, u in tasks.items()}
    asking = pooled(tasks, dict(zip(tasks, importance, strict=False)), seed)
    n = sum(counts.values())
    least = sum(min(LEAST_PER_TASK, c) for c in counts.values())
    upto = {k: asking.upto(k) for k in range(1, n + 2)}
    check_nested(upto, counts)
    for k, asked in upto.items():
        assert sum(map(len, asked.items.values())) == min(n, max(k, least))
        assert all(len(items) >= min(LEAST_PER_TASK, counts[t]) for t, items in asked.items.items())
    assert all(np.allclose(c, 1.0) for c in asking.upto(n).inclusion.values())


def test_uncertain_items_and_important_tasks_are_asked_more() -> None:
    sure, torn = [0.05] * 50, [0.9] * 50
    asked = [pooled({"a": sure, "b": torn}, {"a": 1.0, "b": 1.0}, s).upto(30) for s in range(20)]
    assert np.mean([len(a.items["b"]) for a in asked]) > 25
    asked = [pooled({"a": torn, "b": torn}, {"a": 3.0, "b": 1.0}, s).upto(30) for s in range(20)]
    # 2 of each at the front, then 3 to 1
    assert np.mean([len(a.items["a"]) for a in asked]) == pytest.approx(2 + 26 * 0.75, abs=1.5)


def test_importance_is_divided_among_the_items_of_a_task() -> None:
    """An answer to a small task counts for more: it is drawn as often as ten of the large one."""
    asked = [pooled({"a": [0.5] * 20, "b": [0.5] * 200}, {"a": 1.0, "b": 1.0}, s).upto(16) for s in range(40)]
    assert np.mean([len(a.items["a"]) for a in asked]) == pytest.approx(8, abs=1.0)


def test_pooled_chances_are_those_of_the_draw() -> None:
    """Over many draws items are asked about as often as stated (Rosén's approximation, 14 of 30)."""
    uncertainty = {"a": list(np.linspace(0.2, 1.0, 12)), "b": list(np.linspace(0.1, 0.9, 18))}
    hits, stated, draws = np.zeros(30), np.zeros(30), 1500
    for seed in range(draws):
        asked = pooled(uncertainty, {"a": 1.0, "b": 1.0}, seed).upto(14)
        for t, start in (("a", 0), ("b", 12)):
            hits[[start + i for i in asked.items[t]]] += 1
            stated[start : start + len(uncertainty[t])] += asked.inclusion[t]
    assert np.max(np.abs(hits - stated)) / draws < 0.08
    assert hits.sum() == pytest.approx(stated.sum())


def test_pooled_sizes_follow_the_uncertainty() -> None:
    """The front is drawn by the same chances as the rest."""
    u = np.linspace(0.1, 1.0, 30)
    asking = pooled({"a": list(u)}, {"a": 1.0}, 4)
    np.testing.assert_allclose(asking.upto(10).inclusion["a"], inclusion_probabilities(sizes_of(u), 10), atol=1e-9)


def test_tasks_of_no_importance_are_asked_the_least() -> None:
    asked = pooled({"a": [0.5] * 20, "b": [0.5] * 20}, {"a": 1.0, "b": 0.0}).upto(20)
    assert len(asked.items["b"]) == LEAST_PER_TASK
    nobody = pooled({"a": [0.0] * 9, "b": [0.0] * 9}, {"a": 0.0, "b": 0.0}).upto(10)
    assert sum(map(len, nobody.items.values())) == 10
