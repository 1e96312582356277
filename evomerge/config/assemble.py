"""The composition root: from a resolved job to the objects that a search is made of, the cheap checks first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from evomerge.checkpoints.compatible import check_compatible
from evomerge.checkpoints.finite import check_finite
from evomerge.checkpoints.reader import Checkpoint, open_checkpoint
from evomerge.config.goals import build_goals, check_goals_measurable
from evomerge.config.load import ResolvedJob, read_text
from evomerge.config.questions import Questions, choose_questions
from evomerge.config.strict_yaml import Path as YamlPath
from evomerge.errors import ConfigError, suggest
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import CustomObjective, ObjectiveFunction, ObjectiveSpec
from evomerge.evaluation.plan import EvalPlan
from evomerge.evaluation.suite import SuiteSpec, load_suite
from evomerge.loop import Known, SearchSetup
from evomerge.optimizers.auto import Choice, choose
from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.registry import OPTIMIZERS, make_optimizer
from evomerge.racing.spec import load_questions
from evomerge.recipe.baselines import parent_recipe, soup_recipe, task_arithmetic_recipe
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.recipe.serialize import recipe_from_text
from evomerge.space.base import CandidateSpace
from evomerge.space.dimensions import Real
from evomerge.space.language import parse_space
from evomerge.types import CandidateId, Vector

BASE = "base"


@dataclass(frozen=True)
class Parents:
    """The job's parents, opened and found compatible.

    Attributes:
        checkpoints: name -> checkpoint, the base first under `base`, then the models in the job's order.
        base: `base`, or None.
    """

    checkpoints: Mapping[str, Checkpoint]
    base: str | None

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the parents other than the base."""
        return tuple(name for name in self.checkpoints if name != self.base)

    @property
    def template_name(self) -> str:
        """Whose config, tokenizer and dtypes a merge takes: the base's, else the first model's."""
        return next(iter(self.checkpoints))

    @property
    def template(self) -> Checkpoint:
        """The checkpoint of `template_name`."""
        return self.checkpoints[self.template_name]

    @property
    def n_parameters(self) -> int:
        """Of one parent."""
        return sum(math.prod(t.shape) for t in self.template.layout.tensors)

    def refs(self) -> tuple[ParentRef, ...]:
        """The parents as recipes name them; reads every weight once for the content digests."""
        return tuple(ParentRef(n, c.source, c.revision, c.content) for n, c in self.checkpoints.items())


