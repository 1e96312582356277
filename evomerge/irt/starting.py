"""Where a fit begins: a deterministic point near the answer, so that equal matrices give equal banks."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.special import logit

from evomerge.irt.priors import ItemPrior, Point
from evomerge.irt.responses import Floats, Link


def start(scores: Floats, prior: ItemPrior, link: Link) -> Point:
    """Standardised row means, item means (or their logits), and the leading directions that these leave over."""
    seen = ~np.isnan(scores)
    filled = np.where(seen, scores, 0.0)
    overall = float(filled.sum() / max(1, seen.sum()))
    columns = (filled.sum(axis=0) + overall) / (seen.sum(axis=0) + 1)
    excess = np.where(seen, scores - columns, 0.0)
    rows = excess.sum(axis=1) / (seen.sum(axis=1) + 1)
    rows -= rows.mean()
    spread = float(rows.std())
    d = prior.slope_mean.size
    theta = np.zeros((scores.shape[0], d))
    theta[:, 0] = rows / spread if spread > 1e-12 else 0.0
    slopes = np.tile(prior.slope_mean, (scores.shape[1], 1))
    if d > 1:
        theta[:, 1:], slopes[:, 1:] = _leading(excess, theta[:, 0], d - 1)
    return Point(theta, slopes, logit(np.clip(columns, 0.02, 0.98)) if link == "logistic" else columns)


def _leading(excess: Floats, first: Floats, k: int) -> tuple[Floats, Floats]:
    """Leading `k` singular directions of what the first ability leaves over: `(m, k)` and `(n, k)`."""
    m, n = excess.shape
    norm = float(first @ first)
    left = excess - np.outer(first, first @ excess) / norm if norm > 0 else excess
    small = left @ left.T if m <= n else left.T @ left
    size = small.shape[0]
    found = min(k, size)
    _, vectors = scipy.linalg.eigh(small, subset_by_index=[size - found, size - 1])
    vectors = vectors[:, ::-1]
    u, v = (vectors, left.T @ vectors) if m <= n else (left @ vectors, vectors)
    u, v = _sized(u), _sized(v)
    signs = np.where(np.sum(v**3, axis=0) < 0, -1.0, 1.0)
    theta, slopes = np.zeros((m, k)), np.zeros((n, k))
    theta[:, :found], slopes[:, :found] = signs * u, signs * v
    return theta, slopes


def _sized(columns: Floats) -> Floats:
    """Columns scaled to root mean square 1/2: away from the saddle at 0, not far into the tails.

    Rounded, because the last bits of eigenvectors depend on the number of threads, and a starting point needs none.
    """
    rms = np.sqrt(np.mean(columns**2, axis=0))
    out: Floats = np.round(0.5 * columns / np.where(rms > 1e-12, rms, 1.0), 5)
    return out
