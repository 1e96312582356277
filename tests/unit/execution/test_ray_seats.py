"""How many workers a Ray pool should have, what Ray says of a lost one, and what a cluster holds: no Ray is started."""

from __future__ import annotations

import time

import pytest

from evomerge.execution.ray_cluster import ClusterDescription, NodeDescription, read_nodes
from evomerge.execution.ray_seats import Seat, cause, wanted_seats
from evomerge.execution.ray_watch import View


def view(*nodes: tuple[float, float], free_gpus: float | None = None) -> View:
    found = tuple(NodeDescription(f"host-{i}", cpus, gpus, node=f"n{i}") for i, (cpus, gpus) in enumerate(nodes))
    free = sum(gpus for _, gpus in nodes) if free_gpus is None else free_gpus
    return View(found, {"CPU": 1000.0, "GPU": free}, 0.0)


def wanted(
    seen: View,
    *,
    n_seats: int = 0,
    n_placing: int = 0,
    limit: int | None = None,
    needs: tuple[float, float] = (1.0, 1.0),
    without: frozenset[str] = frozenset(),
    has_work: bool = False,
) -> int:
    return wanted_seats(
        seen,
        limit=limit,
        needs=needs,
        without=without,
        has_work=has_work,
        n_placing=n_placing,
        n_seats=n_seats,
    )


def test_without_a_limit_there_are_as_many_workers_as_the_cluster_holds() -> None:
    assert wanted(view((8, 2), (8, 1))) == 3
    assert wanted(view((8, 2), (8, 1)), needs=(1.0, 2.0)) == 1
    assert wanted(view((8, 2), (8, 1)), needs=(1.0, 0.25)) == 12
    assert wanted(view((2, 4)), needs=(1.0, 1.0)) == 2  # its cores are fewer than its GPUs
    assert wanted(view((8, 2), (8, 1)), without=frozenset({"n0"})) == 1


def test_one_more_waits_for_new_nodes_while_there_is_work_for_it() -> None:
    assert wanted(view((8, 2), free_gpus=0), n_seats=2, has_work=True) == 3
    assert wanted(view((8, 2), free_gpus=0), n_seats=2, has_work=False) == 2
    assert wanted(view((8, 2), free_gpus=0), n_seats=3, n_placing=1, has_work=True) == 2
    assert wanted(view(), has_work=True) == 1
    assert wanted(view()) == 1


def test_a_pool_grows_and_shrinks_with_the_cluster() -> None:
    assert wanted(view((8, 1), (8, 1), free_gpus=1), n_seats=1) == 2
    assert wanted(view((8, 1)), n_seats=4, n_placing=3) == 1


def test_what_others_use_is_not_besieged() -> None:
    seen = view((64, 8), free_gpus=3)
    assert wanted(seen) == 3
    assert wanted(seen, n_seats=3, n_placing=3) == 3
    assert wanted(view((64, 8), free_gpus=0), n_seats=3) == 4  # one waits for what they give up
    assert wanted(view((64, 8), free_gpus=0), n_seats=4, n_placing=1) == 4


def test_with_a_limit_there_are_that_many_and_ray_places_what_fits() -> None:
    assert wanted(view((8, 2)), limit=5) == 5
    assert wanted(view(), limit=5) == 5


@pytest.mark.parametrize(
    ("gpus", "wants", "seats"), [(2, 0.4, 4), (2, 0.5, 4), (1, 1.0, 1), (3, 2.0, 1), (0, 0.5, 0), (8, 0.1, 80)]
)
def test_shares_of_a_gpu_stay_on_one(gpus: float, wants: float, seats: int) -> None:
    assert NodeDescription("a", 1000, gpus).seats(1.0, wants) == seats


def test_a_dead_node_holds_nobody() -> None:
    dead = NodeDescription("a", 8, 8, alive=False)
    assert ClusterDescription((dead,)).seats(1, 1) == 0
    assert not ClusterDescription((dead,)).has_gpus
    assert ClusterDescription((dead, NodeDescription("b", 1, 1))).has_gpus


def test_nodes_are_read_as_ray_tells_them() -> None:
    told = {
        "NodeID": "f00",
        "Alive": True,
        "NodeManagerHostname": "gpu-3",
        "NodeManagerAddress": "10.0.0.3",
        "Resources": {"CPU": 16.0, "GPU": 4.0, "accelerator_type:H200": 1.0, "memory": 1e9, "node:10.0.0.3": 1.0},
    }
    gone = {"NodeID": "b0b", "Alive": False, "NodeManagerHostname": "gpu-1"}
    first, second = read_nodes([told, gone])
    assert second == NodeDescription("gpu-3", 16.0, 4.0, "H200", 10**9, True, "f00", "10.0.0.3")
    assert first == NodeDescription("gpu-1", 0.0, 0.0, alive=False, node="b0b")


def test_why_a_worker_was_lost_is_told_in_a_line() -> None:
    told = RuntimeError(
        "The actor died unexpectedly before finishing this task.\n\tclass_name: RayWorker\n\tpid: 841\n"
        "The actor died because its node has died. Node Id: f828d4c77c9f\n"
        "\tthe actor's node was terminated unexpectedly: health check failed"
    )
    assert cause(told) == (
        "RuntimeError: its node has died. the actor's node was terminated unexpectedly: health check failed"
    )
    assert len(cause(RuntimeError("x" * 1000))) == 160


def test_a_seat_rests_longer_after_every_failed_start() -> None:
    seat = Seat("worker-0", actor=object(), stage="placing", call=object())
    waits = []
    for seat.failed_starts in (0, 3, 100):
        seat.rest()
        waits.append(seat.wake_at - time.monotonic())
    assert (seat.actor, seat.call, seat.stage) == (None, None, "resting")
    assert waits == pytest.approx([0.2, 0.2 * 1.5**3, 5.0], abs=0.1)
