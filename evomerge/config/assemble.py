"""The composition root: from a resolved job to the objects that a search is made of, the cheap checks first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from evomerge.checkpoints.finite import check_finite
from evomerge.config.engines import check_job_engine
from evomerge.config.goals import build_goals, check_goals_measurable
from evomerge.config.load import ResolvedJob
from evomerge.config.parent_refs import BASE
from evomerge.config.parents import Parents, open_parents
from evomerge.config.questions import Questions, choose_questions
from evomerge.config.seating import Seating, find_seating
from evomerge.config.staging import StageMaker, check_opens, check_optimizer, open_space, recipe_of, stage_plans
from evomerge.config.storage import check_storage
from evomerge.config.suites import build_suite
from evomerge.config.surveys import survey_of
from evomerge.config.texts import read_text
from evomerge.dataflow.families import family_of
from evomerge.errors import ConfigError, suggest
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import CustomObjective, ObjectiveFunction, ObjectiveSpec
from evomerge.evaluation.plan import EvalPlan
from evomerge.evaluation.suite import SuiteSpec
from evomerge.loop import Known, SearchSetup
from evomerge.optimizers.auto import Choice
from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.registry import OPTIMIZERS, make_optimizer
from evomerge.racing.spec import load_questions
from evomerge.recipe.baselines import parent_recipe, soup_recipe, task_arithmetic_recipe
from evomerge.recipe.path import check_layers
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.recipe.serialize import recipe_from_text
from evomerge.runs.manifest import read_manifest
from evomerge.space.base import CandidateSpace
from evomerge.survey.values import Survey, recorded_survey
from evomerge.types import CandidateId
from evomerge.virtual.maker import ParentReport


@dataclass(frozen=True)
class Assembled:
    """Everything a search needs but its run directory and its workers.

    Attributes:
        resolved: the job.
        parents: the checkpoints.
        space: the search space, of the first stage where there are several.
        suite: what the plan was compiled from.
        plan: the compiled questions.
        goals: objectives and constraints.
        optimizer: name, options and why; of the first stage.
        problem: what the optimizer is given; of the first stage.
        known: baselines and injected recipes.
        questions: how many questions candidates are asked, and which.
        makers: all stages, one for a job without stages.
        survey: of the parents; None for a run that was begun without one.
    """

    resolved: ResolvedJob
    parents: Parents
    space: CandidateSpace
    suite: SuiteSpec
    plan: EvalPlan
    goals: Goals
    optimizer: Choice
    problem: Problem
    known: tuple[Known, ...]
    questions: Questions
    makers: tuple[StageMaker, ...]
    survey: Survey | None

    @cached_property
    def seating(self) -> Seating:
        """Where the workers find room; asked once, when it is needed.

        Raises:
            ConfigError: when there should be a cluster and it does not answer.
        """
        return find_seating(self.resolved.job.cluster)

    def setup(self, *, accept_history: bool) -> SearchSetup:
        """What the search loop is given."""
        evaluations = self.resolved.job.budget.evaluations
        setup = SearchSetup(
            space=self.space.space,
            recipe_of=partial(recipe_of, self.space, self.parents.refs(), self.parents.base, self.resolved.job.seed),
            known=self.known,
            goals=self.goals,
            make_optimizer=self.make_optimizer,
            budget=evaluations,
            accept_history=accept_history,
            questions=self.questions.spec,
            pool=self.questions.pool,
            seed=self.resolved.job.seed,
            asynchronous=self.resolved.stages[0].optimizer.asynchronous,
        )
        if not self.resolved.in_stages:
            return setup
        return replace(setup, stages=stage_plans(self.makers, setup.first, evaluations))

    def likely_space(self, number: int) -> CandidateSpace:
        """The space of a stage as it probably opens: around a true merge, where the parents allow one."""
        return self.makers[number].around(_stand_ins(self.known)[-1:] if number else ())

    def likely_optimizer(self, number: int) -> Choice:
        """The optimizer of a stage as it probably opens; of the first stage as it does."""
        if number == 0:
            return self.optimizer
        maker, space = self.makers[number], self.likely_space(number)
        return maker.choice(maker.problem(space, ()), space)

    def make_optimizer(self) -> Optimizer:
        """A fresh optimizer."""
        return make_optimizer(self.optimizer.name, self.problem, self.optimizer.options)


def assemble(
    resolved: ResolvedJob,
    functions: Mapping[str, ObjectiveFunction] | None = None,
    sized_for: int | None = None,
    run: Path | None = None,
    making: ParentReport | None = None,
) -> Assembled:
    """Check everything that can be checked without a worker.

    Args:
        resolved: the job.
        functions: objective name -> Python function.
        sized_for: the budget that the optimizer is chosen and sized for; the job's if None. A resumed run keeps the
            one that it began with, or it would ask for other candidates than the recorded ones.
        run: the directory of a run that is resumed; its survey of the parents is used, if it has one.
        making: makes the parents that are made from others, after all checks, and is told of it; without it they stay
            as they are, and the survey leaves them out.

    Raises:
        ConfigError: for unknown names in optimizer, suite, objectives and constraints.
        ModelError: for parents that are missing, damaged, incompatible or not finite.
        SpaceError: for a malformed search space.
        EvaluationError: for tasks that cannot be compiled or have too few items.
    """
    _check_optimizers(resolved)
    with resolved.document.placing("suite", "questions"):
        spec = load_questions(resolved.suite.model_dump(mode="json")["questions"])
    suite = build_suite(resolved)
    goals = build_goals(resolved.job, suite.names, functions or {}, resolved.document)
    parents = open_parents(resolved)
    check_storage(resolved, parents)
    spaces = [open_space(resolved, parents, stage) for stage in resolved.stages]
    for checkpoint in parents.checkpoints.values():
        if checkpoint.is_ready:
            check_finite(checkpoint)  # what is yet to be made is looked at then
    known = _known(resolved, parents, spaces[0])
    plan = _compile(suite, parents)
    with resolved.document.placing("suite", "questions"):
        questions = choose_questions(spec, plan, goals, asynchronous=resolved.asynchronous)
    check_goals_measurable(goals, plan, resolved.document)
    counts = (len(goals.objectives), len(goals.constraints), questions.per_candidate(_judged_tasks(goals, plan)))
    sizes = [s.evaluations if resolved.in_stages or sized_for is None else sized_for for s in resolved.stages]
    if making is not None:
        parents.make(making)
    survey = survey_of(parents.checkpoints, parents.base) if run is None else recorded_survey(read_manifest(run))
    makers = tuple(
        StageMaker(stage, space, parents, counts, resolved.job.seed, size, survey)
        for stage, space, size in zip(resolved.stages, spaces, sizes, strict=True)
    )
    check_opens(makers, _stand_ins(known), resolved)
    check_job_engine(resolved, plan, parents, known, makers)
    problem = makers[0].problem(spaces[0], [k.vector for k in known if k.vector is not None])
    choice = makers[0].choice(problem, spaces[0])
    with resolved.document.placing(*resolved.stages[0].optimizer_place):  # refused before anything runs
        optimizer = make_optimizer(choice.name, problem, choice.options)
        check_optimizer(resolved.stages[0], choice.name, optimizer)
    return Assembled(
        resolved, parents, spaces[0], suite, plan, goals, choice, problem, known, questions, makers, survey
    )


def _compile(suite: SuiteSpec, parents: Parents) -> EvalPlan:
    from evomerge.evaluation.lm_eval import compile_plan

    return compile_plan(suite, parents.template.tokenizer_folder)


def _check_optimizers(resolved: ResolvedJob) -> None:
    for stage in resolved.stages:
        with resolved.document.placing(*stage.optimizer_place):
            _check_optimizer(stage.optimizer.name)


def _check_optimizer(name: str) -> None:
    names = ["auto", *OPTIMIZERS.names()]
    if name not in names:
        raise ConfigError(
            f"There is no optimizer {name!r}.",
            got=repr(name),
            allowed=suggest(name, names),
            fix="use one of these names; `evomerge ls optimizers` says what each is for.",
        )


def _known(resolved: ResolvedJob, parents: Parents, space: CandidateSpace) -> tuple[Known, ...]:
    """Parents, injected recipes, soup and task arithmetic: in this order, should the budget not hold all of them."""
    refs = {ref.name: ref for ref in parents.refs()}
    models = [refs[name] for name in parents.models]
    seed = resolved.job.seed
    found: list[tuple[str, Any, str, Recipe]] = [
        (f"parent-{name}", "parent", name, parent_recipe(ref)) for name, ref in refs.items()
    ]
    for i, path in enumerate(resolved.job.inject):
        with resolved.document.placing("inject", i):
            recipe = _injected(Path(path), refs)
            _check_path(recipe, parents)
            found.append((f"injected-{i}", "injected", Path(path).stem, recipe))
    if len(models) > 1:
        found.append(("soup", "soup", "uniform soup", soup_recipe(models)))
    if parents.base is not None:
        for strength in space.starts:
            recipe = task_arithmetic_recipe(models, refs[BASE], strength)
            found.append((f"task-arithmetic-{strength:g}", "task-arithmetic", f"task arithmetic {strength:g}", recipe))
    known = []
    for id_, kind, name, plain in found:
        vector = space.encode_recipe(plain, seed=seed)
        # the space's own recipe of the same model, so that the optimizer's asking for it costs nothing
        own = None if vector is None else recipe_of(space, tuple(refs.values()), parents.base, seed, vector)
        known.append(Known(CandidateId(id_), kind, name, own or plain, vector))
    return tuple(known)


def _check_path(recipe: Recipe, parents: Parents) -> None:
    """Refuse a path that the parents cannot run.

    Raises:
        ModelError: for an architecture whose layers are no plain chain.
        RecipeError: for layers that the parents do not have.
    """
    if recipe.path is not None:
        family_of(parents.template.config)
        check_layers(recipe.path, parents.template.layout.n_layers)


def _stand_ins(known: Sequence[Known]) -> tuple[Recipe, ...]:
    """A parent and, where there is one, a true merge: what a stage may be opened around."""
    merges = [k.recipe for k in known if k.kind in ("task-arithmetic", "soup")]
    return (known[0].recipe, *merges[:1])


def _injected(path: Path, refs: Mapping[str, ParentRef]) -> Recipe:
    """A recipe file whose parents are the job's, matched by content, then by name.

    Raises:
        ConfigError: when it needs another parent.
    """
    recipe = recipe_from_text(read_text(path, "recipe file"))
    by_content = {ref.content: ref for ref in refs.values()}
    names: dict[str, ParentRef] = {}
    for parent in recipe.parents:
        ref = by_content.get(parent.content) if parent.content is not None else refs.get(parent.name)
        if ref is None:
            raise ConfigError(
                "An injected recipe needs a parent that the job does not have.",
                got=f"{path}: {parent.name} ({parent.source})",
                allowed=", ".join(refs),
                fix="add that parent to the job, or leave the recipe out of `inject`.",
            )
        names[parent.name] = ref
    rules = tuple(
        replace(rule, per_parent={names[p].name: values for p, values in rule.per_parent.items()})
        for rule in recipe.rules
    )
    base = names[recipe.base].name if recipe.base is not None else None
    hops = (replace(h, parent=None if h.parent is None else names[h.parent].name) for h in recipe.path or ())
    hops_here = None if recipe.path is None else tuple(hops)
    return replace(recipe, parents=tuple(names.values()), base=base, rules=rules, path=hops_here)


def _judged_tasks(goals: Goals, plan: EvalPlan) -> tuple[str, ...]:
    """The tasks behind the objectives."""
    named = {t for o in goals.objectives if isinstance(o, ObjectiveSpec) for t in o.tasks}
    custom = any(isinstance(o, CustomObjective) for o in goals.objectives)
    return tuple(t.name for t in plan.tasks if custom or t.name in named)
