"""A run's aims: objectives and constraints over scores and costs, and the one place where direction becomes sign.

Notation: a task's score is its mean over n items with standard error s. Scores and objective values are on the
benchmark's scale; losses and violations, lower-is-better, are what optimizers and the archive see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np

from evomerge.errors import ConfigError, EvaluationError, suggest
from evomerge.evaluation.common_ability import ability_of
from evomerge.evaluation.costs import COSTS, CostKind
from evomerge.evaluation.measures import BASE, NO_REFERENCES, SCORE, Measure, References, check_combination, measured
from evomerge.types import Evaluation

Aggregate = Literal["mean", "min", "weighted"]
Direction = Literal["maximize", "minimize"]
Sense = Literal["at_least", "at_most"]

AGGREGATES: Final[tuple[Aggregate, ...]] = ("mean", "min", "weighted")

BEST_PARENT: Final = "best_parent"

DEFAULT_Z: Final = 0.0
"""Standard errors by which a constraint must be met. 0: what was measured decides.

Bounds are mostly relative to a parent, measured on the same items; with z = 1 and 100 items of accuracy 0.8 (standard
error 0.04) the parent itself would violate "no worse than the parent minus one point", and no front would be left. Set
z to 1 or 2 for bounds that must hold, as safety thresholds do: constraints are judged on the search set only.
"""


class Estimate(NamedTuple):
    """A number with its standard error over items."""

    value: float
    se: float


def _unknown_aggregate(name: str, aggregate: str) -> ConfigError:
    return ConfigError(
        f"The objective {name!r} is aggregated in an unknown way.",
        got=f"aggregate: {aggregate!r}",
        allowed=suggest(aggregate, AGGREGATES),
        fix="use one of these.",
    )


def _check_direction(name: str, direction: str) -> None:
    if direction not in ("maximize", "minimize"):
        raise ConfigError(
            f"The objective {name!r} has no usable direction.",
            got=f"direction: {direction!r}",
            allowed=suggest(direction, ["maximize", "minimize"]),
            fix="use maximize for scores, minimize for costs.",
        )


@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective that is computed from the answers to tasks.

    Attributes:
        name: unique among the objectives of a job.
        tasks: at least one, without repetition.
        aggregate: `mean` and `min` over the tasks, or `weighted`: the sum of weight times score.
        weights: one finite number per task for `weighted` (not all 0), empty otherwise.
        direction: whether more is better.
        measure: what of the answers counts; with a subject there is one task, and an ability has no aggregate.
    """

    name: str
    tasks: tuple[str, ...]
    aggregate: Aggregate = "mean"
    weights: tuple[float, ...] = ()
    direction: Direction = "maximize"
    measure: Measure = SCORE

    def __post_init__(self) -> None:
        _check_direction(self.name, self.direction)
        if self.aggregate not in AGGREGATES:
            raise _unknown_aggregate(self.name, self.aggregate)
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ConfigError(
                f"The objective {self.name!r} needs tasks.",
                got=f"tasks: {list(self.tasks)}",
                allowed="one or more tasks, each named once",
                fix="name the tasks that the objective is about.",
            )
        expected = len(self.tasks) if self.aggregate == "weighted" else 0
        finite = all(math.isfinite(w) for w in self.weights)
        if len(self.weights) != expected or not finite or (expected and not any(self.weights)):
            raise ConfigError(
                f"The weights of the objective {self.name!r} do not fit its tasks.",
                got=f"weights: {list(self.weights)} with aggregate: {self.aggregate}",
                allowed=f"{expected} finite numbers, not all 0"
                if expected
                else "weights only with aggregate: weighted",
                fix="give one weight per task together with aggregate: weighted.",
            )
        check_combination(self.name, self.measure, n_tasks=len(self.tasks), aggregated=self.aggregate != "mean")


ObjectiveFunction = Callable[[Evaluation], "float | tuple[float, float]"]


@dataclass(frozen=True)
class CustomObjective:
    """An objective that a Python function computes.

    Attributes:
        name: unique among the objectives of a job.
        function: an evaluation -> value, or (value, standard error); pure, since a resumed run calls it again.
        direction: whether more is better.
    """

    name: str
    function: ObjectiveFunction
    direction: Direction = "maximize"

    def __post_init__(self) -> None:
        _check_direction(self.name, self.direction)


def _check_cost(who: str, cost: str) -> None:
    if cost not in COSTS:
        raise ConfigError(
            f"{who} is about an unknown cost.", got=repr(cost), allowed=suggest(cost, COSTS), fix="use one of these."
        )


