"""A run's scores as its journal has them: objective values and feasibility of every model, without loading answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from evomerge.archive.pareto import ArchiveEntry
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.goals_json import goals_from_json
from evomerge.evaluation.objectives import (
    ConstraintSpec,
    Estimate,
    Objective,
    ObjectiveSpec,
    bound_among,
    combine,
    loss,
    violation,
)
from evomerge.runs.manifest import read_manifest
from evomerge.runs.records import Evaluated, Kind
from evomerge.runs.replay import History, read_history
from evomerge.runs.store import RunStore
from evomerge.types import CandidateId, Digest, Evaluation, SetName


@dataclass(frozen=True)
class Model:
    """A model that was scored on the search set.

    Attributes:
        id: of the first that asked for its recipe.
        kind: where it comes from.
        recipe: its digest.
        name: for people; empty for candidates.
    """

    id: CandidateId
    kind: Kind
    recipe: Digest
    name: str = ""


@final
class Book:
    """Reads a run directory once; everything else is computed from that reading.

    Args:
        folder: the run directory; it may be written to at the same time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with RunStore.open(folder, write=False) as store:  # first: it knows a folder that is no run
            self._store = store
            self.history: History = read_history(store.entries())
        self.manifest: dict[str, Any] = read_manifest(folder)
        self.goals: Goals = goals_from_json(self.manifest)

    @cached_property
    def models(self) -> dict[CandidateId, Model]:
        """Every model with a score on the search set, by id, in the order in which recipes were first asked for."""
        found: dict[Digest, Model] = {}
        for model in self._asked():
            if isinstance(self.history.outcomes.get((model.recipe, "search")), Evaluated):
                found.setdefault(model.recipe, model)
        return {m.id: m for m in found.values()}

    def _asked(self) -> Iterator[Model]:
        known = self.history.baselines.values()
        yield from (Model(b.id, b.kind, b.recipe, b.name) for b in known if b.kind != "mean")
        for batch in self.history.batches:
            yield from (Model(c.id, c.kind, c.recipe) for c in batch.candidates)
        yield from (Model(b.id, b.kind, b.recipe, b.name) for b in known if b.kind == "mean")

    def record(self, recipe: Digest, set_name: SetName) -> Evaluated | None:
        """What was recorded of a recipe on a set, None without a score."""
        found = self.history.outcomes.get((recipe, set_name))
        return found if isinstance(found, Evaluated) else None

    def answers(self, record: Evaluated) -> Evaluation:
        """Per-item answers.

        Raises:
            StoreError: when they are lost or altered.
        """
        return self._store.load_responses(record)

    def value(self, objective: Objective, record: Evaluated) -> Estimate:
        """An objective's value from recorded task scores, or as it was recorded when a function computed it."""
        if not isinstance(objective, ObjectiveSpec):
            return Estimate(*record.values[objective.name])
        return combine(objective, [self._task(record, t) for t in objective.tasks])

    @staticmethod
    def _task(record: Evaluated, task: str) -> Estimate:
        return Estimate(record.tasks[task].mean, record.tasks[task].se)

    def losses(self, record: Evaluated) -> tuple[float, ...]:
        """One loss per objective, lower is better."""
        return tuple(loss(o, self.value(o, record).value) for o in self.goals.objectives)

    def _subject(self, constraint: ConstraintSpec, record: Evaluated) -> Estimate:
        if constraint.kind == "task":
            return self._task(record, constraint.subject)
        objective = next(o for o in self.goals.objectives if o.name == constraint.subject)
        return self.value(objective, record)

    @cached_property
    def bounds(self) -> tuple[float | None, ...]:
        """One number per constraint; None until the parents that it refers to are scored."""
        parents = {
            b.name: record
            for b in self.history.baselines.values()
            if b.kind == "parent" and (record := self.record(b.recipe, "search")) is not None
        }
        return tuple(
            bound_among(c, self.goals.objectives, {n: self._subject(c, r).value for n, r in parents.items()})
            for c in self.goals.constraints
        )

    def feasible(self, record: Evaluated) -> bool:
        """Whether a record of the search set satisfies every constraint."""
        pairs = zip(self.goals.constraints, self.bounds, strict=True)
        return all(b is not None and violation(c, b, self._subject(c, record)) <= 0 for c, b in pairs)

    def entry(self, model: Model) -> ArchiveEntry:
        """The model's point on the search set."""
        record = self.record(model.recipe, "search")
        if record is None:
            raise LookupError(f"{model.id} has no score on the search set")
        return ArchiveEntry(model.id, self.losses(record), self.feasible(record))
