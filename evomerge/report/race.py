"""From a run directory to who was asked how many questions, rung by rung."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from evomerge.report.asked import AskedModel, AskedQuestions, BankTold, RaceTold, RungTold
from evomerge.report.book import Book
from evomerge.runs.records import Evaluated, Failed
from evomerge.runs.replay import Batch
from evomerge.types import CandidateId, Digest


def search_sizes(book: Book) -> dict[str, int]:
    """Task -> items of its search set."""
    return {task: sizes["search"] for task, sizes in book.manifest["suite"]["splits"].items()}


def asked_questions(book: Book, banks: tuple[BankTold, ...] = ()) -> AskedQuestions:
    """Everything that the journal says about questions of the search set."""
    by_set: dict[str, int] = {}
    for (_, set_name), parts in book.history.parts.items():
        n = sum(r.n_questions for r in parts if isinstance(r, Evaluated))
        by_set[set_name] = by_set.get(set_name, 0) + n
    return AskedQuestions(search_sizes(book), asked_models(book), races(book), banks, second_per_question(book), by_set)


def _in_order(book: Book) -> Iterator[tuple[int, CandidateId, str, Digest]]:
    """Generation, id, kind and recipe of everything that was asked for, the distribution's mean last."""
    history = book.history
    known = history.baselines.values()
    yield from ((-1, b.id, b.kind, b.recipe) for b in known if b.kind != "mean")
    for batch in history.batches:
        yield from ((batch.number, c.id, c.kind, c.recipe) for c in batch.candidates)
    yield from ((len(history.batches), b.id, b.kind, b.recipe) for b in known if b.kind == "mean")


def asked_models(book: Book) -> tuple[AskedModel, ...]:
    """Every recipe that was asked on the search set, once."""
    found: dict[Digest, AskedModel] = {}
    for batch, id_, kind, recipe in _in_order(book):
        parts = book.history.parts.get((recipe, "search"), ())
        if recipe in found or not parts:
            continue
        steps: list[int] = []
        seconds = 0.0
        for part in parts:
            if isinstance(part, Evaluated):
                # the whole set was asked at once, whatever was known before
                steps.append(part.n_questions + (steps[-1] if steps and part.part else 0))
                seconds += part.timing_s.get("score", 0.0)
        failed = isinstance(book.history.outcomes[recipe, "search"], Failed)
        found[recipe] = AskedModel(id_, batch, kind, tuple(steps), failed, seconds)
    return tuple(found.values())


def candidate_counts(book: Book) -> tuple[int, int]:
    """Answers of the optimizer's candidates to the search set, and what their full evaluations would have asked."""
    asked = AskedQuestions(search_sizes(book), asked_models(book))
    return asked.n_asked, asked.n_full


def second_per_question(book: Book) -> float:
    """Median seconds of scoring per question: of models that were asked everything at once, where there are any.

    Small increments take longer per question, because every forward pass is smaller: they do not tell what a full
    evaluation costs.
    """
    records = [
        r
        for (_, set_name), parts in book.history.parts.items()
        if set_name == "search"
        for r in parts
        if isinstance(r, Evaluated) and r.n_questions
    ]
    whole = [r for r in records if r.part == 0] or records
    return median([r.timing_s.get("score", 0.0) / r.n_questions for r in whole] or [0.0])


def races(book: Book) -> tuple[RaceTold, ...]:
    """The generations that were asked in part; candidates that the end of the budget cut off are left out."""
    batches = {batch.number: batch for batch in book.history.batches}
    rungs: dict[int, list[RungTold]] = {}
    for (number, _), rung in sorted(book.history.rungs.items()):
        recipes = {c.id: c.recipe for c in batches[number].candidates}
        alive = tuple(id_ for id_ in rung.alive if (recipes[id_], "search") in book.history.parts)
        if alive:
            tasks = {task: len(items) for task, items in rung.items.items()}
            rungs.setdefault(number, []).append(RungTold(alive, tasks))
    return tuple(
        RaceTold(number, tuple(found), _believed(book, batches[number]), batches[number].told)
        for number, found in rungs.items()
    )


def _believed(book: Book, batch: Batch) -> dict[str, dict[str, tuple[float, float]]]:
    scores = {}
    for candidate in batch.candidates:
        record = book.record(candidate.recipe, "search")
        if record is not None:
            values = {o.name: book.value(o, record) for o in book.goals.objectives}
            scores[str(candidate.id)] = {name: (v.value, v.se) for name, v in values.items()}
    return scores
