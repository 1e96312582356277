"""Whole searches without models: the real loop, journal and report over simulated models of known ability.

What a search claims can so be held against the truth. A null job has nothing to find: every model is equally able. A
planted job has one best merge, a random point of the search space, `gain` above the best parent; the score falls with
the mean squared distance of the weights from its own, so that the middle of the space is `below` under the best parent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import yaml

from evomerge.digest import digest_json
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.goals_json import goals_to_json
from evomerge.evaluation.objectives import ObjectiveSpec
from evomerge.execution.inline import InlinePool
from evomerge.execution.ledger import Ledger, Request, recorded_outcomes
from evomerge.execution.worker import Scorer, WorkerSpec
from evomerge.layout import Layout, TensorInfo
from evomerge.loop import Known, Search, SearchSetup
from evomerge.optimizers.auto import choose
from evomerge.optimizers.base import Problem
from evomerge.optimizers.registry import make_optimizer
from evomerge.racing.importance import importance_of
from evomerge.racing.questioner import Pool
from evomerge.racing.spec import load_questions
from evomerge.recipe.baselines import parent_recipe, soup_recipe, task_arithmetic_recipe
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_from_json
from evomerge.resources import preset_path
from evomerge.runs.records import Kind, Opened
from evomerge.runs.replay import read_history
from evomerge.runs.store import RunStore
from evomerge.seeds import generator
from evomerge.space.base import CandidateSpace
from evomerge.space.language import parse_space
from evomerge.testing.responders import Floats, Responders, ability_for
from evomerge.types import SET_NAMES, CandidateId, EvalTask, Evaluation, Outcome, SetName, Vector

MODELS: Final = ("a", "b", "c")
BASE: Final = "base"
REFS: Final = tuple(ParentRef(name, f"simulated/{name}") for name in (BASE, *MODELS))
LAYERS: Final = 4
OBJECTIVE: Final = "score"

_MIDDLE: Final = 0.6
"""Where the preset starts every weight."""

_BEST: Final = (0.2, 0.8)
"""The range of the best merge's genes; times 1.5 they are weights."""


@dataclass(frozen=True)
class SimulatedJob:
    """One search.

    Attributes:
        seed: of everything.
        gain: by how much the best merge is better than the best parent; 0 makes all models equal.
        below: by how much the middle of the space is worse than the best parent; meaningless in a null job.
        best_parent: its expected score.
        behind: by how much the parents (a, b, c, base) are worse than that; ignored in a null job.
        candidates: that the optimizer may ask, beside the baselines.
        tasks: how many.
        search: items per task of the search set.
        select: of the select set.
        report: of the report set.
        depth: of the search space: `model` (one weight per model) or `each` (one per model and layer).
        questions: `all`, or what `suite.questions` says in a job.
        optimizer: its name, `auto` for what a job of the product would get.
    """

    seed: int
    gain: float = 0.0
    below: float = 0.06
    best_parent: float = 0.6
    behind: tuple[float, ...] = (0.0, 0.02, 0.04, 0.1)
    candidates: int = 200
    tasks: int = 4
    search: int = 100
    select: int = 200
    report: int = 400
    depth: str = "model"
    questions: Any = "all"
    optimizer: str = "auto"

    @property
    def task_names(self) -> tuple[str, ...]:
        """`t0`, `t1`, ..."""
        return tuple(f"t{i}" for i in range(self.tasks))

    @cached_property
    def responders(self) -> Responders:
        """The items and who answers them."""
        sizes: Mapping[SetName, int] = {"search": self.search, "select": self.select, "report": self.report}
        return Responders(self.seed, self.task_names, sizes)


@cache
def _layout() -> Layout:
    """One tensor per place where a search space may have genes of its own."""
    tensors = [TensorInfo("e", (1,), "F32", None, "embedding"), TensorInfo("z", (1,), "F32", None, "head")]
    tensors += [TensorInfo(f"l{i:02}", (1,), "F32", i, "mlp") for i in range(LAYERS)]
    return Layout(LAYERS, tuple(sorted(tensors, key=lambda t: t.name)))


@cache
def _space(depth: str) -> CandidateSpace:
    preset = preset_path("search_spaces", "layer-wise-task-arithmetic").read_text(encoding="utf-8")
    mapping = {**yaml.safe_load(preset), "depth": depth}
    return parse_space(mapping, models=MODELS, base=BASE, layout=_layout())


def _weights(rule: Rule) -> list[float]:
    """The share of every model at one place."""
    weights = [float(rule.per_parent.get(m, {}).get("weight", 0.0)) for m in MODELS]
    total = sum(weights) if rule.shared.get("normalize") else 1.0
    return [w / total for w in weights]


def _all_weights(recipe: Recipe) -> Floats:
    """At every place, shape `(places, models)`."""
    return np.array([_weights(recipe.rule_for(t)) for t in _layout().tensors])


@final
class Truth:
    """Every recipe's expected score.

    Attributes:
        best: the best merge of a planted job.
    """

    def __init__(self, job: SimulatedJob) -> None:
        self._job = job
        genes = generator(job.seed, "best merge").uniform(*_BEST, _space(job.depth).space.dim)
        self.best = candidate_recipe(job.depth, genes)
        self._best = _all_weights(self.best)
        self._per_distance = (job.gain + job.below) / float(np.mean((self._best - _MIDDLE) ** 2))

    def score(self, recipe: Recipe) -> float:
        """Over the population of items, in (0, 1); of a parent, what the job says."""
        job = self._job
        if job.gain == 0:
            return job.best_parent
        if len(recipe.parents) == 1:
            return job.best_parent - job.behind[(*MODELS, BASE).index(recipe.parents[0].name)]
        distance = float(np.mean((_all_weights(recipe) - self._best) ** 2))
        return max(0.02, job.best_parent + job.gain - self._per_distance * distance)


