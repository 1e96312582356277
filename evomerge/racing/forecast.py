"""What a search will ask, before it asks: for people who decide whether to start it."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.racing.asking import LEAST_PER_TASK
from evomerge.racing.questioner import Questioner, calibration_models
from evomerge.racing.spec import QuestionsSpec


@dataclass(frozen=True)
class Field:
    """Who will be asked.

    Attributes:
        budget: models scored on the search set.
        known: baselines and injected recipes among them.
        first: candidates of generation 0 that are none of those.
        population: candidates per generation.
        mean: whether the centre of the last distribution is scored, too.
    """

    budget: int
    known: int
    first: int
    population: int
    mean: bool


@dataclass(frozen=True)
class Forecast:
    """How many questions of the search set.

    Attributes:
        each: of a candidate that is asked in part, on average over a generation.
        full: of a full evaluation.
        whole: models that are asked everything, those that the item banks are fitted to included.
        at_most: of the whole search; candidates that are asked for again may add a few.
        everything: of the whole search if every model were asked everything.
    """

    each: int
    full: int
    whole: int
    at_most: int
    everything: int


def forecast(questioner: Questioner, spec: QuestionsSpec, field: Field, *, imported: bool) -> Forecast:
    """What a search with these questions and this field will ask.

    Args:
        questioner: before its first answer.
        spec: what it was made with.
        field: who will be asked.
        imported: whether every task has a bank from elsewhere.
    """
    full = questioner.n_items
    everything = field.budget * full
    if not questioner.partial:
        return Forecast(full, full, field.budget, everything, everything)
    whole = min(field.budget, field.known + _calibrating(questioner, spec, field, imported=imported) + field.mean)
    left = field.budget - whole
    generations = -(-left // max(1, field.population))
    # the last generation may be cut, but asks no more than a whole one
    n = field.population * generations if left else 0
    asked = whole * full + n * _most(questioner)
    return Forecast(questioner.mean_questions, full, whole, min(asked, everything), everything)


def _most(questioner: Questioner) -> int:
    """Questions per candidate of a generation, at most."""
    floor = LEAST_PER_TASK * questioner.n_tasks
    return min(questioner.n_items, max(questioner.mean_questions, floor))


def _calibrating(questioner: Questioner, spec: QuestionsSpec, field: Field, *, imported: bool) -> int:
    """Candidates that are asked everything before partial asking begins."""
    if not questioner.needs_bank:
        return 0
    wanted = calibration_models(spec, imported=imported)
    n = field.first if spec.calibrate is None and not imported else 0
    while field.known + n < wanted:
        n += field.first if n == 0 and field.first else field.population
    return n
