"""Known problems through the real search loop: recipes that are nothing but genes, a scorer that answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import ObjectiveSpec
from evomerge.execution.ledger import Ledger, Request, recorded_outcomes
from evomerge.execution.pool import EvaluationPool
from evomerge.execution.worker import Scorer
from evomerge.loop import Known, Search, SearchSetup
from evomerge.optimizers.registry import make_optimizer
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.runs.records import Opened
from evomerge.runs.replay import History, read_history
from evomerge.runs.store import RunStore
from evomerge.space.dimensions import Real
from evomerge.space.space import SearchSpace
from evomerge.testing.problems import STEP, KnownProblem
from evomerge.types import CandidateId, EvalTask, Evaluation, Outcome, SetName, TaskAnswers, Vector

PARENT: Final = ParentRef("a", "known/a")


def _recipe(vector: Vector) -> Recipe:
    rules = tuple(
        Rule("linear", per_parent={"a": {"weight": float(gene)}}, layers=(i,)) for i, gene in enumerate(vector)
    )
    return Recipe((PARENT,), None, (*rules, Rule("linear", per_parent={"a": {"weight": 1.0}})))


def genes_of(recipe: Mapping[str, Any], dim: int) -> Vector:
    """The genes in a recipe's JSON object, shape `(dim,)`; the start of every problem for the parent."""
    rules = recipe["rules"]
    if len(rules) <= dim:
        return np.full(dim, 0.4)
    return np.array([rule["per_parent"]["a"]["weight"] for rule in rules[:dim]], dtype=np.float64)


def scorer_of(known: KnownProblem) -> Scorer:
    """Answers task k with loss k, exactly: two items of one score, so that there is no error."""

    def score(task: EvalTask) -> Evaluation:
        losses = known.answer(genes_of(task.recipe, known.dim)).losses
        answers = {
            f"loss{k}": TaskAnswers(f"loss{k}", (f"{task.set_name}-{k}-0", f"{task.set_name}-{k}-1"), (loss, loss))
            for k, loss in enumerate(losses)
        }
        return Evaluation(task.set_name, answers)

    return score


def known_setup(
    known: KnownProblem,
    name: str,
    *,
    budget: int,
    seed: int,
    asynchronous: bool,
    options: Mapping[str, Any] | None = None,
    sized_for: int | None = None,
) -> SearchSetup:
    """A search of a problem with real genes and no constraints.

    Args:
        known: the problem.
        name: of the optimizer.
        budget: evaluations, one of them of the parent.
        seed: of the run.
        asynchronous: without generations.
        options: of the optimizer.
        sized_for: the budget that the optimizer is told; `budget` if None.
    """
    if known.kinds or known.n_constraints:
        raise ValueError(f"{known.name} has discrete genes or constraints")
    problem = known.problem(seed=seed, budget=sized_for or budget)
    names = tuple(f"loss{k}" for k in range(known.n_objectives))
    return SearchSetup(
        space=SearchSpace(tuple(Real(f"x{i}", 0.0, 1.0, step=STEP) for i in range(known.dim))),
        recipe_of=_recipe,
        known=(Known(CandidateId("parent-a"), "parent", "a", parent_recipe(PARENT), None),),
        goals=Goals(tuple(ObjectiveSpec(n, (n,), direction="minimize") for n in names)),
        make_optimizer=partial(make_optimizer, name, problem, dict(options or {})),
        budget=budget,
        seed=seed,
        asynchronous=asynchronous,
    )


class Quiet:
    """A watcher that shows nothing and a stop signal that never comes."""

    def __call__(self) -> bool:
        """Never."""
        return False

    def phase(self, name: str, total: int, done: int) -> None:
        """Nothing."""

    def batch(self, number: int) -> None:
        """Nothing."""

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        """Nothing."""


def run_known(setup: SearchSetup, pool: EvaluationPool, folder: Path) -> History:
    """One life of a search in `folder`, begun or resumed; closes the pool."""
    quiet = Quiet()
    exists = (folder / "journal.jsonl").exists()
    opened = RunStore.open(folder, write=True) if exists else RunStore.create(folder, {"job.yaml": ""})
    with opened as store, pool:
        history = read_history(store.entries())
        store.append(Opened(len(history.lives) + 1, exists, "host", 1))
        ledger = Ledger(
            store,
            pool,
            known=recorded_outcomes(store, history),
            reused=history.reused,
            stop=quiet,
            drain_s=0.0,
            failure_share=1.0,
            watcher=quiet,
        )
        Search(setup, store, history, ledger, quiet).run()
        return read_history(store.entries())
