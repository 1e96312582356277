"""What is known about a run, as one value: the summary of `status --json` and the details that the report adds.

Scores are as the benchmarks define them (direction is told per objective), never losses. Both values are derived
from the run directory by `report.collect`; nothing here reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from evomerge.digest import digest_json
from evomerge.report.asked import AskedQuestions
from evomerge.report.gene_values import MergeGenes
from evomerge.report.path_values import DrawnPath
from evomerge.report.window_values import WindowMap
from evomerge.survey.values import Survey
from evomerge.types import Digest, SetName

if TYPE_CHECKING:
    from evomerge.report.stage_values import StageReport

SCHEMA_VERSION = 1

State = Literal["running", "finished", "interrupted", "failed"]
EntryKind = Literal["parent", "soup", "task-arithmetic", "injected", "candidate", "mean"]
Direction = Literal["maximize", "minimize"]


def _require_finite(where: str, **numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{where}: {name} is {value}, but a summary holds finite numbers only")


@dataclass(frozen=True)
class ObjectiveScore:
    """An objective's value with standard error and interval, in the objective's own unit."""

    value: float
    se: float
    low: float
    high: float

    def __post_init__(self) -> None:
        _require_finite("objective score", value=self.value, se=self.se, low=self.low, high=self.high)


@dataclass(frozen=True)
class TaskScore:
    """A task's mean over `n` items, with its standard error."""

    value: float
    se: float
    n: int

    def __post_init__(self) -> None:
        _require_finite("task score", value=self.value, se=self.se)


@dataclass(frozen=True)
class Scores:
    """What one model scored on one item set: per objective and per task, in the job's order."""

    objectives: Mapping[str, ObjectiveScore]
    tasks: Mapping[str, TaskScore]


@dataclass(frozen=True)
class Entry:
    """A baseline, a member of the front, or what was chosen.

    Attributes:
        id: the candidate's or baseline's id, as `export --pick id:ID` takes it.
        kind: where it comes from.
        recipe_digest: of the recipe that makes it.
        feasible: whether it satisfies every constraint on the search set.
        search: scores that the search was guided by.
        select: scores of the final comparison; None when it was not re-scored.
        report: scores on the untouched set; None for all but the chosen and the baselines it is compared with.
    """

    id: str
    kind: EntryKind
    recipe_digest: Digest
    feasible: bool
    search: Scores
    select: Scores | None = None
    report: Scores | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(EntryKind):
            raise ValueError(f"entry {self.id}: kind {self.kind!r} is not one of {', '.join(get_args(EntryKind))}")

    def scores(self, set_name: SetName) -> Scores | None:
        """The scores on one item set, None where it was not scored on it."""
        return {"search": self.search, "select": self.select, "report": self.report}[set_name]


@dataclass(frozen=True)
class ObjectiveInfo:
    """An objective's name and direction."""

    name: str
    direction: Direction = "maximize"


@dataclass(frozen=True)
class ConstraintInfo:
    """A constraint, with its bound once the baselines have fixed it.

    Attributes:
        on: what is bounded.
        name: of the task, objective or cost.
        at_least: a lower bound in the score's unit; None for an upper one, and until its baseline is scored.
        rule: the constraint in one line, for instance `rev >= best_parent - 0.01`.
        at_most: the same for an upper bound.
    """

    on: Literal["task", "objective", "cost"]
    name: str
    at_least: float | None
    rule: str
    at_most: float | None = None

    def __post_init__(self) -> None:
        _require_finite(f"constraint on {self.name}", at_least=self.at_least, at_most=self.at_most)

    @property
    def bound(self) -> float | None:
        """The bound as a number, None until it is one."""
        return self.at_least if self.at_least is not None else self.at_most


