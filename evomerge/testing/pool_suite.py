"""What every evaluation pool must do: subclass it, give it a `pool` fixture, and let pytest collect the methods."""

# ruff: noqa: D102 - the tests' names say what they demand

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.execution.pool import Completed, EvaluationPool
from evomerge.execution.worker import WorkerSpec
from evomerge.testing.fakes import Trouble, instant_scores
from evomerge.types import CandidateId, EvalTask, Evaluation, Failure

FAKE = "evomerge.testing.fakes:build_fake"
IDENTIFY = "evomerge.testing.fakes:identify"
PATIENCE_S = 60.0

PoolFactory = Callable[..., EvaluationPool]


def fake_spec(**arguments: Any) -> WorkerSpec:
    """A worker with the fake scorer and the fake device class; loads no torch."""
    return WorkerSpec(FAKE, arguments, identify=IDENTIFY)


def sample_task(number: int, trouble: Trouble = "none") -> EvalTask:
    """A task with a recipe of its own."""
    recipe: dict[str, Any] = {"weights": [number / 7, 1 / (number + 3)]}
    if trouble != "none":
        recipe["trouble"] = trouble
    return EvalTask(CandidateId(f"c{number:04d}"), recipe, "search")


def score_all(pool: EvaluationPool, tasks: Iterable[EvalTask]) -> dict[CandidateId, Completed]:
    """Submit all, take all answers; each must come once."""
    waiting = list(tasks)
    for task in waiting:
        pool.submit(task)
    answers: dict[CandidateId, Completed] = {}
    while len(answers) < len(waiting):
        answer = pool.next_outcome(PATIENCE_S)
        if answer is None:
            raise TimeoutError(f"{len(answers)} of {len(waiting)} answers after {PATIENCE_S} s")
        if answer.task.id in answers:
            raise ValueError(f"{answer.task.id} was answered twice")
        answers[answer.task.id] = answer
    return answers


class PoolSuite:
    """For every pool. Implement `make_pool`: `(spec, timeout_s=None) -> EvaluationPool`."""

    @pytest.fixture
    def make_pool(self) -> PoolFactory:
        """Makes a pool of the kind under test."""
        raise NotImplementedError

    @staticmethod
    def spec(**arguments: Any) -> WorkerSpec:
        """A worker with the fake scorer."""
        return fake_spec(**arguments)

    def test_every_task_is_answered_once_and_rightly(self, make_pool: PoolFactory) -> None:
        tasks = [sample_task(i) for i in range(25)]
        with make_pool(self.spec()) as pool:
            assert pool.n_workers >= 1
            answers = score_all(pool, tasks)
            assert pool.next_outcome(0.0) is None
        assert {t.id: instant_scores(t) for t in tasks} == {i: a.outcome for i, a in answers.items()}
        assert {a.attempt for a in answers.values()} == {1}
        assert all(a.task == t for a, t in zip(sorted(answers.values(), key=lambda a: a.task.id), tasks, strict=True))

    def test_routes_change_who_is_asked_and_nothing_else(self, make_pool: PoolFactory) -> None:
        routes = [(), ("a", "b"), ("a", "c"), (), ("d",), ("a", "b"), ("d", "e"), ("a", "c", "f")]
        tasks = [replace(sample_task(i), route=route) for i, route in enumerate(routes)]
        with make_pool(self.spec()) as pool:
            answers = score_all(pool, tasks)
        assert {t.id: instant_scores(t) for t in tasks} == {i: a.outcome for i, a in answers.items()}
        assert {t.id: t for t in tasks} == {i: a.task for i, a in answers.items()}

    def test_candidates_that_raise_fail_and_nothing_else_does(self, make_pool: PoolFactory) -> None:
        troubles: tuple[Trouble, ...] = ("raise", "nan", "memory")
        bad = [sample_task(i, trouble) for i, trouble in enumerate(troubles)]
        good = [sample_task(i + 10) for i in range(5)]
        with make_pool(self.spec()) as pool:
            answers = score_all(pool, [*bad, *good])
        failures = [answers[task.id].outcome for task in bad]
        assert [f.kind for f in failures if isinstance(f, Failure)] == ["crash", "nan", "memory"]
        assert isinstance(failures[0], Failure)
        assert failures[0].message == "RuntimeError: candidate c0000 is made to fail"
        assert "make_trouble" in failures[0].traceback
        assert all(isinstance(answers[task.id].outcome, Evaluation) for task in good)

    def test_timing_tells_the_whole_task(self, make_pool: PoolFactory) -> None:
        with make_pool(self.spec(sleep_s=0.05)) as pool:
            outcome = score_all(pool, [sample_task(1)])[sample_task(1).id].outcome
        assert isinstance(outcome, Evaluation)
        assert 0.05 <= outcome.timing_s["total"] < 5.0
        assert "merge" in outcome.timing_s

    def test_a_chosen_subset_of_items_is_scored(self, make_pool: PoolFactory) -> None:
        task = EvalTask(CandidateId("c"), {"w": 0.5}, "select", {"add": ("i3", "i1"), "rev": ("i2",)})
        with make_pool(self.spec()) as pool:
            outcome = score_all(pool, [task])[task.id].outcome
        assert isinstance(outcome, Evaluation)
        assert outcome.answers["add"].items == ("i3", "i1")
        assert outcome.set_name == "select"

    def test_an_error_at_start_up_is_raised_as_it_is(self, make_pool: PoolFactory) -> None:
        def start() -> None:
            with make_pool(WorkerSpec("evomerge.testing.fakes:no_such_thing")) as pool:
                score_all(pool, [sample_task(0)])

        with pytest.raises(ConfigError, match="no_such_thing"):
            start()

    def test_waiting_tasks_can_be_dropped(self, make_pool: PoolFactory) -> None:
        tasks = [sample_task(i) for i in range(30)]
        with make_pool(self.spec(sleep_s=0.02)) as pool:
            for task in tasks:
                pool.submit(task)
            first = pool.next_outcome(PATIENCE_S)
            assert first is not None
            dropped = pool.drop_waiting()
            assert len(dropped) >= 30 - 2 * pool.n_workers
            answered = [first.task.id]
            while (answer := pool.next_outcome(PATIENCE_S)) is not None:
                answered.append(answer.task.id)
        assert sorted([*answered, *(t.id for t in dropped)]) == [t.id for t in tasks]
        assert [t.id for t in dropped] == sorted(t.id for t in dropped)

    def test_no_worker_is_ahead_of_what_was_taken(self, make_pool: PoolFactory, tmp_path: Path) -> None:
        with make_pool(self.spec(marks=tmp_path)) as pool:
            for i in range(12):
                pool.submit(sample_task(i))
            for taken in range(1, 5):
                assert pool.next_outcome(PATIENCE_S) is not None
                time.sleep(0.1)
                scored = len((tmp_path / "scored").read_text().split())
                assert taken <= scored <= taken - 1 + pool.n_workers

    def test_calm_news_are_of_workers_that_joined(self, make_pool: PoolFactory) -> None:
        with make_pool(self.spec()) as pool:
            answers = score_all(pool, [sample_task(i) for i in range(8)])
            told = pool.news()
            assert pool.news() == ()
        assert {event.kind for event in told} <= {"joined"}
        assert not any(event.candidate for event in told)
        names = [event.worker for event in told]
        assert len(set(names)) == len(names)
        if names:
            assert {answer.worker for answer in answers.values()} <= set(names)

    def test_a_closed_pool_is_of_no_use(self, make_pool: PoolFactory) -> None:
        pool = make_pool(self.spec())
        pool.submit(sample_task(0))
        pool.close()
        pool.close()
        with pytest.raises(RuntimeError, match="the pool is closed"):
            pool.submit(sample_task(1))
        with pytest.raises(RuntimeError, match="the pool is closed"):
            pool.next_outcome(0.0)


