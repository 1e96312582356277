"""Anchors: a few items that stand for the others, found by k-means, and the mean weighted by what each stands for."""

from __future__ import annotations

from typing import Final, Literal, final

import numpy as np

from evomerge.irt.estimators.base import Calibration, Estimated
from evomerge.irt.estimators.modelled import Modelled, asked_by_all
from evomerge.irt.responses import Bools, Floats, Indices

ROUNDS: Final = 30

Features = Literal["correctness", "parameters"]


@final
class Anchors(Modelled):
    """Every item that was not asked is taken to be answered as the asked item most like it ("tinyBenchmarks").

    Like: nearest in the calibration models' answers. For items chosen by `anchor_items` that is the mean weighted by
    cluster sizes of Maia Polo et al. (2024), for any others the same with the clusters around what was asked.
    """

    name = "anchors"

    def raw(self, scores: Floats, inclusion: Floats | None, weights: Floats) -> Estimated:
        """See `Estimator.raw`."""
        asked = asked_by_all(scores)
        known = self.calibration
        if not asked.any():
            spread = np.sqrt(known.answer_variance) * float(np.abs(weights).sum())
            return Estimated(np.full(len(scores), float(known.item_means @ weights)), np.full(len(scores), spread))
        mass = masses(item_features(known, "correctness"), asked, weights)
        answers = np.where(np.isnan(scores), 0.0, scores)[:, asked]
        variance = answers.var(axis=1) + known.answer_variance / asked.sum()
        left = np.abs(mass - weights[asked])
        return Estimated(answers @ mass, np.sqrt(variance * (left**2).sum()))


def item_features(calibration: Calibration, kind: Features) -> Floats:
    """Shape `(n, f)`: an item as the calibration models' answers to it, or as its slopes and intercept."""
    if kind == "parameters":
        bank = calibration.fitted_bank
        return np.column_stack([bank.slopes, bank.intercepts])
    return calibration.filled.T


def nearest(features: Floats, anchors: Floats) -> Indices:
    """For every row of `features` (n, f) the nearest row of `anchors` (c, f), Euclidean; the first wins."""
    gaps = (anchors**2).sum(axis=1) - 2 * features @ anchors.T
    found: Indices = np.argmin(gaps, axis=1)
    return found


def masses(features: Floats, asked: Bools, weights: Floats) -> Floats:
    """Shape `(a,)`: per asked item the weight of all items that it stands for, its own among them."""
    places = np.flatnonzero(asked)
    stands = nearest(features, features[places])
    stands[places] = np.arange(places.size)
    return np.bincount(stands, weights=weights, minlength=places.size).astype(np.float64)


def anchor_items(
    calibration: Calibration, count: int, rng: np.random.Generator, *, kind: Features = "correctness"
) -> Indices:
    """Chooses `count` items to ask: those nearest to the centres of a k-means clustering of the items.

    Lloyd's algorithm from a k-means++ start (Arthur and Vassilvitskii 2007).

    Args:
        calibration: whose answers or bank describe the items.
        count: 1 to n.
        rng: of the start.
        kind: what an item is described by.

    Returns:
        Shape `(count,)`, different items, ascending.

    Raises:
        ValueError: count is not between 1 and n.
    """
    if not 1 <= count <= calibration.n:
        raise ValueError(f"{count} anchors of {calibration.n} items")
    features = item_features(calibration, kind)
    centres = features[_spread_start(features, count, rng)]
    owner = nearest(features, centres)
    for _ in range(ROUNDS):
        sizes = np.bincount(owner, minlength=count)
        totals = np.zeros_like(centres)
        np.add.at(totals, owner, features)
        centres = np.where(sizes[:, None] > 0, totals / np.maximum(sizes, 1)[:, None], centres)
        moved = nearest(features, centres)
        if np.array_equal(moved, owner):
            break
        owner = moved
    return _closest_items(features, centres)


def _spread_start(features: Floats, count: int, rng: np.random.Generator) -> Indices:
    """k-means++: each next start is drawn with probability proportional to the squared distance from the nearest."""
    chosen = [int(rng.integers(len(features)))]
    gap = ((features - features[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < count:
        gap[chosen] = 0.0
        free = np.ones(len(features))
        free[chosen] = 0.0
        weight = gap if gap.sum() > 1e-12 else free
        chosen.append(int(rng.choice(len(features), p=weight / weight.sum())))
        gap = np.minimum(gap, ((features - features[chosen[-1]]) ** 2).sum(axis=1))
    return np.array(chosen)


def _closest_items(features: Floats, centres: Floats) -> Indices:
    """One item per centre, none twice."""
    taken = np.zeros(len(features), dtype=bool)
    for centre in centres:
        gap = ((features - centre) ** 2).sum(axis=1)
        gap[taken] = np.inf
        taken[np.argmin(gap)] = True
    return np.flatnonzero(taken)
