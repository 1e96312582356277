"""Search problems whose answer is known, for testing optimizers: no model, no file, microseconds per candidate.

Every problem lives on `[0, 1]^d`, with real genes on a grid of 0.01, as merge weights do, and discrete ones in equal
cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from evomerge.optimizers.base import Problem, Told
from evomerge.seeds import generator
from evomerge.types import GeneKind, Vector

STEP: Final = 0.01
"""The grid of every problem here."""


class Answer(NamedTuple):
    """What a problem says about one vector."""

    losses: tuple[float, ...]
    violations: tuple[float, ...] = ()


@dataclass(frozen=True)
class KnownProblem:
    """A search problem and what there is to find.

    Attributes:
        name: for messages.
        dim: number of genes.
        n_objectives: losses per answer.
        n_constraints: violations per answer.
        answer: vector -> losses and violations; deterministic.
        optimum: the smallest feasible loss of every objective, each for itself.
        start: where a search starts; the middle of the cube is not special to any problem here.
        kinds: of the genes; empty when all are real.
    """

    name: str
    dim: int
    n_objectives: int
    n_constraints: int
    answer: Callable[[Vector], Answer]
    optimum: tuple[float, ...]
    start: float = 0.4
    kinds: tuple[GeneKind, ...] = ()

    @property
    def start_vector(self) -> Vector:
        """`start` for every gene, on the grid."""
        return self.quantise(np.full(self.dim, self.start))

    def quantise(self, vector: Vector) -> Vector:
        """The nearest point of the grid; the centre of the cell for a discrete gene."""
        genes = quantise(vector)
        for i, kind in enumerate(self.kinds):
            if kind.type != "real":
                genes[i] = (min(int(vector[i] * kind.n_values), kind.n_values - 1) + 0.5) / kind.n_values
        return genes

    def problem(self, *, seed: int = 0, budget: int = 200, injected: Sequence[Vector] = ()) -> Problem:
        """The problem as an optimizer sees it."""
        return Problem(
            dim=self.dim,
            n_objectives=self.n_objectives,
            n_constraints=self.n_constraints,
            start=self.start_vector,
            spread=np.full(self.dim, 0.2),
            step=np.array([STEP if k.type == "real" else 1 / k.n_values for k in self.kinds] or [STEP] * self.dim),
            budget=budget,
            seed=seed,
            injected=tuple(injected),
            kinds=self.kinds,
        )

    def told(self, vector: Vector) -> Told:
        """The result of an asked vector, evaluated on the grid."""
        genes = self.quantise(vector)
        answer = self.answer(genes)
        return Told(genes, answer.losses, answer.violations)


def quantise(vector: Vector) -> Vector:
    """The nearest point of the grid."""
    genes: Vector = np.clip(np.rint(vector / STEP), 0, round(1 / STEP)) * STEP
    return np.clip(genes, 0.0, 1.0)


def sphere(dim: int, optimum: float = 0.7) -> KnownProblem:
    """Mean squared distance from a point: what every optimizer must be able to do."""

    def answer(x: Vector) -> Answer:
        return Answer((float(np.mean((x - optimum) ** 2)),))

    return KnownProblem(f"sphere-{dim}", dim, 1, 0, answer, (0.0,))


def rotated_ellipsoid(dim: int, condition: float = 100.0, seed: int = 1) -> KnownProblem:
    """A sphere stretched along random directions: rewards a method that learns covariances."""
    rng = generator(seed, "ellipsoid", dim)
    basis, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    scales = condition ** (np.arange(dim) / max(dim - 1, 1))
    centre = quantise(rng.uniform(0.3, 0.8, dim))

    def answer(x: Vector) -> Answer:
        return Answer((float(np.mean(scales * (basis @ (x - centre)) ** 2)),))

    return KnownProblem(f"ellipsoid-{dim}", dim, 1, 0, answer, (0.0,))


def half_space_sphere(dim: int) -> KnownProblem:
    """A sphere whose optimum, 0.7 everywhere, violates `mean(x) <= 0.6`; the best feasible point is 0.6 everywhere."""

    def answer(x: Vector) -> Answer:
        return Answer((float(np.mean((x - 0.7) ** 2)),), (float(np.mean(x)) - 0.6,))

    return KnownProblem(f"half-space-sphere-{dim}", dim, 1, 1, answer, (0.01,))


def two_spheres(dim: int) -> KnownProblem:
    """Two objectives, the mean squared distances from 0.3 and from 0.7 everywhere.

    The front is the segment between the two points: `sqrt(f1) + sqrt(f2) = 0.4`.
    """

    def answer(x: Vector) -> Answer:
        return Answer((float(np.mean((x - 0.3) ** 2)), float(np.mean((x - 0.7) ** 2))))

    return KnownProblem(f"two-spheres-{dim}", dim, 2, 0, answer, (0.0, 0.0))


def constrained_two_spheres(dim: int) -> KnownProblem:
    """`two_spheres` where the better half of the second objective is forbidden: `mean(x) <= 0.5`."""
    free = two_spheres(dim)

    def answer(x: Vector) -> Answer:
        return Answer(free.answer(x).losses, (float(np.mean(x)) - 0.5,))

    return KnownProblem(f"constrained-two-spheres-{dim}", dim, 2, 1, answer, (0.0, 0.04))


MIXED: Final = (GeneKind("real", 101), GeneKind("choice", 4), GeneKind("integer", 6), GeneKind("choice", 2))
"""The kinds of a mixed problem's genes, in turn."""


