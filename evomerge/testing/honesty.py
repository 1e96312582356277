"""A finished simulated search against the truth: what its report claims, what its intervals cover, what luck added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from evomerge.recipe.recipe import Recipe
from evomerge.recipe.serialize import recipe_from_json
from evomerge.report.book import Book
from evomerge.report.collect import summary_of
from evomerge.report.details import details_of
from evomerge.report.summary import Difference, Entry, ObjectiveScore, RunSummary, Scores
from evomerge.report.words import recommendation
from evomerge.runs.records import Evaluated
from evomerge.testing.responders import ability_for
from evomerge.testing.simulated_jobs import MODELS, OBJECTIVE, SimulatedJob, Truth, candidate_recipe
from evomerge.types import CandidateId

EVERY = "better than every parent"
"""What the report's first sentence says of a merge that is worth having."""


@dataclass(frozen=True)
class Findings:
    """One job.

    Attributes:
        kind: of the chosen model.
        told: the report's first sentences.
        truth: the chosen model's expected score.
        over_parent: truth minus that of the best parent.
        claims_every: whether the report says "better than every parent".
        claims_any: whether it calls the chosen model's objective better than that of any parent.
        claims_anything: whether it calls anything of the chosen model, the objective or a task, better than a parent's.
        false_claims: comparisons, of any kind and with any baseline, called better although the truth is not.
        covers: whether the interval of the report set's score holds the truth.
        covers_items: whether it holds the expected score on the very items of the report set.
        differences: comparisons of the objective.
        differences_covered: how many of their intervals hold the true difference.
        difference_error: the mean of their told minus true differences; 0 when the chosen model is compared with none.
        search_covers: whether the interval of the search set's score holds the truth, which nobody promises.
        search: the chosen model's score on the search set.
        select: on the select set.
        report: on the report set.
        top_search: the highest score of any model on the search set.
        top_truth: that model's expected score.
        top_covers: whether the interval of that highest score holds it, which nobody promises either.
        questions: answers to the search set, over all models.
        models: how many answered them.
    """

    kind: str
    told: str
    truth: float
    over_parent: float
    claims_every: bool
    claims_any: bool
    claims_anything: bool
    false_claims: int
    covers: bool
    covers_items: bool
    differences: int
    differences_covered: int
    difference_error: float
    search_covers: bool
    search: float
    select: float
    report: float
    top_search: float
    top_truth: float
    top_covers: bool
    questions: int
    models: int


def findings_of(job: SimulatedJob, folder: Path) -> Findings:
    """Compare a run that `run_simulated` left in `folder` with the truth.

    Raises:
        LookupError: when the run has chosen nothing.
    """
    book = Book(folder)
    recipes = _recipes(book, job.depth)
    summary = summary_of(book)
    details = details_of(book, summary, lambda model: recipes.get(model.id))
    chosen = _chosen(summary)
    truth = Truth(job)
    true = {id_: truth.score(recipe) for id_, recipe in recipes.items()}
    ours = true[CandidateId(chosen.id)]
    told = recommendation(summary, details)
    rows = [(d, ours - true[CandidateId(d.against)]) for d in details.differences]
    mine = [(d, gap) for d, gap in rows if d.what == OBJECTIVE]
    parents = {f"parent-{m}" for m in (*MODELS, "base")}
    report, search = _objective(chosen.report), _objective(chosen.search)
    on_items = job.responders.expected_on(ability_for(ours), "report")
    top, top_truth = _objective(summary.front[0].search), true[CandidateId(summary.front[0].id)]
    return Findings(
        kind=chosen.kind,
        told=told,
        truth=ours,
        over_parent=ours - max(true[CandidateId(p)] for p in parents),
        claims_every=EVERY in told,
        claims_any=any(_is_claim(d) and d.against in parents for d, _ in mine),
        claims_anything=any(_is_claim(d) and d.against in parents for d, _ in rows),
        false_claims=sum(_is_claim(d) and gap <= 0 for d, gap in rows),
        covers=report.low <= ours <= report.high,
        covers_items=report.low <= on_items <= report.high,
        differences=len(mine),
        differences_covered=sum(d.low <= gap <= d.high for d, gap in mine),
        difference_error=fmean([d.mean - gap for d, gap in mine] or [0.0]),
        search_covers=search.low <= ours <= search.high,
        search=search.value,
        select=_objective(chosen.select).value,
        report=report.value,
        top_search=top.value,
        top_truth=top_truth,
        top_covers=top.low <= top_truth <= top.high,
        **_asked(book),
    )


def _recipes(book: Book, depth: str) -> dict[CandidateId, Recipe]:
    """Every model's recipe, by id."""
    found = {id_: recipe_from_json(dict(b.recipe_json)) for id_, b in book.history.baselines.items()}
    for batch in book.history.batches:
        found |= {c.id: candidate_recipe(depth, c.vector) for c in batch.candidates}
    return found


def _chosen(summary: RunSummary) -> Entry:
    if summary.chosen is None:
        raise LookupError("the run has chosen nothing")
    return summary.chosen


def _objective(scores: Scores | None) -> ObjectiveScore:
    if scores is None:
        raise LookupError("the chosen model was not scored on every set")
    return scores.objectives[OBJECTIVE]


def _is_claim(difference: Difference) -> bool:
    return difference.verdict == "better"


def _asked(book: Book) -> Mapping[str, int]:
    """How many questions of the search set were asked, and of how many models."""
    parts = [p for (_, set_name), p in book.history.parts.items() if set_name == "search"]
    records = [record for part in parts for record in part if isinstance(record, Evaluated)]
    return {"questions": sum(t.n for r in records for t in r.tasks.values()), "models": len(parts)}
