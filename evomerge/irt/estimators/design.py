"""Estimators that rest on how the items were drawn, not on a model: plain mean, stratified mean, PPI."""

from __future__ import annotations

from typing import final

import numpy as np

from evomerge.irt.estimators.base import (
    Calibration,
    Estimated,
    Estimator,
    checked,
    inclusion_of,
    needs_parents,
    patterns,
)
from evomerge.irt.estimators.sampling import Sampled, expand
from evomerge.irt.responses import Bools, Floats, Indices

PER_STRATUM = 4
MOST_STRATA = 10


class DesignBased(Estimator):
    """Items chosen on purpose count as they are; the random rest is expanded to what was not asked."""

    def estimate(self, scores: Floats, *, inclusion: Floats | None = None, target: Floats | None = None) -> Estimated:
        """See `Estimator.estimate`."""
        matrix, weights = checked(scores, self.calibration.n, inclusion, target)
        value, variance = np.zeros(len(matrix)), np.zeros(len(matrix))
        for rows, asked in patterns(matrix):
            pi = inclusion_of(asked, inclusion)
            certain = asked & (pi >= 1)
            rest = np.flatnonzero(~certain)
            answers = matrix[rows]
            value[rows] = answers[:, certain] @ weights[certain]
            if rest.size:
                sampled = self._rest(answers, rest, asked, pi, weights)
                value[rows] += sampled.value
                variance[rows] = sampled.widened()
        return Estimated(value, np.sqrt(variance))

    def _rest(self, answers: Floats, rest: Indices, asked: Bools, pi: Floats, weights: Floats) -> Sampled:
        """The part of the functional over the items `rest`, of which those that were asked are a random sample."""
        raise NotImplementedError

    def _group(self, answers: Floats, group: Indices, asked: Bools, pi: Floats, weights: Floats) -> Sampled:
        """One group of items, expanded by itself with the calibration's expectations."""
        known = self.calibration
        share = np.abs(weights[group])
        means = known.item_means[group]
        centre = float(np.average(means, weights=share)) if share.sum() > 0 else known.grand_mean
        return expand(
            answers[:, group],
            asked[group],
            pi[group],
            weights[group],
            centre=centre,
            variance=known.variance_within(group),
            between=known.variance_between(group),
        )


@final
class Mean(DesignBased):
    """The mean of what was asked, weighted by the design (Horvitz and Thompson 1952; Hajek 1971)."""

    name = "mean"

    def _rest(self, answers: Floats, rest: Indices, asked: Bools, pi: Floats, weights: Floats) -> Sampled:
        return self._group(answers, rest, asked, pi, weights)


@final
class Stratified(DesignBased):
    """The mean within strata of items of like difficulty, weighted by the strata's sizes (post-stratification).

    Strata are equal parts of the items sorted by their calibration mean, as many as leave about `PER_STRATUM` answers
    in each; one with fewer than two answers is joined with its neighbour.
    """

    name = "stratified"

    def _rest(self, answers: Floats, rest: Indices, asked: Bools, pi: Floats, weights: Floats) -> Sampled:
        value, variance, freedom = np.zeros(len(answers)), np.zeros(len(answers)), 0.0
        for stratum in self._strata(rest, asked):
            chosen = asked[stratum]
            own = pi.copy()
            if chosen.any():
                own[stratum] = np.minimum(pi[stratum] * chosen.sum() / pi[stratum].sum(), 1.0)
            part = self._group(answers, stratum, asked, own, weights)
            value += part.value
            variance += part.variance
            freedom += part.freedom
        return Sampled(value, variance, freedom)

    def _strata(self, rest: Indices, asked: Bools) -> list[Indices]:
        order = rest[np.argsort(self.calibration.item_means[rest], kind="stable")]
        wanted = int(np.clip(asked[rest].sum() // PER_STRATUM, 1, MOST_STRATA))
        strata: list[Indices] = []
        for part in np.array_split(order, wanted):
            if strata and min(asked[strata[-1]].sum(), asked[part].sum()) < 2:
                strata[-1] = np.concatenate([strata[-1], part])
            else:
                strata.append(part)
        return strata


@final
class Ppi(DesignBased):
    """Prediction-powered inference: the parents' mean answer as control variate (Angelopoulos et al. 2023).

    `lambda sum_i w_i f_i` plus the expanded sample of `y_i - lambda f_i`, unbiased under the design whatever f is. The
    factor lambda is fitted to the calibration models that are not parents (power tuning, Angelopoulos, Duchi and Zrnic
    2023), within models and drawn to 1, so that it does not depend on the candidate.
    """

    name = "ppi"

    def __init__(self, calibration: Calibration) -> None:
        needs_parents(self.name, calibration)
        super().__init__(calibration)
        parents = np.array(calibration.parents)
        f = calibration.filled[parents].mean(axis=0)
        self._control = f * self._factor(f)

    def _factor(self, f: Floats) -> float:
        known = self.calibration
        others = np.setdiff1d(np.arange(len(known.filled)), known.parents)
        centred = f - f.mean()
        power = float(centred @ centred)
        if power == 0:
            return 0.0
        slopes = known.filled[others] @ centred / power
        return float(np.clip((slopes.sum() + 1.0) / (len(others) + 1), 0.0, 1.0))

    def _rest(self, answers: Floats, rest: Indices, asked: Bools, pi: Floats, weights: Floats) -> Sampled:
        control, known = self._control, self.calibration
        others = known.filled - control
        variance = float(np.mean(others.var(axis=1)))
        part = expand(
            answers[:, rest] - control[rest],
            asked[rest],
            pi[rest],
            weights[rest],
            centre=float(np.mean(others[:, rest])),
            variance=variance,
            between=float(np.var(others[:, rest].mean(axis=1))) + variance / known.n,
        )
        return Sampled(part.value + float(control[rest] @ weights[rest]), part.variance, part.freedom)
