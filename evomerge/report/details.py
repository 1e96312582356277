"""What only the report shows: every candidate, progress, genes, paired differences, cost and provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from evomerge.archive.hypervolume import hypervolume, reference_point
from evomerge.archive.pareto import ArchiveEntry, front_of
from evomerge.evaluation.costs import UNITS
from evomerge.evaluation.engine_names import FALLBACK, REFERENCE
from evomerge.evaluation.objectives import CostObjective, Objective, ObjectiveSpec
from evomerge.evaluation.statistics import CONFIDENCE, compare_all, selection_note
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.serialize import recipe_to_json, recorded_recipe_from_json
from evomerge.report.asked import AskedQuestions
from evomerge.report.banks import banks_of
from evomerge.report.book import Book, Model, RecipeOf
from evomerge.report.collect import summary_of
from evomerge.report.gene_values import MergeGenes
from evomerge.report.genes import merge_genes
from evomerge.report.overfit import selected_models
from evomerge.report.paths import runs_merged_layers, searched_paths
from evomerge.report.race import asked_questions
from evomerge.report.stages import stage_report
from evomerge.report.summary import Difference, EvaluationRow, RunDetails, RunSummary
from evomerge.runs.damage import damage_is_told
from evomerge.runs.records import Evaluated, Failed
from evomerge.survey.values import recorded_survey
from evomerge.types import SET_NAMES, CandidateId, Digest, SetName

_DRAWN = 6


def recorded_recipe(book: Book) -> RecipeOf:
    """Recipes of baselines and the mean, which the journal holds; None for candidates."""

    def find(model: Model) -> Recipe | None:
        baseline = book.history.baselines.get(model.id)
        return None if baseline is None else recorded_recipe_from_json(dict(baseline.recipe_json), baseline.recipe)

    return find


def details_of(book: Book, summary: RunSummary, recipe_of: RecipeOf) -> RunDetails:
    """The details of a run.

    Args:
        book: the run.
        summary: of the same book.
        recipe_of: gives the recipes whose genes are drawn.
    """
    manifest = book.manifest
    job = (book.folder / "job.yaml").read_text(encoding="utf-8")
    chosen = None if summary.chosen is None else recipe_of(book.models[CandidateId(summary.chosen.id)])
    asked = asked_questions(book, banks_of(book))
    cluster = book.history.lives[-1].settings.get("cluster", {}) if book.history.lives else {}
    return RunDetails(
        evaluations=evaluation_rows(book),
        hypervolume=hypervolume_history(book),
        genes=_genes(book, summary, recipe_of),
        **searched_paths(book, summary, recipe_of),
        stages=stage_report(book),
        costs={o.name: UNITS[o.cost] for o in book.goals.objectives if isinstance(o, CostObjective)},
        differences=differences(book),
        splits=manifest["suite"]["splits"],
        **used_optimizer(manifest),
        asynchronous=bool(book.history.turns),
        versions=manifest["versions"],
        host=", ".join(sorted({life.host for life in book.history.lives})),
        notes=_notes(book),
        selection=_selection(book, summary, asked),
        recipe="" if chosen is None else json.dumps(recipe_to_json(chosen), indent=1, ensure_ascii=False),
        job=job,
        run_folder=str(book.folder),
        workers=int(cluster.get("workers", 0)),
        asked=asked,
        selected=selected_models(book),
        survey=recorded_survey(manifest),
    )


class UsedOptimizer(TypedDict):
    """Fields of `RunDetails`."""

    optimizer: str
    optimizer_why: str


def used_optimizer(manifest: Mapping[str, Any]) -> UsedOptimizer:
    """The optimizer, or every stage's: a manifest knows the first stage's at least, and why that one."""
    name, why = manifest["optimizer"]["name"], manifest["optimizer"]["why"]
    stages = manifest.get("stages", ())
    if not stages:
        return {"optimizer": name, "optimizer_why": why}
    first = stages[0]["name"]
    names = {first: name} | {s["name"]: s["optimizer"] for s in stages if s.get("optimizer")}
    told = ", ".join(f"{used} in stage {stage}" for stage, used in names.items())
    return {"optimizer": told, "optimizer_why": f"in stage {first}, {why}" if why else ""}


def run_details(folder: Path) -> RunDetails:
    """The details of a run, with the genes of recorded recipes only."""
    with damage_is_told(folder):
        book = Book(folder)
        return details_of(book, summary_of(book), recorded_recipe(book))


def evaluation_rows(book: Book) -> tuple[EvaluationRow, ...]:
    """Every model asked on the search set, in the order of asking; baselines have batch -1."""
    asked = [(-1, Model(b.id, b.kind, b.recipe)) for b in book.history.baselines.values() if b.kind != "mean"]
    for batch in book.history.batches:
        asked += [(batch.number, Model(c.id, c.kind, c.recipe)) for c in batch.candidates]
    last = len(book.history.batches)
    asked += [(last, Model(b.id, b.kind, b.recipe)) for b in book.history.baselines.values() if b.kind == "mean"]
    first: dict[Digest, CandidateId] = {}
    for _, model in asked:
        first.setdefault(model.recipe, model.id)
    rows = (_row(book, batch, model, again=first[model.recipe] != model.id) for batch, model in asked)
    return tuple(row for row in rows if row is not None)


def _row(book: Book, batch: int, model: Model, *, again: bool) -> EvaluationRow | None:
    outcome = book.history.outcomes.get((model.recipe, "search"))
    record = book.record(model.recipe, "search")
    reused = again or (model.id, "search") in book.history.reused
    if isinstance(outcome, Failed):
        failure = f"{outcome.failure.kind}: {outcome.failure.message}"
        return EvaluationRow(model.id, batch, model.kind, None, feasible=False, failure=failure, reused=reused)
    if record is None:
        return None
    return EvaluationRow(
        id=model.id,
        batch=batch,
        kind=model.kind,
        objectives={o.name: book.value(o, record).value for o in book.goals.objectives},
        feasible=book.feasible(record),
        reused=reused,
        merge_s=0.0 if reused else record.timing_s.get("merge", 0.0),
        score_s=0.0 if reused else record.timing_s.get("score", 0.0),
    )


def hypervolume_history(book: Book) -> tuple[tuple[int, float], ...]:
    """(evaluations so far, hypervolume of the feasible front): only with several objectives, only where it grows."""
    rows = [r for r in evaluation_rows(book) if not r.reused]
    known = [book.entry(m).losses for m in book.models.values() if m.kind == "parent"]
    if len(book.goals.objectives) < 2 or not known:
        return ()
    reference = reference_point(known)
    history: list[tuple[int, float]] = []
    front: tuple[tuple[float, ...], ...] = ()
    for n, row in enumerate(rows, start=1):
        if not row.feasible:
            continue
        point = book.entry(book.models[CandidateId(row.id)])
        grown = tuple(p.losses for p in front_of([*_as_entries(front), point]))
        if grown != front:
            front = grown
            history.append((n, hypervolume(list(front), reference)))
    return (*history, (len(rows), history[-1][1])) if history else ()


def _as_entries(front: tuple[tuple[float, ...], ...]) -> list[ArchiveEntry]:
    return [ArchiveEntry(CandidateId(f"front-{i}"), losses) for i, losses in enumerate(front)]


def _genes(book: Book, summary: RunSummary, recipe_of: RecipeOf) -> tuple[MergeGenes, ...]:
    """Genes of the chosen merge first, then of the front; at most six."""
    ids = dict.fromkeys(([summary.chosen.id] if summary.chosen else []) + [e.id for e in summary.front])
    found = []
    for id_ in list(ids)[:_DRAWN]:
        recipe = recipe_of(book.models[CandidateId(id_)])
        if recipe is not None and runs_merged_layers(recipe):
            found.append(merge_genes(id_, recipe, book.manifest["n_layers"]))
    return tuple(found)


def differences(book: Book) -> tuple[Difference, ...]:
    """Chosen minus every baseline it is compared with, on the report set: objectives first, then tasks.

    Intervals hold jointly over the baselines for each objective, and over baselines and tasks for the tasks: whoever
    looks through a table of tasks for a gain must not find one by looking at many.
    """
    chosen = book.history.chosen
    ours = None if chosen is None else book.record(chosen.recipe, "report")
    if chosen is None or ours is None:
        return ()
    rivals: Mapping[CandidateId, Evaluated] = {
        i: r for i in chosen.compared if i != chosen.id and (r := _report(book, i)) is not None
    }
    tasks = [t for t in ours.tasks if not any(o.name == t for o in book.goals.objectives)]
    objectives: list[Objective] = [o for o in book.goals.objectives if isinstance(o, ObjectiveSpec | CostObjective)]
    answers = {str(i): book.answers(r) for i, r in rivals.items()}
    references = book.references("report")
    compared = partial(
        compare_all,
        candidate=book.answers(ours),
        baselines=answers,
        seed=book.manifest["seed"],
        references=references,
    )
    each = 1 - (1 - CONFIDENCE) / max(1, len(tasks))
    found = (*compared(objectives), *compared([ObjectiveSpec(t, (t,)) for t in tasks], confidence=each))
    return tuple(Difference(c.against, c.what, c.difference, c.low, c.high, c.verdict) for c in found)


def _report(book: Book, id_: CandidateId) -> Evaluated | None:
    set_name: SetName = "report"
    return book.record(book.history.baselines[id_].recipe, set_name)


def _selection(book: Book, summary: RunSummary, asked: AskedQuestions) -> str:
    if summary.chosen is None or book.history.chosen is None:
        return ""
    tried = summary.counts.evaluated + summary.counts.failed
    models = [sum(found == name for _, found in book.history.outcomes) for name in SET_NAMES]
    spent = [f"{asked.by_set.get(s, 0):,} of the {s} set on {n}" for s, n in zip(SET_NAMES, models, strict=True)]
    note = selection_note(tried, len(book.history.chosen.compared))
    return f"{note} Questions spent: {spent[0]} models, {spent[1]}, {spent[2]}."


def _notes(book: Book) -> tuple[str, ...]:
    public = book.manifest["suite"]["public_test_tasks"]
    notes = [f"The search used a public test split ({', '.join(public)}): scores on it say nothing about unseen data."]
    notes = notes if public else []
    notes += engine_notes(book)
    notes += [note.text for note in book.history.notes if note.text]
    return tuple(notes)


def engine_notes(book: Book) -> list[str]:
    """What wrote the answers, where it was not transformers alone."""
    engine = book.manifest["suite"].get("engine", REFERENCE)
    if engine == REFERENCE:
        return []
    parts = [r for found in book.history.parts.values() for r in found if isinstance(r, Evaluated)]
    instead = sum(FALLBACK in r.timing_s for r in parts)
    held = f"Answers were written by {engine}, held against {REFERENCE} for every candidate."
    return [f"{held} {instead} of {len(parts)} evaluations were answered by {REFERENCE} instead."]


def folder_report(folder: Path) -> Path:
    """Where the report of a run lies."""
    return folder / "report.html"
