"""Designs: part information, part chance, with known inclusion probabilities, rotating, continued in a race."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.irt.bank import ItemBank
from evomerge.irt.design import Design
from evomerge.irt.select import continued_design, information_order, mixed_design


def make_bank(seed: int, n: int, n_constant: int = 0) -> ItemBank:
    rng = np.random.default_rng(seed)
    slopes = rng.uniform(0.2, 2.5, size=(n, 1))
    constants = np.full(n, np.nan)
    constants[:n_constant] = 1.0
    slopes[:n_constant] = 0.0
    names = tuple(f"item{i}" for i in range(n))
    intercepts = np.where(np.isnan(constants), rng.normal(size=n), 0.0)
    return ItemBank(names, slopes, intercepts, np.ones(n), constants, np.zeros(1), np.eye(1), "logistic", 30)


CENTRE = np.zeros(1)


def test_all_share_is_the_information_order_without_a_floor() -> None:
    bank = make_bank(0, 25, n_constant=3)
    design = mixed_design(bank, CENTRE, np.random.default_rng(0), share=1.0, floor=0.0)
    assert np.array_equal(design.order[:22], information_order(bank, CENTRE)[:22])


def test_no_share_is_random_alone() -> None:
    bank = make_bank(0, 25)
    orders = {
        tuple(mixed_design(bank, CENTRE, np.random.default_rng(seed), share=0.0).order[:3].tolist())
        for seed in range(40)
    }
    assert len(orders) > 35


def test_below_the_floor_chance_decides() -> None:
    """With the floor at the mean, the tail of the information order is not asked on purpose."""
    bank = make_bank(1, 40)
    information = bank.information(CENTRE)
    worthy = int(np.sum(information >= information.mean()))
    first, second = (mixed_design(bank, CENTRE, np.random.default_rng(s), share=1.0) for s in (1, 2))
    assert np.array_equal(first.order[:worthy], second.order[:worthy])
    assert not np.array_equal(first.order[worthy:], second.order[worthy:])


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 40),
    mix=st.tuples(st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]), st.sampled_from([0.0, 1.0, 3.0])),
    strata=st.integers(1, 6),
    offset=st.integers(0, 60),
)
def test_prefixes_are_nested_and_inclusion_fits_them(
    seed: int, n: int, mix: tuple[float, float], strata: int, offset: int
) -> None:
    """Asked items have positive inclusion, certain ones 1; the expected number of items is the number asked."""
    share, floor = mix
    design = mixed_design(
        make_bank(seed, n), CENTRE, np.random.default_rng(seed), share=share, floor=floor, strata=strata, offset=offset
    )
    assert sorted(design.order) == list(range(n))
    before = np.zeros(n, dtype=bool)
    for k in range(n + 1):
        asked, certain, inclusion = design.asked(k), design.certain(k), design.inclusion(k)
        assert asked.sum() == k
        assert np.all(asked[before | certain])
        assert np.all(certain[design.certain(max(k - 1, 0))])
        assert np.all(inclusion[asked] > 0)
        assert np.all(inclusion[certain] == 1)
        assert np.all(inclusion <= 1)
        assert inclusion.sum() == pytest.approx(k)
        before = asked


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_share_is_kept_in_every_prefix(share: float) -> None:
    """Until chance has taken worthy items itself, purposeful turns are the nearest integer to the share."""
    design = mixed_design(make_bank(2, 200), CENTRE, np.random.default_rng(3), share=share)
    for k in (4, 8, 12, 20):
        random = int((design.asked(k) & ~design.certain(k)).sum())
        assert abs(random - (1 - share) * k) <= 2


def test_inclusion_by_enumeration() -> None:
    """All 4! random circles of a small bank: within a group and given the frontier, every choice occurs equally."""
    bank = make_bank(4, 4)

    class Fixed:
        """Stands for a generator: hands out one permutation of the items."""

        def __init__(self, items: tuple[int, ...]) -> None:
            self.items = np.array(items)

        def permutation(self, n: int) -> object:
            assert len(self.items) == n
            return self.items

        def random(self, n: int) -> object:
            return np.zeros(n)

    seen: dict[int, list[tuple[frozenset[int], float]]] = {}
    for circle in permutations(range(4)):
        design = mixed_design(bank, CENTRE, Fixed(circle), strata=1, floor=0.0)  # type: ignore[arg-type]
        chosen = frozenset(np.flatnonzero(design.asked(2) & ~design.certain(2)).tolist())
        rate = float(design.inclusion(2)[~design.certain(2)].max())
        seen.setdefault(int(design.frontier[2]), []).append((chosen, rate))
    for rows in seen.values():
        items = set().union(*(chosen for chosen, _ in rows))
        for item in items:
            assert np.mean([item in chosen for chosen, _ in rows]) == pytest.approx(rows[0][1])


@pytest.mark.parametrize(("strata", "k"), [(1, 12), (3, 16)])
def test_weighting_by_inclusion_is_unbiased(strata: int, k: int) -> None:
    """Horvitz & Thompson 1952; the plain mean of the same answers is far off."""
    bank = make_bank(5, 24)
    scores = bank.predict(CENTRE) + np.where(bank.slopes[:, 0] > 1.3, 0.3, 0.0)
    weighted, plain = [], []
    for seed in range(400):
        design = mixed_design(bank, CENTRE, np.random.default_rng(seed), strata=strata)
        asked = design.asked(k)
        weighted.append(np.sum(scores[asked] / design.inclusion(k)[asked]) / 24)
        plain.append(scores[asked].mean())
    error = np.std(weighted) / np.sqrt(400)
    assert abs(np.mean(weighted) - scores.mean()) < 4 * error
    assert abs(np.mean(plain) - scores.mean()) > 20 * error


def test_pooling_groups_leaves_little_bias() -> None:
    """With more groups than random questions: less than a fifth of the estimate's own spread."""
    bank = make_bank(5, 40)
    scores = bank.predict(CENTRE)
    weighted = []
    for seed in range(400):
        design = mixed_design(bank, CENTRE, np.random.default_rng(seed), strata=8)
        weighted.append(np.sum(scores[design.asked(12)] / design.inclusion(12)[design.asked(12)]) / 40)
    assert abs(np.mean(weighted) - scores.mean()) < 0.2 * np.std(weighted)


