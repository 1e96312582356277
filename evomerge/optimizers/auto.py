"""`optimizer: auto`: which method suits a problem, and why, in a sentence for the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from evomerge.optimizers.base import Problem
from evomerge.optimizers.genes import Genes

FEW_EVALUATIONS: Final = 60
"""Up to here a model of the losses pays for itself."""

MANY_GENES: Final = 20
"""Above this a full covariance matrix takes longer to learn than a run lasts."""

FEW_QUESTIONS: Final = 50
"""Below this the noise of the items dominates: one answer is two whole points.

Measured on the toy zoos with 18 genes and 200 evaluations: docs/benchmarks.md, "Few search items".
"""

MANY_OBJECTIVES: Final = 4
"""From here almost everything is non-dominated, and NSGA-II's crowding stops telling points apart."""


WIDE: Final = 200
"""Above so many genes a full covariance matrix takes too long, whatever it could learn."""


class Choice(NamedTuple):
    """What `auto` decided."""

    name: str
    options: Mapping[str, Any]
    why: str


def choose(problem: Problem, mixed: bool, n_questions: int | None = None) -> Choice:
    """The method for a problem.

    Args:
        problem: what is optimised.
        mixed: True when some genes are choices, integers or gates.
        n_questions: that one evaluation asks for its objectives; None where unknown.
    """
    n, d, m = problem.budget, problem.dim, problem.n_objectives
    if n <= FEW_EVALUATIONS:
        why = f"{n} evaluations are few, so every one is planned with a model of the losses (Gaussian process)"
        return Choice("gp", {}, why)
    if m >= MANY_OBJECTIVES:
        return Choice("nsga3", {}, f"{m} objectives are spread over reference directions (NSGA-III)")
    if mixed and (m == 1 or _mostly_discrete(problem)):
        return _for_mixed_genes(problem)
    if m > 1:
        return Choice("nsga2", {}, f"{m} objectives call for a front, and {n} evaluations for generations (NSGA-II)")
    if d <= MANY_GENES and n_questions is not None and n_questions < FEW_QUESTIONS:
        why = f"{n_questions} questions are few, and CMA-ES that adapts its learning rate averages over their noise"
        return Choice("lra-cma", {}, why)
    if d <= MANY_GENES:
        return Choice("cma", {}, f"one objective over {d} continuous genes suits CMA-ES with a full covariance matrix")
    why = (
        f"one objective over {d} continuous genes: above {MANY_GENES}, CMA-ES learns faster with one variance per gene"
    )
    return Choice("sep-cma", {}, why)


def _n_discrete(problem: Problem) -> int:
    """Genes that are not real; where kinds are not told, all of a mixed problem."""
    return len(Genes.of(problem).discrete) if problem.kinds else problem.dim


def _mostly_discrete(problem: Problem) -> bool:
    return 2 * _n_discrete(problem) >= problem.dim


def _for_mixed_genes(problem: Problem) -> Choice:
    told = f"{_n_discrete(problem)} of {problem.dim} genes are discrete"
    if _mostly_discrete(problem) or problem.dim > WIDE:
        return Choice("evolve", {}, f"{told}: single edits of the best, none asked twice, find paths soonest")
    return Choice("catcmawm", {}, f"{told}, the others continuous: CatCMA with margin follows both")
