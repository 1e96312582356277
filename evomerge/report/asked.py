"""How many questions the models of a run were asked on the search set, and what decided it: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evomerge.irt.bank import ItemBank
from evomerge.irt.responses import Floats


@dataclass(frozen=True)
class AskedModel:
    """One model and how often it was asked.

    Attributes:
        id: of the first that asked for its recipe.
        batch: its generation; -1 for baselines, the number behind the last one for the distribution's mean.
        kind: where it comes from.
        steps: answers to the search set after each time that it was asked, ascending; empty when it answered nothing.
        failed: whether it has no score in the end.
        score_s: seconds of scoring.
    """

    id: str
    batch: int
    kind: str
    steps: tuple[int, ...]
    failed: bool = False
    score_s: float = 0.0

    @property
    def questions(self) -> int:
        """All its answers."""
        return self.steps[-1] if self.steps else 0


@dataclass(frozen=True)
class RungTold:
    """A rung of a race.

    Attributes:
        alive: ids of who was asked in it, in ask order.
        tasks: task -> questions of it that each of them has been asked after this rung.
    """

    alive: tuple[str, ...]
    tasks: Mapping[str, int]

    @property
    def questions(self) -> int:
        """Of all tasks."""
        return sum(self.tasks.values())


@dataclass(frozen=True)
class RaceTold:
    """One generation's race.

    Attributes:
        batch: its number.
        rungs: in order, at least one; in the first everybody is alive.
        scores: id -> objective -> value and standard error as the search believed them in the end; without failures.
        told: whether the optimizer has learned of it.
    """

    batch: int
    rungs: tuple[RungTold, ...]
    scores: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    told: bool = True

    def reached(self, id_: str) -> int:
        """The last rung in which a candidate was alive."""
        return max(k for k, rung in enumerate(self.rungs) if id_ in rung.alive)

    @property
    def mean_questions(self) -> float:
        """Per candidate."""
        alive = self.rungs[0].alive
        return sum(self.rungs[self.reached(id_)].questions for id_ in alive) / max(1, len(alive))


@dataclass(frozen=True)
class BankTold:
    """What a run knows of one task's items.

    Attributes:
        task: whose.
        n_items: of its search set.
        n_models: behind the last fit.
        dimensions: of the ability; 0 where no bank was needed.
        fits: how often it was fitted.
        imported: whether the search used a bank from elsewhere.
        estimator: in use at the end, empty where unknown.
        errors: mean absolute errors of the estimators that held-out models compared, in the score's unit.
        bank: fitted to the recorded answers, for drawing; None where that would take too long.
        positions: abilities of the models behind `bank` along its axis, shape `(m,)`.
    """

    task: str
    n_items: int
    n_models: int
    dimensions: int
    fits: int
    imported: bool = False
    estimator: str = ""
    errors: Mapping[str, float] = field(default_factory=dict)
    bank: ItemBank | None = None
    positions: Floats | None = None


@dataclass(frozen=True)
class AskedQuestions:
    """All of it.

    Attributes:
        sizes: task -> items of its search set.
        models: every model that was asked on the search set, in the order of asking.
        races: of the generations that were asked in part, in order.
        banks: in the order of tasks.
        second_per_question: of scoring models that were asked everything (else of all), 0 where unknown.
        by_set: item set -> answers to it, of all models.
    """

    sizes: Mapping[str, int]
    models: tuple[AskedModel, ...]
    races: tuple[RaceTold, ...] = ()
    banks: tuple[BankTold, ...] = ()
    second_per_question: float = 0.0
    by_set: Mapping[str, int] = field(default_factory=dict)

    @property
    def full(self) -> int:
        """Questions of one full evaluation."""
        return sum(self.sizes.values())

    @property
    def candidates(self) -> tuple[AskedModel, ...]:
        """What the optimizer asked for, as far as it answered anything."""
        return tuple(m for m in self.models if m.kind == "candidate" and m.steps)

    @property
    def partial(self) -> bool:
        """Whether any candidate was asked less than everything and yet judged."""
        return bool(self.races)

    @property
    def n_asked(self) -> int:
        """Answers of the candidates."""
        return sum(m.questions for m in self.candidates)

    @property
    def n_full(self) -> int:
        """What full evaluations of the same candidates would have asked."""
        return self.full * len(self.candidates)
