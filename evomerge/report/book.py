"""A run's scores as its journal has them: objective values and feasibility of every model, without loading answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from evomerge.archive.pareto import ArchiveEntry
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.goals_json import goals_from_json
from evomerge.evaluation.measures import References
from evomerge.evaluation.objectives import (
    ConstraintSpec,
    Estimate,
    Objective,
    bound_among,
    bounded,
    loss,
    objective_values,
    violation,
)
from evomerge.recipe.recipe import Recipe
from evomerge.report.references import is_measurable, reference_records
from evomerge.runs.beliefs import recorded_value
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


RecipeOf = Callable[[Model], Recipe | None]
"""Rebuilds a model's recipe; None where it cannot be had (parents gone)."""


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
        self._orders: dict[SetName, Mapping[str, tuple[str, ...]]] = {}
        self._references: dict[SetName, References] = {}
        self._measurable: dict[SetName, bool] = {}

    @cached_property
    def models(self) -> dict[CandidateId, Model]:
        """Every model with a score on the search set, by id, in the order in which recipes were first asked for."""
        found: dict[Digest, Model] = {}
        for model in self._asked():
            if self.record(model.recipe, "search") is not None:
                found.setdefault(model.recipe, model)
        return {m.id: m for m in found.values()}

    @property
    def chosen(self) -> Model | None:
        """What the run has chosen, found by its recipe.

        The recipe of the distribution's mean may have been asked for before, in the part of the last batch that was
        behind the end of the budget: then its score belongs to that candidate here.
        """
        chosen = self.history.chosen
        return next((m for m in self.models.values() if chosen is not None and m.recipe == chosen.recipe), None)

    def _asked(self) -> Iterator[Model]:
        known = self.history.baselines.values()
        yield from (Model(b.id, b.kind, b.recipe, b.name) for b in known if b.kind != "mean")
        for batch in self.history.batches:
            yield from (Model(c.id, c.kind, c.recipe) for c in batch.candidates)
        yield from (Model(b.id, b.kind, b.recipe, b.name) for b in known if b.kind == "mean")

    def record(self, recipe: Digest, set_name: SetName) -> Evaluated | None:
        """What was recorded of a recipe on a set, None without a score; see `History.record` and `is_measurable`."""
        if set_name not in self._measurable:
            self._measurable[set_name] = is_measurable(self.history, self.goals, set_name)
        return self.history.record(recipe, set_name) if self._measurable[set_name] else None

    def references(self, set_name: SetName) -> References:
        """The scored parents' answers to a set, by name: what flips and abilities are measured against."""
        if set_name not in self._references:
            found = reference_records(self.history, set_name)
            self._references[set_name] = References({name: self.answers(r) for name, r in found.items()})
        return self._references[set_name]

    def is_estimated(self, record: Evaluated) -> bool:
        """Whether a record's scores are what the search believed, from the answers to a part of the set."""
        return self.history.estimate(record.recipe, record.set_name) is not None

    def answers(self, record: Evaluated) -> Evaluation:
        """Per-item answers, all that were given on that set; in plan order where it is known.

        Raises:
            StoreError: when they are lost or altered.
        """
        key = (record.recipe, record.set_name)
        return self._store.load_answers(self.history.parts[key], self._order(record))

    def _order(self, record: Evaluated) -> Mapping[str, tuple[str, ...]] | None:
        """The items of a set in plan order, as a model has them that was asked the whole set; None without one."""
        if record.part == 0:
            return None
        if record.set_name not in self._orders:
            outcomes = (r for (_, set_name), r in self.history.outcomes.items() if set_name == record.set_name)
            whole = next((r for r in outcomes if isinstance(r, Evaluated) and r.part == 0), None)
            answers = {} if whole is None else self._store.load_responses(whole).answers
            self._orders[record.set_name] = {name: a.items for name, a in answers.items()}
        return self._orders[record.set_name]

    def value(self, objective: Objective, record: Evaluated) -> Estimate:
        """An objective's value: as recorded, from recorded task scores, or else from the answers.

        Raises:
            LookupError: when a function computed it and the journal does not have it.
            StoreError: when the answers are needed, and lost or altered.
        """
        found = recorded_value(objective, record)
        if found is not None:
            return found
        return objective_values(objective, self.answers(record), self.references(record.set_name))

    def losses(self, record: Evaluated) -> tuple[float, ...]:
        """One loss per objective, lower is better."""
        return tuple(loss(o, self.value(o, record).value) for o in self.goals.objectives)

    def _subject(self, constraint: ConstraintSpec, record: Evaluated) -> Estimate:
        return self.value(bounded(constraint, self.goals.objectives), record)

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
