"""The Ray pool on a cluster of several nodes, started on this machine: nodes that come, go, differ, and die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, final

import pytest

from evomerge.errors import ConfigError
from evomerge.execution.admission import Admission
from evomerge.execution.devices import WorkerClass
from evomerge.execution.pool import Completed, EvaluationPool, WorkerEvent
from evomerge.execution.ray import RayPool
from evomerge.execution.ray_cluster import describe
from evomerge.execution.ray_session import import_ray
from evomerge.testing.fakes import instant_scores
from evomerge.testing.pool_suite import fake_spec, sample_task, score_all

pytestmark = [
    pytest.mark.ray,
    pytest.mark.kill,
    # Ray leaves the handles of its own daemons to the garbage collector
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed (file|<socket):ResourceWarning"),
]

STORE_BYTES = 80 * 1024**2
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
PATIENCE_S = 90.0
H200 = WorkerClass("H200", {"numpy": "1"})


@final
class Nodes:
    """A head that offers nothing, and nodes with fake GPUs."""

    def __init__(self) -> None:
        import_ray()
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "num_gpus": 0, "object_store_memory": STORE_BYTES, "_system_config": HEALTH}
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
        self.address = str(self._cluster.address)
        self._nodes: list[Any] = []

    def add(self, gpus: int = 1, device: str | None = None) -> Any:
        """A node joins; `device` is the class that its workers tell."""
        env = {} if device is None else {"EVOMERGE_FAKE_DEVICE": device}
        node = self._cluster.add_node(num_cpus=4, num_gpus=gpus, object_store_memory=STORE_BYTES, env_vars=env)
        self._nodes.append(node)
        return node

    def cut(self, node: Any) -> None:
        """A node loses its power."""
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self._forget(node)

    def remove(self, node: Any) -> None:
        """A node is taken away in peace."""
        self._forget(node)
        self._cluster.remove_node(node)

    def _forget(self, node: Any) -> None:
        self._nodes.remove(node)

    def clear(self) -> None:
        """Only the head is left."""
        for node in list(self._nodes):
            self.remove(node)

    def close(self) -> None:
        """Stop all of it."""
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    nodes = Nodes()
    import ray

    yield nodes
    ray.shutdown()
    nodes.close()


@pytest.fixture
def nodes(cluster: Nodes) -> Iterator[Nodes]:
    yield cluster
    cluster.clear()


def open_pool(nodes: Nodes, workers: int | None = None, **more: Any) -> RayPool:
    spec = fake_spec(**more.pop("arguments", {}))
    settings = {"cpus_per_worker": 0.5, "gpus_per_worker": 1.0, **more}
    return RayPool(spec, workers, address=nodes.address, **settings)


def work_until(pool: EvaluationPool, done: Callable[[list[WorkerEvent]], bool]) -> list[WorkerEvent]:
    """Keep the pool at work until its news are as expected."""
    told: list[WorkerEvent] = []
    number, until = 1000, time.monotonic() + PATIENCE_S
    while not done(told):
        assert time.monotonic() < until, told
        pool.submit(sample_task(number))
        number += 1
        pool.next_outcome(1.0)
        told += pool.news()
    return told


def wait_for(pool: EvaluationPool, done: Callable[[], bool]) -> None:
    """Let the pool go on until something is so; no answer may come."""
    until = time.monotonic() + PATIENCE_S
    while not done():
        assert pool.next_outcome(0.2) is None
        assert time.monotonic() < until


def kinds(told: list[WorkerEvent]) -> list[str]:
    return [event.kind for event in told]


def test_the_pool_grows_and_shrinks_with_the_cluster(nodes: Nodes) -> None:
    first = nodes.add()
    assert describe(nodes.address).seats(0.5, 1.0) == 1
    with open_pool(nodes, arguments={"sleep_s": 0.05}) as pool:
        for i in range(8):  # there is always work for one more
            pool.submit(sample_task(i))
        work_until(pool, lambda told: kinds(told) == ["joined"])
        assert pool.n_workers == 1
        second = nodes.add(gpus=2)
        told = work_until(pool, lambda told: kinds(told).count("joined") == 2)
        assert pool.n_workers == 3
        assert {event.device for event in told} == {"auto"}
        nodes.remove(second)
        lost = work_until(pool, lambda told: kinds(told).count("lost") == 2)
        assert pool.n_workers == 1
        assert all("node" in event.detail for event in lost)
    nodes.remove(first)
    assert not pool._ray.is_initialized()  # the connection was the pool's own, and its actors ended with it


@pytest.mark.chaos
def test_workers_of_another_class_are_left_idle(nodes: Nodes) -> None:
    nodes.add(device="H200")
    with open_pool(nodes) as pool:
        work_until(pool, lambda told: kinds(told) == ["joined"])
        nodes.add(device="A100")
        told = work_until(pool, lambda told: "refused" in kinds(told))
        assert [(e.device, e.detail) for e in told if e.kind == "refused"] == [("A100", "A100 instead of H200")]
        nodes.add(device="H200")
        told = work_until(pool, lambda told: "joined" in kinds(told))
        assert kinds(told) == ["joined"]
        assert pool.n_workers == 2


def test_workers_of_the_first_lifes_class_are_waited_for(nodes: Nodes) -> None:
    """One of another class is turned away, which ends the run when nobody else comes in time."""
    nodes.add(device="A100")
    with open_pool(nodes, admission=Admission("refuse", H200)) as pool:
        told = work_until(pool, bool)
        assert [(e.kind, e.device, e.detail) for e in told] == [("refused", "A100", "A100 instead of H200")]
        pool._start_timeout_s = 0.0
        with pytest.raises(ConfigError, match=r"A100 instead of H200(.|\n)*workers on H200(.|\n)*mixed_devices=record"):
            pool.next_outcome(PATIENCE_S)
        pool._start_timeout_s = PATIENCE_S
        nodes.add(device="H200")
        told = work_until(pool, bool)
        assert [(e.kind, e.device) for e in told] == [("joined", "H200")]
        assert pool.n_workers == 1


@pytest.mark.chaos
def test_where_all_classes_are_recorded_all_work(nodes: Nodes) -> None:
    nodes.add(device="A100")
    with open_pool(nodes, admission=Admission("record", H200)) as pool:
        score_all(pool, [sample_task(0)])
        assert [(event.kind, event.device) for event in pool.news()] == [("joined", "A100")]


@pytest.mark.chaos
def test_the_death_of_nodes_is_not_the_candidates_fault(nodes: Nodes) -> None:
    """One candidate runs on two nodes that die, one after the other, and is answered by the third."""
    task = sample_task(0)
    nodes.add()
    with open_pool(nodes, arguments={"sleep_s": 5.0}) as pool:
        pool.submit(task)
        for _ in range(2):
            wait_for(pool, lambda: any(seat.ticket for seat in pool._crew.seats))
            nodes.cut(nodes._nodes[0])
            nodes.add()
            wait_for(pool, lambda: not any(seat.ticket for seat in pool._crew.seats))
        answer = pool.next_outcome(PATIENCE_S)
        told = pool.news()
    assert answer is not None
    assert (answer.outcome, answer.attempt) == (instant_scores(task), 3)
    assert [event.candidate for event in told if event.kind == "lost"] == [task.id] * 2


def test_workers_are_killed_and_a_node_dies_under_work(nodes: Nodes, tmp_path: Path) -> None:
    """A bounded cut of `benchmarks/cluster_chaos.py`: equal outcomes, one extra evaluation per worker that was lost."""
    tasks = [sample_task(i) for i in range(60)]
    nodes.add()
    nodes.add()
    with open_pool(nodes, arguments={"sleep_s": 0.05, "marks": tmp_path}) as pool:
        for task in tasks:
            pool.submit(task)
        answers: dict[str, Completed] = {}
        told: list[WorkerEvent] = []
        kills = 0
        while len(answers) < len(tasks):
            answer = pool.next_outcome(PATIENCE_S)
            assert answer is not None
            assert answer.task.id not in answers
            answers[answer.task.id] = answer
            told += pool.news()
            if len(answers) == 30:
                nodes.cut(nodes._nodes[0])
                nodes.add()
                kills += 1
            elif len(answers) % 15 == 0:
                busy = [s.station.pid for s in pool._crew.seats if s.station is not None and s.ticket is not None]
                for pid in busy[:1]:
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
    assert {t.id: instant_scores(t) for t in tasks} == {i: a.outcome for i, a in answers.items()}
    assert sum(a.attempt - 1 for a in answers.values()) <= kills
    assert kinds(told).count("lost") >= 1
    assert len((tmp_path / "scored").read_text().split()) - len(tasks) <= kills