def mixed_kinds(dim: int) -> tuple[GeneKind, ...]:
    """`MIXED` over and over."""
    return tuple(MIXED[i % len(MIXED)] for i in range(dim))


def _distance(x: Vector, kinds: Sequence[GeneKind], target: float) -> float:
    """Mean squared distance from `target`, where another choice than that of `target` is at distance 0.4."""
    parts = []
    for gene, kind in zip(x, kinds, strict=True):
        if kind.type == "choice":
            parts.append(0.16 * (int(gene * kind.n_values) != int(target * kind.n_values)))
        elif kind.type == "integer":
            parts.append(((int(gene * kind.n_values) - int(target * kind.n_values)) / kind.n_values) ** 2)
        else:
            parts.append((gene - target) ** 2)
    return float(np.mean(parts))


def mixed_sphere(dim: int) -> KnownProblem:
    """`sphere` with choices, integers and gates among the genes; a choice is right or wrong, without an order."""
    kinds = mixed_kinds(dim)

    def answer(x: Vector) -> Answer:
        return Answer((_distance(x, kinds, 0.7),))

    return KnownProblem(f"mixed-sphere-{dim}", dim, 1, 0, answer, (0.0,), kinds=kinds)


def mixed_spheres(dim: int) -> KnownProblem:
    """Two objectives, `mixed_sphere` around 0.3 and around 0.7."""
    kinds = mixed_kinds(dim)

    def answer(x: Vector) -> Answer:
        return Answer((_distance(x, kinds, 0.3), _distance(x, kinds, 0.7)))

    return KnownProblem(f"mixed-spheres-{dim}", dim, 2, 0, answer, (0.0, 0.0), kinds=kinds)


def gated_sphere(dim: int, n_objectives: int = 1) -> KnownProblem:
    """`mixed_sphere` (or `mixed_spheres`) in which at most half of the gates may be on; 0.7 has all of them on."""
    free = mixed_sphere(dim) if n_objectives == 1 else mixed_spheres(dim)
    gates = [i for i, kind in enumerate(free.kinds) if kind.n_values == 2]

    def answer(x: Vector) -> Answer:
        return Answer(free.answer(x).losses, (float(np.mean(x[gates] > 0.5)) - 0.5,))

    least = 0.16 * (len(gates) - len(gates) // 2) / dim
    optimum = (least,) if n_objectives == 1 else (0.0, least)
    return KnownProblem(f"gated-{free.name}", dim, n_objectives, 1, answer, optimum, kinds=free.kinds)


@dataclass(frozen=True)
class ItemResponseProblem:
    """Accuracy on a few items, with the over-fitting that real searches suffer.

    Item j is answered rightly when `ability(x) + specificity * (g_j . x) > b_j`: genes move the ability, which every
    item shares, and the luck on single items, which carries over to no other item.

    Attributes:
        dim: number of genes.
        n_items: items that the search sees.
        specificity: how much single items depend on the genes; 0 leaves only the shared ability.
        seed: of the items.
    """

    dim: int
    n_items: int
    specificity: float = 0.3
    seed: int = 0

    def ability(self, x: Vector) -> float:
        """Highest, 0.6, at 0.7 everywhere; 0 at a mean squared distance of 0.06."""
        return float(0.6 - 10.0 * np.mean((x - 0.7) ** 2))

    def answers(self, x: Vector, items: str = "search", n_items: int | None = None) -> Vector:
        """0 or 1 per item of the named item set, shape `(n_items,)`; sets of different names share no item."""
        n = n_items or self.n_items
        rng = generator(self.seed, "items", items)
        difficulty = rng.standard_normal(n)
        directions = rng.standard_normal((n, self.dim)) / np.sqrt(self.dim)
        luck = self.specificity * (directions @ (x - 0.5)) / 0.2
        right: Vector = (self.ability(x) + luck > difficulty).astype(np.float64)
        return right

    def true_score(self, x: Vector, n_items: int = 4000) -> float:
        """Accuracy on many items that no search sees."""
        return float(self.answers(x, "truth", n_items).mean())

    def as_known(self) -> KnownProblem:
        """The problem of maximising accuracy on the search items; its optimum is not known, 0 bounds the error."""
        name = f"item-response-{self.dim}-{self.n_items}"

        def answer(x: Vector) -> Answer:
            return Answer((float(1.0 - self.answers(x).mean()),))

        return KnownProblem(name, self.dim, 1, 0, answer, (0.0,))