@dataclass(frozen=True)
class CostObjective:
    """An objective that is a cost of the model, whatever it answers.

    Attributes:
        name: unique among the objectives of a job.
        cost: which one.
        direction: whether more is better.
    """

    name: str
    cost: CostKind
    direction: Direction = "minimize"

    def __post_init__(self) -> None:
        _check_direction(self.name, self.direction)
        _check_cost(f"The objective {self.name!r}", self.cost)


Objective = ObjectiveSpec | CustomObjective | CostObjective


@dataclass(frozen=True)
class Relative:
    """A bound that is a model's measured value plus an offset.

    Attributes:
        of: `best_parent`, `base`, or a parent's name.
        offset: added to that value; negative for `minus`.
    """

    of: str
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.offset):
            raise ValueError(f"an offset of {self.offset} bounds nothing")


@dataclass(frozen=True)
class ConstraintSpec:
    """A bound that every point of the front must respect.

    Attributes:
        kind: whether `subject` names a task, an objective or a cost.
        subject: the task, objective or cost that is bounded.
        sense: from below or from above.
        bound: a number, or one relative to a model.
        z: standard errors by which it must be met (see `DEFAULT_Z`).
        measure: of the task that is bounded; an objective has its own.
    """

    kind: Literal["task", "objective", "cost"]
    subject: str
    sense: Sense
    bound: float | Relative
    z: float = DEFAULT_Z
    measure: Measure = SCORE

    def __post_init__(self) -> None:
        if self.kind == "cost":
            _check_cost("A constraint", self.subject)
        if self.kind != "task" and not self.measure.plain:
            raise ConfigError(
                f"The constraint on the {self.kind} {self.subject!r} has a measure of its own.",
                got=f"measure: {self.measure.kind}",
                allowed="measure, against and subject beside `task`; an objective has its own",
                fix="bound a task, or put the measure into the objective.",
            )
        if not isinstance(self.bound, Relative) and not math.isfinite(self.bound):
            raise ValueError(f"a bound of {self.bound} on {self.subject} bounds nothing")
        if not (math.isfinite(self.z) and self.z >= 0):
            raise ValueError(f"z = {self.z} must be finite and not negative")

    @property
    def label(self) -> str:
        """What is bounded, for people: the task, its measure, the objective, or the cost."""
        return self.measure.of(self.subject)

    @property
    def text(self) -> str:
        """The constraint in one line, for people."""
        sign = ">=" if self.sense == "at_least" else "<="
        if not isinstance(self.bound, Relative):
            return f"{self.label} {sign} {self.bound:g}"
        offset = (
            "" if self.bound.offset == 0 else f" {'+' if self.bound.offset > 0 else '-'} {abs(self.bound.offset):g}"
        )
        return f"{self.label} {sign} {self.bound.of}{offset}"


def _refuse(what: str, name: str, known: Sequence[str], fix: str) -> ConfigError:
    return ConfigError(what, got=repr(name), allowed=suggest(name, known), fix=fix)


def _custom(objective: CustomObjective, evaluation: Evaluation) -> Estimate:
    result = objective.function(evaluation)
    value, se = result if isinstance(result, tuple) else (result, 0.0)
    estimate = Estimate(float(value), float(se))
    if not (math.isfinite(estimate.value) and math.isfinite(estimate.se) and estimate.se >= 0):
        raise EvaluationError(
            f"The objective {objective.name!r} did not return a usable value.",
            got=f"value {estimate.value}, standard error {estimate.se}",
            allowed="a finite value, and a finite standard error of at least 0",
            fix="repair the objective's function.",
        )
    return estimate


def _cost(objective: CostObjective, evaluation: Evaluation) -> Estimate:
    if objective.cost not in evaluation.costs:
        raise EvaluationError(
            f"The cost {objective.cost!r} of a model is not known.",
            got=f"costs: {', '.join(evaluation.costs) or 'none'}",
            allowed=f"evaluations of workers that were asked for {objective.cost}",
            fix="score the model with a worker of this job.",
        )
    return Estimate(*evaluation.costs[objective.cost])


def objective_values(
    objective: Objective, evaluation: Evaluation, references: Mapping[str, Evaluation] = NO_REFERENCES
) -> Estimate:
    """The value of one objective, on the benchmark's scale.

    Standard errors treat tasks as independent (they share no items). For `mean` and `weighted` that is the square root
    of `sum (w s)^2`. For `min` it is s of the task that attains the minimum (the largest among ties): exact when one
    task is clearly the worst, too large by at most a fifth when two tie, since `sd(min(X, Y)) = s sqrt(1 - 1 / pi)`.

    Args:
        objective: what is wanted.
        evaluation: a model's answers.
        references: the parents by name, and the base as `base`, on the same item set: for flips and abilities.

    Raises:
        EvaluationError: when a cost was not told, a task was not scored, a custom function returned something
            unusable, and as `measured` and `References.bank`.
    """
    if isinstance(objective, CustomObjective):
        return _custom(objective, evaluation)
    if isinstance(objective, CostObjective):
        return _cost(objective, evaluation)
    if objective.measure.kind == "ability":
        bank = References.of(references).bank(objective.tasks, objective.measure.subject)
        return Estimate(*ability_of(bank, evaluation, objective.tasks))
    found = measured(objective.measure, evaluation, objective.tasks, references)
    return combine(objective, [Estimate(a.mean, a.se) for a in found.values()])