@dataclass(frozen=True)
class Counts:
    """How much work was done.

    Attributes:
        asked: candidates that the optimizer asked for.
        evaluated: models with a score on the search set.
        reused: candidates whose recipe had been scored before.
        failed: models without a score.
        questions: answers on all sets.
        candidate_questions: answers of the optimizer's candidates to the search set.
        full_questions: what asking the same candidates everything would have taken.
    """

    asked: int = 0
    evaluated: int = 0
    reused: int = 0
    failed: int = 0
    questions: int = 0
    candidate_questions: int = 0
    full_questions: int = 0


@dataclass(frozen=True)
class Timing:
    """Wall seconds over all lives, evaluations per minute of them, and how often the run was started."""

    wall_s: float = 0.0
    evaluations_per_min: float = 0.0
    lives: int = 1


@dataclass(frozen=True)
class Losses:
    """How often a worker was lost (and replaced, where there was room), and how often one was refused; all lives."""

    lost: int = 0
    refused: int = 0


@dataclass(frozen=True)
class RunSummary:
    """One run at one moment: the value behind `evomerge status`.

    Attributes:
        state: `interrupted` when nobody writes to it and it has not come to an end.
        front: feasible, mutually non-dominated on the search set; empty when nothing is feasible.
        chosen: what the run recommends, None before the end or when nothing is feasible.
        budget: evaluations that the run may spend; informative, None where unknown.
        losses: of workers; for people, and no part of the JSON object.
    """

    state: State
    name: str
    seed: int
    counts: Counts
    timing: Timing
    objectives: tuple[ObjectiveInfo, ...]
    constraints: tuple[ConstraintInfo, ...] = ()
    baselines: tuple[Entry, ...] = ()
    front: tuple[Entry, ...] = ()
    chosen: Entry | None = None
    budget: int | None = None
    losses: Losses = Losses()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.state not in get_args(State):
            raise ValueError(f"state {self.state!r} is not one of {', '.join(get_args(State))}")
        if not self.objectives:
            raise ValueError(f"run {self.name}: a run has at least one objective")
        infeasible = [e.id for e in self.front if not e.feasible]
        if infeasible:
            raise ValueError(f"run {self.name}: {infeasible[0]} is infeasible and cannot be on the front")

    @property
    def result(self) -> dict[str, Any]:
        """What the search found, without times or lives: the part that a resumed run must reproduce."""
        return {
            "objectives": [asdict(o) for o in self.objectives],
            "constraints": [asdict(c) for c in self.constraints],
            "baselines": [_entry_json(e) for e in self.baselines],
            "front": [_entry_json(e) for e in self.front],
            "chosen": _entry_json(self.chosen) if self.chosen else None,
        }

    @property
    def result_digest(self) -> Digest:
        """sha256 of the canonical JSON of `result`."""
        return digest_json(self.result)

    def entries(self) -> dict[str, Entry]:
        """Baselines, front and chosen by id, each once, in this order."""
        chosen = (self.chosen,) if self.chosen else ()
        return {e.id: e for e in (*self.baselines, *self.front, *chosen)}

    def to_json(self) -> dict[str, Any]:
        """The object of `status --json`, schema version 1."""
        head = {
            "schema_version": self.schema_version,
            "state": self.state,
            "name": self.name,
            "seed": self.seed,
            "counts": asdict(self.counts),
            "timing": asdict(self.timing),
        }
        return head | self.result | {"result_digest": self.result_digest}


def _scores_json(scores: Scores | None) -> dict[str, Any] | None:
    if scores is None:
        return None
    return {
        "objectives": {name: asdict(s) for name, s in scores.objectives.items()},
        "tasks": {name: asdict(s) for name, s in scores.tasks.items()},
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "kind": entry.kind,
        "recipe_digest": entry.recipe_digest,
        "feasible": entry.feasible,
        "search": _scores_json(entry.search),
        "select": _scores_json(entry.select),
        "report": _scores_json(entry.report),
    }


