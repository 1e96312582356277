"""What the journal of a race consists of: who is asked what, what the search believed, which banks it used.

A race asks a batch in rungs. Each rung writes one `rung` record for the whole batch and one `evaluated` record per
candidate that had something left to answer, then the batch writes one `estimated` record, and a bank that was fitted
one `bank-fitted` record. With twelve tasks of long names and the worst floats an increment costs 1.2 KB and an
estimate 0.9 KB; with four tasks it is 0.65 KB and 0.35 KB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from evomerge.runs.records import RECORDS, Record, TaskScore
from evomerge.runs.stage_records import StageBegun, StageWon
from evomerge.runs.stream_records import Turn
from evomerge.runs.worker_records import WorkerNews
from evomerge.types import CandidateId, Digest, SetName


@dataclass(frozen=True)
class Rung(Record):
    """A rung of a race begins; appended before it is asked.

    Attributes:
        batch: of the optimizer.
        rung: from 0.
        alive: who is still in the race, in ask order.
        items: task -> 0-based indices into the search set, in plan order, that are asked up to and including this rung.
    """

    tag: ClassVar[str] = "rung"
    batch: int
    rung: int
    alive: tuple[CandidateId, ...]
    items: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class EstimateRow:
    """What the search believed of one model on one set.

    Attributes:
        recipe: digest of its recipe.
        tasks: task -> estimated score over the whole set, its standard error, and how many items were asked.
        values: value and standard error of objectives (by name) and constraints (by `ConstraintSpec.label`) that do
            not follow from the task scores.
    """

    recipe: Digest
    tasks: Mapping[str, TaskScore]
    values: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def to_row(self) -> list[Any]:
        """The row as plain JSON."""
        row: list[Any] = [self.recipe, {name: list(score) for name, score in self.tasks.items()}]
        return [*row, {name: list(value) for name, value in self.values.items()}] if self.values else row

    @classmethod
    def from_row(cls, row: Any) -> EstimateRow:
        """See `to_row`.

        Raises:
            ValueError: for a row of another shape.
        """
        recipe, tasks, *rest = row
        values = {name: (float(v[0]), float(v[1])) for name, v in (rest[0] if rest else {}).items()}
        return cls(recipe, {name: TaskScore(*score) for name, score in tasks.items()}, values)


@dataclass(frozen=True)
class Estimated(Record):
    """What the search believed of a batch when it learned from it.

    Attributes:
        batch: of the optimizer; -1 for the models before the first batch, -2 - b for a batch b that the budget cut.
        set_name: the set that is estimated.
        rows: one per model.
        by: task -> name of the estimator.
    """

    tag: ClassVar[str] = "estimated"
    batch: int
    set_name: SetName
    rows: tuple[EstimateRow, ...]
    by: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Estimates as rows: recipe, tasks, and values where there are any."""
        return super().to_json() | {"rows": [row.to_row() for row in self.rows]}

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Estimated:
        """See `to_json`."""
        return cls(**{**payload, "rows": tuple(EstimateRow.from_row(row) for row in payload["rows"])})


@dataclass(frozen=True)
class BankFitted(Record):
    """An item bank was fitted, or one that exists was taken.

    Attributes:
        after_batch: the last batch whose answers it has seen; -1 before the first.
        task: whose items it is about.
        file: where it lies, relative to the run directory when it was fitted by the run.
        n_models: how many models' answers it was fitted to.
        dimensions: of the ability.
        source: `run` when the run fitted it, else where it came from.
        estimator: what is in use from now on; empty in older journals.
        errors: mean absolute error of the estimators that held-out models compared, empty where none was.
    """

    tag: ClassVar[str] = "bank-fitted"
    after_batch: int
    task: str
    file: str
    n_models: int
    dimensions: int
    source: str
    estimator: str = ""
    errors: Mapping[str, float] = field(default_factory=dict)


_MORE: Final[tuple[type[Record], ...]] = (Rung, Estimated, BankFitted, StageBegun, StageWon, Turn, WorkerNews)
ALL_RECORDS: Final[Mapping[str, type[Record]]] = {**RECORDS, **{record.tag: record for record in _MORE}}
