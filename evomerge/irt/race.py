"""Racing: who is asked how many questions, and who goes on. Pure decisions; nothing is asked here.

Notation: `c` candidates. All criteria are losses: lower is better.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evomerge.irt.responses import Floats, Indices


class Rung(NamedTuple):
    """One step of a race: the best `keep` candidates so far are asked until each has answered `questions`.

    Attributes:
        questions: answers per candidate after this rung, counted from the start of the race.
        keep: how many candidates are asked in it.
    """

    questions: int
    keep: int


def halving_schedule(
    n_candidates: int, pool: int, *, mean_questions: float, factor: float = 2.0, final: int = 3, multiple: int = 1
) -> tuple[Rung, ...]:
    """Successive halving (Jamieson & Talwalkar 2016): each rung keeps 1 / factor and asks factor times as many.

    Every rung costs about the same. The schedule never asks more than `mean_questions` per candidate on average,
    except that each candidate is asked at least one batch (`multiple`, or the pool when that is smaller). 20
    candidates at a mean of 26 are asked 10, 20, 40, 80 questions, 20, 10, 5, 3 of them.

    Args:
        n_candidates: who starts, at least 1; all are asked in the first rung.
        pool: number of questions that there are, at least 1.
        mean_questions: budget per starting candidate, positive; the pool or more asks everybody everything.
        factor: greater than 1.
        final: the smallest field: the last rung has this many (or all, when fewer start).
        multiple: rung sizes are multiples of it (a batch of the scorer), or the whole pool.

    Returns:
        Rungs of strictly growing `questions` and not growing `keep`.

    Raises:
        ValueError: when an argument is out of the range above.
    """
    if n_candidates < 1 or pool < 1 or final < 1 or multiple < 1:
        got = (n_candidates, pool, final, multiple)
        raise ValueError(f"candidates, questions, final field and batch must be at least 1, not {got}")
    if not factor > 1 or not mean_questions > 0:
        raise ValueError(f"factor > 1 and mean_questions > 0, not {factor} and {mean_questions}")
    if mean_questions >= pool:
        return (Rung(pool, n_candidates),)
    keep = _fields(n_candidates, factor, final)
    growth = np.power(float(factor), np.arange(keep.size, dtype=np.float64))
    steps = _steps(keep, growth, mean_questions, pool, multiple)
    rungs = [Rung(int(q), int(k)) for q, k in zip(steps, keep, strict=True)]
    return tuple(rung for i, rung in enumerate(rungs) if i == 0 or rung.questions > rungs[i - 1].questions)


def mean_cost(rungs: tuple[Rung, ...]) -> float:
    """Questions per starting candidate of a whole schedule."""
    before = (0, *(rung.questions for rung in rungs[:-1]))
    return sum((r.questions - b) * r.keep for r, b in zip(rungs, before, strict=True)) / rungs[0].keep


def survivors(losses: Floats, keep: int) -> Indices:
    """The `keep` best candidates, in ascending order of their index.

    Args:
        losses: shape `(c,)`, lower is better (expected ranks, for instance); NaN, a candidate that failed, is worse
            than any number and never survives.
        keep: how many go on; fewer do when fewer have a loss. Ties go to the earlier index.

    Raises:
        ValueError: when keep is negative or losses has another shape.
    """
    if losses.ndim != 1 or keep < 0:
        raise ValueError(f"losses of shape {losses.shape} and keep = {keep}")
    order = np.argsort(losses, kind="stable")
    return np.sort(order[: min(keep, int(np.sum(~np.isnan(losses))))])


def _fields(n_candidates: int, factor: float, final: int) -> Indices:
    """Candidates per rung: n, ceil(n / factor), ... down to the final field, strictly falling."""
    fields = [n_candidates]
    while fields[-1] > final:
        fields.append(max(final, min(fields[-1] - 1, int(np.ceil(fields[0] / factor ** len(fields))))))
    return np.array(fields, dtype=np.intp)


def _steps(keep: Indices, growth: Floats, mean_questions: float, pool: int, multiple: int) -> Indices:
    """Cumulative questions per rung: near a geometric series, within the budget, in whole batches, at most the pool."""
    budget = mean_questions * keep[0]
    weights = keep - np.append(keep[1:], 0)  # the cost is the sum of questions times those who stop there

    def rounded(first: float) -> Indices:
        ideal = np.minimum(first * growth, pool)
        batches = np.maximum(np.floor(ideal / multiple + 1e-9), 1).astype(np.intp) * multiple
        return np.where((ideal >= pool) | (batches > pool), pool, batches)

    low, high = 0.0, float(pool)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rounded(middle) @ weights <= budget else (low, middle)
    steps = rounded(low)
    for rung in range(len(steps) - 1, -1, -1):
        limit = int(steps[rung + 1]) if rung + 1 < len(steps) else pool
        affordable = int((budget - steps @ weights) / (weights[rung] * multiple) + 1e-9)
        steps[rung] = min(int(steps[rung]) + multiple * max(affordable, 0), limit)
    return steps
