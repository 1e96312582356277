"""CatCMA with margin, for genes of mixed kinds (Hamano et al. 2025), by `cmaes`.

Choices have a table of probabilities each, integers and real genes share one Gaussian, and a margin keeps every value
of a discrete gene within reach: about one sample in four changes at least one of them, for ever.

The library sorts by loss and cannot share places between equals; it is told places in the order of the ranks, and
nothing at all about a generation of equals, which would only move the tables at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.cmaes import Engine, build
from evomerge.optimizers.cmaes import options as cma_options
from evomerge.optimizers.genes import FIRST_CHANGES, Genes, mixed_vectors
from evomerge.optimizers.options import read_options, require_one_objective
from evomerge.optimizers.protocol import Matrix
from evomerge.types import Vector

if TYPE_CHECKING:
    from cmaes import CatCMAwM

SURE: Final = 0.9
"""A table has settled when its likeliest value is at least so likely, or as likely as the margin lets it be."""

PATIENCE: Final = 2.0
"""A settled distribution is left when it has had time for so many times all changes of one value."""


def start_table(start: Vector, genes: Genes, changes: float) -> Matrix:
    """First probabilities of the choices: most of each on its start, so that `changes` of them differ on the average.

    Args:
        start: shape `(d,)`.
        genes: of the problem.
        changes: how many choices a sample changes on the average; with few choices all values are equally likely.

    Returns:
        Shape `(choices, most values)`, rows padded with zeros, as `cmaes` has them.
    """
    choice = genes.choice
    n = genes.n_values[choice]
    away = np.minimum(changes / len(choice), 1 - 1 / n)
    table = np.where(np.arange(n.max()) < n[:, None], (away / (n - 1))[:, None], 0.0)
    table[np.arange(len(choice)), genes.values(start, choice)] = 1 - away
    return table


def new_catcmawm(genes: Genes, start: Vector, stds: Vector, *, population: int, seed: int, changes: float) -> CatCMAwM:
    """A `cmaes.CatCMAwM` around `start`: real genes as they are, integers by the number of their value."""
    from cmaes import CatCMAwM

    real, integer, choice = genes.real, genes.integer, genes.choice
    n = genes.n_values[integer]
    mean = np.concatenate([start[real], genes.values(start, integer).astype(np.float64)])
    deviations = np.concatenate([stds[real], stds[integer] * n])
    gaussian = len(mean) > 0
    es = CatCMAwM(
        x_space=[[0.0, 1.0]] * len(real) if len(real) else None,
        z_space=[list(range(k)) for k in n] if len(integer) else None,
        c_space=genes.n_values[choice].tolist() if len(choice) else None,
        population_size=population,
        mean=mean if gaussian else None,
        sigma=1.0 if gaussian else None,
        cov=np.diag(deviations**2) if gaussian else None,
        cat_param=start_table(start, genes, changes) if len(choice) else None,
        seed=seed,
    )
    if len(real):
        # what leaves the cube is penalised in units of a median of past ranges of losses, NaN while there is none
        es._iqhist_values = [1.0]
    return es


class Coder:
    """Between vectors of genes and the solutions of `cmaes`.

    Args:
        genes: of the problem.
    """

    def __init__(self, genes: Genes) -> None:
        self._genes = genes
        self._width = int(genes.n_values[genes.choice].max(initial=0))

    def vector(self, x: Vector | None, z: Vector | None, c: npt.NDArray[np.bool_] | None) -> Vector:
        """The genes of a solution, shape `(d,)`."""
        genes = self._genes
        vector = np.zeros(len(genes.n_values))
        if x is not None:
            vector[genes.real] = np.clip(x, 0.0, 1.0)
        if z is not None:
            vector[genes.integer] = genes.centres(np.rint(z).astype(np.int64), genes.integer)
        if c is not None:
            vector[genes.choice] = genes.centres(c.argmax(axis=1), genes.choice)
        return vector

    def raw(self, vector: Vector) -> Vector:
        """The Gaussian part of a vector: real genes, then numbers of integers' values."""
        genes = self._genes
        return np.concatenate([vector[genes.real], genes.values(vector, genes.integer).astype(np.float64)])

    def one_hot(self, vector: Vector) -> npt.NDArray[np.bool_]:
        """The choices of a vector, shape `(choices, most values)`."""
        values = self._genes.values(vector, self._genes.choice)
        hot: npt.NDArray[np.bool_] = np.arange(self._width) == values[:, None]
        return hot


