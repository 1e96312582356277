"""The workers of a Ray pool as the driver sees them, and how many there should be."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any, Final, Literal

from evomerge.execution.devices import Station
from evomerge.execution.pool import Ticket
from evomerge.execution.ray_watch import View

Stage = Literal["placing", "starting", "ready", "resting"]
"""`placing`: Ray looks for room; `starting`: it builds its worker; `resting`: it is gone, a new one comes later."""

_REST_S: Final = 0.2
_MAX_REST_S: Final = 5.0
_DETAIL_CHARS: Final = 160


@dataclass
class Seat:
    """One worker.

    Attributes:
        name: of the worker; whoever takes the seat has it.
        actor: Ray's handle, None while the seat rests.
        stage: how far it is.
        station: where it lives, once it has arrived.
        call: the pending call, if there is one.
        ticket: what it runs.
        deadline: when `call` will have taken too long, monotonic seconds.
        heard_at: when a call last ended, monotonic seconds.
        wake_at: when a resting seat is taken again, monotonic seconds.
        failed_starts: in a row.
    """

    name: str
    actor: Any = None
    stage: Stage = "resting"
    station: Station | None = None
    call: Any = None
    ticket: Ticket | None = None
    deadline: float = float("inf")
    heard_at: float = 0.0
    wake_at: float = 0.0
    failed_starts: int = 0

    @property
    def host(self) -> str:
        """The machine, empty before it is known."""
        return "" if self.station is None else self.station.host

    @property
    def node(self) -> str:
        """Ray's id of the node, empty before it is known."""
        return "" if self.station is None else self.station.node

    def clear(self) -> Ticket | None:
        """Forget the call, and return what it ran."""
        ticket, self.call, self.ticket, self.deadline = self.ticket, None, None, float("inf")
        self.heard_at = time.monotonic()
        return ticket

    def rest(self) -> None:
        """Leave the seat empty for a moment, longer after every failed start."""
        self.actor, self.station, self.call, self.stage = None, None, None, "resting"
        self.wake_at = time.monotonic() + min(_REST_S * 1.5**self.failed_starts, _MAX_REST_S)


def wanted_seats(
    view: View,
    *,
    limit: int | None,
    needs: tuple[float, float],
    without: frozenset[str],
    has_work: bool,
    n_placing: int,
    n_seats: int,
) -> int:
    """How many seats a pool should have now.

    With a limit it is that many: those for which there is no room wait in Ray, which tells an autoscaler to make some.
    Without one it is what the cluster holds, and one more while there is work for it, for the same reason; but where
    others have reserved what there is, no more than one seat waits: they shall find room again, too.

    Args:
        view: the cluster.
        limit: on the number of workers; None for as many as there is room for.
        needs: CPUs and GPUs that a worker reserves.
        without: nodes that do not count.
        has_work: whether tasks wait for a worker.
        n_placing: seats that wait for room.
        n_seats: seats that there are.
    """
    if limit is not None:
        return limit
    cpus, gpus = needs
    room = sum(node.seats(cpus, gpus) for node in view.nodes if node.node not in without)
    free = min((int(view.free.get(k, 0.0) / n + 1e-6) for k, n in (("CPU", cpus), ("GPU", gpus)) if n), default=1)
    unplaced = max(1, free) - n_placing
    target = min(room + has_work, n_seats + max(unplaced, 0)) if room >= n_seats else room
    return max(target, 1)


def cause(error: Exception) -> str:
    """Why Ray lost an actor, in a line: Ray tells it in many."""
    text = str(error)
    found = re.search(r"The actor (?:is dead because|died because) (.*)", text, re.DOTALL)
    told = re.sub(r"\s+", " ", found.group(1) if found else text)
    told = re.sub(r"Some common causes include.*|Node Id: \w+\s*|class_name: .*", "", told)
    return f"{type(error).__name__}: {told.strip()}"[:_DETAIL_CHARS]
