"""Paired elimination: who has been shown to be worse than the best, with the error bounded over all looks.

All candidates answered the same items in random order. A rival j is shown to be better than i when a one-sided test
of their paired differences rejects "j is not better" at `EliminationRule.level`: the total error divided by the
number of looks and of rivals. By the union bound a candidate that truly belongs to the best is eliminated, at any
look and by anybody, with probability at most alpha.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, hypergeom, norm

from evomerge.irt.responses import Bools, Floats

RADEMACHER = 1 / (4 * float(norm.sf(np.sqrt(2.0))))
"""About 3.178: the least c with P(S >= x) <= c P(Z >= x) for all normalised sums S of independent signs
(Bentkus & Dzindzalieta 2015)."""


@dataclass(frozen=True)
class EliminationRule:
    """Sequential paired elimination; fixed before the first look.

    Attributes:
        n_candidates: who starts, at least 1: the error is shared among all of them, also when fewer are left.
        looks: how often it will be looked at most, at least 1.
        alpha: bound on the probability that a candidate that truly is among the best `keep` is ever eliminated.
        keep: how many best ones are sought: a candidate is out when this many rivals are shown to be better.
        pool: number of items that the asked ones are drawn from without replacement; None: many more than asked.
    """

    n_candidates: int
    looks: int
    alpha: float = 0.1
    keep: int = 1
    pool: int | None = None

    def __post_init__(self) -> None:
        if self.n_candidates < 1 or self.looks < 1 or self.keep < 1:
            raise ValueError("n_candidates, looks and keep must be at least 1")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), not {self.alpha}")
        if self.pool is not None and self.pool < 1:
            raise ValueError(f"a pool has at least one item, not {self.pool}")

    @property
    def level(self) -> float:
        """Level of one test of two candidates at one look: `alpha / (looks * (n_candidates - keep))`.

        The r-th best (r <= keep) goes out only when at least `keep - r + 1` of its `n - r` inferiors are falsely
        shown to be better; by Markov's inequality that is no likelier than for r = keep, where one of `n - keep`
        false tests suffices.
        """
        return self.alpha / (self.looks * max(self.n_candidates - self.keep, 1))


def eliminated(scores: Floats, rule: EliminationRule, *, weights: Floats | None = None) -> Bools:
    """Candidates that are shown to be worse than the best (or than the `keep` best), shape `(c,)`.

    Answers of two values (right and wrong) without weights: the exact sign test on the items where two candidates
    differ (McNemar 1947). Otherwise: the sum of the paired differences over the root of their sum of squares, under
    signs that are equally likely either way (`RADEMACHER`), exact for symmetric differences however few there are.
    Failed candidates (a NaN among their scores) are eliminated and eliminate nobody.

    Args:
        scores: shape `(c, n)`, the answers of those still in the race to the same n items, in order a random sample
            of the pool (`stratified_order` is one); items that were chosen for their information show who is better
            on such items only.
        rule: fixed before the first look.
        weights: shape `(n,)`, >= 0: what an item counts in the objective (tasks of unequal weight); None: alike.

    Raises:
        ValueError: when scores are no matrix, have more rows than the rule has candidates or more columns than its
            pool has items, then when weights do not fit.
    """
    if scores.ndim != 2 or len(scores) > rule.n_candidates or scores.shape[1] > (rule.pool or scores.shape[1]):
        raise ValueError(f"scores of shape {scores.shape} for {rule.n_candidates} candidates, pool {rule.pool}")
    if weights is not None and (weights.shape != scores.shape[1:] or np.any(~(weights >= 0))):
        raise ValueError(f"weights of shape {weights.shape} for {scores.shape[1]} items; they must be >= 0")
    out: Bools = np.any(np.isnan(scores), axis=1)
    valid = np.flatnonzero(~out)
    if valid.size and scores.shape[1]:
        better = better_p(scores[valid], pool=rule.pool, weights=weights) <= rule.level
        out[valid] = better.sum(axis=0) >= rule.keep
    return out


def better_p(scores: Floats, *, pool: int | None = None, weights: Floats | None = None) -> Floats:
    """P values `[j, i]` of "candidate j is not better than i"; shape `(c, c)`. See `eliminated` for the tests."""
    two_values = bool(np.all((scores == scores.min()) | (scores == scores.max())))
    if weights is None and two_values:
        return _sign_test(scores, pool)
    return _difference_test(scores if weights is None else scores * weights, pool)


def _sign_test(scores: Floats, pool: int | None) -> Floats:
    """Wins given the items on which two differ: binomial, or hypergeometric when the pool is finite.

    In a finite pool at most `pool - n` further items can tell the two apart; the tail is heaviest when all do, and
    when wins and losses are equally many among them all.
    """
    low, high = scores.min(), scores.max()
    right = (scores == high).astype(np.float64) if high > low else np.zeros_like(scores)
    wins = right @ (1 - right).T
    differ = wins + wins.T
    if pool is None:
        tail = np.asarray(binom.sf(wins - 1, differ, 0.5))
    else:
        most = differ + pool - scores.shape[1]
        sizes = (most, np.maximum(most - 1, differ))  # whichever is odd cannot be split evenly
        tail = np.maximum(*(np.asarray(hypergeom.sf(wins - 1, size, size // 2, differ)) for size in sizes))
    return np.where(wins > wins.T, tail, 1.0)


def _difference_test(scores: Floats, pool: int | None) -> Floats:
    """Self-normalised sums of paired differences; those of a finite pool vary less by `1 - n / pool`."""
    n = scores.shape[1]
    sums = scores.sum(axis=1)
    gap = sums[:, None] - sums[None, :]
    squares = np.array([np.sum((scores - row) ** 2, axis=1) for row in scores])
    left = 1.0 if pool is None else 1 - n / pool
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(gap > 0, gap / np.sqrt(squares * left), 0.0)
    p: Floats = np.minimum(RADEMACHER * norm.sf(z), 1.0)
    return p
