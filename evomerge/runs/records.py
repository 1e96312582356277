"""What the journal of a run consists of: one frozen value per kind of event, with its JSON form.

Every value crosses to JSON and back unchanged, floats included (shortest text that round-trips). A record of one
candidate is small: all records of a candidate together stay under 2 KB plus 24 bytes per gene, plus what a race adds
(see `race_records`). The schema has a version; each life of a run writes it in its `opened` record, and older payloads
go through `MIGRATIONS` on reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Final, Literal, NamedTuple

import numpy as np

from evomerge.types import CandidateId, Digest, Evaluation, Failure, SetName, Vector

SCHEMA_VERSION: Final = 4
MIGRATIONS: Final[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    1: lambda payload: payload,  # version 2 adds records and a field with a default; all else reads as it did
    2: lambda payload: payload,  # version 3 adds the records of stages, and costs with a default
    3: lambda payload: payload,  # version 4 adds the records of workers and of asynchronous searches
}
"""Schema version -> what turns a payload of that version into one of the next."""

Kind = Literal["parent", "soup", "task-arithmetic", "injected", "candidate", "mean"]
Phase = Literal["search", "select", "report"]

_MESSAGE_CHARS: Final = 300
_TRACEBACK_CHARS: Final = 700


class TaskScore(NamedTuple):
    """One task's score: mean over `n` items and its standard error."""

    mean: float
    se: float
    n: int


@dataclass(frozen=True)
class Candidate:
    """One asked candidate.

    Attributes:
        id: unique in the run.
        kind: what it is.
        recipe: digest of its recipe.
        genes: the quantised genes, exactly as asked; empty for a model that is not a point of the space.
    """

    id: CandidateId
    kind: Kind
    recipe: Digest
    genes: tuple[float, ...] = ()

    @property
    def vector(self) -> Vector:
        """The genes as a fresh read-only array of shape `(d,)`."""
        vector = np.array(self.genes, dtype=np.float64)
        vector.setflags(write=False)
        return vector


@dataclass(frozen=True)
class Record:
    """The base of all records: fields go to JSON by name, those that equal their default are left out."""

    tag: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        """The payload, without the envelope (sequence number, time, checksum)."""
        pairs = ((f, getattr(self, f.name)) for f in fields(self))
        return {f.name: _plain(value) for f, value in pairs if _is_told(f, value)}

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Record:
        """The record of a payload.

        Raises:
            TypeError: for a missing or an unknown field.
        """
        return cls(**{name: _frozen(value) for name, value in payload.items()})


def _is_told(f: Any, value: Any) -> bool:
    if f.default is not MISSING:
        return bool(value != f.default)
    return f.default_factory is MISSING or bool(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _frozen(v) for k, v in value.items()}
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Opened(Record):
    """A life of the run begins.

    Attributes:
        life: 1 for the first.
        resumed: False for the first life.
        host: name of the machine.
        pid: of the writing process.
        versions: of the numeric packages that decide what is asked.
        settings: what this life may change: budget and cluster.
        schema: version of the records that follow.
        epoch: number of the writer's hold of the run directory, higher than all before (see `lock`); 0 in older
            journals.
    """

    tag: ClassVar[str] = "opened"
    life: int
    resumed: bool
    host: str
    pid: int
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION
    epoch: int = 0

    def to_json(self) -> dict[str, Any]:
        """The payload; the schema is told even though it is the default."""
        return super().to_json() | {"schema": self.schema}


@dataclass(frozen=True)
class Asked(Record):
    """The optimizer asked a batch: its number from 0, and the candidates in ask order."""

    tag: ClassVar[str] = "asked"
    batch: int
    candidates: tuple[Candidate, ...]

    def to_json(self) -> dict[str, Any]:
        """Candidates as rows, because their genes make up most of a journal."""
        return {"batch": self.batch, "rows": [[c.id, c.kind, c.recipe, list(c.genes)] for c in self.candidates]}

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Asked:
        """See `to_json`."""
        rows = (Candidate(i, kind, recipe, tuple(genes)) for i, kind, recipe, genes in payload["rows"])
        return cls(payload["batch"], tuple(rows))


@dataclass(frozen=True)
class Baseline(Record):
    """A model that is scored beside the optimizer's batches: a baseline or the distribution's mean.

    Attributes:
        id: unique in the run.
        kind: what it is.
        recipe: digest of its recipe.
        recipe_json: the recipe itself.
        genes: its genes where it is a point of the space.
        name: for people ("math", "uniform soup").
    """

    tag: ClassVar[str] = "baseline"
    id: CandidateId
    kind: Kind
    recipe: Digest
    recipe_json: Mapping[str, Any] = field(default_factory=dict)
    genes: tuple[float, ...] = ()
    name: str = ""

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Baseline:
        """The recipe stays the JSON object that it is, lists and all: whoever reads it expects one."""
        return cls(**{name: value if name == "recipe_json" else _frozen(value) for name, value in payload.items()})


