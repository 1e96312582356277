"""The crew of a Ray pool: as many seats as there should be, and actors that are asked to take them."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import ModuleType
from typing import Any, Final, NamedTuple, final

from evomerge.execution.admission import Admission
from evomerge.execution.ray_actor import RayWorker
from evomerge.execution.ray_seats import Seat, wanted_seats
from evomerge.execution.ray_watch import ClusterWatch
from evomerge.execution.worker import WorkerSpec

RESIZE_S: Final = 2.0
_CLOSE_S: Final = 5.0
_NODE_LABEL: Final = "ray.io/node-id"


class Needs(NamedTuple):
    """What an actor reserves: CPUs, and a share of a GPU or a whole number of them."""

    cpus: float
    gpus: float


@final
class Crew:
    """See the module docstring.

    Ray never restarts an actor: a new one is made, since only we know where it should not be.

    Args:
        ray: the module, connected.
        spec: of the workers.
        needs: of each.
        limit: on their number; None for as many as the cluster holds.
        admission: who may score; nodes that it has refused are avoided.
        watch: over the cluster.

    Attributes:
        seats: the workers, in order of their first appearance.
    """

    def __init__(
        self,
        ray: ModuleType,
        spec: WorkerSpec,
        needs: Needs,
        *,
        limit: int | None,
        admission: Admission,
        watch: ClusterWatch,
    ) -> None:
        self.seats: list[Seat] = []
        self._ray = ray
        self._spec = spec
        self._needs = needs
        self._limit = limit
        self._admission = admission
        self._watch = watch
        self._remote: Any = ray.remote(RayWorker)
        self._resized_at = -RESIZE_S
        self._endings: list[threading.Thread] = []

    @property
    def ready(self) -> list[Seat]:
        """Those that may be given tasks, or have one."""
        return [seat for seat in self.seats if seat.stage == "ready"]

    @property
    def n_placed(self) -> int:
        """How many have found a place."""
        return sum(seat.stage in {"starting", "ready"} for seat in self.seats)

    def resize(self, *, has_work: bool) -> None:
        """Have as many seats as there should be; done every `RESIZE_S` seconds, however often it is called."""
        if time.monotonic() - self._resized_at < RESIZE_S:
            return
        self._resized_at = time.monotonic()
        view = self._watch.view
        self._admission.forget(frozenset(node.node for node in view.nodes if node.alive))
        unplaced = [seat for seat in self.seats if seat.stage in {"placing", "resting"}]
        wanted = wanted_seats(
            view,
            limit=self._limit,
            needs=self._needs,
            without=self._admission.refused_nodes,
            has_work=has_work,
            n_placing=len(unplaced),
            n_seats=len(self.seats),
        )
        for seat in unplaced[: max(len(self.seats) - wanted, 0)]:
            self.dismiss(seat)
            self.seats.remove(seat)
        for _ in range(wanted - len(self.seats)):
            self.seats.append(Seat(self._free_name()))

    def _free_name(self) -> str:
        taken = {seat.name for seat in self.seats}
        return next(name for i in range(len(taken) + 1) if (name := f"worker-{i}") not in taken)

    def fill(self) -> None:
        """Ask Ray for an actor for every seat that has rested long enough."""
        refused = ",".join(sorted(self._admission.refused_nodes))
        for seat in self.seats:
            if seat.stage != "resting" or time.monotonic() < seat.wake_at:
                continue
            # max_restarts=0, max_task_retries=0: what runs again, and where, is the pool's to decide
            seat.actor = self._remote.options(
                num_cpus=self._needs.cpus,
                num_gpus=self._needs.gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=1,
                scheduling_strategy="SPREAD",
                label_selector={_NODE_LABEL: f"!in({refused})"} if refused else None,
            ).remote()
            seat.stage, seat.call = (
                "placing",
                seat.actor.arrive.remote(self._spec.identify, self._spec.device, self._spec.threads),
            )

    def dismiss(self, seat: Seat) -> None:
        """End a seat's actor, if it lives; the seat rests."""
        if seat.actor is not None and not self._watch.is_lost:
            # Ray waits for its head, which may be gone: the driver must not
            ending = threading.Thread(target=self._kill, args=(seat.actor,), name="evomerge-end-actor", daemon=True)
            ending.start()
            self._endings = [*(thread for thread in self._endings if thread.is_alive()), ending]
        seat.rest()

    def _kill(self, actor: Any) -> None:
        with suppress(self._ray.exceptions.RayError, RuntimeError):
            self._ray.kill(actor, no_restart=True)

    def close(self) -> None:
        """End all actors; those of a head that does not answer are left to it."""
        for seat in self.seats:
            self.dismiss(seat)
        deadline = time.monotonic() + _CLOSE_S
        for thread in () if self._watch.is_lost else self._endings:
            thread.join(max(deadline - time.monotonic(), 0.0))
