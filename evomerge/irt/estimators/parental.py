"""Estimators that expect a merge's ability near those of its parents: mp-IRT, gmp-IRT, and a parents-centred prior."""

from __future__ import annotations

from functools import cached_property
from typing import Final, final

import numpy as np
from scipy.special import logsumexp, xlog1py, xlogy

from evomerge.irt.ability import Abilities, abilities
from evomerge.irt.bank import ItemBank
from evomerge.irt.estimators.ability_based import blend, fitted_weight
from evomerge.irt.estimators.base import Calibration, Estimated, HeldOut, known_part, needs_parents
from evomerge.irt.estimators.design import Mean
from evomerge.irt.estimators.modelled import Modelled, Points, asked_by_all, cubature, predicted
from evomerge.irt.responses import Bools, Floats

FLAT: Final = 1e4
"""Prior variance of mp-IRT's free coefficients: as good as none, and a bound where the likelihood has no maximum."""

PUBLISHED_BLEND: Final = 0.5
SCALES: Final = (0.2, 0.6, 1.8)
"""Standard deviations of a merge's ability around its parents', in units of the population's."""
MOST_LATTICE_POINTS: Final = 300


class Parental(Modelled):
    """An estimator that needs the parents' abilities."""

    def __init__(self, calibration: Calibration) -> None:
        needs_parents(self.name, calibration)
        super().__init__(calibration)

    @cached_property
    def parents(self) -> Floats:
        """Shape `(J, D)`: the parents' abilities."""
        known = self.calibration
        return abilities(known.fitted_bank, known.responses.scores[list(known.parents)]).theta


@final
class MpIrt(Parental):
    """mp-IRT as published (Mencattini et al. 2025, MERGE^3): the ability is a free linear combination of the parents'.

    `theta = sum_j lambda_j theta_j`, lambda by maximum likelihood without bounds, then p-IRT at that point. Fitted in
    an orthonormal basis of the space that the parents span, which is the same maximum; where there is none (all right,
    all wrong) a prior that is as good as flat keeps it finite.
    """

    name = "mp-irt"

    def raw(self, scores: Floats, inclusion: Floats | None, weights: Floats) -> Estimated:
        """See `Estimator.raw`."""
        bank = self.calibration.fitted_bank
        _, sizes, axes = np.linalg.svd(self.parents, full_matrices=False)
        axes = axes[sizes > 1e-9]
        if len(axes) == 0:
            axes = np.eye(1, bank.dimensions)
        spanned = _within(bank, axes)
        found = abilities(spanned, scores)
        mode = Points(found.theta[:, None, :], np.ones((len(scores), 1)))
        return Estimated(
            predicted(spanned, mode, scores, weights).value, predicted(spanned, cubature(found), scores, weights).se
        )


def _within(bank: ItemBank, axes: Floats) -> ItemBank:
    """The bank with abilities confined to the rows of `axes` (r, D), orthonormal, under a flat prior."""
    r = len(axes)
    return ItemBank(
        bank.items,
        bank.slopes @ axes.T,
        bank.intercepts,
        bank.noise,
        bank.constants,
        np.zeros(r),
        FLAT * np.eye(r),
        bank.link,
        bank.n_models,
    )


@final
class MpIrtSimplex(Parental):
    """mp-IRT with lambda on the simplex, uniform a priori: the posterior's mean over a lattice of the simplex."""

    name = "mp-irt-simplex"

    @cached_property
    def _expected(self) -> tuple[Floats, Floats]:
        """Shapes `(g, n)`: expected answers, and their variances, at the lattice's points."""
        bank = self.calibration.fitted_bank
        theta = lattice(len(self.parents)) @ self.parents
        return bank.predict(theta), bank.variance(theta)

    def raw(self, scores: Floats, inclusion: Floats | None, weights: Floats) -> Estimated:
        """See `Estimator.raw`."""
        expected, variance = self._expected
        likelihood = _log_likelihood(self.calibration.fitted_bank, expected, scores)
        share = np.exp(likelihood - logsumexp(likelihood, axis=1, keepdims=True))
        left = ~asked_by_all(scores)
        rest = expected[:, left] @ weights[left]
        noise = variance[:, left] @ weights[left] ** 2
        mean = share @ rest
        between = np.maximum(share @ rest**2 - mean**2, 0.0)
        return Estimated(known_part(scores, weights) + mean, np.sqrt(between + share @ noise))


def lattice(parents: int) -> Floats:
    """All points of the simplex whose coordinates are multiples of 1/q, q as large as `MOST_LATTICE_POINTS` lets it be.

    Returns:
        Shape `(g, J)`, rows sum to 1.
    """
    if parents == 1:
        return np.ones((1, 1))
    steps = 1
    while steps < 100 and _count(parents, steps + 1) <= MOST_LATTICE_POINTS:
        steps += 1
    rows: list[tuple[int, ...]] = [()]
    for left in range(parents - 1, -1, -1):
        rows = [(*row, k) for row in rows for k in _remaining(steps - sum(row), last=left == 0)]
    return np.array(rows, dtype=np.float64) / steps


def _remaining(steps: int, *, last: bool) -> range:
    return range(steps, steps + 1) if last else range(steps + 1)


