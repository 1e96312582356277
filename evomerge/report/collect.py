"""From a run directory to the values that people and programs look at; reads only, also while the run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evomerge.archive.pareto import front_of
from evomerge.errors import ConfigError
from evomerge.evaluation.measures import NO_REFERENCES
from evomerge.evaluation.objectives import Estimate, Objective, ObjectiveSpec
from evomerge.evaluation.statistics import CONFIDENCE, normal_quantile, objective_interval
from evomerge.report.book import Book, Model
from evomerge.report.race import candidate_counts
from evomerge.report.summary import (
    ConstraintInfo,
    Counts,
    Entry,
    Losses,
    ObjectiveInfo,
    ObjectiveScore,
    RunSummary,
    Scores,
    TaskScore,
    Timing,
)
from evomerge.runs.damage import damage_is_told
from evomerge.runs.lock import writer_of
from evomerge.runs.records import Evaluated
from evomerge.strict_yaml import parse_yaml
from evomerge.types import SetName


def summarise(folder: Path) -> RunSummary:
    """What `evomerge status` shows.

    Raises:
        ConfigError: when there is no run.
        StoreError: when its journal, manifest or answers are damaged.
    """
    with damage_is_told(folder):
        return summary_of(Book(folder))


def summary_of(book: Book) -> RunSummary:
    """The summary of an open book."""
    history = book.history
    chosen = book.chosen
    front = front_of([book.entry(m) for m in book.models.values()])
    candidate_questions, full_questions = candidate_counts(book)
    return RunSummary(
        state=history.state(writing=writer_of(book.folder) is not None),
        name=book.manifest["name"],
        seed=book.manifest["seed"],
        counts=Counts(
            asked=history.counts.asked,
            evaluated=history.counts.evaluated,
            reused=history.counts.reused,
            failed=history.counts.failed,
            questions=history.counts.questions,
            candidate_questions=candidate_questions,
            full_questions=full_questions,
        ),
        timing=_timing(book),
        objectives=tuple(ObjectiveInfo(o.name, o.direction) for o in book.goals.objectives),
        constraints=_constraints(book),
        baselines=tuple(
            entry(book, m) for m in book.models.values() if m.kind in ("parent", "soup", "task-arithmetic", "injected")
        ),
        front=tuple(entry(book, book.models[point.id]) for point in front),
        chosen=None if chosen is None else entry(book, chosen),
        budget=_budget(book),
        losses=_losses(book),
    )


def _timing(book: Book) -> Timing:
    wall_s = book.history.wall_s
    rate = 60 * (book.history.counts.evaluated + book.history.counts.failed) / wall_s if wall_s > 0 else 0.0
    return Timing(round(wall_s, 3), round(rate, 2), len(book.history.lives))


def _losses(book: Book) -> Losses:
    kinds = [news.kind for news in book.history.workers]
    return Losses(kinds.count("lost"), kinds.count("refused"))


def _budget(book: Book) -> int | None:
    settings: Any = book.history.lives[-1].settings if book.history.lives else {}
    stated = settings.get("budget", {}).get("evaluations")
    if stated is not None:
        return int(stated)
    try:
        job = parse_yaml((book.folder / "job.yaml").read_text(encoding="utf-8"), "job.yaml").value
        return int(job["budget"]["evaluations"])
    except (OSError, ConfigError, KeyError, TypeError, ValueError):
        return None


def _constraints(book: Book) -> tuple[ConstraintInfo, ...]:
    found = []
    for constraint, bound in zip(book.goals.constraints, book.bounds, strict=True):
        low, high = (bound, None) if constraint.sense == "at_least" else (None, bound)
        found.append(ConstraintInfo(constraint.kind, constraint.subject, low, constraint.text, high))
    return tuple(found)


def entry(book: Book, model: Model) -> Entry:
    """A model with its scores on every set it was scored on."""
    search = book.record(model.recipe, "search")
    if search is None:
        raise LookupError(f"{model.id} has no score on the search set")
    return Entry(
        id=model.id,
        kind=model.kind,
        recipe_digest=model.recipe,
        feasible=book.feasible(search),
        search=scores_of(book, search),
        select=_scores_on(book, model, "select"),
        report=_scores_on(book, model, "report") if _is_reported(book, model) else None,
    )


def _is_reported(book: Book, model: Model) -> bool:
    """Whether the present choice is this model, or was compared with it; an earlier choice of a run may be neither."""
    chosen = book.history.chosen
    return chosen is not None and (model.recipe == chosen.recipe or model.id in chosen.compared)


def _scores_on(book: Book, model: Model, set_name: SetName) -> Scores | None:
    record = book.record(model.recipe, set_name)
    return None if record is None else scores_of(book, record)


def scores_of(book: Book, record: Evaluated) -> Scores:
    """A model's scores on the set of a record, with intervals."""
    objectives = {o.name: _score(book, o, record) for o in book.goals.objectives}
    return Scores(objectives, {name: TaskScore(t.mean, t.se, t.n) for name, t in record.tasks.items()})


def _score(book: Book, objective: Objective, record: Evaluated) -> ObjectiveScore:
    estimate: Estimate = book.value(objective, record)
    if isinstance(objective, ObjectiveSpec) and not book.is_estimated(record):
        references = NO_REFERENCES if objective.measure.plain else book.references(record.set_name)
        low, high = objective_interval(objective, book.answers(record), references=references)
    else:
        half = normal_quantile(CONFIDENCE) * estimate.se
        low, high = estimate.value - half, estimate.value + half
    return ObjectiveScore(estimate.value, estimate.se, low, high)