def build_scorer(job: SimulatedJob) -> Scorer:
    """A scorer without models, for `WorkerSpec`."""
    truth, responders = Truth(job), job.responders

    def score(task: EvalTask) -> Evaluation:
        ability = ability_for(truth.score(recipe_from_json(dict(task.recipe))))
        return responders.answer(digest_json(task.recipe), ability, task.set_name, task.items)

    return score


def candidate_recipe(depth: str, genes: Sequence[float] | Vector) -> Recipe:
    """The recipe that genes of the search space of that depth stand for."""
    space, vector = _space(depth), np.array(genes, dtype=np.float64)
    return space.build(space.space.decode(vector), parents=REFS, base=BASE, seed=0)


def known_models(depth: str) -> tuple[Known, ...]:
    """Parents, base, soup and task arithmetic, as a job of the product has them."""
    space, models = _space(depth), REFS[1:]
    plain: list[tuple[str, Kind, str, Recipe]]
    plain = [(f"parent-{ref.name}", "parent", ref.name, parent_recipe(ref)) for ref in REFS]
    plain.append(("soup", "soup", "uniform soup", soup_recipe(models)))
    for strength in space.starts:
        recipe = task_arithmetic_recipe(models, REFS[0], strength)
        plain.append((f"task-arithmetic-{strength:g}", "task-arithmetic", f"task arithmetic {strength:g}", recipe))
    known = []
    for id_, kind, name, recipe in plain:
        vector = space.encode_recipe(recipe, seed=0)
        own = recipe if vector is None else candidate_recipe(depth, vector)
        known.append(Known(CandidateId(id_), kind, name, own, vector))
    return tuple(known)


def _goals(job: SimulatedJob) -> Goals:
    return Goals((ObjectiveSpec(OBJECTIVE, job.task_names),))


def search_setup(job: SimulatedJob) -> SearchSetup:
    """What the loop is given: the default optimizer for this space, one objective, no constraints."""
    space, known = _space(job.depth).space, known_models(job.depth)
    injected = {v.tobytes(): v for model in known if (v := model.vector) is not None}
    problem = Problem(
        dim=space.dim,
        n_objectives=1,
        n_constraints=0,
        start=space.start,
        spread=space.spread,
        step=space.step,
        budget=job.candidates + len(known),
        seed=job.seed,
        injected=tuple(injected.values()),
    )
    questions = load_questions(job.questions)
    chosen = choose(problem, False, job.tasks * questions.per_task(job.search))
    name, options = (chosen.name, chosen.options) if job.optimizer == "auto" else (job.optimizer, {})
    make = partial(make_optimizer, name, problem, options)
    return SearchSetup(
        space=space,
        recipe_of=partial(candidate_recipe, job.depth),
        known=known,
        goals=_goals(job),
        make_optimizer=make,
        budget=problem.budget,
        questions=questions,
        pool=Pool(job.responders.items("search"), importance_of(_goals(job), job.task_names)),
        seed=job.seed,
    )


def run_files(job: SimulatedJob) -> dict[str, str]:
    """What the report reads beside the journal."""
    sizes = {"search": job.search, "select": job.select, "report": job.report}
    manifest = {
        "format": "evomerge.run",
        "version": 1,
        "name": f"simulated-{job.seed}",
        "seed": job.seed,
        "versions": {},
        "parents": [{"name": r.name, "source": r.source, "revision": None, "content": None} for r in REFS],
        "base": BASE,
        "n_layers": LAYERS,
        "suite": {"splits": dict.fromkeys(job.task_names, sizes), "public_test_tasks": []},
        **goals_to_json(_goals(job)),
        "genes": list(_space(job.depth).space.names),
        "optimizer": {"name": "auto", "options": {}, "why": "simulated"},
    }
    return {"job.yaml": json.dumps({"simulated": asdict(job)}), "manifest.json": json.dumps(manifest)}


class Quiet:
    """A watcher that shows nothing and a stop signal that never comes."""

    def __call__(self) -> bool:
        """See `StopSignal`."""
        return False

    def phase(self, name: str, total: int, done: int) -> None:
        """See `Watcher.phase`."""

    def batch(self, number: int) -> None:
        """See `Watcher.batch`."""

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        """See `Watcher.outcome`."""


def run_simulated(job: SimulatedJob, folder: Path, watcher: Quiet | None = None) -> None:
    """Search, choose, report: leaves a run directory in `folder`, which must not exist or be empty."""
    quiet = watcher or Quiet()
    spec = WorkerSpec(scorer=f"{__name__}:build_scorer", arguments={"job": job})
    with RunStore.create(folder, run_files(job)) as store, InlinePool(spec) as pool:
        history = read_history(store.entries())
        store.append(Opened(1, False, "simulated", 1))
        ledger = Ledger(
            store,
            pool,
            known=recorded_outcomes(store, history),
            reused=history.reused,
            stop=quiet,
            drain_s=0.0,
            failure_share=0.5,
            watcher=quiet,
            order={name: job.responders.items(name) for name in SET_NAMES},
        )
        Search(search_setup(job), store, history, ledger, quiet).run()
