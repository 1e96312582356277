"""From a stage of the job to what the loop searches: the space around the best merges so far, and its optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from evomerge.config.load import ResolvedJob
from evomerge.config.parents import Parents
from evomerge.config.stages import ResolvedStage
from evomerge.config.surveys import norms_of
from evomerge.dataflow.families import family_of
from evomerge.loop import Stage, StagePlan
from evomerge.optimizers.auto import Choice, choose
from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.registry import make_optimizer, stream_of
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.recipe.serialize import recipe_from_json
from evomerge.runs.replay import History
from evomerge.runs.stage_records import StageBegun
from evomerge.space.base import CandidateSpace
from evomerge.space.dimensions import Real
from evomerge.space.language import parse_space
from evomerge.space.priors import step_factors
from evomerge.space.space import SearchSpace
from evomerge.strict_yaml import Path as YamlPath
from evomerge.survey.values import Survey
from evomerge.types import Vector

LATER_SPREAD: Final = 0.5
"""A stage that starts from an elite searches its real genes with this part of the space's first spread; choices keep
theirs, because an elite of an earlier stage says nothing about them."""


def recipe_of(
    space: CandidateSpace, refs: tuple[ParentRef, ...], base: str | None, seed: int, vector: Vector
) -> Recipe:
    """The recipe that quantised genes stand for."""
    return space.build(space.space.decode(vector), parents=refs, base=base, seed=seed)


def open_space(resolved: ResolvedJob, parents: Parents, stage: ResolvedStage | None = None) -> CandidateSpace:
    """A stage's search space over these parents, around nothing yet; the first stage's if None.

    Raises:
        SpaceError: naming the line.
        ModelError: when the space is one of layer paths, and the architecture cannot run them.
    """
    wanted = stage or resolved.stages[0]

    def line_of(path: YamlPath) -> int | None:
        return wanted.space.document.line(path)

    # a space of its own file or document knows its lines; of a stage the job's place is told as well
    with resolved.document.placing(*wanted.place) if resolved.in_stages else nullcontext():
        space = parse_space(
            wanted.space.mapping,
            models=parents.models,
            base=parents.base,
            layout=parents.template.layout,
            line_of=line_of,
        )
        if space.runs_paths:
            family_of(parents.template.config)
        return space


def space_at(resolved: ResolvedJob, parents: Parents, history: History, batch: int) -> CandidateSpace:
    """The space that a recorded batch's genes belong to."""
    number = history.stage_of(batch)
    space = open_space(resolved, parents, resolved.stages[number])
    begun = history.stages.get(number)
    elites = () if begun is None else begun.elites
    return space.around([recipe_from_json(dict(e)) for e in elites]) if elites else space


