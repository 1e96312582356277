"""Candidates that begin alike meet on one worker: routes, the queue, the ledger; and nothing else changes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import Interrupted
from evomerge.execution.inline import InlinePool
from evomerge.execution.ledger import Ledger, Request, recorded_outcomes
from evomerge.execution.local import ProcessPool
from evomerge.execution.pool import Completed, EvaluationPool, TaskQueue
from evomerge.execution.routes import Route, agreement, route_of
from evomerge.execution.worker import WorkerSpec
from evomerge.recipe.path import Hop, Hops, plain_path
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_digest, recipe_to_json
from evomerge.runs.records import Opened
from evomerge.runs.replay import read_history
from evomerge.runs.store import JOURNAL, RunStore
from evomerge.testing.fakes import instant_scores
from evomerge.testing.pool_suite import FAKE, sample_task, score_all
from evomerge.types import CandidateId, EvalTask, Evaluation

PARENTS = tuple(ParentRef(n, n) for n in "xyz")
DEPTH = 16


def soup(weight: float, path: Hops | None, **rest: object) -> Recipe:
    """Layer 1 has a rule of its own, and so has the head."""
    rules = (
        Rule("linear", {}, {"x": {"weight": 1.0}, "y": {"weight": weight}}, layers=(1,)),
        Rule("linear", {}, {"x": {"weight": 1.0}, "y": {"weight": weight}}, layers=(), roles=("head",)),
        Rule("linear", {}, {"x": {"weight": 0.5}, "y": {"weight": 0.5}}),
    )
    return replace(Recipe(PARENTS, None, rules, path=path), **rest)  # type: ignore[arg-type]


def route(recipe: Recipe) -> Route:
    return route_of(recipe_to_json(recipe))


def offspring(n: int, n_edits: int, seed: int) -> list[Hops]:
    """Plain paths with layers replaced, repeated or left out."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        hops = list(plain_path(DEPTH, "x"))
        for _ in range(n_edits):
            k = int(rng.integers(len(hops)))
            kind = rng.integers(3)
            hops[k : k + 1] = [[Hop(hops[k].layer, "y")], [hops[k], hops[k]], []][kind]
        found.append(tuple(hops))
    return found


def task_of(number: int, found: Route) -> EvalTask:
    return replace(sample_task(number), route=found)


def test_routes_agree_as_far_as_the_same_is_computed() -> None:
    path = (Hop(0), Hop(1, "x"), Hop(1), Hop(2, "x", 0.5))
    one, other = route(soup(0.1, path)), route(soup(0.9, path))
    assert len(one) == len(set(one)) == 5
    assert agreement(one, other) == 3  # the head does not matter, the merge of layer 1 does, where it runs
    assert agreement(one, one) == 5
    assert agreement(one, route(soup(0.1, path[:2]))) == 3
    assert agreement(one, route(soup(0.1, (*path[:3], Hop(2, "x"))))) == 4
    assert agreement(one, route(soup(0.1, path, dtype="float16"))) == 0
    assert agreement((), one) == 0


def test_a_recipe_without_a_path_has_no_route() -> None:
    assert route(soup(0.1, None)) == ()
    assert route_of({"weights": [1.0]}) == ()


def test_a_queue_gives_a_worker_what_is_nearest_and_spreads_workers() -> None:
    queue = TaskQueue()
    routes: Sequence[Route] = [("a", "b", "c"), ("a", "b", "d"), ("a", "e", "f"), ("g", "h"), ("g", "i")]
    for i, found in enumerate(routes):
        queue.add(task_of(i, found))
    taken = [queue.take(worker, alone=False) for worker in ("v", "w", "w", "v", "w")]
    assert [t.number for t in taken if t is not None] == [0, 3, 4, 1, 2]
    assert queue.take("v", alone=True) is None


def test_tasks_without_a_route_keep_their_order() -> None:
    queue = TaskQueue()
    for i, found in enumerate([("a",), (), ("b",), (), ("a",)]):
        queue.add(task_of(i, found))
    taken = [queue.take("w", alone=True) for _ in range(5)]
    assert [t.number for t in taken if t is not None] == [0, 1, 4, 2, 3]


def test_a_suspect_waits_for_another_worker_and_a_new_worker_begins_afresh() -> None:
    queue = TaskQueue()
    for i, found in enumerate([("a", "b"), ("d", "e"), ("g",), ("a", "c")]):
        queue.add(task_of(i, found))
    first = queue.take("w", alone=False)
    other = queue.take("v", alone=False)
    assert first is not None
    assert other is not None
    assert (first.number, other.number) == (0, 1)
    queue.put_back(first.lost("w", "here"))
    again = queue.take("w", alone=False)  # not the suspect, nor what is like it: what w kept is gone
    assert again is not None
    assert again.number == 2
    suspect = queue.take("v", alone=False)
    assert suspect is not None
    assert (suspect.number, suspect.kills) == (0, ("here",))


ROUTES = st.lists(st.lists(st.sampled_from("abc"), max_size=4).map(tuple), max_size=20)


@settings(deadline=None, max_examples=60)
@given(ROUTES, st.data())
def test_every_task_is_given_out_once_whatever_the_routes(routes: list[Route], data: st.DataObject) -> None:
    queue = TaskQueue()
    for i, found in enumerate(routes):
        queue.add(task_of(i, found))
    numbers = []
    while len(queue):
        worker = data.draw(st.sampled_from("uvw"))
        ticket = queue.take(worker, alone=data.draw(st.booleans()))
        if ticket is None:
            ticket = queue.take(worker, alone=True)
        assert ticket is not None
        if not ticket.kills and data.draw(st.integers(0, 5)) == 0:
            queue.put_back(ticket.lost(worker, worker))
        else:
            numbers.append(ticket.number)
    assert sorted(numbers) == list(range(len(routes)))