def combine(objective: ObjectiveSpec, parts: Sequence[Estimate]) -> Estimate:
    """The value of an objective from its tasks' scores; see `objective_values` for the standard errors.

    Args:
        objective: how to aggregate.
        parts: one estimate per task of the objective, aligned.
    """
    values = np.array([p.value for p in parts])
    errors = np.array([p.se for p in parts])
    if objective.aggregate == "min":
        lowest = values.min()
        return Estimate(float(lowest), float(errors[values == lowest].max()))
    weights = np.array(objective.weights) if objective.aggregate == "weighted" else np.full(len(parts), 1 / len(parts))
    return Estimate(float(weights @ values), float(np.sqrt(np.sum((weights * errors) ** 2))))


def loss(objective: Objective, value: float) -> float:
    """Lower-is-better form of an objective's value. Direction becomes sign here and nowhere else."""
    return -value if objective.direction == "maximize" else value


def _kind(cost: str) -> CostKind:
    return next(kind for kind in COSTS if kind == cost)


def bounded(constraint: ConstraintSpec, objectives: Sequence[Objective]) -> Objective:
    """What a constraint bounds, as an objective: one of the job's, its task's measure, or its cost.

    Raises:
        ConfigError: when it is on an objective that does not exist.
    """
    if constraint.kind == "task":
        direction: Direction = "minimize" if constraint.measure.minimized else "maximize"
        return ObjectiveSpec(constraint.label, (constraint.subject,), direction=direction, measure=constraint.measure)
    if constraint.kind == "cost":
        return CostObjective(constraint.label, _kind(constraint.subject))
    for objective in objectives:
        if objective.name == constraint.subject:
            return objective
    raise _refuse(
        "A constraint is on an objective that does not exist.",
        constraint.subject,
        [o.name for o in objectives],
        "correct the name.",
    )


def resolve_bound(
    constraint: ConstraintSpec, objectives: Sequence[Objective], references: Mapping[str, Evaluation]
) -> float:
    """The bound as a number, on the item set of `references`.

    `best_parent` is the best among the references other than the base: largest for a task and a maximized objective,
    smallest for a minimized one, for flips and for costs.

    Args:
        constraint: what is bounded.
        objectives: of the job, for constraints on objectives.
        references: the parents by name, and the base as `base`, all scored on the same item set.

    Raises:
        ConfigError: when the model that the bound refers to was not scored, or the subject does not exist.
    """
    references = References.of(references)
    subject = bounded(constraint, objectives)
    values = {name: objective_values(subject, e, references).value for name, e in references.items()}
    bound = bound_among(constraint, objectives, values)
    if bound is None:
        of = constraint.bound.of if isinstance(constraint.bound, Relative) else ""
        what = f"The constraint on {constraint.subject!r} refers to a model without scores."
        raise _refuse(what, of, [*references, BEST_PARENT], "correct the name, or have the model scored first.")
    return bound


def bound_among(
    constraint: ConstraintSpec, objectives: Sequence[Objective], values: Mapping[str, float]
) -> float | None:
    """The bound as a number; None when the model that it refers to is not among those scored.

    Args:
        constraint: what is bounded.
        objectives: of the job, for the direction of a bounded objective.
        values: the subject's value for every parent by name, and for the base as `base`.
    """
    bound = constraint.bound
    if not isinstance(bound, Relative):
        return float(bound)
    if bound.of != BEST_PARENT:
        return values[bound.of] + bound.offset if bound.of in values else None
    best = min if bounded(constraint, objectives).direction == "minimize" else max
    parents = [value for name, value in values.items() if name != BASE]
    return best(parents) + bound.offset if parents else None


def violation(constraint: ConstraintSpec, bound: float, estimate: Estimate) -> float:
    """By how much a constraint is violated; feasible when <= 0.

    `bound - value + z * se` from below, `value - bound + z * se` from above.

    Args:
        constraint: what is bounded, and how surely.
        bound: from `resolve_bound`.
        estimate: the candidate's value of the subject.
    """
    gap = bound - estimate.value if constraint.sense == "at_least" else estimate.value - bound
    return gap + constraint.z * estimate.se