def test_rotation_shows_every_generation_other_random_items() -> None:
    """Same seed, offset moved on by what a generation asks at random: disjoint windows, the purposeful part stays."""
    bank = make_bank(6, 120)
    designs = [mixed_design(bank, CENTRE, np.random.default_rng(1), strata=1, offset=10 * g) for g in range(5)]
    random = [set(np.flatnonzero(d.asked(20) & ~d.certain(20)).tolist()) for d in designs]
    certain = set.intersection(*(set(np.flatnonzero(d.certain(20)).tolist()) for d in designs))
    for earlier, later in pairwise(random):
        assert len(earlier & later) <= 1
    assert len(set.union(*random)) > 38
    assert len(certain) >= 9


def test_rotation_within_strata_overlaps_less_than_fresh_draws() -> None:
    bank = make_bank(6, 120)

    def overlap(first: Design, second: Design) -> int:
        return int((first.asked(20) & second.asked(20)).sum())

    rotated, fresh = [], []
    for seed in range(60):
        rng = [np.random.default_rng(seed) for _ in range(2)]
        first = mixed_design(bank, CENTRE, rng[0], share=0.0)
        rotated.append(overlap(first, mixed_design(bank, CENTRE, rng[1], share=0.0, offset=20)))
        fresh.append(overlap(first, mixed_design(bank, CENTRE, np.random.default_rng(seed + 500), share=0.0)))
    assert np.mean(rotated) < 0.4 * np.mean(fresh)


def test_a_rotated_design_is_as_random_as_any() -> None:
    bank = make_bank(7, 12)
    counts = np.zeros(12)
    for seed in range(700):
        design = mixed_design(bank, CENTRE, np.random.default_rng(seed), share=0.0, offset=5, strata=3)
        counts += design.asked(4) / 700
    assert np.all(np.abs(counts - 4 / 12) < 5 * np.sqrt(2 / 9 / 700))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), n=st.integers(1, 40), cut=st.floats(0, 1), share=st.sampled_from([0.0, 0.5, 1.0]))
def test_continuing_keeps_what_was_asked(seed: int, n: int, cut: float, share: float) -> None:
    bank, k = make_bank(seed, n), int(cut * n)
    before = mixed_design(bank, CENTRE, np.random.default_rng(seed))
    after = continued_design(before, k, bank, np.array([1.5]), share=share)
    assert np.array_equal(before.order[:k], after.order[:k])
    assert np.array_equal(before.frontier[: k + 1], after.frontier[: k + 1])
    for j in range(k + 1):
        assert np.array_equal(before.certain(j), after.certain(j))
    for j in range(k, n + 1):
        assert np.all(after.asked(j)[after.certain(j)])
        assert after.inclusion(j).sum() == pytest.approx(j)


def test_continuing_where_nothing_changed_changes_nothing() -> None:
    bank = make_bank(8, 30)
    before = mixed_design(bank, CENTRE, np.random.default_rng(0))
    after = continued_design(before, 10, bank, CENTRE)
    assert np.array_equal(before.order, after.order)
    assert np.array_equal(before.frontier, after.frontier)


def test_continuing_asks_what_is_informative_at_the_new_ability() -> None:
    bank = make_bank(9, 60)
    before = mixed_design(bank, CENTRE, np.random.default_rng(0), share=1.0)
    after = continued_design(before, 10, bank, np.array([3.0]), share=1.0)
    asked = set(before.order[:10].tolist())
    expected = [i for i in information_order(bank, np.array([3.0])).tolist() if i not in asked]
    assert after.order[10:20].tolist() == expected[:10]


def test_what_is_refused() -> None:
    bank = make_bank(0, 5)
    rng = np.random.default_rng(0)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share in"):
            mixed_design(bank, CENTRE, rng, share=share)
    with pytest.raises(ValueError, match="floor >= 0"):
        mixed_design(bank, CENTRE, rng, floor=-1.0)
    with pytest.raises(ValueError, match="at least one stratum"):
        mixed_design(bank, CENTRE, rng, strata=0)
    design = mixed_design(bank, CENTRE, rng)
    for k in (-1, 6):
        with pytest.raises(ValueError, match="questions of"):
            design.asked(k)
        with pytest.raises(ValueError, match="of a design of 5 items"):
            continued_design(design, k, bank, CENTRE)
    with pytest.raises(ValueError, match="continued with 6"):
        continued_design(design, 1, make_bank(0, 6), CENTRE)


def test_a_design_is_checked() -> None:
    good = np.arange(3)
    steps, starts = np.zeros(4, dtype=np.intp), np.zeros(3)
    with pytest.raises(ValueError, match="every item once"):
        Design(np.array([0, 0, 1]), good, steps, good, good, starts)
    with pytest.raises(ValueError, match="frontier has shape"):
        Design(good, good, good, good, good, starts)
    with pytest.raises(ValueError, match="frontier must not fall"):
        Design(good, good, np.array([0, 2, 1, 1]), good, good, starts)
    with pytest.raises(ValueError, match="1 starts for groups 0 to 2"):
        Design(good, good, steps, good, good, np.zeros(1))
