"""A small world for races: merges whose true ability is a function of their weights answer items, any part of a set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, final

import numpy as np

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.measures import Measure
from evomerge.evaluation.objectives import ConstraintSpec, ObjectiveSpec, Relative
from evomerge.execution.inline import InlinePool
from evomerge.execution.ledger import Ledger, Request, recorded_outcomes
from evomerge.execution.pool import Completed, EvaluationPool
from evomerge.execution.worker import WorkerSpec
from evomerge.irt.responses import Responses
from evomerge.loop import Known, Search, SearchSetup
from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.registry import make_optimizer
from evomerge.racing.importance import importance_of, margin_tasks
from evomerge.racing.questioner import Pool, Questioner
from evomerge.racing.race import Race, Result
from evomerge.racing.spec import load_questions
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_digest, recipe_to_json
from evomerge.runs.records import Evaluated, Opened
from evomerge.runs.replay import History, read_history
from evomerge.runs.store import RunStore
from evomerge.seeds import generator
from evomerge.space.dimensions import Real
from evomerge.space.space import SearchSpace
from evomerge.types import SET_NAMES, CandidateId, EvalTask, Evaluation, Outcome, SetName, TaskAnswers, Vector

PARENTS = (ParentRef("base", "base"), ParentRef("a", "a"), ParentRef("b", "b"))
SPACE = SearchSpace(tuple(Real(f"w{i}", 0.0, 1.5, step=0.05) for i in range(4)))
TASKS = ("add", "rev")
N_ITEMS = 24


def items_of(set_name: SetName, n: int = N_ITEMS) -> dict[str, tuple[str, ...]]:
    """Task -> item hashes."""
    return {task: tuple(f"{set_name}-{task}-{i:03d}" for i in range(n)) for task in TASKS}


@cache
def item_parameters(task: str, set_name: SetName, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and difficulties."""
    rng = generator(5, "items", task, set_name)
    return np.exp(0.3 * rng.standard_normal(n)), 1.5 * rng.standard_normal(n)


def answered(
    model: str,
    ability: Mapping[str, float],
    set_name: SetName = "search",
    items: Mapping[str, tuple[str, ...]] | None = None,
    n: int = N_ITEMS,
) -> Evaluation:
    """What a model answers; right where its margin, the log-odds of its ability with logistic noise, is positive."""
    answers = {}
    for task, whole in items_of(set_name, n).items():
        slopes, difficulties = item_parameters(task, set_name, n)
        wanted = whole if items is None else items.get(task, ())
        if wanted:
            draws = generator(7, "answers", model, task, set_name).uniform(1e-6, 1 - 1e-6, n)
            margins = slopes * (ability[task] - difficulties) - np.log(draws / (1 - draws))
            at = [whole.index(item) for item in wanted]
            scores = tuple(float(margins[i] > 0) for i in at)
            answers[task] = TaskAnswers(task, tuple(wanted), scores, tuple(float(margins[i]) for i in at))
    return Evaluation(set_name, answers)


def recipe_of(vector: Vector) -> Recipe:
    values = [float(v) for v in SPACE.decode(vector).values()]
    rules = tuple(
        Rule("linear", per_parent={"a": {"weight": values[2 * i]}, "b": {"weight": values[2 * i + 1]}}, layers=layers)
        for i, layers in enumerate([(0,), None])
    )
    return Recipe(PARENTS, None, rules)


def parent(name: str, weight: float = 1.0) -> Recipe:
    return Recipe(PARENTS, None, (Rule("linear", per_parent={name: {"weight": weight}}),))


def weights_of(recipe: Mapping[str, Any]) -> list[float]:
    return [v["weight"] for rule in recipe["rules"] for v in rule["per_parent"].values()]


def direct(add: float, rev: float) -> Recipe:
    """A recipe with just these abilities."""
    weights = {"a": {"weight": add}, "b": {"weight": rev}}
    return Recipe(PARENTS, None, (Rule("linear", per_parent=weights),))


def ability_of(recipe: Mapping[str, Any]) -> dict[str, float]:
    """Of a candidate, task k likes weights near 0.4 + 0.3 k; see also `direct`."""
    weights = np.array(weights_of(recipe))
    if weights.size == 2:
        return dict(zip(TASKS, map(float, weights), strict=True))
    return {t: float(1.5 - 4 * np.mean((weights - 0.4 - 0.3 * k) ** 2)) for k, t in enumerate(TASKS)}


