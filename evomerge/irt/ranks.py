"""Expected ranks under noise: the one criterion by which a race compares candidates.

Candidates are compared by what their estimates say together with how sure they are, for one objective or several,
with constraints as probabilities of being feasible. Losses: lower is better; ranks: 0 is best.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from evomerge.irt.responses import Bools, Floats

DRAWS = 256


def expected_ranks(
    losses: Floats,
    se: Floats,
    rng: np.random.Generator,
    *,
    shared: float = 0.0,
    correlation: Floats | None = None,
    feasible_p: Floats | None = None,
    draws: int = DRAWS,
) -> Floats:
    """Expected rank of every candidate when its losses are uncertain, shape `(c,)`, lower is better.

    One objective: the expected number of candidates that are better, in closed form (ties count half). Several: the
    mean over draws of the non-domination rank (Deb et al. 2002), that is noisy dominance (Teich 2001, Hughes 2001).
    A feasible candidate is better than an infeasible one; of two infeasible ones the likelier feasible is better.
    Whether candidates are feasible is drawn independently of their losses.

    Args:
        losses: shape `(c,)` or `(c, o)`. A row with a NaN has failed: it is behind all others.
        se: standard errors, the same shape, >= 0; 0 is exact.
        rng: for the draws of several objectives; the same draws serve all candidates.
        shared: correlation of the errors of two candidates within an objective, in [0, 1): what common questions
            bring about.
        correlation: of the errors of two objectives of a candidate, shape `(o, o)`; None: independent.
        feasible_p: shape `(c,)`, probability that all constraints hold; None: all feasible.
        draws: number of draws for several objectives.

    Returns:
        Between 0 and c - 1.

    Raises:
        ValueError: when shapes differ, then when an se or a probability is out of range, then when shared is.
    """
    values, errors, p = _checked(losses, se, feasible_p, shared)
    failed = np.isnan(values).any(axis=1)
    fine = ~failed
    ranks = np.full(len(values), fine.sum() + (failed.sum() - 1) / 2)
    if not fine.any():
        return ranks
    if values.shape[1] == 1:
        ranks[fine] = _one_objective(values[fine, 0], errors[fine, 0], p[fine], shared)
    else:
        root = np.eye(values.shape[1]) if correlation is None else _root(correlation, values.shape[1])
        noise = _noise((draws, int(fine.sum())), root, rng, shared)
        drawn, feasible = values[fine] + errors[fine] * noise, rng.random(noise.shape[:2]) < p[fine]
        ranks[fine] = dominance_ranks(drawn, feasible, p[fine]).mean(axis=0)
    return ranks


def dominance_ranks(losses: Floats, feasible: Bools, preference: Floats) -> Floats:
    """Non-domination ranks of many draws at once: `(s, c, o)` losses and `(s, c)` feasibility to `(s, c)` ranks.

    Infeasible candidates come after all feasible ones, by falling `preference` (shape `(c,)`), equals together.
    """
    ranks = np.zeros(feasible.shape)
    no_worse = np.all(losses[:, :, None, :] <= losses[:, None, :, :], axis=3)
    better = np.any(losses[:, :, None, :] < losses[:, None, :, :], axis=3)
    dominates = no_worse & better & feasible[:, :, None] & feasible[:, None, :]
    left = feasible.copy()
    while left.any():
        front = left & ~np.any(dominates & left[:, :, None], axis=1)
        left &= ~front
        ranks[left] += 1
    behind = np.where(feasible, ranks, -1).max(axis=1, initial=-1) + 1
    level = np.unique(-preference, return_inverse=True)[1].astype(np.float64)
    return np.where(feasible, ranks, behind[:, None] + level)


def _one_objective(values: Floats, errors: Floats, p: Floats, shared: float) -> Floats:
    """Sum over rivals of the probability to be better; normal errors."""
    gap = values[:, None] - values[None, :]
    variance = errors[:, None] ** 2 + errors[None, :] ** 2 - 2 * shared * errors[:, None] * errors[None, :]
    sd = np.sqrt(np.maximum(variance, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        worse = np.where(sd > 0, ndtr(gap / sd), (np.sign(gap) + 1) / 2)
    likelier = (np.sign(p[None, :] - p[:, None]) + 1) / 2
    behind = p[:, None] * p[None, :] * worse + (1 - p[:, None]) * p[None, :]
    behind = behind + (1 - p[:, None]) * (1 - p[None, :]) * likelier
    np.fill_diagonal(behind, 0.0)
    total: Floats = behind.sum(axis=1)
    return total


def _noise(shape: tuple[int, int], root: Floats, rng: np.random.Generator, shared: float) -> Floats:
    """Standard normal errors, shape `(draws, c, o)`, in antithetic pairs; `root` correlates the objectives."""
    draws, c = shape
    half = (draws + 1) // 2
    common, own = rng.standard_normal((half, 1, len(root))), rng.standard_normal((half, c, len(root)))
    noise = (np.sqrt(shared) * common + np.sqrt(1 - shared) * own) @ root.T
    both: Floats = np.concatenate([noise, -noise])[:draws]
    return both


def _root(correlation: Floats, o: int) -> Floats:
    """A square root of a correlation matrix; negative eigenvalues of an inconsistent one count as 0."""
    if correlation.shape != (o, o) or not np.all(np.isfinite(correlation)):
        raise ValueError(f"correlation of shape {correlation.shape}, expected finite {(o, o)}")
    eigenvalues, vectors = np.linalg.eigh((correlation + correlation.T) / 2)
    root: Floats = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
    return root


def _checked(losses: Floats, se: Floats, feasible_p: Floats | None, shared: float) -> tuple[Floats, Floats, Floats]:
    """Losses and errors as `(c, o)`, probabilities as `(c,)`."""
    if losses.shape != se.shape or losses.ndim not in (1, 2):
        raise ValueError(f"losses of shape {losses.shape} with standard errors of shape {se.shape}")
    values, errors = (a.reshape(len(a), -1) if a.ndim == 2 else a[:, None] for a in (losses, se))
    p = np.ones(len(values)) if feasible_p is None else feasible_p
    if p.shape != (len(values),):
        raise ValueError(f"feasible_p of shape {p.shape} for {len(values)} candidates")
    fine = ~np.isnan(values).any(axis=1)
    if np.any(~(errors[fine] >= 0)) or np.any(np.isinf(errors[fine])) or np.any(~((p >= 0) & (p <= 1))):
        raise ValueError("a standard error is negative or not finite, or a probability is not in [0, 1]")
    if not 0 <= shared < 1:
        raise ValueError(f"shared must be in [0, 1), not {shared}")
    return values, errors, p
