"""The loop on instant scores: budget, resume from every record, interrupts, failures, constraints, choice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evomerge.errors import Interrupted, ResumeMismatch, TooManyFailures
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import ConstraintSpec, ObjectiveSpec, Relative
from evomerge.execution.inline import InlinePool
from evomerge.execution.ledger import Ledger, Request, recorded_outcomes
from evomerge.execution.worker import WorkerSpec
from evomerge.loop import Known, Search, SearchSetup
from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.registry import make_optimizer
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.runs.records import Evaluated, Opened, Reused, Told
from evomerge.runs.replay import History, read_history
from evomerge.runs.store import RunStore
from evomerge.space.dimensions import Real
from evomerge.space.space import SearchSpace
from evomerge.types import CandidateId, EvalTask, Evaluation, Outcome, SetName, TaskAnswers, Vector

PARENTS = (ParentRef("base", "base"), ParentRef("a", "a"), ParentRef("b", "b"))
SPACE = SearchSpace(tuple(Real(f"w{i}", 0.0, 1.5, step=0.05) for i in range(4)))
TASKS = ("add", "rev")
BUDGET = 40


def recipe_of(vector: Vector) -> Recipe:
    values = [float(v) for v in SPACE.decode(vector).values()]
    rules = tuple(
        Rule("linear", per_parent={"a": {"weight": values[2 * i]}, "b": {"weight": values[2 * i + 1]}}, layers=layers)
        for i, layers in enumerate([(0,), None])
    )
    return Recipe(PARENTS, None, rules)


def parent(name: str) -> Recipe:
    return Recipe(PARENTS, None, (Rule("linear", per_parent={name: {"weight": 1.0}}),))


def scorer(tasks: tuple[str, ...] = TASKS) -> Callable[[EvalTask], Evaluation]:
    """Task k likes weights near 0.4 + 0.3 k; answers are a fixed function of recipe and item."""

    def score(task: EvalTask) -> Evaluation:
        weights = [v["weight"] for rule in task.recipe["rules"] for v in rule["per_parent"].values()]
        answers = {}
        for k, name in enumerate(tasks):
            error = float(np.mean([(w - 0.4 - 0.3 * k) ** 2 for w in weights]))
            skill = 1 / (1 + 4 * error)
            items = tuple(f"{task.set_name}-{name}-{i}" for i in range(50))
            answers[name] = TaskAnswers(name, items, tuple(float((i * 7919 % 50) / 50 < skill) for i in range(50)))
        return Evaluation(task.set_name, answers)

    return score


class Stop:
    """Stops after some outcomes."""

    def __init__(self, after: int | None = None) -> None:
        self.left = after

    def __call__(self) -> bool:
        return self.left == 0

    def phase(self, name: str, total: int, done: int) -> None:
        pass

    def batch(self, number: int) -> None:
        pass

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        if self.left:
            self.left -= 1


def goals(*, constrained: bool = False) -> Goals:
    objectives = tuple(ObjectiveSpec(t, (t,)) for t in TASKS)
    bound = ConstraintSpec("task", "add", "at_least", Relative("best_parent", 0.05))
    return Goals(objectives, (bound,) if constrained else ())


def setup(name: str = "nsga2", aims: Goals | None = None, budget: int = BUDGET) -> SearchSetup:
    aims = aims or goals()
    problem = Problem(
        dim=SPACE.dim,
        n_objectives=len(aims.objectives),
        n_constraints=len(aims.constraints),
        start=SPACE.start,
        spread=SPACE.spread,
        step=SPACE.step,
        budget=budget,
        seed=3,
    )

    def make() -> Optimizer:
        return make_optimizer(name, problem, {"population": 8})

    known = (
        Known(CandidateId("parent-a"), "parent", "a", parent("a"), None),
        Known(CandidateId("parent-b"), "parent", "b", parent("b"), None),
    )
    return SearchSetup(SPACE, recipe_of, known, aims, make, budget)


def live(
    folder: Path,
    plan: SearchSetup,
    stop: Stop | None = None,
    score: str = "",
    failure_share: float = 0.5,
) -> History:
    """One life of a run in `folder`."""
    stop = stop or Stop()
    exists = (folder / "journal.jsonl").exists()
    with RunStore.open(folder, write=True) if exists else RunStore.create(folder, {"job.yaml": ""}) as store:
        history = read_history(store.entries())
        store.append(Opened(len(history.lives) + 1, exists, "host", 1))
        spec = WorkerSpec(scorer=f"{__name__}:{score or 'scorer'}")
        ledger = Ledger(
            store,
            InlinePool(spec),
            known=recorded_outcomes(store, history),
            reused=history.reused,
            stop=stop,
            drain_s=0.0,
            failure_share=failure_share,
            watcher=stop,
        )
        Search(plan, store, history, ledger, stop).run()
        return read_history(store.entries())


def result(history: History) -> object:
    """What a resumed run must reproduce: every outcome, and the choice."""
    outcomes = {
        key: (record.tasks if isinstance(record, Evaluated) else record.failure.kind)
        for key, record in history.outcomes.items()
    }
    return outcomes, history.chosen and (history.chosen.id, history.chosen.compared), [b.told for b in history.batches]


@pytest.mark.parametrize("name", ["nsga2", "random"])
def test_budget_counts_distinct_models_on_the_search_set(tmp_path: Path, name: str) -> None:
    history = live(tmp_path / "run", setup(name))
    assert history.counts.evaluated == BUDGET
    assert history.counts.repeated == 0
    sets = {set_name for _, set_name in history.outcomes}
    assert sets == {"search", "select", "report"}


def test_report_set_is_asked_only_of_the_choice_and_its_rivals(tmp_path: Path) -> None:
    history = live(tmp_path / "run", setup())
    assert history.chosen is not None
    reported = {digest for digest, set_name in history.outcomes if set_name == "report"}
    rivals = {history.baselines[i].recipe for i in history.chosen.compared}
    assert reported == rivals | {history.chosen.recipe}
    assert {"parent-a", "parent-b"} <= set(history.chosen.compared)


def test_mean_is_scored_within_the_budget(tmp_path: Path) -> None:
    aims = Goals((ObjectiveSpec("both", TASKS),))
    history = live(tmp_path / "run", setup("cma", aims))
    assert [b.kind for b in history.baselines.values()].count("mean") == 1
    assert history.counts.evaluated <= BUDGET


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_the_smallest_budgets_are_kept(tmp_path: Path, budget: int) -> None:
    aims = Goals((ObjectiveSpec("both", TASKS),))
    history = live(tmp_path / "run", setup("cma", aims, budget))
    assert history.counts.evaluated == budget


@pytest.mark.parametrize(("name", "constrained"), [("nsga2", True), ("cma", False)])
def test_resume_from_every_record_gives_the_undisturbed_result(tmp_path: Path, name: str, constrained: bool) -> None:
    aims = goals(constrained=constrained) if name == "nsga2" else Goals((ObjectiveSpec("both", TASKS),))
    whole = result(live(tmp_path / "calm", setup(name, aims)))
    lines = (tmp_path / "calm" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) > BUDGET
    for cut in range(1, len(lines), 7):
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path / "calm", folder)
        prefix = b"".join(lines[:cut])
        (folder / "journal.jsonl").write_bytes(prefix)
        resumed = live(folder, setup(name, aims))
        assert result(resumed) == whole
        assert resumed.counts.repeated == 0
        assert (folder / "journal.jsonl").read_bytes().startswith(prefix)
        shutil.rmtree(folder)


def test_interrupts_lose_and_repeat_nothing(tmp_path: Path) -> None:
    whole = result(live(tmp_path / "calm", setup()))
    folder = tmp_path / "run"
    for after in (1, 5, 9, 3):
        with pytest.raises(Interrupted, match="interrupted"):
            live(folder, setup(), Stop(after))
    final = live(folder, setup())
    assert result(final) == whole
    assert final.counts.repeated == 0
    assert len(final.lives) == 5


def test_resuming_a_finished_run_asks_nothing(tmp_path: Path) -> None:
    first = live(tmp_path / "run", setup())
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    again = live(tmp_path / "run", setup())
    assert result(again) == result(first)
    added = (tmp_path / "run" / "journal.jsonl").read_bytes()[len(before) :]
    assert added.count(b"\n") == 1  # the opening of the second life, nothing else


def test_a_larger_budget_continues_the_same_search(tmp_path: Path) -> None:
    live(tmp_path / "grown", setup(budget=20))
    grown = live(tmp_path / "grown", setup(budget=BUDGET))
    direct = live(tmp_path / "direct", setup(budget=BUDGET))
    on_search = {k: v.tasks for k, v in grown.outcomes.items() if k[1] == "search" and isinstance(v, Evaluated)}
    assert on_search == {
        k: v.tasks for k, v in direct.outcomes.items() if k[1] == "search" and isinstance(v, Evaluated)
    }


def test_a_candidate_asked_twice_is_scored_once(tmp_path: Path) -> None:
    coarse = SearchSpace((Real("w0", 0.0, 1.0, step=0.5),))

    def coarse_recipe(vector: Vector) -> Recipe:
        (value,) = coarse.decode(vector).values()
        return Recipe(PARENTS, None, (Rule("linear", per_parent={"a": {"weight": float(value)}}),))

    aims = Goals((ObjectiveSpec("both", TASKS),))
    problem = Problem(1, 1, 0, coarse.start, coarse.spread, coarse.step, 30, 1)
    plan = replace(
        setup("random", aims, 30),
        space=coarse,
        recipe_of=coarse_recipe,
        make_optimizer=lambda: make_optimizer("random", problem, {}),
    )
    history = live(tmp_path / "run", plan)
    assert history.counts.evaluated == 5 - 1  # three grid values, two parents, and weight 1 is parent a
    assert history.counts.reused > 10


def failing_scorer() -> Callable[[EvalTask], Evaluation]:
    """Fails every recipe whose first weight exceeds 0.75."""
    healthy = scorer()

    def score(task: EvalTask) -> Evaluation:
        weights = [v["weight"] for rule in task.recipe["rules"] for v in rule["per_parent"].values()]
        if len(weights) > 2 and weights[0] > 0.75:
            raise RuntimeError("too heavy")
        return healthy(task)

    return score


def test_failures_count_and_are_told_as_failures(tmp_path: Path) -> None:
    history = live(tmp_path / "run", setup(), score="failing_scorer", failure_share=0.95)
    assert history.counts.failed > 0
    assert history.counts.failed + history.counts.evaluated == BUDGET
    assert all(batch.told for batch in history.batches[:-1])


def test_too_many_failures_end_the_run_with_the_first_traceback(tmp_path: Path) -> None:
    with pytest.raises(TooManyFailures, match=r"(?s)of .*too heavy.*Traceback") as caught:
        live(tmp_path / "run", setup(), score="failing_scorer", failure_share=0.1)
    assert caught.value.exit_code == 4
    with pytest.raises(TooManyFailures, match="stays failed"):  # a mended cause does not unmake what is recorded
        live(tmp_path / "run", setup(), failure_share=0.1)
    went_on = live(tmp_path / "run", setup(), failure_share=1)
    assert went_on.counts.failed + went_on.counts.evaluated == BUDGET


def test_nothing_feasible_chooses_nothing_and_leaves_the_report_set_alone(tmp_path: Path) -> None:
    impossible = Goals(goals().objectives, (ConstraintSpec("task", "add", "at_least", 1.5),))
    history = live(tmp_path / "run", setup(aims=impossible))
    assert history.chosen is None
    assert not any(set_name == "report" for _, set_name in history.outcomes)


def lucky_scorer() -> Callable[[EvalTask], Evaluation]:
    """Heavy candidates are good at `add`, but at `rev` on the search set only; light ones are fair at both."""

    def score(task: EvalTask) -> Evaluation:
        weights = [v["weight"] for rule in task.recipe["rules"] for v in rule["per_parent"].values()]
        heavy = len(weights) > 2 and weights[0] > 0.75
        right = {"add": 45 if heavy else 30, "rev": 20 if heavy and task.set_name != "search" else 30}
        items = tuple(f"{task.set_name}-{i}" for i in range(50))
        answers = {t: TaskAnswers(t, items, tuple(float(i < n) for i in range(50))) for t, n in right.items()}
        return Evaluation(task.set_name, answers)

    return score


def test_what_was_feasible_by_luck_is_not_chosen(tmp_path: Path) -> None:
    bound = ConstraintSpec("task", "rev", "at_least", 0.5)
    aims = Goals((ObjectiveSpec("add", ("add",)),), (bound,))
    history = live(tmp_path / "run", setup("random", aims), score="lucky_scorer")
    assert history.chosen is not None
    assert any(r.tasks["add"].mean == 0.9 for r in history.outcomes.values() if isinstance(r, Evaluated))
    select = history.outcomes[(history.chosen.recipe, "select")]
    assert isinstance(select, Evaluated)
    assert select.tasks["rev"].mean >= 0.5


def test_another_optimizer_seed_is_noticed_on_resume(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="interrupted"):
        live(tmp_path / "run", setup(), Stop(12))
    other = setup("random")
    with pytest.raises(ResumeMismatch, match="batch 0"):
        live(tmp_path / "run", other)
    accepted = live(tmp_path / "run", replace(setup("nsga2"), accept_history=True))
    assert accepted.counts.evaluated == BUDGET
    assert accepted.notes == ()  # nothing had to be accepted: it is the optimizer that wrote the history


def test_an_accepted_history_is_noted_and_learned_from(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="interrupted"):
        live(tmp_path / "run", setup(), Stop(12))
    accepted = live(tmp_path / "run", replace(setup("random"), accept_history=True))
    assert [note.topic for note in accepted.notes] == ["accepted-drift"]
    assert accepted.counts.evaluated == BUDGET


def test_records_of_one_batch_stand_in_order(tmp_path: Path) -> None:
    live(tmp_path / "run", setup())
    with RunStore.open(tmp_path / "run", write=False) as store:
        records = list(store.records())
    told = [r.batch for r in records if isinstance(r, Told)]
    assert told == sorted(told)
    assert all(isinstance(r.id, str) for r in records if isinstance(r, Reused))