def scorer() -> Callable[[EvalTask], Evaluation]:
    """Answers depend on recipe and item alone."""

    def score(task: EvalTask) -> Evaluation:
        model = hashlib.sha256(json.dumps(task.recipe, sort_keys=True).encode()).hexdigest()
        return answered(model, ability_of(task.recipe), task.set_name, task.items)

    return score


def crashing_scorer() -> Callable[[EvalTask], Evaluation]:
    """Heavy candidates crash on a few of the items, so that in a race they fail when a rung first asks one of these."""
    healthy = scorer()

    def score(task: EvalTask) -> Evaluation:
        weights = weights_of(task.recipe)
        if weights[0] > 0.6 and any(int(i[-3:]) % 12 == 5 for items in (task.items or {}).values() for i in items):
            raise RuntimeError("too heavy")
        return healthy(task)

    return score


class Stop:
    """A stop signal, and a watcher that shows nothing; stops after some results."""

    def __init__(self, after: int | None = None) -> None:
        self.left = after

    def __call__(self) -> bool:
        return self.left == 0

    def phase(self, name: str, total: int, done: int) -> None:
        pass

    def batch(self, number: int) -> None:
        pass

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        pass


@final
class CountingPool(EvaluationPool):
    """An inline pool that counts results, increments included, down to the stop."""

    def __init__(self, spec: WorkerSpec, stop: Stop) -> None:
        self._inner = InlinePool(spec)
        self._stop = stop

    @property
    def n_workers(self) -> int:
        return self._inner.n_workers

    def submit(self, task: EvalTask) -> None:
        self._inner.submit(task)

    def next_outcome(self, timeout_s: float | None = None) -> Completed | None:
        found = self._inner.next_outcome(timeout_s)
        if found is not None and self._stop.left:
            self._stop.left -= 1
        return found

    def drop_waiting(self) -> tuple[EvalTask, ...]:
        return self._inner.drop_waiting()

    def close(self) -> None:
        self._inner.close()


def two_goals(*, constrained: bool = False) -> Goals:
    bound = ConstraintSpec("task", "add", "at_least", Relative("best_parent", -0.1))
    flips = ConstraintSpec("task", "rev", "at_most", 0.4, measure=Measure("flips", "a"))
    return Goals(tuple(ObjectiveSpec(t, (t,)) for t in TASKS), (bound, flips) if constrained else ())


ONE_GOAL = Goals((ObjectiveSpec("both", TASKS),))


def pool_of(goals: Goals, n: int = N_ITEMS, **more: Any) -> Pool:
    return Pool(items_of("search", n), importance_of(goals, TASKS), margin_tasks(goals), **more)


def setup(
    name: str = "nsga2",
    goals: Goals | None = None,
    *,
    budget: int = 30,
    population: int = 8,
    seed: int = 3,
    **questions: Any,
) -> SearchSetup:
    """A search whose candidates are asked 6 of 24 questions per task unless `questions` says otherwise."""
    goals = goals or (two_goals() if name == "nsga2" else ONE_GOAL)
    problem = Problem(
        dim=SPACE.dim,
        n_objectives=len(goals.objectives),
        n_constraints=len(goals.constraints),
        start=SPACE.start,
        spread=SPACE.spread,
        step=SPACE.step,
        budget=budget,
        seed=seed,
    )

    def make() -> Optimizer:
        return make_optimizer(name, problem, {} if name == "random" else {"population": population})

    recipes = {"parent-a": parent("a"), "parent-b": parent("b"), "soup": parent("a", 0.5)}
    known = tuple(
        Known(CandidateId(i), "soup" if i == "soup" else "parent", i[-1] if i != "soup" else "soup", recipe, None)
        for i, recipe in recipes.items()
    )
    spec = load_questions({"number": 6, "estimator": "stratified", "calibrate": 8, **questions})
    return SearchSetup(SPACE, recipe_of, known, goals, make, budget, questions=spec, pool=pool_of(goals), seed=seed)


def live(
    folder: Path,
    plan: SearchSetup,
    stop: Stop | None = None,
    score: str = "race_world:scorer",
    failure_share: float = 0.95,
) -> History:
    """One life of a run in `folder`."""
    stop = stop or Stop()
    exists = (folder / "journal.jsonl").exists()
    with RunStore.open(folder, write=True) if exists else RunStore.create(folder, {"job.yaml": ""}) as store:
        history = read_history(store.entries())
        store.append(Opened(len(history.lives) + 1, exists, "host", 1))
        ledger = Ledger(
            store,
            CountingPool(WorkerSpec(scorer=score), stop),
            known=recorded_outcomes(store, history),
            reused=history.reused,
            stop=stop,
            drain_s=0.0,
            failure_share=failure_share,
            watcher=stop,
            order={name: items_of(name) for name in SET_NAMES},
        )
        Search(plan, store, history, ledger, stop).run()
        return read_history(store.entries())


