"""CMA-ES and separable CMA-ES by pycma, with a private random stream.

pycma would seed numpy's global generator, read a signals file, and stop on flat fitness; all of that is off. Its own
termination criteria look at fitness values, which here are ranks, so only those about numerics are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.cmaes import Engine, build, default_population
from evomerge.optimizers.protocol import Matrix
from evomerge.types import Vector

_OFF: Final = float("inf")


SHORT_RUN: Final = 50
"""Generations below which the step size is let go faster: its damping is tuned for long runs.

Measured with 200 evaluations of 18 and 60 genes against 400 simulated items: half the damping gains 0.5 to 2.5 points
of true accuracy of the mean.
"""


def damping(problem: Problem) -> float:
    """Factor on the damping of the step size, by how many generations the budget holds."""
    return 0.5 if problem.budget < SHORT_RUN * default_population(problem.dim) else 1.0


def _pycma_options(population: int, seed: int, stds: Vector, diagonal: bool, damping: float) -> dict[str, Any]:
    return {
        "popsize": population,
        "randn": np.random.RandomState(seed).randn,
        "seed": np.nan,  # nan: leave numpy's global generator alone
        "bounds": [0, 1],
        "CMA_stds": stds,
        "CMA_diagonal": diagonal,
        "CSA_dampfac": damping,
        "signals_filename": "",  # None would mean the default, a file in the working directory
        "verbose": -9,
        # fitness values are ranks: what compares them between generations would stop at once
        "tolfun": 0,
        "tolfunhist": 0,
        "tolfunrel": 0,
        "tolflatfitness": _OFF,
        "tolstagnation": _OFF,
        "tolxstagnation": False,
        "tolx": 0,
        "maxiter": _OFF,
    }


@final
class PycmaEngine(Engine):
    """One run of `cma.CMAEvolutionStrategy` on the unit cube.

    Args:
        start: shape `(d,)`.
        stds: initial standard deviation per gene, shape `(d,)`.
        population: candidates per generation.
        seed: of the private stream.
        diagonal: separable CMA-ES (Ros and Hansen 2008) instead of a full covariance.
        damping: factor on the damping of the step size.
    """

    def __init__(
        self, start: Vector, stds: Vector, population: int, seed: int, *, diagonal: bool, damping: float
    ) -> None:
        import cma  # slow, and looks for matplotlib

        sigma = float(np.exp(np.mean(np.log(stds))))
        chosen = _pycma_options(population, seed, stds / sigma, diagonal, damping)
        self._es = cma.CMAEvolutionStrategy(np.array(start), sigma, chosen)
        self._has_asked = False

    def ask(self, n: int) -> Matrix:
        """See `Engine.ask`; remembers up to a thousand samples."""
        self._has_asked = True
        return np.array(self._es.ask(n), dtype=np.float64)

    def ask_one_more(self) -> Vector:
        """See `Engine.ask_one_more`."""
        self._es.pop_injection_directions = []  # mirrors of populations below 6, which only a whole one can hold
        row: Vector = self.ask(1)[0]
        return row

    def tell(self, genes: Matrix, ranks: npt.NDArray[np.float64]) -> None:
        """See `Engine.tell`; pycma itself clips points from outside (Hansen 2011)."""
        if not self._has_asked:
            self.ask_one_more()  # pycma insists on an ask between two tells
        self._has_asked = False
        self._es.tell([np.array(row) for row in genes], [float(r) for r in ranks])

    def mean(self) -> Vector:
        """See `Engine.mean`."""
        return np.array(self._es.result.xfavorite, dtype=np.float64)

    def broken(self) -> bool:
        """See `Engine.broken`: condition number, step sizes without effect."""
        return bool(self._es.stop())


def full_cma(problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """CMA-ES with a full covariance matrix (Hansen 2016).

    Raises:
        ConfigError: for several objectives, then for an option that is unknown or out of range.
    """
    return build("cma", problem, options, partial(PycmaEngine, diagonal=False, damping=damping(problem)))


def separable_cma(problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """CMA-ES that learns one variance per gene: linear in the dimension, faster to learn above about 20 genes.

    Raises:
        ConfigError: for several objectives, then for an option that is unknown or out of range.
    """
    return build("sep-cma", problem, options, partial(PycmaEngine, diagonal=True, damping=damping(problem)))