@dataclass(frozen=True)
class Assembled:
    """Everything a search needs but its run directory and its workers.

    Attributes:
        resolved: the job.
        parents: the checkpoints.
        space: the search space.
        suite: what the plan was compiled from.
        plan: the compiled questions.
        goals: objectives and constraints.
        optimizer: name, options and why.
        problem: what the optimizer is given.
        known: baselines and injected recipes.
        questions: how many questions candidates are asked, and which.
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

    def setup(self, *, accept_history: bool) -> SearchSetup:
        """What the search loop is given."""
        return SearchSetup(
            space=self.space.space,
            recipe_of=partial(recipe_of, self.space, self.parents.refs(), self.parents.base, self.resolved.job.seed),
            known=self.known,
            goals=self.goals,
            make_optimizer=self.make_optimizer,
            budget=self.resolved.job.budget.evaluations,
            accept_history=accept_history,
            questions=self.questions.spec,
            pool=self.questions.pool,
            seed=self.resolved.job.seed,
        )

    def make_optimizer(self) -> Optimizer:
        """A fresh optimizer."""
        return make_optimizer(self.optimizer.name, self.problem, self.optimizer.options)


def recipe_of(
    space: CandidateSpace, refs: tuple[ParentRef, ...], base: str | None, seed: int, vector: Vector
) -> Recipe:
    """The recipe that quantised genes stand for."""
    return space.build(space.space.decode(vector), parents=refs, base=base, seed=seed)


def open_parents(resolved: ResolvedJob) -> Parents:
    """Open the job's parents and compare their headers.

    Raises:
        ModelError: for the first that cannot be opened, then listing every difference between them.
    """
    job = resolved.job.parents
    sources = ({BASE: job.base} if job.base is not None else {}) | dict(job.models)
    checkpoints = {}
    for name, source in sources.items():
        with resolved.document.placing("parents", *([BASE] if name == BASE else ["models", name])):
            checkpoints[name] = open_checkpoint(source)
    check_compatible(checkpoints, BASE if job.base is not None else None)
    return Parents(checkpoints, BASE if job.base is not None else None)


def open_space(resolved: ResolvedJob, parents: Parents) -> CandidateSpace:
    """The job's search space over these parents.

    Raises:
        SpaceError: naming the line.
    """

    def line_of(path: YamlPath) -> int | None:
        return resolved.space_document.line(path)

    return parse_space(
        dict(resolved.space),
        models=parents.models,
        base=parents.base,
        layout=parents.template.layout,
        line_of=line_of,
    )


def assemble(
    resolved: ResolvedJob, functions: Mapping[str, ObjectiveFunction] | None = None, sized_for: int | None = None
) -> Assembled:
    """Check everything that can be checked without a worker.

    Args:
        resolved: the job.
        functions: objective name -> Python function.
        sized_for: the budget that the optimizer is chosen and sized for; the job's if None. A resumed run keeps the
            one that it began with, or it would ask for other candidates than the recorded ones.

    Raises:
        ConfigError: for unknown names in optimizer, suite, objectives and constraints.
        ModelError: for parents that are missing, damaged, incompatible or not finite.
        SpaceError: for a malformed search space.
        EvaluationError: for tasks that cannot be compiled or have too few items.
    """
    with resolved.document.placing("optimizer"):
        _check_optimizer(resolved.optimizer.name)
    with resolved.document.placing("suite", "questions"):
        spec = load_questions(resolved.suite.model_dump(mode="json")["questions"])
    suite = build_suite(resolved)
    goals = build_goals(resolved.job, suite.names, functions or {}, resolved.document)
    parents = open_parents(resolved)
    space = open_space(resolved, parents)
    for checkpoint in parents.checkpoints.values():
        check_finite(checkpoint)
    known = _known(resolved, parents, space)
    plan = _compile(suite, parents)
    with resolved.document.placing("suite", "questions"):
        questions = choose_questions(spec, plan, goals)
    check_goals_measurable(goals, plan, resolved.document)
    problem = _problem(resolved, space, goals, known, sized_for)
    choice = _choice(resolved, space, problem, questions.per_candidate(_judged_tasks(goals, plan)))
    with resolved.document.placing("optimizer"):  # options that do not fit are refused before anything runs
        make_optimizer(choice.name, problem, choice.options)
    return Assembled(resolved, parents, space, suite, plan, goals, choice, problem, known, questions)


def build_suite(resolved: ResolvedJob) -> SuiteSpec:
    """The suite as a plain value.

    Raises:
        EvaluationError: for what its schema cannot say: tasks that stand twice, impossible splits.
    """
    with resolved.document.placing("suite"):
        return load_suite(resolved.suite.model_dump(mode="json", exclude_none=True, exclude={"questions"}))


def _compile(suite: SuiteSpec, parents: Parents) -> EvalPlan:
    from evomerge.evaluation.lm_eval import compile_plan

    return compile_plan(suite, parents.template.folder)


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
            found.append((f"injected-{i}", "injected", Path(path).stem, _injected(Path(path), refs)))
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
    return replace(recipe, parents=tuple(names.values()), base=base, rules=rules)


def _problem(
    resolved: ResolvedJob, space: CandidateSpace, goals: Goals, known: Sequence[Known], sized_for: int | None
) -> Problem:
    vectors: dict[bytes, Vector] = {}
    for model in known:
        if model.vector is not None:
            vectors.setdefault(model.vector.tobytes(), model.vector)
    return Problem(
        dim=space.space.dim,
        n_objectives=len(goals.objectives),
        n_constraints=len(goals.constraints),
        start=space.space.start,
        spread=space.space.spread,
        step=space.space.step,
        budget=resolved.job.budget.evaluations if sized_for is None else sized_for,
        seed=resolved.job.seed,
        injected=tuple(vectors.values()),
        kinds=space.space.kinds,
    )


def _judged_tasks(goals: Goals, plan: EvalPlan) -> tuple[str, ...]:
    """The tasks behind the objectives."""
    named = {t for o in goals.objectives if isinstance(o, ObjectiveSpec) for t in o.tasks}
    custom = any(isinstance(o, CustomObjective) for o in goals.objectives)
    return tuple(t.name for t in plan.tasks if custom or t.name in named)


def _choice(resolved: ResolvedJob, space: CandidateSpace, problem: Problem, n_questions: int) -> Choice:
    wanted = resolved.optimizer
    options = dict(wanted.options)
    if wanted.population is not None:
        options["population"] = wanted.population
    if wanted.name != "auto":
        return Choice(wanted.name, options, "named in the job")
    mixed = not all(isinstance(d, Real) for d in space.space.dimensions)
    chosen = choose(problem, mixed, n_questions)
    return Choice(chosen.name, {**chosen.options, **options}, chosen.why)
