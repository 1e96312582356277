"""What each stage of a search added: the winners of the stages, on the report set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from evomerge.evaluation.costs import MEASURED
from evomerge.evaluation.objectives import CostObjective, CustomObjective, Objective, ObjectiveSpec
from evomerge.evaluation.statistics import CONFIDENCE, compare
from evomerge.report.blocks import captioned, folded, legend, section
from evomerge.report.book import Book, Model
from evomerge.report.collect import entry, scores_of
from evomerge.report.intervals import VERDICT_WORDS, difference_rows, interval_rows
from evomerge.report.marks import FULL
from evomerge.report.stage_values import StageGain, StageReport, StageResult
from evomerge.report.summary import Difference, Entry, EntryKind, ObjectiveInfo, RunSummary
from evomerge.report.svg import escape, marker
from evomerge.report.tables import NOT_SCORED, table
from evomerge.report.words import listed, signed, with_interval
from evomerge.runs.records import Evaluated
from evomerge.types import SET_NAMES, CandidateId, Digest

_PARENT: Final[EntryKind] = "parent"


def stage_report(book: Book) -> StageReport | None:
    """The stages of a run; None for a run without stages."""
    stages = book.history.stages
    if not stages:
        return None
    results = []
    before: Digest | None = None
    for number in sorted(stages):
        won = book.history.won.get(number)
        model = None if won is None else _model(book, won.id, won.recipe)
        winner = None if model is None else _entry(book, model)
        is_new = winner is not None and winner.recipe_digest != before
        before = before if winner is None else winner.recipe_digest
        results.append(StageResult(number + 1, stages[number].name, _evaluations(book, number), winner, is_new))
    return StageReport(tuple(results), *_differences(book, results), _cost_differences(book, results))


def _model(book: Book, id_: CandidateId, recipe: Digest) -> Model | None:
    """A winner as the book has it, found by its recipe."""
    return book.models.get(id_) or next((m for m in book.models.values() if m.recipe == recipe), None)


def _entry(book: Book, model: Model) -> Entry:
    """A winner with its scores on the report set, whether it is the choice or not."""
    found = entry(book, model)
    record = book.record(model.recipe, "report")
    return replace(found, report=None if record is None else scores_of(book, record))


def _evaluations(book: Book, stage: int) -> int:
    """Models that a stage was the first to ask, failed ones included."""
    seen: set[Digest] = {b.recipe for b in book.history.baselines.values()}
    count = 0
    for batch in book.history.batches:
        fresh = {c.recipe for c in batch.candidates if (c.recipe, "search") in book.history.outcomes} - seen
        seen |= fresh
        count += len(fresh) if book.history.stage_of(batch.number) == stage else 0
    return count


def _best_parent(book: Book, objective: Objective) -> tuple[str, Evaluated] | None:
    """Id and report scores of the parent that is best on the search set, among those scored on the report set."""
    sign = -1.0 if objective.direction == "maximize" else 1.0
    found = []
    for model in book.models.values():
        search, report = book.record(model.recipe, "search"), book.record(model.recipe, "report")
        if model.kind == _PARENT and search is not None and report is not None:
            found.append((sign * book.value(objective, search).value, model.id, report))
    best = min(found, key=lambda f: f[:2], default=None)
    return None if best is None else (best[1], best[2])


def _differences(book: Book, results: Sequence[StageResult]) -> tuple[tuple[StageGain, ...], tuple[StageGain, ...]]:
    """What stages gained in objectives, and in tasks outside them."""
    objectives = [o for o in book.goals.objectives if isinstance(o, ObjectiveSpec)]
    custom = any(isinstance(o, CustomObjective) for o in book.goals.objectives)
    of_objectives = {t for o in objectives for t in o.tasks}
    names = [] if custom else [t for t in book.manifest["suite"]["splits"] if t not in of_objectives]
    tasks = [ObjectiveSpec(t, (t,)) for t in names]
    new = sum(r.is_new for r in results)
    return (
        tuple(g for o in objectives for g in _chain(book, results, o, _each(new), _best_parent(book, o))),
        tuple(g for t in tasks for g in _chain(book, results, t, _each(new * len(tasks)), _best_parent(book, t))),
    )


def _cost_differences(book: Book, results: Sequence[StageResult]) -> tuple[StageGain, ...]:
    """What stages changed in costs that are counted; the first against the parent that is best in the first objective.

    Time that was measured is not among them: the measurements are of different moments.
    """
    answers = next(o for o in book.goals.objectives if not isinstance(o, CostObjective))
    costs = [o for o in book.goals.objectives if isinstance(o, CostObjective) and o.cost not in MEASURED]
    parent = _best_parent(book, answers)
    return tuple(g for o in costs for g in _chain(book, results, o, CONFIDENCE, parent))


def _each(n: int) -> float:
    """The confidence of one of n intervals that hold jointly."""
    return 1 - (1 - CONFIDENCE) / max(1, n)


def _chain(
    book: Book,
    results: Sequence[StageResult],
    objective: ObjectiveSpec | CostObjective,
    confidence: float,
    before: tuple[str, Evaluated] | None,
) -> list[StageGain]:
    """Every new winner against the one before it, the first against a parent."""
    found = []
    for result in results:
        record = None if result.winner is None else book.record(result.winner.recipe_digest, "report")
        if record is None or not result.is_new:
            continue
        if before is not None:
            against, theirs = before
            c = compare(
                objective,
                book.answers(record),
                book.answers(theirs),
                against=against,
                seed=book.manifest["seed"],
                confidence=confidence,
                references=book.references("report"),
            )
            difference = Difference(c.against, c.what, c.difference, c.low, c.high, c.verdict)
            found.append(StageGain(result.title, difference))
        before = (result.title, record)
    return found


# -- the section --------------------------------------------------------------------------------------------------


def stage_sentences(report: StageReport) -> tuple[str, ...]:
    """One sentence per stage: what its winner added, with intervals; then what got worse elsewhere."""
    sentences = []
    for result in report.results:
        gains = [g.difference for g in report.gained if g.stage == result.title]
        told = [f"{d.what} {_interval(d)} over {d.against}, {VERDICT_WORDS[d.verdict]}" for d in gains]
        told += [_cost(g.difference) for g in report.costs if g.stage == result.title]
        if result.winner is None:
            told = ["nothing that satisfies every constraint"]
        elif not result.is_new:
            told = ["nothing: its winner is the one before"]
        if told:
            sentences.append(f"Stage {result.title} added: {'; '.join(told)}.")
    if report.outside:
        worse = [f"{g.difference.what} by {_interval(g.difference)} in stage {g.stage}" for g in report.regressions]
        told_worse = f"worse: {listed(worse)}" if worse else "nothing became worse by these intervals"
        sentences.append(f"On tasks outside the objectives {told_worse}.")
    return tuple(sentences)


def _cost(difference: Difference) -> str:
    return f"{difference.what} {signed(difference.mean) if difference.mean else 'as before'}"


def _interval(difference: Difference) -> str:
    return with_interval(difference.mean, difference.low, difference.high)


def stages_section(summary: RunSummary, report: StageReport | None, hops: Mapping[str, int]) -> str:
    """The report's section; empty for a run without stages.

    Args:
        summary: of the run.
        report: its stages.
        hops: entry id -> number of layers that run, where paths were searched.
    """
    if report is None:
        return ""
    sentences = "".join(f"<li>{escape(s)}</li>" for s in stage_sentences(report))
    parts = [_table(report, hops), f"<ul>{sentences}</ul>" if sentences else ""]
    if report.gained:
        parts.append(_gains(report.gained))
        parts += [captioned(_rows(summary, o, report), escape(o.name)) for o in summary.objectives]
        parts.append(legend(*((marker("candidate", 8, 8, f"set-{s}", radius=4), f"{s} set") for s in SET_NAMES)))
    if report.outside:
        parts.append(folded("Tasks outside the objectives", _gains(report.outside), shown=bool(report.regressions)))
    intro = (
        "For every stage its winner on the report set: of the leaders of its end, the best on the select set. "
        "The differences are paired, over the same questions, and their intervals hold jointly over the stages."
    )
    return section("What each stage added", intro, *parts)


def _table(report: StageReport, hops: Mapping[str, int]) -> str:
    head = ["stage", "evaluations", "winner", *(["hops"] if hops else [])]
    rows = []
    for r in report.results:
        winner = NOT_SCORED if r.winner is None else escape(r.winner.id)
        n_hops = [str(hops.get(r.winner.id, NOT_SCORED)) if r.winner else NOT_SCORED] if hops else []
        rows.append([escape(r.title), str(r.evaluations), winner, *n_hops])
    return f'<div class="narrow">{table(head, rows)}</div>'


def _gains(gains: Sequence[StageGain]) -> str:
    differences = [g.difference for g in gains]
    names = [f"{g.difference.what}: {g.stage} against {g.difference.against}" for g in gains]
    return captioned(difference_rows(differences, names=names, axis="winner minus what was best before, report set"))


def _rows(summary: RunSummary, objective: ObjectiveInfo, report: StageReport) -> str:
    """The best parents and the winners, one objective, every set."""
    winners = [replace(r.winner, id=r.title) for r in report.results if r.winner is not None]
    parents = [b for b in summary.baselines if b.kind == _PARENT]
    return interval_rows(summary, objective, [*parents, *winners], wide=FULL)