class IsolatedPoolSuite(PoolSuite):
    """For pools whose workers can be lost without harm to the driver."""

    def test_a_lost_worker_costs_its_candidate_nothing(self, make_pool: PoolFactory, tmp_path: Path) -> None:
        tasks = [sample_task(i, "kill-once" if i == 3 else "none") for i in range(8)]
        with make_pool(self.spec(marks=tmp_path)) as pool:
            answers = score_all(pool, tasks)
            lost = [event for event in pool.news() if event.kind == "lost"]
            assert pool.news() == ()
        assert [event.candidate for event in lost] == [tasks[3].id]
        assert all(event.worker and event.detail and "\n" not in event.detail for event in lost)
        assert {t.id: instant_scores(t) for t in tasks} == {i: a.outcome for i, a in answers.items()}
        assert {i: a.attempt for i, a in answers.items() if a.attempt != 1} == {tasks[3].id: 2}
        scored = (tmp_path / "scored").read_text().split()
        assert sorted(scored) == [t.id for t in tasks]

    def test_a_poisonous_candidate_is_quarantined(self, make_pool: PoolFactory) -> None:
        tasks = [sample_task(i, "kill" if i == 2 else "none") for i in range(8)]
        with make_pool(self.spec()) as pool:
            answers = score_all(pool, tasks)
        poison = answers.pop(tasks[2].id).outcome
        assert isinstance(poison, Failure)
        assert poison.kind == "crash"
        assert poison.message.startswith("took 2 workers down")
        assert all(isinstance(a.outcome, Evaluation) for a in answers.values())

    def test_a_hanging_candidate_is_ended(self, make_pool: PoolFactory) -> None:
        tasks = [sample_task(i, "hang" if i == 1 else "none") for i in range(6)]
        with make_pool(self.spec(), timeout_s=1.0) as pool:
            answers = score_all(pool, tasks)
            lost = [event for event in pool.news() if event.kind == "lost"]
        last = answers.pop(tasks[1].id)
        hanging = last.outcome
        assert [event.candidate for event in lost] == [tasks[1].id] * last.attempt
        assert hanging == Failure("timeout", "took longer than 1 s")
        assert all(isinstance(a.outcome, Evaluation) for a in answers.values())
