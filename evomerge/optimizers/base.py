"""The contract between the search loop and whatever proposes candidates.

The loop calls, strictly alternating: `ask()`, then `tell(...)` with one `Told` per asked vector **in ask order**,
then `should_stop()`. Nothing else touches an optimizer, and it never sees recipes, tasks or files.

An optimizer's state is a function of its `Problem`, its options and the sequence of tells. That is what makes a
run resumable: a fresh optimizer that is told the recorded history asks the same vectors again. So there is no
global randomness, no clock, and no state on disk.

A method that can do without generations has a `Stream` as well: it is asked for one vector at a time, and told one
result at a time in whatever order they come. Its state is a function of the sequence of asks and tells.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.types import GeneKind, Vector


@dataclass(frozen=True)
class Problem:
    """What is optimised: `n_objectives` losses (lower is better) over `[0, 1]^dim`.

    Attributes:
        dim: number of genes, at least 1.
        n_objectives: at least 1.
        n_constraints: number of violations told per candidate; feasible when all are <= 0.
        start: shape `(dim,)`, where the first distribution is centred.
        spread: shape `(dim,)`, initial standard deviation per gene, each > 0.
        step: shape `(dim,)`, the quantum of each gene (genes closer than half of it decode alike); >= 0.
        budget: how many evaluations the run may spend; for sizing only, the loop does the counting.
        seed: the run's seed.
        injected: vectors that must be asked, exactly as given, in the first ask (and only there).
        kinds: what each gene stands for, `dim` of them; empty when all are real.
    """

    dim: int
    n_objectives: int
    n_constraints: int
    start: Vector
    spread: Vector
    step: Vector
    budget: int
    seed: int
    injected: tuple[Vector, ...] = ()
    kinds: tuple[GeneKind, ...] = ()

    def __post_init__(self) -> None:
        if self.dim < 1 or self.n_objectives < 1 or self.n_constraints < 0:
            raise ValueError(f"a problem of {self.dim} genes and {self.n_objectives} objectives cannot be optimised")
        if self.kinds and len(self.kinds) != self.dim:
            raise ValueError(f"{len(self.kinds)} kinds were given for {self.dim} genes")
        for name in ("start", "spread", "step"):
            value = np.array(getattr(self, name), dtype=np.float64)
            if value.shape != (self.dim,):
                raise ValueError(f"{name} has shape {value.shape}, expected ({self.dim},)")
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if not np.all((self.start >= 0) & (self.start <= 1)):
            raise ValueError("start lies outside [0, 1]")
        if not np.all(self.spread > 0):
            raise ValueError("every entry of spread must be > 0")
        for vector in self.injected:
            if vector.shape != (self.dim,) or not np.all((vector >= 0) & (vector <= 1)):
                raise ValueError(f"an injected vector does not lie in [0, 1]^{self.dim}")


@dataclass(frozen=True)
class Told:
    """What became of one asked vector.

    Attributes:
        vector: the genes that were evaluated: the asked ones, quantised. (With an accepted history that a newer
            numeric library would not have asked, they are the recorded ones, and the optimizer must learn from them.)
        losses: one finite loss per objective, lower is better; None when the candidate failed.
        violations: one finite number per constraint, feasible when <= 0; empty when the candidate failed.
    """

    vector: Vector
    losses: tuple[float, ...] | None
    violations: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.losses is not None and not all(math.isfinite(v) for v in (*self.losses, *self.violations)):
            raise ValueError(f"losses {self.losses} and violations {self.violations} must be finite; a failure is None")

    @property
    def feasible(self) -> bool:
        """True when it was scored and violates nothing."""
        return self.losses is not None and all(v <= 0 for v in self.violations)


class Optimizer(ABC):
    """Proposes vectors and learns from their losses; see the module docstring for the protocol."""

    @abstractmethod
    def ask(self) -> tuple[Vector, ...]:
        """The next batch: one or more vectors in `[0, 1]^dim`, each a fresh read-only array.

        The first batch holds `problem.injected`, exactly. The batch's size depends on the problem and the options
        alone, never on how many workers there are.

        Raises:
            RuntimeError: when called twice without a `tell` between.
        """

    @abstractmethod
    def tell(self, results: Sequence[Told]) -> None:
        """Learn from the last batch; `results` is aligned with it. Failed candidates rank worst.

        Arguments are not kept and not changed.

        Raises:
            RuntimeError: when no batch is out.
            ValueError: when the number of results, objectives or constraints is wrong.
        """

    @abstractmethod
    def should_stop(self) -> str | None:
        """Why nothing more is to be gained, or None to go on. Called between `tell` and `ask`."""

    @abstractmethod
    def mean(self) -> Vector | None:
        """The centre of the present search distribution; None where the method has none."""

    def stream(self) -> Stream | None:
        """The same search one vector at a time; None when the method needs whole generations.

        Raises:
            RuntimeError: when a batch was asked before.
        """
        return None


class Stream(ABC):
    """Proposes one vector at a time, and learns from results in any order; see the module docstring."""

    @property
    @abstractmethod
    def population(self) -> int:
        """About how many results the method learns from at a time, at least 1; constant."""

    @abstractmethod
    def ask(self) -> Vector:
        """The next vector, in `[0, 1]^dim`, a fresh read-only array. The first ones are `problem.injected`, exactly.

        May be called at any time, however many vectors are out.
        """

    @abstractmethod
    def tell(self, number: int, result: Told) -> None:
        """Learn what became of one vector. A failed candidate ranks worst.

        Args:
            number: of the ask, from 0.
            result: not kept and not changed.

        Raises:
            RuntimeError: when that vector is not out.
            ValueError: when the number of objectives or constraints is wrong.
        """

    @abstractmethod
    def should_stop(self) -> str | None:
        """Why nothing more is to be gained, or None to go on; a reason stays, whatever is told afterwards."""

    @abstractmethod
    def mean(self) -> Vector | None:
        """The centre of the present search distribution; None where the method has none."""
