"""A run as an Optuna study in `optuna.db`, for `optuna-dashboard` and Optuna's plots.

A projection of the journal: rebuilt as a whole, replaced in one step, never read by evomerge, and never a reason for a
run to fail. One trial per scored model on the search set; parameters are decoded values by gene name; models that are
no point of the space have none; failed ones are FAIL.
"""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from evomerge.errors import EvomergeError
from evomerge.evaluation.goals import BoundGoals, Goals
from evomerge.evaluation.objectives import Estimate, Objective, bounded, objective_values, violation
from evomerge.failpoints import reach
from evomerge.runs.beliefs import recorded_value
from evomerge.runs.entries import Entry
from evomerge.runs.records import Baseline, Candidate, Evaluated, Failed
from evomerge.runs.replay import History, read_history
from evomerge.runs.stage_records import StageBegun
from evomerge.runs.store import RunStore
from evomerge.space.dimensions import Choice, Gate, Integer, Real
from evomerge.space.space import SearchSpace
from evomerge.types import CandidateId, Digest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STUDY_FILE: Final = "optuna.db"

_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "trials": ("trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"),
    "trial_params": ("trial_id", "param_name", "param_value", "distribution_json"),
    "trial_values": ("trial_id", "objective", "value", "value_type"),
    "trial_user_attributes": ("trial_id", "key", "value_json"),
    "trial_system_attributes": ("trial_id", "key", "value_json"),
}


def write_study(store: RunStore, name: str, spaces: Sequence[SearchSpace], goals: Goals) -> str | None:
    """Write `optuna.db` into the run directory.

    Args:
        store: the run.
        name: of the study.
        spaces: of every stage, at least one; they give parameters and distributions.
        goals: objectives (with directions) and constraints.

    Returns:
        None, or why the study could not be written; a file of an earlier moment stays in that case.
    """
    import optuna
    import sqlalchemy.exc

    target = store.folder / STUDY_FILE
    temporary = target.with_name(f".{STUDY_FILE}.new")
    try:
        with TemporaryDirectory(prefix="evomerge-") as scratch:
            # built elsewhere: a URL of SQLite cannot hold every path, nor every shared file system its locks
            built = Path(scratch) / STUDY_FILE
            _write_database(built, name, goals, list(_trials(store, spaces, goals)))
            shutil.copyfile(built, temporary)
        reach("before-study")
        temporary.replace(target)
        reach("after-study")
    except (
        EvomergeError,
        OSError,
        ValueError,
        sqlite3.Error,
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.OptunaError,
    ) as error:
        return f"{STUDY_FILE} was not written: {type(error).__name__}: {error}".partition("\n")[0]
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return None


def _bound(store: RunStore, history: History, goals: Goals) -> BoundGoals:
    """Bounds that refer to a parent need the parent's answers."""
    parents = (b for b in history.baselines.values() if b.kind == "parent")
    scored = {b.name: history.outcome(b, "search") for b in parents}
    parts = {name: history.parts[(r.recipe, "search")] for name, r in scored.items() if isinstance(r, Evaluated)}
    return goals.bound({name: store.load_answers(found) for name, found in parts.items()})


def _trials(store: RunStore, spaces: Sequence[SearchSpace], goals: Goals) -> Iterator[FrozenTrial]:
    """Baselines, then candidates in ask order; what has no outcome yet is left out."""
    entries = list(store.entries())
    history = read_history(entries)
    models: list[Baseline | Candidate] = [*history.baselines.values()]
    models += [candidate for batch in history.batches for candidate in batch.candidates]
    found = [(model, record) for model in models if (record := _scored(history, model)) is not None]
    if not found:
        return
    stages = [_Stage(space, {d.name: _distribution(d) for d in space.dimensions}) for space in spaces]
    stage_of = _stages(entries, history)
    projector = _Projector(store, history, _bound(store, history, goals), _times(entries))
    for model, record in found:
        yield projector.trial(model, record, stages[stage_of[model.id]])


def _stages(entries: list[Entry], history: History) -> dict[CandidateId, int]:
    """Model -> the number of the stage whose genes it has."""
    found, stage = {}, 0
    for entry in entries:
        if isinstance(entry.record, StageBegun):
            stage = entry.record.number
        elif isinstance(entry.record, Baseline):  # of a mean: in its stage, whose end it is
            found[entry.record.id] = stage
    return found | {c.id: history.stage_of(b.number) for b in history.batches for c in b.candidates}


def _scored(history: History, model: Baseline | Candidate) -> Evaluated | Failed | None:
    """A model's scores as the search knew them, or its failure; None before either."""
    outcome = history.outcome(model, "search")
    return outcome if isinstance(outcome, Failed) else history.record(model.recipe, "search")


def _times(entries: list[Entry]) -> dict[Digest, tuple[float, float]]:
    """Recipe -> unix times when its scoring on the search set began and ended."""
    times: dict[Digest, tuple[float, float]] = {}
    for entry in entries:
        record = entry.record
        if isinstance(record, Evaluated | Failed) and record.set_name == "search":
            took = record.timing_s.get("total", 0.0) if isinstance(record, Evaluated) else 0.0
            began, ended = times.setdefault(record.recipe, (entry.time_s - took, entry.time_s))
            if isinstance(record, Evaluated) and record.part:
                times[record.recipe] = (began, max(ended, entry.time_s))
    return times


