"""How sure a score is, and whether one model is better than another: intervals, never a bare number.

A comparison is paired (both models answered the same items) and belongs on items that played no part in choosing the
candidate: then the number of candidates that a search tried does not bias it. See `docs/statistics.md`.

Notation: `n` items of a task, `k` distinct pairs of scores among them, `R` bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from evomerge.errors import EvaluationError
from evomerge.evaluation.common_ability import ability_answers
from evomerge.evaluation.costs import MEASURED
from evomerge.evaluation.measures import NO_REFERENCES, SCORE, References, measured
from evomerge.evaluation.objectives import CostObjective, Objective, ObjectiveSpec, objective_values
from evomerge.seeds import generator
from evomerge.types import Evaluation, TaskAnswers

Verdict = Literal["better", "worse", "not separable", "not judged"]

CONFIDENCE: Final = 0.95
N_RESAMPLES: Final = 10_000


class Interval(NamedTuple):
    """Ends of a confidence interval, in the score's unit."""

    low: float
    high: float


def normal_quantile(confidence: float) -> float:
    """The z with `P(|Z| <= z) = confidence` for a standard normal Z.

    Raises:
        ValueError: when confidence does not lie strictly between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence} does not lie between 0 and 1")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson_interval(share: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a share of successes (Wilson 1927): never empty, never outside `[0, 1]`, sensible at 0 and 1.

    Args:
        share: successes over trials, in `[0, 1]`.
        n: trials, at least 1.
        confidence: coverage asked for.

    Raises:
        ValueError: when an argument is out of range.
    """
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"a share of {share} in {n} trials has no interval")
    z2 = normal_quantile(confidence) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # min and max: in exact arithmetic the ends enclose the share and lie in [0, 1], in floating point nearly so
    return Interval(max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def task_interval(answers: TaskAnswers, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a task's score: Wilson's for items scored 0 or 1, `mean +- z se` for every other metric.

    Raises:
        ValueError: when confidence is out of range.
    """
    if set(answers.scores) <= {0.0, 1.0}:
        return wilson_interval(answers.mean, len(answers.scores), confidence)
    half = normal_quantile(confidence) * answers.se
    return Interval(answers.mean - half, answers.mean + half)


def objective_interval(
    objective: Objective,
    evaluation: Evaluation,
    confidence: float = CONFIDENCE,
    references: Mapping[str, Evaluation] = NO_REFERENCES,
) -> Interval:
    """Interval of an objective's value.

    Means and weighted sums combine the task intervals `(l, u)` by the method of variance estimates recovery (Zou and
    Donner 2008, eq. 4): the distance to the lower end is `sqrt(sum (w (m - l))^2)`, with u for l where w < 0. For one
    task that is the task's interval. The interval of a minimum is `(min l, min u)`; of a custom objective, a cost and
    an ability, `value +- z se`.

    Args:
        objective: whose value.
        evaluation: a model's answers.
        confidence: coverage asked for.
        references: as for `objective_values`.

    Raises:
        EvaluationError: as `objective_values`.
        ValueError: when confidence is out of range.
    """
    value, se = objective_values(objective, evaluation, references)
    if not isinstance(objective, ObjectiveSpec) or objective.measure.kind == "ability":
        half = normal_quantile(confidence) * se
        return Interval(value - half, value + half)
    parts = list(measured(objective.measure, evaluation, objective.tasks, references).values())
    ends = np.array([task_interval(p, confidence) for p in parts])
    if objective.aggregate == "min":
        return Interval(*(float(end) for end in ends.min(axis=0)))
    weights = _weights(objective)
    means = np.array([p.mean for p in parts])
    scaled = np.sort(weights[:, None] * ends, axis=1)
    distances = np.sqrt(np.sum((weights[:, None] * means[:, None] - scaled) ** 2, axis=0))
    return Interval(float(value - distances[0]), float(value + distances[1]))


def _weights(objective: ObjectiveSpec) -> npt.NDArray[np.float64]:
    n = len(objective.tasks)
    return np.array(objective.weights) if objective.aggregate == "weighted" else np.full(n, 1.0 / n)


@dataclass(frozen=True)
class Comparison:
    """Candidate minus baseline on the same items.

    Attributes:
        against: the baseline's id.
        what: the objective's or task's name.
        difference: of the values, on the benchmark's scale.
        low: lower end of the interval.
        high: upper end.
        confidence: of this interval, after correction for the number of baselines.
        verdict: `better` or `worse` only when the interval excludes 0 and enough items were answered differently;
            `not judged` for costs that a clock tells (`costs.MEASURED`).
        n_items: items compared, over all tasks of the objective; 0 for a cost.
        n_different: items that the two models scored differently.
    """

    against: str
    what: str
    difference: float
    low: float
    high: float
    confidence: float
    verdict: Verdict
    n_items: int
    n_different: int


def _parts(objective: ObjectiveSpec, evaluation: Evaluation, references: Mapping[str, Evaluation]) -> list[TaskAnswers]:
    """Per-item numbers whose means, aggregated, are the objective's value: one part per task, or one of an ability."""
    if objective.measure.kind == "ability":
        bank = References.of(references).bank(objective.tasks, objective.measure.subject)
        return [ability_answers(bank, evaluation, objective.tasks)]
    return list(measured(objective.measure, evaluation, objective.tasks, references).values())


def _paired(ours: TaskAnswers, theirs: TaskAnswers, sets: tuple[str, str]) -> npt.NDArray[np.float64]:
    """Numbers of both models for each item, shape `(n, 2)`, in the candidate's order."""
    by_item = dict(zip(theirs.items, theirs.scores, strict=True))
    if len(set(sets)) > 1 or set(by_item) != set(ours.items):
        raise EvaluationError(
            f"Two models cannot be compared on the task {ours.task!r}: they answered different items.",
            got=f"{len(ours.items)} items of the {sets[0]} set, {len(by_item)} of {sets[1]}",
            allowed="the same items",
            fix="score both models on the same item set.",
        )
    return np.array([[score, by_item[item]] for item, score in zip(ours.items, ours.scores, strict=True)])


def _pairs(
    objective: ObjectiveSpec, candidate: Evaluation, baseline: Evaluation, references: Mapping[str, Evaluation]
) -> list[npt.NDArray[np.float64]]:
    """`_paired` for every part of an objective."""
    ours, theirs = (_parts(objective, e, references) for e in (candidate, baseline))
    sets = (candidate.set_name, baseline.set_name)
    return [_paired(a, b, sets) for a, b in zip(ours, theirs, strict=True)]


def _resampled_means(
    pairs: npt.NDArray[np.float64], n_resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Bootstrap means of both columns of `pairs`, shape `(R, 2)`.

    Items with equal pairs are interchangeable, so a resample is a multinomial draw of how often each distinct pair
    occurs: `(R, k)` numbers instead of `(R, n)`. Deviations are widened by `sqrt(n / (n - 1))`: the bootstrap's own
    variance is that much too small.
    """
    n = len(pairs)
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    draws = rng.multinomial(n, counts / n, size=n_resamples)
    mean = pairs.mean(axis=0)
    widen = math.sqrt(n / (n - 1)) if n > 1 else 1.0
    result: npt.NDArray[np.float64] = mean + (draws @ distinct / n - mean) * widen
    return result


def _aggregate(objective: ObjectiveSpec, means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Task means of shape `(tasks, ...)` to objective values of shape `(...)`."""
    if objective.aggregate == "min":
        lowest: npt.NDArray[np.float64] = means.min(axis=0)
        return lowest
    weighted: npt.NDArray[np.float64] = np.tensordot(_weights(objective), means, axes=1)
    return weighted


def bootstrap_difference(
    objective: ObjectiveSpec,
    candidate: Evaluation,
    baseline: Evaluation,
    *,
    seed: int,
    confidence: float = CONFIDENCE,
    n_resamples: int = N_RESAMPLES,
    references: Mapping[str, Evaluation] = NO_REFERENCES,
) -> Interval:
    """Percentile interval of candidate minus baseline by paired bootstrap over items (Efron and Tibshirani 1993).

    Items are resampled within each task, as the tasks were sampled; the two models' answers to an item stay together.

    Args:
        objective: what is compared.
        candidate: answers of the one model.
        baseline: answers of the other, to the same items.
        seed: of the run; the draws depend on it, on the objective and on the task alone.
        confidence: coverage asked for.
        n_resamples: R.
        references: as for `objective_values`.

    Raises:
        EvaluationError: when a task is missing or the items differ, and as `objective_values`.
    """
    means = []
    for task, pairs in zip(objective.tasks, _pairs(objective, candidate, baseline, references), strict=False):
        rng = generator(seed, "bootstrap", objective.name, task)
        means.append(_resampled_means(pairs, n_resamples, rng))
    values = means[0] if objective.measure.kind == "ability" else _aggregate(objective, np.array(means))
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[:, 0] - values[:, 1], [tail, 1 - tail])
    return Interval(float(low), float(high))


def fewest_different(confidence: float) -> int:
    """How many items must be scored differently before two models can be told apart at all.

    With k such items the two-sided sign test cannot go below `2^(1 - k)`. The bootstrap would call a single item
    enough, since all its resamples are equal.
    """
    return math.ceil(1 - math.log2(1 - confidence))


def _verdict(objective: Objective, interval: Interval, n_different: int, confidence: float) -> Verdict:
    counted = not isinstance(objective, CostObjective)
    if isinstance(objective, CostObjective) and objective.cost in MEASURED:
        return "not judged"
    if interval.low <= 0 <= interval.high or (counted and n_different < fewest_different(confidence)):
        return "not separable"
    larger = interval.low > 0
    return "better" if larger == (objective.direction == "maximize") else "worse"


def compare(
    objective: Objective,
    candidate: Evaluation,
    baseline: Evaluation,
    *,
    against: str,
    seed: int,
    confidence: float = CONFIDENCE,
    references: Mapping[str, Evaluation] = NO_REFERENCES,
) -> Comparison:
    """One comparison at one confidence (see `compare_all` for several).

    A custom objective cannot be resampled by item: its interval is `difference +- z sqrt(se^2 + se^2)`, which ignores
    the pairing and is therefore too wide rather than too narrow. A cost has the same interval and no items behind it.

    Raises:
        EvaluationError: when a task is missing or the items differ.
    """
    values = [objective_values(objective, e, references) for e in (candidate, baseline)]
    difference = values[0].value - values[1].value
    if not isinstance(objective, ObjectiveSpec):
        counted = ObjectiveSpec(objective.name, tuple(candidate.answers))
        half = normal_quantile(confidence) * math.hypot(values[0].se, values[1].se)
        interval = Interval(difference - half, difference + half)
    else:
        interval = bootstrap_difference(
            objective, candidate, baseline, seed=seed, confidence=confidence, references=references
        )
        counted = objective
        if objective.measure.kind == "ability":
            # all parts of an ability differ with it; what two models answered differently, their scores tell
            counted = replace(objective, measure=replace(SCORE, subject=objective.measure.subject))
    n_items, n_different = 0, 0
    if not isinstance(objective, CostObjective):
        pairs = np.concatenate(_pairs(counted, candidate, baseline, references))
        n_items, n_different = len(pairs), int(np.sum(pairs[:, 0] != pairs[:, 1]))
    return Comparison(
        against=against,
        what=objective.name,
        difference=difference,
        low=interval.low,
        high=interval.high,
        confidence=confidence,
        verdict=_verdict(objective, interval, n_different, confidence),
        n_items=n_items,
        n_different=n_different,
    )


def compare_all(
    objectives: Sequence[Objective],
    candidate: Evaluation,
    baselines: Mapping[str, Evaluation],
    *,
    seed: int,
    confidence: float = CONFIDENCE,
    references: Mapping[str, Evaluation] = NO_REFERENCES,
) -> tuple[Comparison, ...]:
    """The candidate against every baseline in every objective, objective by objective.

    Within one objective the intervals hold jointly with `confidence` (Bonferroni: each has `1 - (1 - confidence) / m`
    for m baselines). Bonferroni rather than Holm, because it corrects the intervals that are shown and not only the
    verdicts.

    Args:
        objectives: what is compared; for a task of its own, an `ObjectiveSpec` with that task alone.
        candidate: answers of the chosen model, on items that had no part in choosing it.
        baselines: id -> answers to the same items.
        seed: of the run.
        confidence: joint coverage per objective.
        references: as for `objective_values`, on the same items.

    Raises:
        EvaluationError: when a task is missing or the items differ, and as `objective_values`.
    """
    known = References.of(references)
    each = 1 - (1 - confidence) / max(1, len(baselines))
    return tuple(
        compare(objective, candidate, answers, against=name, seed=seed, confidence=each, references=known)
        for objective in objectives
        for name, answers in baselines.items()
    )


def selection_note(n_tried: int, n_compared: int, confidence: float = CONFIDENCE) -> str:
    """What a reader must know about how many candidates stand behind one chosen model.

    Args:
        n_tried: candidates scored on the search set.
        n_compared: baselines in the comparison.
        confidence: joint coverage per objective.
    """
    return (
        f"Chosen among {n_tried} candidates. Its scores on the search and select sets are the luckiest of many and too "
        f"high; the report items were scored once, after the choice, so the intervals here need no correction for the "
        f"number of candidates. They are corrected for {n_compared} comparisons and hold jointly, for each objective "
        f"and for the single tasks together, with {confidence:.0%} confidence."
    )
