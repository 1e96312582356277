"""Workers of a cluster that do not start, and pools that do not come to be: no Ray is started."""

from __future__ import annotations

import re
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from evomerge.errors import ConfigError, ModelError
from evomerge.execution import ray as ray_module
from evomerge.execution import ray_starts
from evomerge.execution.devices import Station, WorkerClass
from evomerge.execution.ray import RayPool
from evomerge.execution.ray_cluster import NodeDescription, lacking
from evomerge.execution.ray_crew import Crew
from evomerge.execution.ray_errors import cannot_start
from evomerge.execution.ray_session import Session
from evomerge.execution.ray_starts import APART_S, CHANCES, FailedStarts
from evomerge.execution.ray_watch import View
from evomerge.testing.pool_suite import fake_spec, sample_task
from evomerge.types import Failure

BUSY = ModelError("The model cannot be read.", got="/nfs: stale", allowed="files", fix="wait.")


class TaskError(Exception):
    """Ray's wrapping of what a call raised: the cause comes after a traceback of many lines."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("ray::RayWorker.start() (pid=1)\n  File ...\n" + repr(cause))
        self.cause = cause


class FakeRay:
    """As much of Ray as a pool touches before any actor answers."""

    exceptions = SimpleNamespace(RayError=OSError, RayTaskError=TaskError)

    def __init__(self, nodes: list[dict[str, Any]]) -> None:
        self._nodes = nodes
        self.ended = 0

    def nodes(self) -> list[dict[str, Any]]:
        if not self._nodes:
            raise RuntimeError("the head said nothing")
        return self._nodes

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(gcs_address="")

    def remote(self, actor: type) -> SimpleNamespace:
        return SimpleNamespace(options=self._actor)

    def _actor(self, **options: Any) -> SimpleNamespace:
        actor = SimpleNamespace(arrive=SimpleNamespace(remote=lambda *a: object()))
        return SimpleNamespace(remote=lambda: actor)

    def wait(self, refs: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        time.sleep(min(timeout, 0.01))
        return [], refs

    def get(self, ref: Exception) -> Any:
        raise ref

    def kill(self, actor: Any, *, no_restart: bool) -> None:
        """Nothing lives."""

    def is_initialized(self) -> bool:
        return not self.ended

    def shutdown(self) -> None:
        self.ended += 1


def node(name: str, cpus: float = 2.0) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerHostname": name, "Alive": True, "Resources": {"CPU": cpus}}


def joined(monkeypatch: pytest.MonkeyPatch, fake: FakeRay) -> FakeRay:
    monkeypatch.setattr(ray_module, "connect", lambda *_: Session(fake, owned=True, local=True))  # type: ignore[arg-type]
    return fake


def fail(pool: RayPool, where: str) -> None:
    seat = pool._crew.seats[0]
    seat.stage, seat.station = "starting", Station(WorkerClass("cpu", {}), where, 1, where)
    pool._failed_start(seat, BUSY)


def watches() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "evomerge-cluster-watch"]


def test_a_node_is_refused_after_several_failures_and_the_run_ends_soon_when_it_was_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joined(monkeypatch, FakeRay([node("n0")]))
    monkeypatch.setattr(ray_starts, "APART_S", 0.0)
    with RayPool(fake_spec(), 1) as pool:
        pool._has_worked = True
        pool.submit(sample_task(0))
        for _ in range(CHANCES - 1):
            fail(pool, "n0")
            assert not pool._admission.refused_nodes
            assert pool.next_outcome(0.05) is None
        fail(pool, "n0")
        assert pool._admission.refused_nodes == {"n0"}
        with pytest.raises(ModelError, match=r"The model cannot be read\.[\s\S]*/nfs: stale"):
            pool.next_outcome(5.0)
        assert [event.kind for event in pool.news()] == ["lost"] * (CHANCES - 1) + ["refused"]


def test_a_run_goes_on_while_there_is_another_node_or_somebody_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    joined(monkeypatch, FakeRay([node("n0"), node("n1")]))
    monkeypatch.setattr(ray_starts, "APART_S", 0.0)
    with RayPool(fake_spec(), 2) as pool:
        pool._has_worked = True
        pool.submit(sample_task(0))
        for _ in range(CHANCES):
            fail(pool, "n0")
        assert pool.next_outcome(0.05) is None
        for _ in range(CHANCES):
            fail(pool, "n1")
        pool._crew.seats[1].stage = "starting"
        assert pool.next_outcome(0.05) is None
        pool._crew.seats[1].stage = "resting"
        with pytest.raises(ModelError, match="cannot be read"):
            pool.next_outcome(5.0)


def test_what_stops_the_first_worker_still_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    joined(monkeypatch, FakeRay([node("n0")]))
    with RayPool(fake_spec(), 1) as pool:
        seat = pool._crew.seats[0]
        seat.stage, seat.station = "starting", Station(WorkerClass("cpu", {}), "n0", 1, "n0")
        with pytest.raises(ConfigError, match="no room"):
            pool._failed_start(seat, Failure("memory", "no room"))


def test_what_a_start_raised_is_told_and_not_where(monkeypatch: pytest.MonkeyPatch) -> None:
    joined(monkeypatch, FakeRay([node("n0")]))
    with RayPool(fake_spec(), 1) as pool, pytest.raises(ConfigError, match="did not arrive: OSError: stale file"):
        pool._receive(pool._crew.seats[0], TaskError(OSError("stale file")))


@pytest.mark.parametrize("broken", ["look", "hire"])
def test_a_pool_that_does_not_come_to_be_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    fake = joined(monkeypatch, FakeRay([node("n0")] if broken == "hire" else []))

    def breaks(self: Crew, *, has_work: bool) -> None:
        raise RuntimeError("the head said nothing")

    monkeypatch.setattr(Crew, "resize", breaks)
    before = watches()
    with pytest.raises(RuntimeError, match="the head said nothing"):
        RayPool(fake_spec(), 1)
    assert (fake.ended, watches()) == (1, before)


def seen(*names: str, without_room: tuple[str, ...] = ()) -> View:
    rich = [NodeDescription(name, 2.0, 0.0, node=name) for name in names]
    return View((*rich, *(NodeDescription(name, 0.0, 0.0, node=name) for name in without_room)), {}, 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("evomerge.execution.ray_starts.time.monotonic", lambda: now[0])
    return now


def test_failures_of_one_moment_count_once(clock: list[float]) -> None:
    starts = FailedStarts()
    assert not any(starts.add("n0", BUSY) for _ in range(10))
    given_up = []
    for _ in range(CHANCES - 1):
        clock[0] += APART_S
        given_up.append(starts.add("n0", BUSY))
    assert given_up == [False] * (CHANCES - 2) + [True]


def test_a_start_that_works_forgives_what_failed_before(clock: list[float]) -> None:
    starts = FailedStarts()
    for _ in range(3 * CHANCES):
        clock[0] += APART_S
        assert not starts.add("n0", BUSY)
        starts.forgive("n0")


def test_nodes_without_room_or_of_another_class_are_no_reason_to_end_or_to_wait(clock: list[float]) -> None:
    starts, refused, later = FailedStarts(), frozenset({"n0", "n1", "odd"}), cannot_start("later")
    for name, error in (("n0", BUSY), ("n1", later)):
        for _ in range(CHANCES):
            clock[0] += APART_S
            starts.add(name, error)
    needs = (1.0, 0.0)
    assert starts.nowhere_left(seen("n0", "odd", without_room=("head",)), refused, needs) is BUSY
    assert starts.nowhere_left(seen("n0", "n1"), refused, needs) is later
    assert starts.nowhere_left(seen("n0", "new"), refused, needs) is None
    assert starts.nowhere_left(seen("odd"), refused, needs) is None  # of another class: the right one may come
    assert starts.nowhere_left(seen(), refused, needs) is None


def test_a_pool_whose_nodes_are_all_too_small_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    joined(monkeypatch, FakeRay([node("n0"), node("n1", cpus=4.0)]))
    why = "no node has room for a worker: each asks for 8 CPUs and 0 GPUs, "
    why += "and the largest node (n1) has 4 CPUs and 0 GPUs"
    with RayPool(fake_spec(), 1, cpus_per_worker=8.0, start_timeout_s=0.05) as pool:
        pool.submit(sample_task(0))
        assert pool.waits_for() == why
        with pytest.raises(ConfigError, match=re.escape(why)):
            pool.next_outcome(5.0)
    with RayPool(fake_spec(), 1, cpus_per_worker=4.0) as pool:
        assert pool.waits_for() == ""


def test_a_cluster_of_lost_nodes_has_none() -> None:
    gone = NodeDescription("n0", cpus=64, gpus=8, alive=False)
    assert lacking([gone], 1, 1) == "no node has room for a worker: each asks for 1 CPU and 1 GPU, and there is no node"
