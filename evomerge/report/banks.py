"""What a run knows of its items: the journaled facts of its banks, and banks fitted again to be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from evomerge.errors import StoreError
from evomerge.irt.axis import AbilityAxis
from evomerge.irt.bank import ItemBank
from evomerge.irt.fit import fit
from evomerge.irt.responses import Floats
from evomerge.racing.answers import AnswerTable
from evomerge.racing.task_model import RECENT_MODELS
from evomerge.report.asked import BankTold
from evomerge.report.book import Book
from evomerge.report.race import search_sizes
from evomerge.runs.records import Evaluated
from evomerge.types import Digest, Evaluation

MAX_CELLS: Final = 150_000
"""Models times items, over all tasks, that are fitted for a page: a fraction of a second."""

MAX_DRAWN: Final = 8
"""Tasks whose items are drawn."""


def banks_of(book: Book) -> tuple[BankTold, ...]:
    """The last bank of every task; empty for a run that fitted none. Where answers are lost nothing is drawn."""
    history = book.history
    sizes = search_sizes(book)
    fits = {task: [b for (_, t), b in sorted(history.banks.items()) if t == task] for task in sizes}
    last = max(history.estimated, default=None)
    by: Mapping[str, str] = {} if last is None else history.estimated[last].by
    drawn = _refitted(book, [task for task in sizes if fits[task] and fits[task][-1].dimensions])
    found = []
    for task, n_items in sizes.items():
        if not fits[task]:
            continue
        record = fits[task][-1]
        bank, positions = drawn.get(task, (None, None))
        found.append(
            BankTold(
                task,
                n_items,
                record.n_models,
                record.dimensions,
                len(fits[task]),
                record.source != "run",
                record.estimator or by.get(task, ""),
                record.errors,
                bank,
                positions,
            )
        )
    return tuple(found)


def _refitted(book: Book, tasks: Sequence[str]) -> dict[str, tuple[ItemBank, Floats]]:
    """Task -> a bank of the same kind of models as the search's last one, and their places on its axis."""
    try:
        answers = _search_answers(book) if tasks else {}
    except StoreError:  # the facts are in the journal
        return {}
    whole = next((e for e, is_whole in answers.values() if is_whole), None)
    found: dict[str, tuple[ItemBank, Floats]] = {}
    left = MAX_CELLS
    for task in tasks[:MAX_DRAWN]:
        if whole is None or task not in whole.answers:
            continue
        table = AnswerTable(task, whole.answers[task].items)
        for recipe, (evaluation, _) in answers.items():
            table.learn(recipe, evaluation)
        some = [r for r in table.recipes if table.asked(r).any()]
        kept = {*table.complete, *some[-RECENT_MODELS:]}
        responses = table.responses([r for r in some if r in kept])
        left -= responses.scores.size
        if left < 0:
            break
        fitted = fit(responses)
        found[task] = (fitted.bank, AbilityAxis.of(fitted.bank).positions(fitted.theta))
    return found


def _search_answers(book: Book) -> dict[Digest, tuple[Evaluation, bool]]:
    """Recipe -> its answers to the search set, and whether it was asked the whole set at once; in order of asking."""
    return {
        recipe: (book.answers(record), record.part == 0)
        for (recipe, set_name), record in book.history.outcomes.items()
        if set_name == "search" and isinstance(record, Evaluated)
    }
