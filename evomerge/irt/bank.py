"""An item bank: what is known about the items of one pool, and about the models that they were calibrated on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import expit

from evomerge.irt.responses import Bools, Floats, Link


@dataclass(frozen=True)
class ItemBank:
    """Item parameters of the two-parameter model, and the population of abilities they were fitted with.

    Logistic items: `P(right | theta) = sigma(slopes . theta + intercept)` (Birnbaum 1968, slope-intercept form; Reckase
    2009 for D > 1). Normal items: `score = slopes . theta + intercept + noise * e` with standard normal e (the linear
    factor model). Items that every calibration model answered alike are constants: no ability explains them, and they
    keep their observed mean.

    Attributes:
        items: item hashes, unique.
        slopes: shape `(n, D)`, 1 <= D <= 5; 0 for constants.
        intercepts: shape `(n,)`; 0 for constants.
        noise: shape `(n,)`, residual standard deviation of normal items, > 0; 1 for logistic ones.
        constants: shape `(n,)`, the fixed score of a constant item, NaN for all others.
        mean: shape `(D,)`, mean of the calibration models' abilities: the prior's centre for a new model.
        covariance: shape `(D, D)`, their covariance, positive definite.
        link: logistic or normal.
        n_models: how many models it was calibrated on.
        settings: of the fit (dimensions, priors, version), plain JSON.
        provenance: where the answers came from (files, runs, models), plain JSON.
    """

    items: tuple[str, ...]
    slopes: Floats
    intercepts: Floats
    noise: Floats
    constants: Floats
    mean: Floats
    covariance: Floats
    link: Link
    n_models: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.items)
        for name in ("slopes", "intercepts", "noise", "constants", "mean", "covariance"):
            value = np.array(getattr(self, name), dtype=np.float64)
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        d = self.mean.size
        shapes = {"slopes": (n, d), "intercepts": (n,), "noise": (n,), "constants": (n,), "covariance": (d, d)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")
        if len(set(self.items)) != n or n == 0:
            raise ValueError("a bank needs items, each once")
        if not 1 <= d <= 5:
            raise ValueError(f"a bank has 1 to 5 dimensions, not {d}")
        finite = (self.slopes, self.intercepts, self.noise, self.mean, self.covariance)
        if not all(bool(np.all(np.isfinite(value))) for value in finite):
            raise ValueError("an item parameter is not finite")
        if not np.all(self.noise > 0) or np.any(np.isinf(self.constants)):
            raise ValueError("noise must be positive and constants finite")

    @property
    def dimensions(self) -> int:
        """D."""
        return self.mean.size

    @property
    def fitted(self) -> Bools:
        """Shape `(n,)`: items that depend on the ability."""
        return np.isnan(self.constants)

    def predict(self, theta: Floats) -> Floats:
        """Expected scores: abilities of shape `(..., D)` to scores of shape `(..., n)`."""
        z = theta @ self.slopes.T + self.intercepts
        expected = expit(z) if self.link == "logistic" else z
        return np.where(self.fitted, expected, self.constants)

    def variance(self, theta: Floats) -> Floats:
        """Variance of a single answer given the ability: `(..., D)` to `(..., n)`; 0 for constants."""
        if self.link == "logistic":
            p = self.predict(theta)
            return np.where(self.fitted, p * (1 - p), 0.0)
        shape = (*theta.shape[:-1], len(self.items))
        return np.broadcast_to(np.where(self.fitted, self.noise**2, 0.0), shape).copy()

    def sensitivity(self, theta: Floats) -> Floats:
        """Slope of the expected score in `slopes . theta`: `p (1 - p)` or 1; `(..., D)` to `(..., n)`; 0 for constants.

        The gradient of an item's expected score in theta is `sensitivity * slopes`.
        """
        if self.link == "logistic":
            return self.variance(theta)
        shape = (*theta.shape[:-1], len(self.items))
        return np.broadcast_to(np.where(self.fitted, 1.0, 0.0), shape).copy()

    def weight(self, theta: Floats) -> Floats:
        """Weight w of an item's Fisher information `w a a'`: `p (1 - p)` or `1 / noise^2`; `(..., D)` to `(..., n)`."""
        if self.link == "logistic":
            return self.variance(theta)
        shape = (*theta.shape[:-1], len(self.items))
        return np.broadcast_to(np.where(self.fitted, self.noise**-2, 0.0), shape).copy()

    def information(self, theta: Floats) -> Floats:
        """Trace of each item's Fisher information in units of the population: `(..., D)` to `(..., n)`.

        `w a' C a` with C the covariance of the calibration models' abilities; for D = 1 and unit variance that is
        `a^2 p (1 - p)` (Lord 1980, ch. 5).
        """
        spread: Floats = np.einsum("nd,de,ne->n", self.slopes, self.covariance, self.slopes)
        return self.weight(theta) * spread