@dataclass(frozen=True)
class StageMaker:
    """One stage, ready to be opened around the best merges so far.

    Attributes:
        resolved: as the job describes it.
        space: its space, around nothing yet.
        parents: of the job.
        counts: number of objectives, of constraints, and of the questions that an evaluation asks.
        seed: of the run.
        budget: evaluations that the optimizer is sized for.
        survey: of the parents; gives weights their first step sizes; None leaves them as the space has them.
    """

    resolved: ResolvedStage
    space: CandidateSpace
    parents: Parents
    counts: tuple[int, int, int]
    seed: int
    budget: int
    survey: Survey | None = None

    def around(self, elites: Sequence[Recipe]) -> CandidateSpace:
        """The space around the best merges so far; the space itself for the first stage."""
        return self.space.around(elites) if elites else self.space

    def as_searched(self, begun: StageBegun | None) -> CandidateSpace:
        """The space around the elites that a run has recorded; the space itself where it has none."""
        return self.around([recipe_from_json(dict(e)) for e in begun.elites] if begun is not None else ())

    def recipe_of(self, space: CandidateSpace, vector: Vector) -> Recipe:
        """The recipe of quantised genes."""
        return recipe_of(space, self.parents.refs(), self.parents.base, self.seed, vector)

    def problem(self, space: CandidateSpace, injected: Sequence[Vector], *, start: Vector | None = None) -> Problem:
        """What the optimizer is given.

        Args:
            space: around the elites.
            injected: vectors to be asked first; repeated ones count once.
            start: where the search begins; the space's own start if None.
        """
        n_objectives, n_constraints, _ = self.counts
        genes = space.space
        spread = genes.spread if start is None else _closer(genes)
        return Problem(
            dim=genes.dim,
            n_objectives=n_objectives,
            n_constraints=n_constraints,
            start=genes.start if start is None else start,
            spread=self._sized(space, spread),
            step=genes.step,
            budget=self.budget,
            seed=self.seed,
            injected=tuple({v.tobytes(): v for v in injected}.values()),
            kinds=genes.kinds,
        )

    def _sized(self, space: CandidateSpace, spread: Vector) -> Vector:
        """First standard deviations, smaller where a weight moves much of the model; see `space.priors`."""
        if self.survey is None or self.resolved.optimizer.steps == "space":
            return spread
        factors = step_factors(space, norms_of(self.survey))
        sized: Vector = np.array(spread) * np.array([factors.get(name, 1.0) for name in space.space.names])
        return sized

    def choice(self, problem: Problem, space: CandidateSpace) -> Choice:
        """The optimizer: named in the job, or chosen for the problem."""
        wanted = self.resolved.optimizer
        options: dict[str, Any] = dict(wanted.options)
        if wanted.population is not None:
            options["population"] = wanted.population
        if wanted.name != "auto":
            return Choice(wanted.name, options, "named in the job")
        mixed = not all(isinstance(d, Real) for d in space.space.dimensions)
        chosen = choose(problem, mixed, self.counts[2])
        return Choice(chosen.name, {**chosen.options, **options}, chosen.why)

    def open(self, elites: tuple[Recipe, ...]) -> Stage:
        """The stage around the best merges so far; not for the first stage, whose baselines are injected."""
        space = self.around(elites)
        vectors = [space.encode_recipe(recipe, seed=self.seed) for recipe in elites]
        found = [v for v in vectors if v is not None]
        start = vectors[0] if vectors else None
        problem = self.problem(space, found, start=start)
        choice = self.choice(problem, space)
        make = partial(make_optimizer, choice.name, problem, choice.options)
        return Stage(space.space, partial(self.recipe_of, space), make, self.resolved.optimizer.asynchronous)


def _closer(genes: SearchSpace) -> Vector:
    """First standard deviations around an elite."""
    parts = np.array([LATER_SPREAD if kind.type == "real" else 1.0 for kind in genes.kinds])
    closer: Vector = np.array(genes.spread) * parts
    return closer


def check_opens(makers: Sequence[StageMaker], stand_ins: Sequence[Recipe], resolved: ResolvedJob) -> None:
    """Open every stage as a search will, so that what is wrong with one is told before anything is scored.

    Args:
        makers: all stages.
        stand_ins: what the best merge before a later stage may be: a parent, and a true merge where there can be one.
        resolved: the job.

    Raises:
        EvomergeError: what opening a stage raises, with its place in the job.
    """
    for number, maker in enumerate(makers):
        place = maker.resolved.place[:2] if resolved.in_stages else maker.resolved.place
        with resolved.document.placing(*place):
            for recipe in stand_ins if number else (None,):
                space = maker.around(() if recipe is None else (recipe,))
                maker.recipe_of(space, space.space.start)
                if recipe is not None:
                    stage = maker.open((recipe,))
                    check_optimizer(
                        maker.resolved, maker.choice(maker.problem(space, ()), space).name, stage.make_optimizer()
                    )


def check_optimizer(stage: ResolvedStage, name: str, optimizer: Optimizer) -> None:
    """Refuse an optimizer that needs generations for a stage that has none.

    Args:
        stage: as the job describes it.
        name: of the optimizer.
        optimizer: a fresh one, not used otherwise.

    Raises:
        ConfigError: with the optimizers that can do without.
    """
    if stage.optimizer.asynchronous:
        stream_of(name, optimizer)


def stage_plans(makers: Sequence[StageMaker], first: Stage, evaluations: int) -> tuple[StagePlan, ...]:
    """The stages as the loop walks through them; what the budget has beyond their parts is the last one's."""
    found, until = [], 0
    for i, maker in enumerate(makers):
        until = evaluations if i == len(makers) - 1 else min(evaluations, until + maker.resolved.evaluations)
        name = maker.resolved.name
        found.append(StagePlan(name, until, maker.open if i else (lambda _elites: first)))
    return tuple(found)
