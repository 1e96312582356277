"""Decides what a generation is asked, and says what its answers mean: the item response side of the search.

The questioner sees answers in the order in which the search walks through the run, and nothing else; a resumed run
therefore rebuilds it exactly. It asks nobody itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, final

import numpy as np

from evomerge.evaluation.beliefs import Belief, Beliefs, believed, follows_from_scores, subjects
from evomerge.evaluation.goals import BoundGoals
from evomerge.evaluation.measures import Functional, functional
from evomerge.evaluation.objectives import Estimate, Objective, ObjectiveSpec, combine, objective_values
from evomerge.irt.bank import ItemBank
from evomerge.irt.design import Design
from evomerge.irt.responses import Floats
from evomerge.irt.select import mixed_design, stratified_order
from evomerge.irt.weighted import WeightedDesign
from evomerge.racing.answers import AnswerTable
from evomerge.racing.asking import Asked, Asking, PooledAsking, SplitAsking
from evomerge.racing.spec import QuestionsSpec
from evomerge.racing.task_model import FEWEST_MODELS, Report, TaskModel
from evomerge.seeds import generator
from evomerge.types import Digest, Evaluation

CALIBRATION_MODELS: Final = 20
"""Models that answer everything before a search asks in part: the baselines, the first generation, and as many more
generations as it takes. With ten models held-out errors are several times larger."""

NEED_NO_BANK: Final = ("mean", "stratified")
"""Estimators that need no calibration; with a random order, partial asking may begin at once."""


def calibration_models(spec: QuestionsSpec, *, imported: bool) -> int:
    """How many models must have answered everything before partial asking begins.

    Args:
        spec: of the job.
        imported: whether every task has a bank from elsewhere.
    """
    if spec.calibrate is not None:
        return max(spec.calibrate, FEWEST_MODELS)
    return FEWEST_MODELS if imported else CALIBRATION_MODELS


class Pool(NamedTuple):
    """What the questioner may choose from.

    Attributes:
        items: task -> item hashes of its search set, in plan order.
        importance: task -> its weight in objectives and constraints, not negative (see `importance_of`).
        margins: tasks whose margins an objective or constraint is about.
        banks: task -> a bank from elsewhere that holds exactly these items in this order.
    """

    items: Mapping[str, tuple[str, ...]]
    importance: Mapping[str, float]
    margins: frozenset[str] = frozenset()
    banks: Mapping[str, ItemBank] = {}


@final
class Questioner:
    """See the module docstring.

    Args:
        spec: how many questions, and how they are chosen.
        pool: the search set.
        seed: of the run.
    """

    def __init__(self, spec: QuestionsSpec, pool: Pool, seed: int) -> None:
        self._spec = spec
        self._pool = pool
        self._seed = seed
        self._numbers = {task: spec.per_task(len(items)) for task, items in pool.items.items()}
        self._tables = {task: AnswerTable(task, items) for task, items in pool.items.items()}
        self._margins = {task: AnswerTable(task, pool.items[task], "margin") for task in sorted(pool.margins)}
        self._models = {
            task: TaskModel(
                table, estimator=spec.estimator, imported=pool.banks.get(task), seed=seed, banked=self.needs_bank
            )
            for task, table in self._tables.items()
        }
        self._margin_models = {
            task: TaskModel(table, estimator=spec.estimator, seed=seed, banked=self.needs_bank)
            for task, table in self._margins.items()
        }
        self._recent: tuple[Digest, ...] = ()
        self._parents: tuple[Digest, ...] = ()

    @property
    def partial(self) -> bool:
        """Whether candidates are ever asked less than everything."""
        return any(n < len(self._pool.items[task]) for task, n in self._numbers.items())

    @property
    def mean_questions(self) -> int:
        """Questions per candidate, over all tasks."""
        return sum(self._numbers.values())

    @property
    def n_items(self) -> int:
        """Items of the search set, over all tasks."""
        return sum(map(len, self._pool.items.values()))

    @property
    def n_tasks(self) -> int:
        """Tasks of the search set."""
        return len(self._pool.items)

    @property
    def needs_bank(self) -> bool:
        """Whether nothing partial can be asked or estimated before a bank is fitted."""
        return self._order in ("information", "uncertainty") or self._spec.estimator not in NEED_NO_BANK

    @property
    def _order(self) -> str:
        if self._spec.order != "auto":
            return self._spec.order
        return "stratified" if self._spec.race == "elimination" else "uncertainty"

    def learn(self, recipe: Digest, evaluation: Evaluation) -> None:
        """Enter a model's answers; where everybody is asked everything nobody looks at them."""
        if self._spec.whole:
            return
        for table in (*self._tables.values(), *self._margins.values()):
            table.learn(recipe, evaluation)

    def descend_from(self, parents: Sequence[Digest]) -> None:
        """Name the models that all candidates are merged from; they must have answered everything."""
        self._parents = tuple(dict.fromkeys(parents))

    def generation(self, recipes: Sequence[Digest]) -> None:
        """A generation has been scored: from now on its models stand for what comes next."""
        self._recent = tuple(dict.fromkeys(recipes)) or self._recent

    def ready(self, batch: int) -> bool:
        """Whether generation `batch` can be asked in part: enough models have answered everything."""
        if not self.partial:
            return False
        if not self.needs_bank:
            return all(model.fitted is not None for _, model in self._all_models())
        imported = not self._margins and all(task in self._pool.banks for task in self._tables)
        complete = len(next(iter(self._tables.values())).complete)
        enough = complete >= calibration_models(self._spec, imported=imported)
        return enough and (batch > 0 or imported or self._spec.calibrate is not None)

    def refit(self, batch: int) -> dict[str, Report]:
        """Fit the banks that are due before generation `batch`; task -> what came of it."""
        now = batch % self._spec.refit == 0
        due = [(t, m) for t, m in self._all_models() if m.is_due() and (now or m.fitted is None)]
        reports: dict[str, Report] = {}
        typical = self.asking(batch).upto(self.mean_questions) if due else None
        for task, model in due:
            if typical is not None:
                asked = np.zeros(len(self._pool.items[task]), dtype=np.bool_)
                asked[list(typical.items[task])] = True
                report = model.refit(self._recent, asked, typical.inclusion[task], self._parents)
                if model.table.channel == "score":
                    reports[task] = report
        return reports

    @property
    def estimators(self) -> dict[str, str]:
        """Task -> name of the estimator in use."""
        return {task: model.fitted.estimator.name for task, model in self._models.items() if model.fitted is not None}

    def _all_models(self) -> list[tuple[str, TaskModel]]:
        return [*self._models.items(), *self._margin_models.items()]

    @property
    def imported(self) -> frozenset[str]:
        """Tasks whose bank came from elsewhere."""
        return frozenset(self._pool.banks)

    def bank(self, task: str) -> ItemBank | None:
        """The present bank of a task."""
        fitted = self._models[task].fitted
        return None if fitted is None else fitted.bank

    # -- what is asked ----------------------------------------------------------------------------------------------

    def asking(self, batch: int) -> Asking:
        """The order in which generation `batch` is asked."""
        rng = generator(self._seed, "questions", str(batch) if self._spec.rotate else "fixed")
        if self._order == "uncertainty":
            uncertain = {task: self._uncertainty(task) for task in self._models}
            return PooledAsking(uncertain, self._pool.importance, rng)
        counts = {task: len(items) for task, items in self._pool.items.items()}
        designs = {task: self._design(task, rng) for task in self._pool.items}
        return SplitAsking(designs, self._numbers, counts)

    def _uncertainty(self, task: str) -> Floats:
        """Shape `(n,)`: of the scores; of scores and margins alike where the search is about margins, too."""
        scores = self._models[task].uncertainty(self._recent)
        if task not in self._margin_models:
            return scores
        return 0.5 * (scores + self._margin_models[task].uncertainty(self._recent))

    def _design(self, task: str, rng: np.random.Generator) -> Design | WeightedDesign:
        model, n = self._models[task], len(self._pool.items[task])
        bank = self.bank(task)
        if self._order == "information" and bank is not None:
            return mixed_design(bank, model.theta(self._recent), rng)
        flat = np.ones(n)
        if self._order == "stratified":
            return WeightedDesign(stratified_order(-model.table.item_means(), rng), flat)
        return WeightedDesign(rng.permutation(n), flat)

    # -- what answers mean ------------------------------------------------------------------------------------------

    def believe(
        self, models: Mapping[Digest, Evaluation], goals: BoundGoals, asked: Asked | None
    ) -> dict[Digest, Beliefs]:
        """What is believed of models; facts where a model answered everything.

        Args:
            models: recipe -> all answers that it has given, entered before by `learn`.
            goals: bound on the search set.
            asked: the choice behind partial answers; None where there are none.

        Raises:
            EvaluationError: as `objective_values`.
        """
        whole = {r: believed(goals, e) for r, e in models.items() if not self.partial or e.n_questions == self.n_items}
        part = {r: e for r, e in models.items() if r not in whole}
        found = dict(whole) | (self._estimated(part, goals, asked) if part else {})
        return {recipe: found[recipe] for recipe in models}

    def _estimated(
        self, part: Mapping[Digest, Evaluation], goals: BoundGoals, asked: Asked | None
    ) -> dict[Digest, Beliefs]:
        recipes = tuple(part)
        inclusion = {} if asked is None else asked.inclusion
        tasks: dict[Digest, dict[str, Belief]] = {recipe: {} for recipe in recipes}
        for task, model in self._models.items():
            values = self._values(model, recipes, inclusion.get(task), None)
            for recipe, (value, se) in zip(recipes, values, strict=True):
                answers = part[recipe].answers.get(task)
                tasks[recipe][task] = Belief(value, se, 0 if answers is None else len(answers.items))
        values_of: dict[Digest, dict[str, Estimate]] = {recipe: {} for recipe in recipes}
        for name, objective in subjects(goals):
            if not follows_from_scores(objective):
                found = self._measured(objective, goals, part, inclusion)
                for recipe, estimate in zip(recipes, found, strict=True):
                    values_of[recipe][name] = estimate
        return {recipe: Beliefs(tasks[recipe], values_of[recipe]) for recipe in recipes}

    def _measured(
        self,
        objective: Objective,
        goals: BoundGoals,
        part: Mapping[Digest, Evaluation],
        inclusion: Mapping[str, Floats],
    ) -> list[Estimate]:
        """Values of one objective that does not follow from the tasks' scores."""
        if not isinstance(objective, ObjectiveSpec) or objective.measure.kind == "ability":
            return [objective_values(objective, evaluation, goals.references) for evaluation in part.values()]
        recipes = tuple(part)
        columns = []
        for task in objective.tasks:
            found: Functional = functional(objective.measure, task, goals.references)
            model = self._models[task] if found.channel == "score" else self._margin_models[task]
            values = self._values(model, recipes, inclusion.get(task), found.weights)
            columns.append([Estimate(found.constant + value, se) for value, se in values])
        return [combine(objective, parts) for parts in zip(*columns, strict=True)]

    def _values(
        self, model: TaskModel, recipes: Sequence[Digest], inclusion: Floats | None, target: Floats | None
    ) -> list[Estimate]:
        if inclusion is not None:
            # an item that an earlier generation was asked speaks for itself when this design could not have chosen it
            known = ~np.isnan(model.table.rows(recipes)).all(axis=0)
            inclusion = np.where(known & (inclusion <= 0), 1.0, inclusion)
        found = model.estimate(recipes, inclusion=inclusion, target=target)
        n = len(model.table.items)
        weights = np.full(n, 1.0 / n) if target is None else target
        # of the model's skill, not only of its score on this set: as for whole sets, items are a sample themselves
        noise = float(weights @ weights) * model.answer_variance(found.value if target is None else None)
        se = np.sqrt(found.se**2 + noise)
        return [Estimate(float(v), float(s)) for v, s in zip(found.value, se, strict=True)]
