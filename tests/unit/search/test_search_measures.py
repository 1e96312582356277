"""The loop with goals that look at the answers: what must not be unlearned, margins, a common ability."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.goals_json import goals_from_json, goals_to_json
from evomerge.evaluation.measures import Measure
from evomerge.evaluation.objectives import ConstraintSpec, ObjectiveSpec
from evomerge.execution.inline import InlinePool
from evomerge.execution.ledger import Ledger, Request, recorded_outcomes
from evomerge.execution.worker import WorkerSpec
from evomerge.loop import Known, Search, SearchSetup
from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.registry import make_optimizer
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.runs.records import Evaluated, Opened
from evomerge.runs.replay import History, read_history
from evomerge.runs.store import RunStore
from evomerge.space.dimensions import Real
from evomerge.space.space import SearchSpace
from evomerge.types import CandidateId, EvalTask, Evaluation, Outcome, SetName, TaskAnswers, Vector

PARENTS = (ParentRef("math", "math"), ParentRef("lang", "lang"))
SPACE = SearchSpace((Real("math", 0.0, 1.0, step=0.05), Real("lang", 0.0, 1.0, step=0.05)))
N = 40
BUDGET = 20
ADD = ObjectiveSpec("add", ("add",))
FLIPS = Measure("flips", "math")
KEPT = ConstraintSpec("task", "add", "at_most", 0.1, measure=FLIPS)


def recipe(math: float, lang: float) -> Recipe:
    return Recipe(PARENTS, None, (Rule("linear", per_parent={"math": {"weight": math}, "lang": {"weight": lang}}),))


def recipe_of(vector: Vector) -> Recipe:
    values = SPACE.decode(vector)
    return recipe(float(values["math"]), float(values["lang"]))


def forgetful_scorer() -> Callable[[EvalTask], Evaluation]:
    """`math` knows the first half of `add`; weight of `lang` brings the second half and costs up to 0.3 of all.

    With the most of `lang` `add` is best, and much of what `math` knew is gone.
    """
    limits = np.where(np.arange(N) < 12, (np.arange(N) + 1) / 13, 2.0)
    limits[N // 2 :] = np.linspace(0.02, 0.97, N // 2)

    def score(task: EvalTask) -> Evaluation:
        (rule,) = task.recipe["rules"]
        lang = rule["per_parent"]["lang"]["weight"]
        items = tuple(f"{task.set_name}-add-{i}" for i in range(N))
        margins = np.where(np.arange(N) < N // 2, limits - lang, lang - limits)
        right = tuple(float(m > 0) for m in margins)
        return Evaluation(task.set_name, {"add": TaskAnswers("add", items, right, tuple(map(float, margins)))})

    return score


class Quiet:
    """Watches, and never stops anything."""

    def __call__(self) -> bool:
        return False

    def phase(self, name: str, total: int, done: int) -> None:
        pass

    def batch(self, number: int) -> None:
        pass

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        pass


def setup(goals: Goals) -> SearchSetup:
    problem = Problem(
        dim=SPACE.dim,
        n_objectives=len(goals.objectives),
        n_constraints=len(goals.constraints),
        start=SPACE.start,
        spread=SPACE.spread,
        step=SPACE.step,
        budget=BUDGET,
        seed=2,
    )

    def make() -> Optimizer:
        return make_optimizer("nsga2", problem, {"population": 6})

    known = tuple(
        Known(CandidateId(f"parent-{name}"), "parent", name, recipe(float(name == "math"), float(name == "lang")), None)
        for name in ("math", "lang")
    )
    return SearchSetup(SPACE, recipe_of, known, goals, make, BUDGET)


def live(folder: Path, goals: Goals) -> History:
    exists = (folder / "journal.jsonl").exists()
    with RunStore.open(folder, write=True) if exists else RunStore.create(folder, {"job.yaml": ""}) as store:
        history = read_history(store.entries())
        store.append(Opened(len(history.lives) + 1, exists, "host", 1))
        ledger = Ledger(
            store,
            InlinePool(WorkerSpec(scorer=f"{__name__}:forgetful_scorer")),
            known=recorded_outcomes(store, history),
            reused=history.reused,
            stop=Quiet(),
            drain_s=0.0,
            failure_share=0.5,
            watcher=Quiet(),
        )
        Search(setup(goals), store, history, ledger, Quiet()).run()
        return read_history(store.entries())


def answers(folder: Path, history: History, name: SetName = "search") -> dict[str, TaskAnswers]:
    """Recipe -> its answers to `add`."""
    with RunStore.open(folder, write=False) as store:
        return {
            digest: store.load_responses(record).answers["add"]
            for (digest, set_name), record in history.outcomes.items()
            if set_name == name and isinstance(record, Evaluated)
        }


def unlearned(found: dict[str, TaskAnswers], history: History, recipe_digest: str) -> float:
    """The slow way."""
    known = found[history.baselines[CandidateId("parent-math")].recipe]
    pairs = zip(known.scores, found[recipe_digest].scores, strict=True)
    return sum(was == 1 and now == 0 for was, now in pairs) / N


def test_a_flips_constraint_keeps_what_a_parent_knows(tmp_path: Path) -> None:
    free, kept = (live(tmp_path / n, Goals((ADD,), c)) for n, c in (("free", ()), ("kept", (KEPT,))))
    assert free.chosen is not None
    assert kept.chosen is not None
    for folder, history, is_bound in (("free", free, False), ("kept", kept, True)):
        for name in ("search", "select", "report"):
            found = answers(tmp_path / folder, history, name)
            assert history.chosen is not None
            assert (unlearned(found, history, history.chosen.recipe) <= 0.1) == is_bound
    best = answers(tmp_path / "kept", kept)[kept.chosen.recipe].mean
    assert best > answers(tmp_path / "kept", kept)[kept.baselines[CandidateId("parent-math")].recipe].mean
    assert answers(tmp_path / "free", free)[free.chosen.recipe].mean > best


@pytest.mark.parametrize(
    "objective",
    [
        ObjectiveSpec("unlearned", ("add",), direction="minimize", measure=Measure("flips", "any_parent")),
        ObjectiveSpec("clear", ("add",), measure=Measure("margin")),
        ObjectiveSpec("skill", ("add",), measure=Measure("ability")),
    ],
)
def test_measures_as_objectives_resume_to_the_undisturbed_result(tmp_path: Path, objective: ObjectiveSpec) -> None:
    goals = goals_from_json(goals_to_json(Goals((ADD, objective), (KEPT,))))
    whole = live(tmp_path / "calm", goals)
    assert whole.chosen is not None
    lines = (tmp_path / "calm" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for cut in range(5, len(lines), len(lines) // 3):
        folder = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "calm", folder)
        (folder / "journal.jsonl").write_bytes(b"".join(lines[:cut]))
        resumed = live(folder, goals)
        assert resumed.chosen == whole.chosen
        assert set(resumed.outcomes) == set(whole.outcomes)
        assert resumed.counts.repeated == 0
