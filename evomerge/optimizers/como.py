"""COMO-CatCMA with margin: a front of two objectives by several CatCMAwM at once, by `cmaes`.

Every kernel is a distribution of its own whose samples are ranked by the hypervolume that they would add to the
centres of the others (Toure et al. 2019). The first batch is drawn around the start, injected vectors included; kernels
begin at the best of it, spread over its front. From then on a batch is what the library has in its queue: one
population and the centre of the kernel that moved last, so batches are of one size but for the second, which holds all
centres.

Losses are told in units of their range in the first batch, because the library measures distances between them. What
is infeasible is told behind the worst feasible loss by its violation, a failure further behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from evomerge.archive.dominance import crowding_distances, pareto_ranks
from evomerge.errors import ConfigError
from evomerge.optimizers.base import Optimizer, Problem, Told
from evomerge.optimizers.catcmawm import Coder, new_catcmawm
from evomerge.optimizers.cmaes import default_population
from evomerge.optimizers.genes import FIRST_CHANGES, Genes, mixed_vectors
from evomerge.optimizers.options import Option, read_options
from evomerge.optimizers.protocol import AskTell, Matrix, Strategy, first_batch, n_fresh, own_sample
from evomerge.optimizers.ranking import total_violation
from evomerge.seeds import derive_seed, generator
from evomerge.types import Vector

if TYPE_CHECKING:
    from cmaes import COMOCatCMAwM

GENERATIONS_PER_KERNEL: Final = 8
"""As many kernels as the budget lets move so often; at least two, at most ten (the library's default)."""


def default_kernels(problem: Problem) -> int:
    """Kernels that the budget can move `GENERATIONS_PER_KERNEL` times, from 2 to 10."""
    return int(np.clip(problem.budget // (GENERATIONS_PER_KERNEL * default_population(problem.dim)), 2, 10))


def como_options(problem: Problem) -> dict[str, Option]:
    """What the method accepts."""
    return {
        "population": Option(default_population(problem.dim), 4, 100_000, "candidates per generation of a kernel"),
        "kernels": Option(default_kernels(problem), 2, 100, "distributions that share the front"),
        "spread": Option(1.0, 1e-3, 10.0, "multiplies the initial standard deviations of the space"),
    }


@final
class _Scale:
    """Losses in units of their range in the first scored batch; what is not feasible goes behind the worst.

    Args:
        first: the first batch in which something was scored.
    """

    def __init__(self, first: Sequence[Told]) -> None:
        losses = np.array([t.losses for t in first if t.losses is not None])
        self._low = losses.min(axis=0)
        width = np.ptp(losses, axis=0)
        self._width = np.where(width > 0, width, 1.0)
        self._worst = np.full(losses.shape[1], -np.inf)

    def units(self, results: Sequence[Told]) -> Matrix:
        """Two finite losses per result, shape `(n, 2)`; remembers the worst feasible ones."""
        scored = [t for t in results if t.losses is not None]
        known = [t for t in scored if t.feasible] or ([] if np.all(np.isfinite(self._worst)) else scored)
        for told in known:
            self._worst = np.maximum(self._worst, self._plain(told))
        return np.array([self._of(t) for t in results])

    def _plain(self, told: Told) -> Vector:
        plain: Vector = (np.array(told.losses, dtype=np.float64) - self._low) / self._width
        return plain

    def _of(self, told: Told) -> Vector:
        worst = np.where(np.isfinite(self._worst), self._worst, 1.0)
        if told.losses is None:
            return worst + 2.0
        violation = total_violation(told)
        return self._plain(told) if violation == 0 else worst + violation / (1 + violation)


@final
class ComoStrategy(Strategy):
    """Runs the queue of a `cmaes.COMOCatCMAwM`; see the module docstring.

    Args:
        problem: what is optimised; two objectives.
        population: candidates per generation of a kernel.
        kernels: distributions that share the front.
        spread: multiplies the initial standard deviations.
    """

    def __init__(self, problem: Problem, *, population: int, kernels: int, spread: float) -> None:
        self._problem = problem
        self._population = population
        self._kernels = kernels
        self._spread = spread
        self._genes = Genes.of(problem)
        self._coder = Coder(self._genes)
        self._n_first = 0
        self._scale: _Scale | None = None
        self._como: COMOCatCMAwM | None = None
        self._open: list[Any] = []

    def propose(self) -> Matrix:
        """Vectors around the start until something was scored, then the library's queue."""
        if self._como is None:
            return self._first()
        self._open = list(self._como.ask_iter())
        return np.array([self._coder.vector(s.x, s.z, s.c) for s in self._open])

    def learn(self, asked: Sequence[Vector], results: Sequence[Told]) -> None:
        """Open the kernels at the best of the first batch; later tell the queue's results."""
        genes = np.array([own_sample(self._problem, a, t) for a, t in zip(asked, results, strict=True)])
        if self._scale is None:
            if all(t.losses is None for t in results):
                return
            self._scale = _Scale(results)
        losses = self._scale.units(results)
        if self._como is None:
            self._como = self._begin(genes, losses)
            return
        told = [
            (self._solution(s, a, g), loss)
            for s, a, g, loss in zip(self._open, asked, genes, losses.tolist(), strict=True)
        ]
        with np.errstate(all="ignore"):
            self._como.tell(told)

    def stop(self) -> str | None:
        """Never."""
        return None

    def mean(self) -> Vector | None:
        """None: a front has no centre."""
        return None

    def _first(self) -> Matrix:
        rng = generator(self._problem.seed, "como-catcmawm", "first", self._n_first)
        self._n_first += 1
        if self._n_first > 1:
            return mixed_vectors(self._problem, self._population, rng, self._spread)
        fresh = mixed_vectors(self._problem, n_fresh(self._problem, self._population), rng, self._spread)
        return first_batch(self._problem, self._population, fresh)

    def _begin(self, genes: Matrix, losses: Matrix) -> COMOCatCMAwM:
        """The library's optimizer with kernels at the best vectors, by rank of dominance, then by distance."""
        from cmaes import COMOCatCMAwM

        order = np.lexsort((-crowding_distances(losses), pareto_ranks(losses)))
        seed, name = self._problem.seed, "como-catcmawm"
        stds = self._problem.spread * self._spread
        kernels = [
            new_catcmawm(
                self._genes,
                genes[order[k % len(order)]],
                stds,
                population=self._population,
                seed=derive_seed(seed, name, k),
                changes=FIRST_CHANGES * self._spread,
            )
            for k in range(self._kernels)
        ]
        genes_of = self._genes
        return COMOCatCMAwM(
            x_space=[[0.0, 1.0]] * len(genes_of.real) or None,
            z_space=[list(range(k)) for k in genes_of.n_values[genes_of.integer]] or None,
            c_space=genes_of.n_values[genes_of.choice].tolist() or None,
            kernels=kernels,
            seed=derive_seed(seed, name, "kernels"),
        )

    def _solution(self, own: Any, asked: Vector, genes: Vector) -> Any:
        """The library's solution, or one with the genes that were evaluated where they are others."""
        if np.array_equal(asked, genes):
            return own
        from cmaes import COMOCatCMAwM

        raw = self._coder.raw(genes)
        return COMOCatCMAwM.Solution(
            x=genes[self._genes.real] if len(self._genes.real) else None,
            z=raw[len(self._genes.real) :] if len(self._genes.integer) else None,
            c=self._coder.one_hot(genes) if len(self._genes.choice) else None,
            _v_raw=raw if len(raw) else None,
            _kernel_id=own._kernel_id,
            _incumbent_id=own._incumbent_id,
        )


def como_catcmawm(problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """COMO-CatCMA with margin: exactly two objectives, genes of any kind.

    Raises:
        ConfigError: for any other number of objectives, then for an option that is unknown or out of range.
    """
    if problem.n_objectives != 2:
        raise ConfigError(
            "The optimizer 'como-catcmawm' searches two objectives.",
            got=f"{problem.n_objectives} objective{'s' if problem.n_objectives > 1 else ''}",
            allowed="two objectives; catcmawm takes one, nsga2, nsga3, evolve, tpe, gp and random take several",
            fix="set optimizer.name to auto, or give the job two objectives.",
        )
    chosen = read_options("como-catcmawm", options, como_options(problem))
    return AskTell(problem, ComoStrategy(problem, **chosen))