@final
class CatEngine(Engine):
    """One run of `cmaes.CatCMAwM`.

    Args:
        start: shape `(d,)`.
        stds: initial standard deviation of real and integer genes, shape `(d,)`.
        population: candidates per generation.
        seed: of the private stream.
        genes: of the problem.
        changes: choices that a first sample changes on the average.
    """

    def __init__(
        self, start: Vector, stds: Vector, population: int, seed: int, *, genes: Genes, changes: float
    ) -> None:
        self._genes = genes
        self._coder = Coder(genes)
        self._population = population
        self._es = new_catcmawm(genes, start, stds, population=population, seed=seed, changes=changes)
        self._samples: dict[bytes, list[Any]] = {}
        self._settled = 0

    def ask(self, n: int) -> Matrix:
        """See `Engine.ask`; remembers its own samples, which say more than their genes."""
        self._samples = {}
        return np.array([self.ask_one_more() for _ in range(n)])

    def ask_one_more(self) -> Vector:
        """See `Engine.ask_one_more`."""
        solution = self._es.ask()
        row = self._coder.vector(solution.x, solution.z, solution.c)
        self._samples.setdefault(row.tobytes(), []).append(solution)
        return row

    def tell(self, genes: Matrix, ranks: npt.NDArray[np.float64]) -> None:
        """See `Engine.tell`."""
        if np.ptp(ranks) == 0:
            return
        order = np.argsort(ranks, kind="stable")
        told = [(self._solution(genes[i]), float(place)) for place, i in enumerate(order)]
        with np.errstate(all="ignore"):  # a table that does not move divides by zero; `broken` sees what comes of it
            self._es.tell(told)
        self._settled = self._settled + 1 if self._is_settled() else 0

    def mean(self) -> Vector:
        """See `Engine.mean`: the mean of real genes, the likeliest value of the others."""
        es, n_real = self._es, len(self._genes.real)
        return self._coder.vector(
            es._mean[:n_real] if n_real else None,
            es._discretization(es._mean[n_real:]) if len(self._genes.integer) else None,
            es._q if len(self._genes.choice) else None,
        )

    def broken(self) -> bool:
        """See `Engine.broken`: numbers that are none, or tables that have settled and tried every single change."""
        es = self._es
        if not all(bool(np.all(np.isfinite(part))) for part in self._parts()):
            return True
        changes = int(np.sum(self._genes.n_values[self._genes.discrete] - 1))
        per_generation = (1 - 0.73) * es.population_size
        return bool(self._settled > PATIENCE * changes / per_generation)

    def _parts(self) -> list[Matrix]:
        es = self._es
        gaussian = [es._mean, es._C, np.array(es._sigma)] if es._use_gaussian else []
        return [*gaussian, es._q] if es._use_categorical else gaussian

    def _is_settled(self) -> bool:
        """True when samples differ by single values alone: every table sure, real genes and integers narrow."""
        es, genes = self._es, self._genes
        if len(genes.choice):
            surest = 1 - es._qmin * (es._K - 1)
            if not np.all(es._q.max(axis=1) >= np.minimum(SURE, surest - 1e-3)):
                return False
        deviations = es._sigma * es._A * np.sqrt(np.diag(es._C)) if es._use_gaussian else np.zeros(0)
        n_real = len(genes.real)
        return bool(np.all(deviations[:n_real] < 0.01) and np.all(deviations[n_real:] < 1.0))

    def _solution(self, genes: Vector) -> Any:
        mine = self._samples.pop(genes.tobytes(), [])
        if not mine:
            return self._foreign(genes)
        if mine[1:]:
            self._samples[genes.tobytes()] = mine[1:]
        return mine[0]

    def _foreign(self, genes: Vector) -> Any:
        """A point from outside: choices as they are, the rest pulled to a plausible step (see `LraEngine`)."""
        from cmaes import CatCMAwM

        one_hot = self._coder.one_hot(genes) if len(self._genes.choice) else None
        raw = self._coder.raw(genes)
        if not len(raw):
            return CatCMAwM.Solution(None, None, one_hot, None)
        es = self._es
        step = raw - es._mean
        length = float(np.linalg.norm(step / (es._sigma * es._A * np.sqrt(np.diag(es._C)))))
        d = len(raw)
        limit = np.sqrt(d) + 2 * d / (d + 2)
        return CatCMAwM.Solution(None, None, one_hot, es._mean + step * min(1.0, limit / max(length, limit)))


def catcmawm(problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """CatCMA with margin: one objective, genes of any kind.

    Raises:
        ConfigError: for several objectives, then for an option that is unknown or out of range.
    """
    require_one_objective("catcmawm", problem)
    changes = FIRST_CHANGES * read_options("catcmawm", options, cma_options(problem.dim))["spread"]
    new_engine = partial(CatEngine, genes=Genes.of(problem), changes=changes)
    return build("catcmawm", problem, options, new_engine, mixed_vectors)
