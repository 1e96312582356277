"""LRA-CMA-ES: CMA-ES that lowers its learning rate where evaluations are noisy (Nomura et al. 2023), by `cmaes`.

Genes are scaled by their spreads, so that the first distribution is round: learning-rate adaptation is not invariant
to how a scale is split between step size and covariance. The library resamples what leaves the cube; without bounds its
step size grew tenfold on a sphere and did not come back within 200 evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.cmaes import Engine, build
from evomerge.optimizers.protocol import Matrix
from evomerge.types import Vector


@final
class LraEngine(Engine):
    """One run of `cmaes.CMA(lr_adapt=True)` on the unit cube.

    Args:
        start: shape `(d,)`.
        stds: initial standard deviation per gene, shape `(d,)`.
        population: candidates per generation.
        seed: of the private stream.
    """

    def __init__(self, start: Vector, stds: Vector, population: int, seed: int) -> None:
        from cmaes import CMA

        self._stds = stds
        self._cma = CMA(
            mean=start / stds,
            sigma=1.0,
            bounds=np.stack([np.zeros_like(stds), 1.0 / stds], axis=1),
            seed=seed,
            population_size=population,
            lr_adapt=True,
        )
        self._samples: dict[bytes, Vector] = {}

    def ask(self, n: int) -> Matrix:
        """See `Engine.ask`; remembers its own samples."""
        self._samples = {}
        return np.array([self.ask_one_more() for _ in range(n)])

    def ask_one_more(self) -> Vector:
        """See `Engine.ask_one_more`."""
        sample = np.array(self._cma.ask(), dtype=np.float64)
        genes: Vector = np.clip(sample * self._stds, 0.0, 1.0)
        self._samples[genes.tobytes()] = sample
        return genes

    def tell(self, genes: Matrix, ranks: npt.NDArray[np.float64]) -> None:
        """See `Engine.tell`."""
        known = self._samples
        samples = [known[row.tobytes()] if row.tobytes() in known else self._clip(row) for row in genes]
        # copies in a list of its own: the library keeps the arrays and sorts the list in place
        self._cma.tell([(z.copy(), float(r)) for z, r in zip(samples, ranks, strict=True)])
        for row in genes:
            known.pop(row.tobytes(), None)

    def mean(self) -> Vector:
        """See `Engine.mean`."""
        centre: Vector = np.clip(self._cma.mean * self._stds, 0.0, 1.0)
        return centre

    def broken(self) -> bool:
        """See `Engine.broken`."""
        return not bool(np.all(np.isfinite(self._cma.mean)))

    def _clip(self, genes: Vector) -> Vector:
        """Pull a point from outside towards the mean, to the longest step that its own samples plausibly make.

        The limit is `sqrt(d) + 2 d / (d + 2)` standard deviations (Hansen 2011, "Injecting external solutions").
        Lengths are in initial standard deviations: points from outside come with the first generation.
        """
        step = genes / self._stds - self._cma.mean
        d = len(genes)
        limit = np.sqrt(d) + 2 * d / (d + 2)
        clipped: Vector = self._cma.mean + step * min(1.0, limit / max(float(np.linalg.norm(step)), limit))
        return clipped


def lra_cma(problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """CMA-ES with learning-rate adaptation, for noisy objectives: few items, binary scores.

    Raises:
        ConfigError: for several objectives, then for an option that is unknown or out of range.
    """
    return build("lra-cma", problem, options, LraEngine)