def layers_run(paths: Sequence[Hops], n_workers: int, *, routed: bool) -> int:
    """How many layers a population runs when every worker keeps the states of its last candidate alone."""
    routes = [route(soup(0.1, path)) for path in paths]
    queue = TaskQueue()
    for i, found in enumerate(sorted(routes) if routed else routes):
        queue.add(EvalTask(CandidateId(str(i)), {"route": found}, "search", route=found if routed else ()))
    last: dict[str, Route] = {}
    n = 0
    while len(queue):
        for worker in map(str, range(n_workers)):
            ticket = queue.take(worker, alone=False)
            if ticket is not None:
                found = ticket.task.recipe["route"]
                n += len(found) - max(agreement(found, last.get(worker, ())), 1)
                last[worker] = found
    return n


@pytest.mark.parametrize("n_edits", [1, 2, 4])
def test_one_worker_runs_every_prefix_once(n_edits: int) -> None:
    paths = offspring(32, n_edits, 0)
    assert layers_run(paths, 1, routed=True) == len({path[:n] for path in paths for n in range(1, len(path) + 1)})


def test_several_workers_share_nearly_as_much() -> None:
    """With chance, two workers would find half of what one finds in common with its last candidate."""
    paths = offspring(32, 2, 1)
    plain = sum(map(len, paths))
    saved = {w: 1 - layers_run(paths, w, routed=True) / plain for w in (1, 2, 4)}
    by_chance = {w: 1 - layers_run(paths, w, routed=False) / plain for w in (1, 2, 4)}
    assert saved[1] > 0.25
    assert saved[2] > saved[1] - 0.1
    assert all(saved[w] > by_chance[w] for w in saved)


def test_a_task_with_a_route_that_kills_its_worker_is_tried_again(tmp_path: Path) -> None:
    tasks = [replace(sample_task(i, "kill-once" if i == 2 else "none"), route=("a", str(i % 3))) for i in range(6)]
    with ProcessPool(WorkerSpec(FAKE, {"marks": tmp_path}), 2) as pool:
        answers = score_all(pool, tasks)
    assert {i: a.attempt for i, a in answers.items() if a.attempt != 1} == {tasks[2].id: 2}


class _Silent:
    """Watches nothing."""

    def phase(self, *_: object) -> None:
        pass

    outcome = batch = phase


class _Recording(EvaluationPool):
    """An inline pool that remembers in which order it was given tasks, and answered them."""

    n_workers = 1

    def __init__(self) -> None:
        self._pool = InlinePool(WorkerSpec(FAKE))
        self.submitted: list[CandidateId] = []
        self.answered: list[CandidateId] = []

    def submit(self, task: EvalTask) -> None:
        self.submitted.append(task.id)
        self._pool.submit(task)

    def next_outcome(self, timeout_s: float | None = None) -> Completed | None:
        answer = self._pool.next_outcome(timeout_s)
        self.answered += [] if answer is None else [answer.task.id]
        return answer

    def drop_waiting(self) -> tuple[EvalTask, ...]:
        return self._pool.drop_waiting()

    def close(self) -> None:
        self._pool.close()


@dataclass
class Life:
    """One life of a run in a folder; a stop is asked for after so many answers."""

    folder: Path
    stop_after: int = 1000
    pool: _Recording = field(default_factory=_Recording)

    def __enter__(self) -> Ledger:
        exists = (self.folder / JOURNAL).exists()
        self.store = RunStore.open(self.folder, write=True) if exists else RunStore.create(self.folder, {"job": ""})
        history = read_history(self.store.entries())
        self.store.append(Opened(len(history.lives) + 1, exists, "host", 1))
        return Ledger(
            self.store,
            self.pool,
            known=recorded_outcomes(self.store, history),
            reused=history.reused,
            stop=lambda: len(self.pool.answered) >= self.stop_after,
            drain_s=0.0,
            failure_share=1.0,
            watcher=_Silent(),
        )

    def __exit__(self, *_: object) -> None:
        self.store.close()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Nine candidates with a path and, in between, two without."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # no life here ends by a power cut
    recipes = [soup(0.1, path) for path in offspring(9, 2, 3)]
    recipes[2:2] = [soup(0.2, None), soup(0.3, None)]
    return [Request(CandidateId(f"c{i}"), recipe_digest(r), recipe_to_json(r)) for i, r in enumerate(recipes)]


def expected(requests: Sequence[Request]) -> tuple[Evaluation, ...]:
    return tuple(instant_scores(EvalTask(r.id, r.recipe, "search")) for r in requests)


def test_the_ledger_hands_paths_over_in_their_order_and_answers_in_the_order_of_requests(
    tmp_path: Path, requests: list[Request]
) -> None:
    life = Life(tmp_path / "run")
    with life as ledger:
        assert ledger.score(requests, "search") == expected(requests)
    by_route = sorted(requests, key=lambda r: route_of(r.recipe))
    assert life.pool.submitted == life.pool.answered == [r.id for r in by_route]
    assert life.pool.submitted[:2] == ["c2", "c3"]


def test_an_interrupted_generation_of_paths_goes_on_where_it_was(tmp_path: Path, requests: list[Request]) -> None:
    first = Life(tmp_path / "run", stop_after=5)
    with first as ledger, pytest.raises(Interrupted, match="every finished candidate is recorded"):
        ledger.score(requests, "search")
    second = Life(tmp_path / "run")
    with second as ledger:
        assert ledger.score(requests, "search") == expected(requests)
    assert len(first.pool.answered) == 5
    assert sorted([*first.pool.answered, *second.pool.answered]) == sorted(r.id for r in requests)
