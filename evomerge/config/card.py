"""The facts of a run and its parents that go onto the card of an exported merge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import evomerge
from evomerge.checkpoints.folder import own_file
from evomerge.errors import ConfigError
from evomerge.evaluation.engine_names import REFERENCE
from evomerge.evaluation.statistics import task_interval
from evomerge.recipe.card import CardFacts, ScoreLine, model_card
from evomerge.recipe.recipe import Recipe
from evomerge.report.book import Book
from evomerge.report.collect import summary_of
from evomerge.report.details import details_of, recorded_recipe
from evomerge.report.words import separability
from evomerge.strict_yaml import parse_yaml

_MAX_CARD_CHARACTERS = 200_000


def _beginning(path: Path | None) -> str:
    if path is None:
        return ""
    with path.open(encoding="utf-8") as file:
        return file.read(_MAX_CARD_CHARACTERS)


def stated_licence(folder: Path) -> str | None:
    """The `license` of a checkpoint's own card; None when there is no card, or it states none."""
    try:
        text = _beginning(own_file(folder, "README.md"))
    except (OSError, UnicodeDecodeError):
        return None
    if not text.startswith("---\n"):
        return None
    try:
        front = parse_yaml(text[4:].split("\n---", 1)[0], "README.md").value
    except ConfigError:
        return None
    licence = front.get("license") if isinstance(front, dict) else None
    return licence if isinstance(licence, str) else None


def _engine(book: Book) -> str:
    """What wrote answers, with its version; empty where it was transformers."""
    name = str(book.manifest["suite"].get("engine", REFERENCE))
    return "" if name == REFERENCE else f"{name} {book.manifest['versions'].get(name, '')}".strip()


def export_card(run: Path, recipe: Recipe, folders: Mapping[str, Path], id_: str, *, mergekit: bool) -> str:
    """The card of a merge.

    Args:
        run: the run directory.
        recipe: the merge.
        folders: parent's name -> its folder.
        id_: the merge's id in the run.
        mergekit: whether a mergekit file stands beside the card.
    """
    book = Book(run)
    summary = summary_of(book)
    chosen = summary.chosen is not None and summary.chosen.id == id_
    entry = summary.entries().get(id_)
    scores: tuple[ScoreLine, ...] = ()
    questions = 0
    record = None if entry is None else book.record(entry.recipe_digest, "report")
    if entry is not None and entry.report is not None and record is not None:
        objectives = entry.report.objectives
        answers = {n: a for n, a in book.answers(record).answers.items() if n not in objectives}
        scores = tuple(ScoreLine(n, s.value, s.low, s.high) for n, s in objectives.items())
        scores += tuple(ScoreLine(n, a.mean, *task_interval(a)) for n, a in answers.items())
        questions = sum(t.n for t in entry.report.tasks.values())
    facts = CardFacts(
        id=id_,
        run=summary.name,
        scores=scores,
        n_tried=summary.counts.evaluated + summary.counts.failed,
        n_questions=questions,
        verdicts=separability(details_of(book, summary, recorded_recipe(book))) if chosen else (),
        public_test_tasks=tuple(book.manifest["suite"]["public_test_tasks"]),
        mergekit=mergekit,
        version=evomerge.__version__,
        engine=_engine(book),
    )
    return model_card(recipe, facts, {name: stated_licence(folder) for name, folder in folders.items()})
