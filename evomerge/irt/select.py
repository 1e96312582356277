"""Which questions to ask next: by information, at random over the difficulties, and a design that mixes both.

An order is made once for a generation and asked from the front, so every candidate answers the same questions and
differences between candidates are paired. Prefixes are nested: who stays longer only goes on.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from evomerge.irt.bank import ItemBank
from evomerge.irt.design import Design
from evomerge.irt.responses import Bools, Floats, Indices


def usable_information(bank: ItemBank, theta: Floats) -> Floats:
    """What each item tells about the ability, shape `(n,)`: 0 where it tells nothing or misleads.

    The trace of the Fisher information in units of the population (`ItemBank.information`), averaged over the
    abilities. Items whose expected score falls where the others rise count as 0 (a negative slope; with several
    dimensions, along the direction in which the mean score rises): their information is as large as that of good
    items, because it holds the squared slope, yet what they reward is not what the benchmark rewards.

    Args:
        bank: n items.
        theta: one ability, shape `(D,)`, or several, shape `(k, D)`.

    Raises:
        ValueError: when theta has another shape or is not finite.
    """
    abilities = _abilities(bank, theta)
    up = np.ones(1)
    if bank.dimensions > 1:
        up = np.einsum("kn,nd->d", bank.sensitivity(abilities), bank.slopes)
    rises = bank.slopes @ bank.covariance @ up
    return np.where(bank.fitted & (rises > 0), bank.information(abilities).mean(axis=0), 0.0)


def information_order(bank: ItemBank, theta: Floats) -> Indices:
    """All items, the most informative first, at the current ability or abilities.

    Items that mislead (see `usable_information`) follow after all informative ones, constants come last; equals keep
    their order in the bank.

    Args:
        bank: n items.
        theta: shape `(D,)` or `(k, D)`.

    Returns:
        A permutation of the n items.

    Raises:
        ValueError: as `usable_information`.
    """
    information = usable_information(bank, theta)
    return np.lexsort((np.arange(information.size), -information, ~bank.fitted))


def stratified_order(difficulty: Floats, rng: np.random.Generator) -> Indices:
    """A random order whose every prefix covers the range of difficulties evenly.

    The items stand in a circle, sorted by difficulty (equals at random); they are visited in the bit-reversed order
    of van der Corput with random branches, from a random start. The start alone makes every item equally likely at
    every place of the order, so a prefix of k has inclusion probability `k / n` exactly.

    Args:
        difficulty: shape `(n,)`, any increasing or decreasing measure.
        rng: source of the draw.

    Returns:
        A permutation of the n items.
    """
    n = difficulty.size
    by_difficulty = rng.permutation(n)
    by_difficulty = by_difficulty[np.argsort(difficulty[by_difficulty], kind="stable")]
    places = _van_der_corput(n, rng)
    start = int(rng.integers(n)) if n else 0
    order: Indices = by_difficulty[(places + start) % max(n, 1)]
    return order


def mixed_design(
    bank: ItemBank,
    theta: Floats,
    rng: np.random.Generator,
    *,
    share: float = 0.5,
    floor: float = 1.0,
    strata: int = 4,
    offset: int = 0,
) -> Design:
    """An order that takes turns between the most informative item left and a random one.

    Information ranks candidates fastest but bends what is estimated from few answers; the random part, with known
    inclusion probabilities, bounds that bend and lets design-based estimators stay unbiased. The random part is
    stratified by difficulty (expected score at the given abilities).

    Rotation: with the same fresh `rng` (same seed) and `offset` moved on by the number of random questions that a
    generation asks, the random parts of consecutive generations come from disjoint windows of one shuffled circle of
    items, while each by itself remains uniformly random. The informative part does not rotate: it follows the
    ability.

    Args:
        bank: n items.
        theta: current ability `(D,)` or abilities `(k, D)`.
        rng: source of the random part.
        share: part of every prefix that is chosen for its information, in [0, 1]; 1 is the pure information order.
        floor: an item is chosen on purpose only when it tells at least `floor` times as much as the mean item;
            when there is none left, only random turns follow. 0 chooses all that tell anything.
        strata: number of difficulty groups of the random part; 1 is simple random sampling.
        offset: how many places the random circle is turned.

    Raises:
        ValueError: when strata is not positive, then when share is not in [0, 1] or floor is negative, then as
            `usable_information`.
    """
    if strata < 1:
        raise ValueError(f"at least one stratum, not {strata}")
    purpose = _purpose(bank, theta, share, floor)
    difficulty = bank.predict(_abilities(bank, theta)).mean(axis=0)
    groups = _groups(difficulty, strata)
    chance = _shuffled(groups, rng, offset)
    starts = rng.random(int(groups.max(initial=0)) + 1)
    nothing = np.zeros(chance.size + 1, dtype=np.intp)
    return interleave(purpose, Design(chance, chance, nothing, chance, groups, starts), 0)


def continued_design(
    design: Design, k: int, bank: ItemBank, theta: Floats, *, share: float = 0.5, floor: float = 1.0
) -> Design:
    """The same first k questions, then the items that are informative at new abilities, and the same random part.

    Between the rungs of a race the abilities of those who are left become clearer and narrower: what separates them
    is asked next. Survivors share all questions, so their comparisons stay paired. What was certain stays certain,
    and the random part goes on where it stood; because the new ranking has seen answers, inclusion probabilities are
    exact only as far as a single answer hardly moves the mean ability.

    Args:
        design: what was asked so far.
        k: how many of its questions were asked.
        bank: the same n items, perhaps fitted anew.
        theta: abilities of those who go on, `(D,)` or `(k, D)`.
        share: as in `mixed_design`, counted from here.
        floor: as in `mixed_design`.

    Raises:
        ValueError: when the bank has another number of items or k is not in [0, n], then as `mixed_design`.
    """
    if len(bank.items) != design.order.size or not 0 <= k <= design.order.size:
        raise ValueError(f"{k} questions of a design of {design.order.size} items, continued with {len(bank.items)}")
    return interleave(_purpose(bank, theta, share, floor), design, k)


class Purpose(NamedTuple):
    """What to choose deliberately.

    Attributes:
        ranking: all items, best first.
        worth: shape `(n,)`, the items that may be chosen on purpose.
        share: part of the questions that is.
    """

    ranking: Indices
    worth: Bools
    share: float


def interleave(purpose: Purpose, before: Design, k: int) -> Design:
    """The first k questions of a design, then turns between the purposeful ranking and the design's random order.

    A purposeful turn takes the first item that was not asked yet; j questions after k there were as many such turns
    as the integer nearest to `share * j` (halves up), as long as worthy items are left. A random turn takes the first
    unasked item of the group of which the smallest part of its uncertain items was drawn. Neither looks at which
    uncertain items were drawn, only at how many: that is what makes `Design.inclusion` right.
    """
    n = before.order.size
    certain = before.ranking[: before.frontier[k]]
    rest = purpose.ranking[~np.isin(purpose.ranking, certain)]
    rest = rest[np.argsort(~purpose.worth[rest], kind="stable")]
    ranking = np.concatenate([certain, rest])
    end = certain.size + int(purpose.worth[rest].sum())
    turns = _Turns(before, k)
    order, frontier = before.order.copy(), before.frontier.copy()
    by_rank = ranking.tolist()
    best, purposeful = certain.size, 0
    for j in range(k, n):
        item = -1
        if purposeful < math.floor(purpose.share * (j + 1 - k) + 0.5):
            purposeful += 1
            while best < end and item < 0:
                item = turns.settle(by_rank[best])
                best += 1
        frontier[j + 1] = best
        order[j] = item if item >= 0 else turns.draw()
    return Design(order, ranking, frontier, before.chance, before.groups, before.starts)


class _Turns:
    """The state of `interleave`: what was asked, and of each group how much is uncertain and how much of it drawn."""

    def __init__(self, design: Design, k: int) -> None:
        asked, certain = design.asked(k), design.certain(k)
        groups = design.starts.size
        self._asked: list[bool] = asked.tolist()
        self._group: list[int] = design.groups.tolist()
        self._left: list[int] = np.bincount(design.groups[~certain], minlength=groups).tolist()
        self._drawn: list[int] = np.bincount(design.groups[asked & ~certain], minlength=groups).tolist()
        self._starts: list[float] = design.starts.tolist()
        self._circles = [iter(design.chance[design.groups[design.chance] == g].tolist()) for g in range(groups)]

    def settle(self, item: int) -> int:
        """An item becomes certain: the item itself when it has to be asked now, -1 when chance had asked it."""
        group, known = self._group[item], self._asked[item]
        self._left[group] -= 1
        self._drawn[group] -= known
        self._asked[item] = True
        return -1 if known else item

    def draw(self) -> int:
        """The next random item; there must be one."""
        open_groups = [g for g, left in enumerate(self._left) if self._drawn[g] < left]
        group = min(open_groups, key=lambda g: (self._drawn[g] + self._starts[g]) / self._left[g])
        item: int = next(i for i in self._circles[group] if not self._asked[i])
        self._drawn[group] += 1
        self._asked[item] = True
        return item


def _purpose(bank: ItemBank, theta: Floats, share: float, floor: float) -> Purpose:
    """Ranking by information; worthy is what tells at least `floor` times as much as the mean item."""
    if not 0 <= share <= 1 or not floor >= 0:
        raise ValueError(f"share in [0, 1] and floor >= 0, not {share} and {floor}")
    information = usable_information(bank, theta)
    worth = (information > 0) & (information >= floor * information.mean())
    return Purpose(information_order(bank, theta), worth, share)


def _shuffled(groups: Indices, rng: np.random.Generator, offset: int) -> Indices:
    """A shuffle of the items, group by group; every group is a circle that is turned by its part of `offset`.

    Moving on by what a generation asks at random shows the next generation another window of the same shuffle.
    """
    shuffle = rng.permutation(groups.size)
    circles = (shuffle[groups[shuffle] == group] for group in range(int(groups.max(initial=0)) + 1))
    return np.concatenate([np.roll(circle, -(offset * circle.size // max(groups.size, 1))) for circle in circles])


def _abilities(bank: ItemBank, theta: Floats) -> Floats:
    """Abilities as a finite matrix, shape `(k, D)`."""
    abilities = np.atleast_2d(np.asarray(theta, dtype=np.float64))
    if abilities.ndim != 2 or abilities.shape[1] != bank.dimensions or not abilities.size:
        raise ValueError(f"abilities of shape {np.shape(theta)} for a bank of {bank.dimensions} dimensions")
    if not np.all(np.isfinite(abilities)):
        raise ValueError("an ability is not finite")
    return abilities


def _groups(difficulty: Floats, strata: int) -> Indices:
    """Stratum of every item, shape `(n,)`: equal counts by rank of difficulty, equals in the order of the items."""
    n = difficulty.size
    groups = np.empty(n, dtype=np.intp)
    groups[np.argsort(difficulty, kind="stable")] = np.arange(n) * strata // max(n, 1)
    return groups


def _van_der_corput(n: int, rng: np.random.Generator) -> Indices:
    """A permutation of `range(n)`: bit-reversed counting with a random flip per node, spread over the n."""
    places = np.zeros(1, dtype=np.intp)
    while places.size < n:
        flip = rng.integers(2, size=places.size)
        places = np.concatenate([2 * places + flip, 2 * places + 1 - flip])
    spread = places * n // places.size
    first: Indices = np.sort(np.unique(spread, return_index=True)[1])
    return spread[first[:n]] if n else np.zeros(0, dtype=np.intp)
