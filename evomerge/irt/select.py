"""Which questions to ask next: by information, at random over the difficulties, and a design that mixes both.

An order is made once for a generation and asked from the front, so every candidate answers the same questions and
differences between candidates are paired. Prefixes are nested: who stays longer only goes on.
"""

from __future__ import annotations

import numpy as np

from evomerge.irt.bank import ItemBank
from evomerge.irt.design import Design
from evomerge.irt.responses import Floats, Indices


def usable_information(bank: ItemBank, theta: Floats) -> Floats:
    """What each item tells about the ability, shape `(n,)`: 0 where it tells nothing or misleads.

    The trace of the Fisher information in units of the population (`ItemBank.information`), averaged over the
    abilities. Items whose expected score falls where all others rise (a negative slope along the direction in which
    the mean score rises) count as 0: their information is as large as that of good items, because it holds the
    squared slope, yet what they reward is not what the benchmark rewards.

    Args:
        bank: n items.
        theta: one ability, shape `(D,)`, or several, shape `(k, D)`.

    Raises:
        ValueError: when theta has another shape or is not finite.
    """
    abilities = _abilities(bank, theta)
    gradients = np.einsum("kn,nd->kd", bank.sensitivity(abilities), bank.slopes)
    rises = bank.slopes @ bank.covariance @ gradients.mean(axis=0)
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
        ValueError: when share is not in [0, 1], floor is negative, strata is not positive, then as
            `usable_information`.
    """
    if not 0 <= share <= 1 or not floor >= 0 or strata < 1:
        raise ValueError(f"share in [0, 1], floor >= 0, strata >= 1, not {share}, {floor}, {strata}")
    information = usable_information(bank, theta)
    ranking = information_order(bank, theta)
    worth = (information > 0) & (information >= floor * information.mean())
    difficulty = bank.predict(_abilities(bank, theta)).mean(axis=0)
    chance = stratified_turns(difficulty, rng, strata=strata, offset=offset)
    return interleave(ranking, int(worth.sum()), chance, share, _groups(difficulty, strata))


def stratified_turns(difficulty: Floats, rng: np.random.Generator, *, strata: int, offset: int = 0) -> Indices:
    """The random part's order: strata take turns in proportion to their size, within a stratum the order is uniform.

    Args:
        difficulty: shape `(n,)`.
        rng: draws one key per item and the order of the strata; nothing else, so that equal seeds give equal keys.
        strata: number of groups of (nearly) equal size.
        offset: the keys' circle is turned by this many items: another window of the same shuffle.
    """
    n = difficulty.size
    keys = (rng.permutation(n) - offset) % max(n, 1)
    groups = _groups(difficulty, strata)
    tie = rng.permutation(strata)
    within = np.empty(n)
    for group in range(strata):
        members = np.flatnonzero(groups == group)
        within[members[np.argsort(keys[members])]] = (np.arange(members.size) + 0.5) / max(members.size, 1)
    return np.lexsort((tie[groups], within))


def interleave(ranking: Indices, n_worth: int, chance: Indices, share: float, groups: Indices) -> Design:
    """Merge the purposeful order's first `n_worth` items and the random order into one, `share` of the former.

    A turn takes the first item of its list that was not asked yet. After k questions the purposeful turns are the
    integer nearest to `share * k` (halves up), as long as worthy items are left.
    """
    n = ranking.size
    asked = np.zeros(n, dtype=np.bool_)
    order = np.empty(n, dtype=np.intp)
    frontier = np.zeros(n + 1, dtype=np.intp)
    best = random = turns = 0
    for k in range(n):
        frontier[k + 1] = frontier[k]
        item = -1
        if turns < np.floor(share * (k + 1) + 0.5):
            while best < n_worth and asked[ranking[best]]:
                best += 1
            item = int(ranking[best]) if best < n_worth else -1
            best, turns = min(best + 1, n_worth), turns + 1
            frontier[k + 1] = best
        if item < 0:
            while asked[chance[random]]:
                random += 1
            item = int(chance[random])
        asked[item], order[k] = True, item
    return Design(order, ranking, frontier, groups)


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
    """A permutation of `range(n)`: bit-reversed counting with a random flip per node, numbers >= n left out."""
    places = np.zeros(1, dtype=np.intp)
    size = 1
    while size < n:
        flip = rng.integers(2, size=places.size)
        places = np.concatenate([2 * places + flip, 2 * places + 1 - flip])
        size *= 2
    return places[places < n]