def _count(parents: int, steps: int) -> int:
    """Points of the lattice: `steps + parents - 1` over `parents - 1`."""
    count = 1
    for j in range(1, parents):
        count = count * (steps + j) // j
    return count


def _log_likelihood(bank: ItemBank, expected: Floats, scores: Floats) -> Floats:
    """Shape `(m, g)`: of the rows' answers (all asked the same items) at each point's expected answers `(g, n)`."""
    used = asked_by_all(scores) & bank.fitted
    answers, expected = scores[:, used], expected[:, used]
    if bank.link == "logistic":
        expected = np.clip(expected, 1e-12, 1 - 1e-12)
        likely: Floats = answers @ np.log(expected).T + (1 - answers) @ np.log1p(-expected).T
        return likely
    precision = bank.noise[used] ** -2
    fits: Floats = (answers * precision) @ expected.T - 0.5 * (expected**2 @ precision)
    return fits


@final
class ParentsMap(Parental):
    """Maximum a posteriori ability around the parents' mean, under a prior that fades where the answers disagree.

    The prior is a mixture of normals around the parents' mean ability whose widths are `SCALES` times the population's,
    equally likely beforehand. Each width has its own posterior mode, and counts by its marginal likelihood (Laplace's
    approximation): answers near what the parents lead to expect leave the narrow ones, others the wide ones, which
    hardly shrink.
    """

    name = "parents-map"

    def raw(self, scores: Floats, inclusion: Floats | None, weights: Floats) -> Estimated:
        """See `Estimator.raw`."""
        bank = self.calibration.fitted_bank
        centre = self.parents.mean(axis=0)
        parts: list[Points] = []
        evidence: list[Floats] = []
        for scale in SCALES:
            covariance = scale**2 * bank.covariance
            found = abilities(bank, scores, mean=centre, covariance=covariance)
            parts.append(cubature(found))
            evidence.append(_evidence(bank, found, scores, centre, covariance))
        log_share = np.stack(evidence, axis=1)
        share = np.exp(log_share - logsumexp(log_share, axis=1, keepdims=True))
        points = Points(
            np.concatenate([part.theta for part in parts], axis=1),
            np.concatenate([part.weight * share[:, [i]] for i, part in enumerate(parts)], axis=1),
        )
        return predicted(bank, points, scores, weights)


def _evidence(bank: ItemBank, found: Abilities, scores: Floats, centre: Floats, covariance: Floats) -> Floats:
    """Shape `(m,)`: Laplace's approximation of the log marginal likelihood, up to a constant common to all widths."""
    off = found.theta - centre
    distance = np.einsum("md,de,me->m", off, np.linalg.inv(covariance), off)
    volume = np.linalg.slogdet(found.covariance)[1] - np.linalg.slogdet(covariance)[1]
    likely: Floats = _own_log_likelihood(bank, found.theta, scores) + 0.5 * (volume - distance)
    return likely


def _own_log_likelihood(bank: ItemBank, theta: Floats, scores: Floats) -> Floats:
    """Shape `(m,)`: of each row's answers at its own ability."""
    used = asked_by_all(scores) & bank.fitted
    answers, expected = scores[:, used], bank.predict(theta)[:, used]
    if bank.link == "logistic":
        cells = xlogy(answers, np.maximum(expected, 1e-300)) + xlog1py(1 - answers, -np.minimum(expected, 1 - 1e-16))
    else:
        cells = -0.5 * ((answers - expected) / bank.noise[used]) ** 2
    total: Floats = cells.sum(axis=1)
    return total


class Blended(Parental):
    """A blend of the plain mean and an mp-IRT."""

    model: type[Parental]

    @cached_property
    def _parts(self) -> tuple[Mean, Parental]:
        return Mean(self.calibration), self.model(self.calibration)

    def weight(self, mean: HeldOut, model: HeldOut) -> float:
        """The weight of the mean, given both parts' held-out errors."""
        return fitted_weight(mean.error, model.error)

    def raw(self, scores: Floats, inclusion: Floats | None, weights: Floats) -> Estimated:
        """See `Estimator.raw`."""
        asked = asked_by_all(scores)
        mean, model = (part.raw(scores, inclusion, weights) for part in self._parts)
        checks = (part.held_out(asked, inclusion, weights) for part in self._parts)
        return blend(mean, model, self.weight(*checks))

    def held_out(self, asked: Bools, inclusion: Floats | None, weights: Floats) -> HeldOut:
        """The parts' held-out errors, blended."""
        mean, model = (part.held_out(asked, inclusion, weights) for part in self._parts)
        blended = blend(Estimated(mean.error, mean.se), Estimated(model.error, model.se), self.weight(mean, model))
        return HeldOut(model.rows, blended.value, blended.se)


@final
class GmpIrt(Blended):
    """gmp-IRT as its authors' program computes it (Mencattini et al. 2025): half the mean, half mp-IRT."""

    name = "gmp-irt"
    model = MpIrt

    def weight(self, mean: HeldOut, model: HeldOut) -> float:
        """Always one half."""
        return PUBLISHED_BLEND


@final
class GmpIrtSimplex(Blended):
    """The mean and mp-IRT on the simplex, blended with a weight that is fitted to held-out models, as in gp-IRT."""

    name = "gmp-irt-simplex"
    model = MpIrtSimplex