@dataclass(frozen=True)
class EvaluationRow:
    """One candidate as it came back, in journal order.

    Attributes:
        id: the candidate.
        batch: 0-based ask.
        kind: where the candidate came from.
        objectives: search-set values by objective; None when it failed.
        feasible: whether it satisfies every constraint; False when it failed.
        failure: `"kind: message"` of a failed candidate, else None.
        reused: its recipe had been scored before, no question was asked.
        merge_s: seconds spent merging.
        score_s: seconds spent scoring.
    """

    id: str
    batch: int
    kind: EntryKind
    objectives: Mapping[str, float] | None
    feasible: bool
    failure: str | None = None
    reused: bool = False
    merge_s: float = 0.0
    score_s: float = 0.0

    def __post_init__(self) -> None:
        if (self.objectives is None) != (self.failure is not None):
            raise ValueError(f"candidate {self.id}: either objectives or a failure, not both and not neither")


Verdict = Literal["better", "worse", "not separable", "not judged"]


@dataclass(frozen=True)
class Difference:
    """The paired difference chosen minus baseline on the report set, over the same items.

    Attributes:
        against: the baseline's id.
        what: an objective's or a task's name.
        mean: estimated difference, in the score's unit.
        low: lower end of the interval, corrected for the number of comparisons.
        high: upper end.
        verdict: `better` only when the interval excludes zero on the good side; `not judged` for what was measured at
            different moments, latency.
    """

    against: str
    what: str
    mean: float
    low: float
    high: float
    verdict: Verdict

    def __post_init__(self) -> None:
        _require_finite(f"difference on {self.what}", mean=self.mean, low=self.low, high=self.high)


@dataclass(frozen=True)
class Selected:
    """A model that was scored on the select set, and its generation: -1 for what no search selected."""

    entry: Entry
    batch: int


@dataclass(frozen=True)
class RunDetails:
    """What the report shows beside the summary.

    Attributes:
        evaluations: in journal order.
        hypervolume: (evaluations so far, hypervolume of the feasible front on the search set); empty when undefined.
        genes: of the chosen merge first, then of other members of the front.
        differences: chosen minus each baseline, on the report set; empty before the end.
        splits: task -> set -> number of items.
        optimizer: the name in use; of a search in stages, every stage's.
        optimizer_why: why it was chosen; empty when the user named it.
        asynchronous: whether (a stage of) the search had no generations; its batches are blocks of asks then.
        versions: package -> version.
        host: machine in words.
        notes: warnings in plain words, for instance that a public test split was searched.
        selection: how the intervals account for the number of candidates tried; empty before the end.
        recipe: the chosen recipe's JSON text; empty before the end.
        job: the resolved job file's text.
        run_folder: as the user would type it.
        workers: how many scored candidates at once; 0 where unknown.
        asked: how many questions models were asked on the search set; None where that was not collected.
        selected: what was scored on the select set, baselines first, then in the order of the search.
        costs: name of an objective that is a cost -> its unit.
        paths: the layers that models run: of the chosen one first, then of the front; empty where no paths were
            searched.
        hops: entry id -> number of layers that run; empty where no paths were searched.
        windows: what windows of layers scored, per objective; empty where no windows were searched.
        stages: of a search in stages.
        survey: of the parents; None for runs without one.
    """

    evaluations: tuple[EvaluationRow, ...] = ()
    hypervolume: tuple[tuple[int, float], ...] = ()
    genes: tuple[MergeGenes, ...] = ()
    differences: tuple[Difference, ...] = ()
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    optimizer: str = ""
    optimizer_why: str = ""
    asynchronous: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    notes: tuple[str, ...] = ()
    selection: str = ""
    recipe: str = ""
    job: str = ""
    run_folder: str = ""
    workers: int = 0
    asked: AskedQuestions | None = None
    selected: tuple[Selected, ...] = ()
    costs: Mapping[str, str] = field(default_factory=dict)
    paths: tuple[DrawnPath, ...] = ()
    hops: Mapping[str, int] = field(default_factory=dict)
    windows: tuple[WindowMap, ...] = ()
    stages: StageReport | None = None
    survey: Survey | None = None
