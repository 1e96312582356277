"""Answers that came in parts: merged, restricted to a choice of items, and pooled as scores. Pure values."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from evomerge.runs.records import Evaluated, TaskScore
from evomerge.types import Evaluation, TaskAnswers

Items = Mapping[str, tuple[str, ...]]
"""Task -> item hashes."""


def _joined(parts: Sequence[TaskAnswers]) -> TaskAnswers:
    """One behind the other; of an item that is there twice the first answer counts.

    Margins and subjects that only some parts have are left out.
    """
    joined = TaskAnswers(
        parts[0].task,
        tuple(item for part in parts for item in part.items),
        tuple(score for part in parts for score in part.scores),
        tuple(margin for part in parts for margin in part.margins) if all(p.margins for p in parts) else (),
        tuple(subject for part in parts for subject in part.subjects) if all(p.subjects for p in parts) else (),
    )
    first: dict[str, int] = {}
    for place, item in enumerate(joined.items):
        first.setdefault(item, place)
    return joined if len(first) == len(joined.items) else joined.at(list(first.values()))


def _in_order(answers: TaskAnswers, order: Sequence[str]) -> TaskAnswers:
    """Items that `order` has in its order, others behind them as they stand."""
    rank = {item: k for k, item in enumerate(order)}
    return answers.at(sorted(range(len(answers.items)), key=lambda i: rank.get(answers.items[i], len(rank))))


def merge_evaluations(parts: Sequence[Evaluation], order: Items | None = None) -> Evaluation:
    """All answers of one model to one set as one evaluation; its timing is the sum, its costs are the first told.

    Args:
        parts: at least one, in the order of asking.
        order: the set's items in plan order, which the answers then have. None keeps the order of asking: tasks by
            their first answer, items part by part.

    Raises:
        ValueError: without parts, or for parts of different sets.
    """
    if len({part.set_name for part in parts}) != 1:
        raise ValueError(f"{len(parts)} parts of the sets {sorted({p.set_name for p in parts})} are no evaluation")
    asked = dict.fromkeys(task for part in parts for task in part.answers)
    names = asked if order is None else [*(t for t in order if t in asked), *(t for t in asked if t not in order)]
    answers = {}
    for name in names:
        joined = _joined([part.answers[name] for part in parts if name in part.answers])
        answers[name] = joined if order is None or name not in order else _in_order(joined, order[name])
    costs = next((part.costs for part in parts if part.costs), {})
    return Evaluation(parts[0].set_name, answers, _summed(part.timing_s for part in parts), costs)


def restrict(evaluation: Evaluation, items: Mapping[str, Collection[str]]) -> Evaluation:
    """The answers to a choice of items, in the evaluation's order; what it does not answer is left out."""
    answers = {}
    for name, found in evaluation.answers.items():
        wanted = items.get(name, ())
        places = [i for i, item in enumerate(found.items) if item in wanted]
        if places:
            answers[name] = found if len(places) == len(found.items) else found.at(places)
    return replace(evaluation, answers=answers)


def _summed(timings: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for timing in timings:
        for stage, seconds in timing.items():
            total[stage] = total.get(stage, 0.0) + seconds
    return total


def pooled(scores: Sequence[TaskScore]) -> TaskScore:
    """Mean and standard error over the items of several disjoint parts, as over one list.

    The sum of squares about the common mean is the parts' own plus n_k (mean_k - mean)^2 each.
    """
    if len(scores) == 1:
        return scores[0]
    n = sum(s.n for s in scores)
    mean = sum(_total(s) for s in scores) / n
    squares = sum((s.n - 1) * s.n * s.se**2 + s.n * (s.mean - mean) ** 2 for s in scores)
    return TaskScore(mean, math.sqrt(squares / (n - 1) / n), n)


def _total(score: TaskScore) -> float:
    """The sum of a part's item scores; exact for right and wrong answers, so that equal shares have equal means."""
    total = score.n * score.mean
    return float(round(total)) if round(total) / score.n == score.mean else total


def merged_record(parts: Sequence[Evaluated]) -> Evaluated:
    """One record for all increments of a model on a set; the record of the whole set is that record.

    The merged record has no answers of its own (`responses` is empty): `RunStore.load_answers` takes the parts.

    Raises:
        ValueError: without parts.
    """
    if not parts:
        raise ValueError("no record to merge")
    whole = next((part for part in parts if part.part == 0), None)
    if whole is not None or len(parts) == 1:
        return whole or parts[0]
    names = dict.fromkeys(name for part in sorted(parts, key=lambda p: -len(p.tasks)) for name in part.tasks)
    tasks = {name: pooled([part.tasks[name] for part in parts if name in part.tasks]) for name in names}
    timing = _summed(part.timing_s for part in parts)
    last = parts[-1]
    return replace(parts[0], tasks=tasks, responses="", timing_s=timing, values=last.values, part=last.part)
