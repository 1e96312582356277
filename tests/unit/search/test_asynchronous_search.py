"""The search without barriers: replay of its journal, cuts at every record, budget, failures, idle workers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evomerge.errors import CorruptJournal, Interrupted, ResumeMismatch, TooManyFailures
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import ConstraintSpec, ObjectiveSpec, Relative
from evomerge.execution.ledger import Ledger, Request, recorded_outcomes
from evomerge.execution.worker import Scorer
from evomerge.flow import wanted_ahead
from evomerge.loop import Known, Search, SearchSetup, Stage, StagePlan
from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.registry import make_optimizer
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.runs.records import Evaluated, Opened
from evomerge.runs.replay import History, read_history
from evomerge.runs.store import RunStore
from evomerge.runs.stream_records import Turn
from evomerge.space.dimensions import Real
from evomerge.space.space import SearchSpace
from evomerge.testing.latency import SimulatedPool, log_normal
from evomerge.types import CandidateId, Digest, EvalTask, Evaluation, Outcome, SetName, TaskAnswers, Vector

PARENTS = (ParentRef("base", "base"), ParentRef("a", "a"), ParentRef("b", "b"))
SPACE = SearchSpace(tuple(Real(f"w{i}", 0.0, 1.5, step=0.05) for i in range(4)))
TASKS = ("add", "rev")
BUDGET = 40
ONE = Goals((ObjectiveSpec("both", TASKS),))
TWO = Goals(
    tuple(ObjectiveSpec(t, (t,)) for t in TASKS),
    (ConstraintSpec("task", "add", "at_least", Relative("best_parent", 0.05)),),
)


def recipe_of(vector: Vector) -> Recipe:
    values = [float(v) for v in SPACE.decode(vector).values()]
    rules = tuple(
        Rule("linear", per_parent={"a": {"weight": values[2 * i]}, "b": {"weight": values[2 * i + 1]}}, layers=layers)
        for i, layers in enumerate([(0,), None])
    )
    return Recipe(PARENTS, None, rules)


def parent(name: str) -> Recipe:
    return Recipe(PARENTS, None, (Rule("linear", per_parent={name: {"weight": 1.0}}),))


def weights_of(task: EvalTask) -> list[float]:
    return [v["weight"] for rule in task.recipe["rules"] for v in rule["per_parent"].values()]


def score(task: EvalTask) -> Evaluation:
    """Task k likes weights near 0.4 + 0.3 k; answers are a fixed function of recipe and item."""
    answers = {}
    for k, name in enumerate(TASKS):
        skill = 1 / (1 + 4 * float(np.mean([(w - 0.4 - 0.3 * k) ** 2 for w in weights_of(task)])))
        items = tuple(f"{task.set_name}-{name}-{i}" for i in range(50))
        answers[name] = TaskAnswers(name, items, tuple(float((i * 7919 % 50) / 50 < skill) for i in range(50)))
    return Evaluation(task.set_name, answers)


def score_light_ones(task: EvalTask) -> Evaluation:
    """Fails candidates whose first weight exceeds 0.75."""
    if len(weights_of(task)) > 2 and weights_of(task)[0] > 0.75:
        raise RuntimeError("too heavy")
    return score(task)


class Stop:
    """Stops after some outcomes, and counts blocks."""

    def __init__(self, after: int | None = None) -> None:
        self.left = after
        self.blocks: list[int] = []

    def __call__(self) -> bool:
        return self.left == 0

    def phase(self, name: str, total: int, done: int) -> None:
        pass

    def batch(self, number: int) -> None:
        self.blocks.append(number)

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        if self.left:
            self.left -= 1


def setup(name: str = "evolve", aims: Goals = ONE, budget: int = BUDGET) -> SearchSetup:
    injected = (np.full(SPACE.dim, 0.25), np.full(SPACE.dim, 0.5))
    problem = Problem(
        dim=SPACE.dim,
        n_objectives=len(aims.objectives),
        n_constraints=len(aims.constraints),
        start=SPACE.start,
        spread=SPACE.spread,
        step=SPACE.step,
        budget=budget,
        seed=3,
        injected=tuple(SPACE.quantise(v) for v in injected),
    )

    def make() -> Optimizer:
        return make_optimizer(name, problem, {"population": 6})

    known = (
        Known(CandidateId("parent-a"), "parent", "a", parent("a"), None),
        Known(CandidateId("parent-b"), "parent", "b", parent("b"), None),
        Known(CandidateId("injected-0"), "injected", "x", recipe_of(problem.injected[0]), problem.injected[0]),
    )
    return SearchSetup(SPACE, recipe_of, known, aims, make, budget, asynchronous=True)


def live(
    folder: Path,
    plan: SearchSetup,
    *,
    stop: Stop | None = None,
    workers: int = 4,
    trace: int = 0,
    scorer: Scorer = score,
    failure_share: float = 0.9,
) -> History:
    """One life of a run in `folder`; `trace` decides how long tasks take, and so the order of completion."""
    stop = stop or Stop()
    exists = (folder / "journal.jsonl").exists()
    with RunStore.open(folder, write=True) if exists else RunStore.create(folder, {"job.yaml": ""}) as store:
        history = read_history(store.entries())
        store.append(Opened(len(history.lives) + 1, exists, "host", 1, settings={"budget": {"evaluations": 1}}))
        ledger = Ledger(
            store,
            SimulatedPool(scorer, workers, log_normal(1.0, 0.6, trace)),
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
    """Everything that a replay must reproduce."""
    outcomes = {
        key: (record.tasks if isinstance(record, Evaluated) else record.failure.kind)
        for key, record in history.outcomes.items()
    }
    return outcomes, history.turns, history.chosen and (history.chosen.id, history.chosen.compared)


def journal(folder: Path) -> bytes:
    return (folder / "journal.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("name", "aims"), [("evolve", TWO), ("random", ONE), ("cma", ONE), ("lra-cma", ONE), ("catcmawm", ONE)]
)
def test_replaying_a_finished_journal_asks_and_finds_the_same(tmp_path: Path, name: str, aims: Goals) -> None:
    first = live(tmp_path / "run", setup(name, aims))
    assert first.counts.evaluated == BUDGET
    assert first.counts.repeated == 0
    before = journal(tmp_path / "run")
    again = live(tmp_path / "run", setup(name, aims), trace=1)
    assert result(again) == result(first)
    assert journal(tmp_path / "run")[len(before) :].count(b"\n") == 1  # the opening of the second life


@pytest.mark.parametrize(("name", "aims"), [("nsga2", TWO), ("tpe", TWO), ("sep-cma", ONE)])
def test_slower_optimizers_replay_as_well(tmp_path: Path, name: str, aims: Goals) -> None:
    first = live(tmp_path / "run", setup(name, aims, budget=24))
    assert result(live(tmp_path / "run", setup(name, aims, budget=24), trace=1)) == result(first)


def test_the_order_of_completion_matters_and_is_recorded(tmp_path: Path) -> None:
    one = live(tmp_path / "one", setup("cma"), trace=0)
    two = live(tmp_path / "two", setup("cma"), trace=1)
    told = [[n for turn in history.turns for n in turn.told] for history in (one, two)]
    assert told[0] != told[1]
    assert told[0] != sorted(told[0])
    assert sorted(told[0]) == list(range(one.counts.asked))
    genes = [[t.candidate.genes for t in history.turns if t.candidate] for history in (one, two)]
    assert genes[0][:4] == genes[1][:4]
    assert genes[0] != genes[1]


def test_with_one_worker_every_prefix_leads_to_the_same_result(tmp_path: Path) -> None:
    plan = setup("cma", budget=24)
    whole = live(tmp_path / "calm", plan, workers=1)
    lines = journal(tmp_path / "calm").splitlines(keepends=True)
    for cut in range(1, len(lines), 4):
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path / "calm", folder)
        (folder / "journal.jsonl").write_bytes(b"".join(lines[:cut]))
        assert result(live(folder, plan, workers=1, trace=cut)) == result(whole)
        shutil.rmtree(folder)


@pytest.mark.parametrize(("name", "aims", "every"), [("cma", ONE, 1), ("evolve", TWO, 3)])
def test_cut_at_every_record_a_resumed_run_never_contradicts_its_journal(
    tmp_path: Path, name: str, aims: Goals, every: int
) -> None:
    plan = setup(name, aims, budget=14)
    live(tmp_path / "calm", plan)
    lines = journal(tmp_path / "calm").splitlines(keepends=True)
    assert len(lines) > 2 * 14
    for cut in range(1, len(lines), every):
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path / "calm", folder)
        prefix = b"".join(lines[:cut])
        (folder / "journal.jsonl").write_bytes(prefix)
        resumed = live(folder, plan, trace=cut)  # what is left completes in another order
        written = journal(folder)
        assert written.startswith(prefix)
        assert resumed.counts.evaluated == 14
        assert resumed.counts.repeated == 0
        told = [n for turn in resumed.turns for n in turn.told]
        assert sorted(told) == list(range(resumed.counts.asked))
        assert [t.number for t in resumed.turns if t.candidate] == list(range(resumed.counts.asked))
        if cut % 5 == 1:
            assert result(live(folder, plan, trace=0)) == result(resumed)
            assert journal(folder).startswith(written)
        shutil.rmtree(folder)


def test_interrupts_lose_and_repeat_nothing(tmp_path: Path) -> None:
    for life, after in enumerate((1, 5, 9, 3)):
        with pytest.raises(Interrupted, match="interrupted"):
            live(tmp_path / "run", setup("cma"), stop=Stop(after), trace=life)
    final = live(tmp_path / "run", setup("cma"), trace=9)
    assert final.counts.evaluated == BUDGET
    assert final.counts.repeated == 0
    asked = [t.candidate.id for t in final.turns if t.candidate]
    assert len(asked) == len(set(asked)) == final.counts.asked


def test_what_was_in_flight_is_scored_first(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="interrupted"):
        live(tmp_path / "run", setup(), stop=Stop(12))
    left = read_history(RunStore.open(tmp_path / "run", write=False).entries())
    out = {c.id for b in left.batches for c in b.candidates if left.outcome(c, "search") is None}
    assert len(out) >= 4
    n_lines = journal(tmp_path / "run").count(b"\n")
    live(tmp_path / "run", setup(), workers=len(out), trace=5)
    with RunStore.open(tmp_path / "run", write=False) as store:
        added = list(store.records())[n_lines:]
    scored = [r.id for r in added if isinstance(r, Evaluated)]
    first_new = next(r.candidate.id for r in added if isinstance(r, Turn) and r.candidate)
    assert scored.index(first_new) >= 1
    assert set(scored[: len(out) + 2]) >= out  # two that wait may overtake


def test_a_larger_budget_goes_on_from_the_same_history(tmp_path: Path) -> None:
    small = live(tmp_path / "run", setup("cma", budget=20))
    grown = live(tmp_path / "run", setup("cma", budget=BUDGET), trace=1)
    assert grown.turns[: len(small.turns)] == small.turns
    on_search = [k for k in grown.outcomes if k[1] == "search"]
    assert len(on_search) in (BUDGET, BUDGET + 1)  # the centre after 20 was one more model
    assert result(live(tmp_path / "run", setup("cma", budget=BUDGET), trace=2)) == result(grown)


@pytest.mark.parametrize("budget", [1, 2, 3, 4])
def test_the_smallest_budgets_are_kept(tmp_path: Path, budget: int) -> None:
    assert live(tmp_path / "run", setup("cma", budget=budget)).counts.evaluated == budget
    assert live(tmp_path / "two", setup("evolve", TWO, budget)).counts.evaluated == budget


def test_baselines_are_no_barrier(tmp_path: Path) -> None:
    live(tmp_path / "run", setup())
    with RunStore.open(tmp_path / "run", write=False) as store:
        records = list(store.records())
    first_ask = next(i for i, r in enumerate(records) if isinstance(r, Turn))
    assert not any(isinstance(r, Evaluated) for r in records[:first_ask])
    early = records[: next(i for i, r in enumerate(records) if isinstance(r, Turn) and r.told)]
    assert sum(isinstance(r, Evaluated) for r in early) >= 3  # nothing is told before the bounds are known


def test_failures_are_told_and_counted(tmp_path: Path) -> None:
    history = live(tmp_path / "run", setup("cma"), scorer=score_light_ones, failure_share=0.95)
    assert history.counts.failed > 0
    assert history.counts.failed + history.counts.evaluated == BUDGET
    again = live(tmp_path / "run", setup("cma"), scorer=score_light_ones, failure_share=0.95)
    assert result(again) == result(history)


def test_too_many_failures_end_the_run(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(TooManyFailures, match=r"(?s)of .*too heavy"):
            live(tmp_path / "run", setup("random"), scorer=score_light_ones, failure_share=0.1)


def test_models_under_way_do_not_dilute_the_share_of_failures(tmp_path: Path) -> None:
    def fails(task: EvalTask) -> Evaluation:
        raise RuntimeError("never")

    pool = SimulatedPool(fails, 40, log_normal(1.0, 0.6, 0))
    with RunStore.create(tmp_path / "run", {"job.yaml": ""}) as store:
        ledger = Ledger(
            store,
            pool,
            known={},
            reused=frozenset(),
            stop=Stop(),
            drain_s=0.0,
            failure_share=0.9,
            watcher=Stop(),
        )
        for i in range(40):
            ledger.begin(Request(CandidateId(f"a{i}"), Digest(f"{i:064x}"), {"n": i}), "search")
        assert (ledger.spent, ledger.n_begun) == (40, 40)
        for _ in range(19):
            assert ledger.next_known("search", 60.0) is not None
        with pytest.raises(TooManyFailures, match="20 of 20, one by crash: never"):
            ledger.next_known("search", 60.0)


def test_a_converged_search_ends(tmp_path: Path) -> None:
    coarse = SearchSpace((Real("w0", 0.0, 1.0, step=0.5),))

    def coarse_recipe(vector: Vector) -> Recipe:
        (value,) = coarse.decode(vector).values()
        return Recipe(PARENTS, None, (Rule("linear", per_parent={"a": {"weight": float(value)}}),))

    problem = Problem(1, 1, 0, coarse.start, coarse.spread, coarse.step, 30, 1)
    plan = replace(
        setup("random", budget=30),
        space=coarse,
        recipe_of=coarse_recipe,
        known=setup().known[:2],
        make_optimizer=lambda: make_optimizer("random", problem, {"population": 3}),
    )
    history = live(tmp_path / "run", plan)
    assert history.counts.evaluated == 5 - 1  # three grid values, two parents, and weight 1 is parent a
    assert history.counts.reused > 10
    assert result(live(tmp_path / "run", plan, trace=1)) == result(history)


def test_stages_have_a_barrier_between_them_and_replay(tmp_path: Path) -> None:
    one = setup("cma")
    first, second = one.first, setup("evolve").first
    third = Stage(SPACE, recipe_of, setup("cma").make_optimizer)

    def plan(until: int) -> SearchSetup:
        stages = (
            StagePlan("a", 15, lambda _: first),
            StagePlan("b", 25, lambda _: second),
            StagePlan("c", until, lambda _: third),
        )
        return replace(one, stages=stages, budget=until)

    history = live(tmp_path / "run", plan(40))
    assert [s.name for _, s in sorted(history.stages.items())] == ["a", "b", "c"]
    assert history.stages[1].elites != ()
    numbers = [b.number for b in history.batches]
    assert numbers == sorted(set(numbers))
    assert [history.stage_of(n) for n in numbers] == sorted(history.stage_of(n) for n in numbers)
    assert {history.stage_of(n) for n in numbers} == {0, 1, 2}
    lines = journal(tmp_path / "run").splitlines(keepends=True)
    assert result(live(tmp_path / "run", plan(40), trace=1)) == result(history)
    for cut in range(5, len(lines), 9):
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path / "run", folder)
        (folder / "journal.jsonl").write_bytes(b"".join(lines[:cut]))
        resumed = live(folder, plan(40), trace=cut)
        assert resumed.counts.evaluated == history.counts.evaluated
        assert resumed.counts.repeated == 0
        shutil.rmtree(folder)


def test_blocks_stand_for_generations_in_reports(tmp_path: Path) -> None:
    stop = Stop()
    history = live(tmp_path / "run", setup("random"), stop=stop)
    assert [len(b.candidates) for b in history.batches][:-1] == [6] * (len(history.batches) - 1)
    assert all(b.told for b in history.batches)
    assert stop.blocks == list(range(history.counts.asked // 6))
    assert history.chosen is not None


def test_another_optimizer_is_noticed_on_resume(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="interrupted"):
        live(tmp_path / "run", setup("cma"), stop=Stop(15))
    with pytest.raises(ResumeMismatch, match="a00002 in batch 0 differs"):
        live(tmp_path / "run", setup("random"))
    accepted = live(tmp_path / "run", replace(setup("random"), accept_history=True))
    assert [note.topic for note in accepted.notes] == ["accepted-drift"]
    assert accepted.counts.evaluated == BUDGET


def test_a_turn_that_tells_of_nothing_asked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="interrupted"):
        live(tmp_path / "run", setup(), stop=Stop(5))
    with RunStore.open(tmp_path / "run", write=True) as store:
        store.append(Turn((777,), 0))
    with pytest.raises(CorruptJournal, match="ask 777"):
        live(tmp_path / "run", setup())


def test_lost_answers_are_asked_again_before_they_are_told(tmp_path: Path) -> None:
    first = live(tmp_path / "run", setup("cma"))
    for path in sorted((tmp_path / "run" / "responses").rglob("*"))[::3]:
        if path.is_file():
            path.unlink()
    again = live(tmp_path / "run", setup("cma"), trace=4)
    assert again.turns == first.turns
    assert again.chosen == first.chosen


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 3), (8, 10), (16, 19), (1000, 1126)])
def test_a_few_wait_for_whoever_is_free_next(workers: int, ahead: int) -> None:
    assert wanted_ahead(workers) == ahead
