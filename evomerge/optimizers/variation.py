"""How children of Optuna's genetic samplers differ from their parents, by the kind of each gene.

Choices are Optuna's own: exchanged whole between parents, drawn afresh when they mutate. Real genes are blended
(BLX-alpha, Eshelman and Schaffer 1993) and mutated by a polynomial law (Deb and Agrawal 1999). Integers are exchanged
like choices, and mutate by a step of one or by a fresh draw: between 3 and 7 hops there is nothing to blend.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from evomerge.optimizers.base import Problem
from evomerge.optimizers.genes import Genes

if TYPE_CHECKING:
    from optuna.samplers.nsgaii import BaseCrossover, BaseMutation
    from optuna.study import Study

    from evomerge.optimizers.protocol import Matrix
    from evomerge.types import Vector

COARSE_STEP: Final = 0.2
"""A real gene with steps like this is a choice among a few values: there is nothing between two of them."""

ONE_STEP: Final = 0.5
"""Share of an integer's mutations that go to a neighbour."""


def variation(problem: Problem) -> dict[str, Any]:
    """Keyword arguments of Optuna's genetic samplers.

    With 200 to 480 evaluations of 6 to 18 real genes BLX with polynomial mutation was first or second of six
    combinations in hypervolume, by a few percent. Where a real gene is coarse, genes are exchanged and drawn afresh
    (Optuna's default).
    """
    genes = Genes.of(problem)
    if bool((problem.step[genes.real] >= COARSE_STEP).any()):
        return {}
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers.nsgaii import BLXAlphaCrossover, PolynomialMutation

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        blend, jitter = BLXAlphaCrossover(), PolynomialMutation()
        if not len(genes.integer):
            return {"crossover": blend, "mutation": jitter}
        return _with_integers(blend, jitter)


def _is_integer(bounds: Matrix) -> Any:
    """Optuna widens an integer's range by one half at both ends; a real gene's is [0, 1]."""
    return (bounds[..., 0] == -0.5) & (bounds[..., 1] >= 1.5)


def _with_integers(blend: BaseCrossover, jitter: BaseMutation) -> dict[str, Any]:
    from optuna.samplers.nsgaii import BaseCrossover, BaseMutation

    class ByKind(BaseCrossover):
        """Real columns from `blend`, integer columns from either parent."""

        n_parents = 2

        def crossover(
            self,
            parents_params: Matrix,
            rng: np.random.RandomState,
            study: Study,
            search_space_bounds: Matrix,
        ) -> Matrix:
            """One child of the two rows of `parents_params`."""
            blended = blend.crossover(parents_params, rng, study, search_space_bounds)
            second = rng.rand(parents_params.shape[1]) < 0.5
            exchanged = np.where(second, parents_params[-1], parents_params[0])
            child: Matrix = np.where(_is_integer(search_space_bounds), exchanged, blended)
            return child

    class StepOrDraw(BaseMutation):
        """`jitter` for a real gene; a neighbour or a fresh draw for an integer."""

        def mutation(
            self, param: float, rng: np.random.RandomState, study: Study, search_space_bounds: Vector
        ) -> float:
            """The mutated value."""
            if not _is_integer(search_space_bounds):
                return jitter.mutation(param, rng, study, search_space_bounds)
            low, high = float(search_space_bounds[0]) + 0.5, float(search_space_bounds[1]) - 0.5
            if rng.rand() < ONE_STEP:
                return float(np.clip(param + (1.0 if rng.rand() < 0.5 else -1.0), low, high))
            return float(rng.randint(int(low), int(high) + 1))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"crossover": ByKind(), "mutation": StepOrDraw()}