class Stand:
    """Races among chosen candidates, without a search around them; two parents and a soup are known.

    The generation before the first race is asked everything: eight candidates of all abilities.
    """

    def __init__(
        self, folder: Path, goals: Goals = ONE_GOAL, score: str = "race_world:scorer", **questions: Any
    ) -> None:
        self.spec = load_questions(
            {"number": 6, "estimator": "stratified", "race": "halving", "calibrate": 9, **questions}
        )
        self.folder = folder
        self.store = RunStore.create(folder, {"job.yaml": ""})
        stop = Stop()
        history = read_history(self.store.entries())
        self.store.append(Opened(1, False, "host", 1))
        self.ledger = Ledger(
            self.store,
            CountingPool(WorkerSpec(scorer=score), stop),
            known={},
            reused=frozenset(),
            stop=stop,
            drain_s=0.0,
            failure_share=1.0,
            watcher=stop,
            order={name: items_of(name) for name in SET_NAMES},
        )
        self.questioner = Questioner(self.spec, pool_of(goals), 3)
        self.race = Race(
            spec=self.spec,
            questioner=self.questioner,
            store=self.store,
            history=history,
            ledger=self.ledger,
            items=items_of("search"),
            seed=3,
        )
        known = {"a": direct(0.3, 0.2), "b": direct(0.1, 0.4), "soup": direct(0.0, 0.0)}
        requests = [Request(CandidateId(n), recipe_digest(r), recipe_to_json(r)) for n, r in known.items()]
        outcomes = self.ledger.score(requests, "search")
        self.race.learn(requests, outcomes)
        parents = {r.id: o for r, o in zip(requests, outcomes, strict=True) if isinstance(o, Evaluation)}
        self.goals = goals.bound({name: parents[CandidateId(name)] for name in ("a", "b")})
        self.first = [direct(x, -x + 0.5) for x in np.linspace(-2.0, 2.0, 8)]
        self.batch = -1
        self.run(self.first)

    def run(self, recipes: Sequence[Recipe], limit: int = 1000) -> Result:
        """One generation."""
        self.batch += 1
        requests = [
            Request(CandidateId(f"g{self.batch}-i{i}"), recipe_digest(r), recipe_to_json(r))
            for i, r in enumerate(recipes)
        ]
        return self.race.run(self.batch, requests, self.goals, limit)

    @property
    def history(self) -> History:
        """What the journal says."""
        return read_history(self.store.entries())

    def alive(self) -> list[list[int]]:
        """Per rung of the latest generation, who was asked."""
        rungs = {k: r for k, r in self.history.rungs.items() if k[0] == self.batch}
        return [[int(i.split("-i")[1]) for i in rungs[key].alive] for key in sorted(rungs)]

    def questions(self) -> list[int]:
        """Per rung of the latest generation, how many questions everybody there has been asked."""
        rungs = {k: r for k, r in self.history.rungs.items() if k[0] == self.batch}
        return [sum(map(len, rungs[key].items.values())) for key in sorted(rungs)]


class Remembered:
    """A pure function of response matrices that computes each result once: resumed runs fit the same banks again."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._known: dict[object, Any] = {}

    def __call__(self, responses: Responses, *arguments: Any, **more: Any) -> Any:
        key = (responses.scores.tobytes(), responses.models, responses.items, repr((arguments, more)))
        if key not in self._known:
            self._known[key] = self._function(responses, *arguments, **more)
        return self._known[key]


def result(history: History) -> object:
    """What a resumed run must reproduce: every outcome, what was asked and believed, and the choice."""
    outcomes = {
        key: (record.tasks if isinstance(record, Evaluated) else record.failure.kind)
        for key, record in history.outcomes.items()
    }
    chosen = history.chosen and (history.chosen.id, history.chosen.compared)
    told = [b.told for b in history.batches]
    asked = [b.candidates for b in history.batches]
    return outcomes, chosen, told, asked, dict(history.rungs), dict(history.estimated), dict(history.banks)