@dataclass(frozen=True)
class Evaluated(Record):
    """A candidate was scored on one set, or on a part of it.

    Attributes:
        id: the candidate.
        recipe: digest of its recipe.
        set_name: the set that was scored.
        tasks: per task its mean, standard error and number of items, in the suite's order; of these items alone.
        responses: digest of the file of per-item answers in `responses/`, empty when none was kept.
        timing_s: seconds by stage.
        worker: name of the worker.
        attempt: 1, more after lost workers.
        values: value and standard error of objectives that a Python function computes; others follow from the tasks.
            They are of everything that this model had answered on this set.
        part: 0 when the whole set was asked at once; else the number, from 1, of this increment for recipe and set.
        costs: value and standard error of the costs that the run is about; the same in all increments.
    """

    tag: ClassVar[str] = "evaluated"
    id: CandidateId
    recipe: Digest
    set_name: SetName
    tasks: Mapping[str, TaskScore]
    responses: str = ""
    timing_s: Mapping[str, float] = field(default_factory=dict)
    worker: str = ""
    attempt: int = 1
    values: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    part: int = 0
    costs: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Evaluated:
        """See `to_json`."""
        tasks = {name: TaskScore(*score) for name, score in payload["tasks"].items()}
        pairs = {
            key: {name: (float(v[0]), float(v[1])) for name, v in payload.get(key, {}).items()}
            for key in ("values", "costs")
        }
        return cls(**{**payload, "tasks": tasks, **pairs})

    @property
    def n_questions(self) -> int:
        """How many items were scored."""
        return sum(score.n for score in self.tasks.values())


@dataclass(frozen=True)
class Failed(Record):
    """A candidate has no score on one set; fields as in `Evaluated`. Long messages are cut, the worker's log has all.

    Attributes:
        id: the candidate.
        recipe: digest of its recipe.
        set_name: the set that was to be scored.
        failure: what went wrong.
        worker: name of the worker.
        attempt: 1, more after lost workers.
    """

    tag: ClassVar[str] = "failed"
    id: CandidateId
    recipe: Digest
    set_name: SetName
    failure: Failure
    worker: str = ""
    attempt: int = 1

    def __post_init__(self) -> None:
        f = self.failure
        cut = Failure(f.kind, f.message[:_MESSAGE_CHARS], f.traceback[-_TRACEBACK_CHARS:], f.host)
        object.__setattr__(self, "failure", cut)

    def to_json(self) -> dict[str, Any]:
        """The failure as a row: kind, message, traceback, host."""
        f = self.failure
        return super().to_json() | {"failure": [f.kind, f.message, f.traceback, f.host]}

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Failed:
        """See `to_json`."""
        return cls(**{**payload, "failure": Failure(*payload["failure"])})


@dataclass(frozen=True)
class Reused(Record):
    """A candidate's recipe was scored on this set before; the earlier outcome is told again and costs nothing."""

    tag: ClassVar[str] = "reused"
    id: CandidateId
    recipe: Digest
    set_name: SetName


@dataclass(frozen=True)
class Told(Record):
    """The optimizer learned all outcomes of a batch."""

    tag: ClassVar[str] = "told"
    batch: int


@dataclass(frozen=True)
class PhaseBegun(Record):
    """The run enters a phase; `why` says what ended the one before."""

    tag: ClassVar[str] = "phase"
    phase: Phase
    why: str = ""


@dataclass(frozen=True)
class Chosen(Record):
    """The final pick.

    Attributes:
        id: the candidate or baseline.
        recipe: digest of its recipe.
        why: the rule that chose it.
        compared: the baselines that are scored on the report set beside it.
    """

    tag: ClassVar[str] = "chosen"
    id: CandidateId
    recipe: Digest
    why: str = ""
    compared: tuple[CandidateId, ...] = ()


@dataclass(frozen=True)
class Note(Record):
    """Something a reader of the run must know: an accepted drift, a lost response file, a self-check.

    Attributes:
        topic: short and fixed, for programs ("accepted-drift").
        text: for people.
        data: details.
    """

    tag: ClassVar[str] = "note"
    topic: str
    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Torn(Record):
    """The `bytes` bytes from offset `start` are the remains of a write that a crash cut; readers skip them."""

    tag: ClassVar[str] = "torn"
    start: int
    bytes: int
    sum: str


@dataclass(frozen=True)
class Interrupted(Record):
    """A life ended before the run was done; `exit_code` 75 can be resumed as it is, 4 after its cause is mended."""

    tag: ClassVar[str] = "interrupted"
    why: str
    exit_code: int = 75


@dataclass(frozen=True)
class Finished(Record):
    """The run is done.

    Attributes:
        why: what ended the search.
        result_digest: over objectives, constraints, baselines, front and chosen.
    """

    tag: ClassVar[str] = "finished"
    why: str
    result_digest: Digest


_RECORDS: Final[tuple[type[Record], ...]] = (
    Opened,
    Asked,
    Baseline,
    Evaluated,
    Failed,
    Reused,
    Told,
    PhaseBegun,
    Chosen,
    Note,
    Torn,
    Interrupted,
    Finished,
)
RECORDS: Final[Mapping[str, type[Record]]] = {record.tag: record for record in _RECORDS}
"""Tag -> record, without those of races: `race_records.ALL_RECORDS` has both."""


def task_scores(evaluation: Evaluation) -> dict[str, TaskScore]:
    """Mean, standard error and number of items per task."""
    return {name: TaskScore(a.mean, a.se, len(a.items)) for name, a in evaluation.answers.items()}
