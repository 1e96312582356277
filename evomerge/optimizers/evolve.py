"""A (mu + lambda) evolution strategy for mixed genes: few edits at a time, never the same candidate twice.

A child is a parent with one edit, now and then more (a geometric number), or a cross of two parents. Of parents and
children the best survive, feasible ones first (`ranking`); with several objectives by rank of dominance and crowding
(Deb et al. 2002). Nothing is estimated: a search of hundreds of evaluations over paths is too short for tables of
probabilities to settle, and what is one edit away from the best paths is tried in turn because nothing is tried twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, final

import numpy as np

from evomerge.archive.dominance import crowding_distances, pareto_ranks
from evomerge.optimizers.base import Optimizer, Problem, Told
from evomerge.optimizers.edits import Editor
from evomerge.optimizers.genes import Genes
from evomerge.optimizers.options import Option, read_options
from evomerge.optimizers.protocol import AskTell, Matrix, Strategy, n_fresh, reflect
from evomerge.optimizers.ranking import order_key
from evomerge.optimizers.stream import StreamStrategy
from evomerge.seeds import generator
from evomerge.types import Vector

MORE_EDITS: Final = 0.25
"""Probability of one more edit, again and again."""

FIRST_EDITS: Final = 2.0
"""Mean of the Poisson number of edits in the first batch."""

FIRST_CROSSES: Final = 0.7
"""Share of the first batch that crosses injected vectors: parts of several parents, each layer at its depth."""

CROSSES: Final = 0.5
"""Share of children with two parents."""

STRETCHES: Final = 0.5
"""Share of crosses that take a stretch of neighbouring genes from the second parent, not single ones."""

UNEDITED: Final = 0.7
"""Share of crosses that are not edited."""

FINEST: Final = 0.05
"""Steps of real genes are between this and once their spread, log-uniform."""

REAL_RATE: Final = 0.3
"""Share of the real genes that an edit of them moves."""

FEW: Final = 6
"""Parents for one objective. Between 4 and 10 found equally often on planted paths; 2 and 16 less."""

MANY: Final = 20
"""Parents for several objectives: points of a front."""

ATTEMPTS: Final = 60
"""So often a child is drawn again when it is known."""


def evolve_options(problem: Problem) -> dict[str, Option]:
    """What the method accepts."""
    mu = FEW if problem.n_objectives == 1 else MANY
    return {
        "population": Option(10, 2, 10_000, "children per batch"),
        "parents": Option(mu, 1, 10_000, "the best so many have children"),
        "startup": Option(min(60, max(10, problem.budget // 8)), 2, 10_000, "candidates in the first batch"),
        "spread": Option(1.0, 1e-3, 10.0, "multiplies the steps of real genes and the edits of the first batch"),
    }


class _Member(NamedTuple):
    code: Vector
    told: Told


@final
class EvolveStrategy(Strategy):
    """See the module docstring.

    Args:
        problem: what is optimised.
        population: children per batch.
        parents: survivors of every batch.
        startup: vectors of the first batch, injected ones included (more when there are many of those).
        spread: multiplies the steps of real genes and the edits of the first batch.
    """

    def __init__(self, problem: Problem, *, population: int, parents: int, startup: int, spread: float) -> None:
        self._problem = problem
        self._population = population
        self._n_parents = parents
        self._startup = startup
        self._spread = spread
        self._genes = Genes.of(problem)
        self._editor = Editor(problem)
        self._members: list[_Member] = []
        self._known: set[bytes] = set()
        self._batch = 0

    def propose(self) -> Matrix:
        """The injected vectors and edits of them; then children of the best."""
        rng = generator(self._problem.seed, "evolve", self._batch)
        if self._batch == 0:
            return self._first(rng)
        return np.array([self.child(rng) for _ in range(self._population)])

    def child(self, rng: np.random.Generator) -> Vector:
        """A child of the best; while nothing was scored, of what the search begins with."""
        return self._vector(self._new(rng) if self._members else self._early(self._bases(), rng))

    def learn(self, asked: Sequence[Vector], results: Sequence[Told]) -> None:
        """The best of parents and children become parents."""
        self._batch += 1
        for told in results:
            code = self._code(told.vector)
            self._known.add(self._key(code))
            if told.losses is not None:
                self._members.append(_Member(code, told))
        self._members.reverse()  # newer ones first among equals
        ordered = [self._members[i] for i in self._order()]
        self._members = _different_first(ordered)[: self._n_parents]

    def stream(self) -> StreamStrategy | None:
        """A steady state: every result may become a parent at once."""
        return EvolveStream(self._problem, self, self._population)

    def stop(self) -> str | None:
        """Never; a search that only repeats itself is stopped by `AskTell`."""
        return None

    def mean(self) -> Vector | None:
        """None: there is no distribution."""
        return None

    # -- codes ------------------------------------------------------------------------------------------------------

    def _code(self, vector: Vector) -> Vector:
        code = vector.copy()
        code[self._genes.discrete] = self._genes.values(vector, self._genes.discrete)
        return code

    def _vector(self, code: Vector) -> Vector:
        vector = code.copy()
        discrete = self._genes.discrete
        vector[discrete] = self._genes.centres(code[discrete].astype(np.int64), discrete)
        return vector

    def _key(self, code: Vector) -> bytes:
        """Equal for codes that decode alike."""
        key = code.copy()
        real = self._genes.real
        step = self._problem.step[real]
        key[real] = np.where(step > 0, np.rint(code[real] / np.where(step > 0, step, 1.0)), code[real])
        return key.tobytes()

    # -- the first batch --------------------------------------------------------------------------------------------

    def _bases(self) -> list[Vector]:
        return [self._code(v) for v in (*self._problem.injected, self._problem.start)]

    def _first(self, rng: np.random.Generator) -> Matrix:
        bases = self._bases()
        self._known |= {self._key(code) for code in bases[:-1]}
        fresh = [bases[-1]] if self._key(bases[-1]) not in self._known else []
        while len(fresh) < n_fresh(self._problem, self._startup):
            fresh.append(self._early(bases, rng))
        return np.array([*self._problem.injected, *(self._vector(code) for code in fresh)])

    def _early(self, bases: list[Vector], rng: np.random.Generator) -> Vector:
        """A cross of two of the injected vectors and the start, or one of them; with a few edits."""
        code = one = bases[int(rng.integers(len(bases)))]
        if len(bases) > 1 and rng.random() < FIRST_CROSSES:
            code = self._crossed(code, bases[int(rng.integers(len(bases)))], rng)
        n_edits = int(rng.poisson(FIRST_EDITS * self._spread))
        for _ in range(max(n_edits, int(np.array_equal(code, one)))):
            code = self._edited(code, rng)
        return code

    # -- children ---------------------------------------------------------------------------------------------------

    def _new(self, rng: np.random.Generator) -> Vector:
        """A child that was never asked, unless `ATTEMPTS` draws find none; later draws are edited more."""
        child = self._members[0].code
        for attempt in range(ATTEMPTS):
            child = self._child(rng)
            for _ in range(attempt // 15):
                child = self._edited(child, rng)
            key = self._key(child)
            if key not in self._known:
                self._known.add(key)
                break
        return child

    def _child(self, rng: np.random.Generator) -> Vector:
        code = self._parent(rng)
        if rng.random() < CROSSES:
            crossed = self._crossed(code, self._parent(rng), rng)
            if rng.random() < UNEDITED and not np.array_equal(crossed, code):
                return crossed
            code = crossed
        code = self._edited(code, rng)
        while rng.random() < MORE_EDITS:
            code = self._edited(code, rng)
        return code

    def _parent(self, rng: np.random.Generator) -> Vector:
        """The better of two members drawn at random; they are in order."""
        return self._members[int(rng.integers(len(self._members), size=2).min())].code

    def _crossed(self, one: Vector, two: Vector, rng: np.random.Generator) -> Vector:
        if rng.random() < STRETCHES:
            first, last = np.sort(rng.integers(0, len(one) + 1, size=2))
            places = np.arange(len(one))
            return np.where((places >= first) & (places < last), two, one)
        return np.where(rng.random(len(one)) < 0.5, two, one)

    def _edited(self, code: Vector, rng: np.random.Generator) -> Vector:
        """One edit: of discrete genes, or of real ones, evenly where there are both."""
        real = self._genes.real
        if not len(real) or (self._genes.mixed and rng.random() < 0.5):
            return self._editor.edited(code, rng)
        moved = real[rng.random(len(real)) < REAL_RATE]
        if not len(moved):
            moved = rng.choice(real, 1)
        scale = self._spread * FINEST ** rng.random()
        width = np.maximum(scale * self._problem.spread[moved], self._problem.step[moved])
        code = code.copy()
        code[moved] = reflect(code[moved] + width * rng.standard_normal(len(moved)))
        return code

    # -- survival ---------------------------------------------------------------------------------------------------

    def _order(self) -> list[int]:
        """Members from best to worst; earlier ones first among equals."""
        if self._problem.n_objectives == 1:
            keys: list[tuple[float, ...]] = [order_key(m.told) for m in self._members]
        else:
            keys = self._front_keys()
        return sorted(range(len(self._members)), key=lambda i: keys[i])

    def _front_keys(self) -> list[tuple[float, ...]]:
        """Feasible members by rank of dominance, then by loneliness within their rank; the others by violation."""
        keys: list[tuple[float, ...]] = [order_key(m.told) for m in self._members]
        feasible = [i for i, m in enumerate(self._members) if m.told.feasible]
        if not feasible:
            return keys
        losses = np.array([self._members[i].told.losses for i in feasible])
        ranks = pareto_ranks(losses)
        for rank in range(int(ranks.max()) + 1):
            front = np.flatnonzero(ranks == rank)
            for i, lonely in zip(front, crowding_distances(losses[front]), strict=True):
                keys[feasible[i]] = (0, float(rank), -float(lonely))
        return keys


def _different_first(ordered: list[_Member]) -> list[_Member]:
    """Of members with exactly the same losses and violations all but the first go behind all others.

    They are most often one model, written by other genes: layers at other steps of a path with gaps. The first is the
    newest, so that genes drift where they make no difference, until an edit from there does.
    """
    seen: set[tuple[float, ...]] = set()
    first: list[_Member] = []
    again: list[_Member] = []
    for member in ordered:
        answer = (*(member.told.losses or ()), *member.told.violations)
        (again if answer in seen else first).append(member)
        seen.add(answer)
    return first + again


@final
class EvolveStream(StreamStrategy):
    """The strategy in a steady state: (mu + 1). A child is of the best that are known when it is asked for.

    Args:
        problem: what is optimised.
        strategy: fresh; keeps the members.
        population: see `Stream.population`.
    """

    def __init__(self, problem: Problem, strategy: EvolveStrategy, population: int) -> None:
        self._problem = problem
        self._strategy = strategy
        self._population = population
        self._first = list(strategy.propose())
        self._n_asked = 0

    @property
    def population(self) -> int:
        """Children per batch of the generational search."""
        return self._population

    def propose(self) -> Vector:
        """The first batch one by one, then children."""
        number = self._n_asked
        self._n_asked += 1
        if number < len(self._first):
            first: Vector = self._first[number]
            return first
        return self._strategy.child(generator(self._problem.seed, "evolve", "stream", number))

    def learn(self, number: int, asked: Vector, told: Told) -> None:
        """The best of the parents and this one become parents."""
        self._strategy.learn((asked,), (told,))

    def stop(self) -> str | None:
        """Never."""
        return None

    def mean(self) -> Vector | None:
        """None."""
        return None


def evolve(problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """Evolution by edits: any number of objectives, genes of any kind.

    Raises:
        ConfigError: for an option that is unknown or out of range.
    """
    return AskTell(problem, EvolveStrategy(problem, **read_options("evolve", options, evolve_options(problem))))
