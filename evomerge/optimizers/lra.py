"""LRA-CMA-ES: CMA-ES that lowers its learning rate where evaluations are noisy (Nomura et al. 2023), by `cmaes`.

The library would resample at bounds, which distorts the distribution in many dimensions, and accepts anything in
`tell`. Here the search is unbounded and genes are folded into the cube by mirrors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.cmaes import Engine, build
from evomerge.optimizers.protocol import Matrix, reflect
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
        # the library warns about nothing and keeps sigma and covariance apart: put the scales into the covariance
        self._cma = CMA(
            mean=np.array(start), sigma=1.0, cov=np.diag(stds**2), seed=seed, population_size=population, lr_adapt=True
        )
        self._latent: dict[bytes, Vector] = {}

    def ask(self, n: int) -> Matrix:
        """See `Engine.ask`; remembers the unfolded samples."""
        latent = [np.array(self._cma.ask(), dtype=np.float64) for _ in range(n)]
        genes = reflect(np.array(latent))
        self._latent = {row.tobytes(): z for row, z in zip(genes, latent, strict=True)}
        return genes

    def tell(self, genes: Matrix, ranks: npt.NDArray[np.float64]) -> None:
        """See `Engine.tell`."""
        latent = [self._latent[row.tobytes()] if row.tobytes() in self._latent else self._clip(row) for row in genes]
        # a list of its own: the library sorts it in place
        self._cma.tell([(z.copy(), float(r)) for z, r in zip(latent, ranks, strict=True)])

    def mean(self) -> Vector:
        """See `Engine.mean`."""
        return reflect(np.array(self._cma.mean, dtype=np.float64))

    def broken(self) -> bool:
        """See `Engine.broken`."""
        return not bool(np.all(np.isfinite(self._cma.mean)))

    def _clip(self, genes: Vector) -> Vector:
        """Pull a point from outside towards the mean, to the longest step that its own samples plausibly make.

        The limit is `sqrt(d) + 2 d / (d + 2)` standard deviations (Hansen 2011, "Injecting external solutions").
        Lengths use the initial scales: points from outside come with the first generation.
        """
        step = genes - self._cma.mean
        length = float(np.linalg.norm(step / self._stds))
        d = len(genes)
        limit = np.sqrt(d) + 2 * d / (d + 2)
        return np.array(self._cma.mean + step * min(1.0, limit / max(length, 1e-300)))


def lra_cma(problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """CMA-ES with learning-rate adaptation, for noisy objectives: few items, binary scores.

    Raises:
        ConfigError: for several objectives, then for an option that is unknown or out of range.
    """
    return build("lra-cma", problem, options, LraEngine)