def _distribution(dimension: object) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match dimension:
        case Real():
            return FloatDistribution(dimension.low, dimension.high, log=dimension.scale == "log")
        case Integer():
            return IntDistribution(dimension.low, dimension.high)
        case Choice():
            return CategoricalDistribution(dimension.options)
        case Gate():
            return CategoricalDistribution((False, True))
    raise ValueError(f"a dimension of type {type(dimension).__name__} has no counterpart in Optuna")


class _Stage(NamedTuple):
    """A stage's genes, and Optuna's form of them."""

    space: SearchSpace
    distributions: dict[str, BaseDistribution]


@dataclass(frozen=True)
class _Projector:
    """What all trials have in common."""

    store: RunStore
    history: History
    goals: BoundGoals
    times: Mapping[Digest, tuple[float, float]]

    def trial(self, model: Baseline | Candidate, record: Evaluated | Failed, stage: _Stage) -> FrozenTrial:
        from optuna.trial import FrozenTrial, TrialState

        attributes: dict[str, Any] = {"id": model.id, "kind": model.kind, "recipe": model.recipe}
        values: list[float] | None = None
        violations: tuple[float, ...] = ()
        if isinstance(record, Evaluated):
            values, violations = self._judged(record)
            attributes |= {f"task {name}": score.mean for name, score in record.tasks.items()}
        else:
            attributes["failure"] = f"{record.failure.kind}: {record.failure.message}"
        began, ended = (datetime.fromtimestamp(t) for t in self.times[record.recipe])
        trial = FrozenTrial(
            number=-1,
            trial_id=-1,
            state=TrialState.FAIL if values is None else TrialState.COMPLETE,
            value=None,
            values=values,
            datetime_start=began,
            datetime_complete=ended,
            params=stage.space.decode(np.array(model.genes)) if model.genes else {},
            distributions=stage.distributions if model.genes else {},
            user_attrs=attributes,
            system_attrs={},
            intermediate_values={},
        )
        for constraint, violated_by in zip(self.goals.constraints, violations, strict=False):
            trial.set_constraint(constraint.text, violated_by)
        return trial

    def _judged(self, record: Evaluated) -> tuple[list[float], tuple[float, ...]]:
        """Objective values and violations: as the journal has them, else from the answers."""
        goals = self.goals

        def value(objective: Objective) -> Estimate:
            found = recorded_value(objective, record)
            if found is not None:
                return found
            answers = self.store.load_answers(self.history.parts[(record.recipe, record.set_name)])
            return objective_values(objective, answers, goals.references)

        pairs = zip(goals.constraints, goals.bounds, strict=True)
        violations = tuple(violation(c, b, value(bounded(c, goals.objectives))) for c, b in pairs)
        return [value(o).value for o in goals.objectives], violations


def _write_database(path: Path, name: str, goals: Goals, trials: list[FrozenTrial]) -> None:
    """A study with these trials in a new file."""
    import optuna

    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        directions = [optuna.study.StudyDirection[o.direction.upper()] for o in goals.objectives]
        with _quiet_optuna():
            study_id = storage.create_new_study(directions, name)
        # what Study.set_metric_names stores, without its warning that it is experimental
        storage.set_study_system_attr(study_id, "study:metric_names", [o.name for o in goals.objectives])
        known = _schema_is_known(path)
        if not known:
            for trial in trials:
                storage.create_new_trial(study_id, trial)
    finally:
        storage.remove_session()
        storage.engine.dispose()
    if known:
        _insert(path, study_id, trials)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Without "A new study created" on the terminal, which is the driver's; the level is put back at once."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _schema_is_known(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as db:
        found = {table: {row[1] for row in db.execute(f"PRAGMA table_info({table})")} for table in _COLUMNS}
    return all(set(columns) <= found[table] for table, columns in _COLUMNS.items())


def _insert(path: Path, study_id: int, trials: list[FrozenTrial]) -> None:
    """Insert all rows at once: Optuna's own way takes half a millisecond per parameter and trial."""
    rows: dict[str, list[tuple[Any, ...]]] = {table: [] for table in _COLUMNS}
    for number, trial in enumerate(trials):
        for table, row in _rows(trial, study_id, number):
            rows[table].append(row)
    with closing(sqlite3.connect(path)) as db, db:
        for table, columns in _COLUMNS.items():
            marks = ", ".join("?" * len(columns))
            db.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows[table])


def _rows(trial: FrozenTrial, study_id: int, number: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    from optuna.distributions import distribution_to_json

    i = number + 1
    times = [_sql_time(t) for t in (trial.datetime_start, trial.datetime_complete)]
    yield "trials", (i, number, study_id, trial.state.name, *times)
    for name, value in trial.params.items():
        distribution = trial.distributions[name]
        internal = distribution.to_internal_repr(value)
        yield "trial_params", (i, name, internal, distribution_to_json(distribution))
    for objective, value in enumerate(trial.values or []):
        yield "trial_values", (i, objective, value, "FINITE")
    for table, attributes in (
        ("trial_user_attributes", trial.user_attrs),
        ("trial_system_attributes", trial.system_attrs),
    ):
        for key, value in attributes.items():
            yield table, (i, key, json.dumps(value))


def _sql_time(moment: datetime | None) -> str | None:
    """Naive UTC, as SQLAlchemy writes it to SQLite."""
    if moment is None:
        return None
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", timespec="microseconds")
