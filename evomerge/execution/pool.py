"""The contract of whatever scores candidates, and the bookkeeping that every pool shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self, final

from evomerge.execution.routes import Route, agreement
from evomerge.types import EvalTask, Failure, Outcome

MAX_KILLS: Final = 2
"""A candidate that took this many workers down is quarantined."""


class Completed(NamedTuple):
    """One answer of a pool.

    Attributes:
        task: as submitted.
        outcome: what came of it; the loss of workers is none.
        worker: name of the worker that answered, or that died of it.
        attempt: 1, more when workers were lost under the task.
    """

    task: EvalTask
    outcome: Outcome
    worker: str
    attempt: int


@dataclass(frozen=True)
class WorkerEvent:
    """What happened to a worker; see `EvaluationPool.news`.

    Attributes:
        kind: `joined`: it is ready for tasks; `lost`: it is gone, and not because the pool ended it at its leisure;
            `refused`: it came and was turned away, and its device is left idle.
        worker: its name.
        host: the machine, empty where there is only this one.
        device: its device class, where it is known.
        detail: why it was lost or refused, or where the log of one that joined is; one line.
        candidate: what a lost one was scoring, empty when nothing.
        versions: of the packages that decide numbers, of one that joined.
    """

    kind: Literal["joined", "lost", "refused"]
    worker: str
    host: str = ""
    device: str = ""
    detail: str = ""
    candidate: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


class EvaluationPool(ABC):
    """Scores tasks on one or more long-lived workers.

    `submit` never blocks on a worker; `next_outcome` hands answers out **in any order, each task exactly once**.
    A worker gets its next task only after its last outcome was handed out **and the pool was called again**, by when
    the caller has recorded it: a driver that dies loses at most one evaluation per worker.

    A task's outcome depends on the task alone: not on the worker, the order, or the number of workers. A worker that
    is lost (killed, its host gone) is replaced and its task goes to another one; this is never counted against
    the candidate, unless it is the task that was running when a second worker died: then its outcome is
    `Failure("crash")` (or `"memory"`). A task that runs longer than the pool's limit becomes `Failure("timeout")` and
    its worker is replaced. A worker that cannot start at all is an error, raised by the constructor or `next_outcome`.

    On a cluster a `timeout` or `memory` verdict is given by two workers: the first one may have been on a busy host, so
    the task goes to another worker once, on another host if there is one, and what that says stands.

    A pool belongs to one thread. `close` may be called at any moment, also twice, and leaves no process behind.
    """

    @property
    @abstractmethod
    def n_workers(self) -> int:
        """How many workers there are now; may change with every call of the pool, and is at least 1."""

    @abstractmethod
    def submit(self, task: EvalTask) -> None:
        """Put a task behind those submitted before.

        Raises:
            RuntimeError: when the pool is closed.
        """

    @abstractmethod
    def next_outcome(self, timeout_s: float | None = None) -> Completed | None:
        """The next answer; None when nothing is outstanding, or nothing came within `timeout_s` seconds.

        Raises:
            RuntimeError: when the pool is closed.
            EvomergeError: whatever a worker's start-up raised (a missing parent, a bad plan).
            ConfigError: when workers die while they start, again and again, or none that comes may be used.
            ClusterLost: when the cluster is gone.
        """

    @abstractmethod
    def drop_waiting(self) -> tuple[EvalTask, ...]:
        """Forget the tasks that no worker has begun, and return them in the order of submission; the others go on."""

    def news(self) -> tuple[WorkerEvent, ...]:
        """What happened to workers since the last call, in order; each event is told once.

        Pools whose workers cannot come or go tell nothing.
        """
        return ()

    def waits_for(self) -> str:
        """What has to come before any worker can begin, because nothing that is there would do; empty if nothing.

        Waiting for what is there and busy, or about to start, is not told.
        """
        return ""

    @abstractmethod
    def close(self) -> None:
        """Stop the workers, running tasks included; outstanding tasks are forgotten."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Loss = Literal["crash", "memory"]


@dataclass(frozen=True)
class Ticket:
    """A task on its way through a pool.

    Attributes:
        number: order of submission.
        task: as submitted.
        attempt: of the present or next run, from 1.
        kills: where it was running when a worker died: names of places (worker or node), one per death.
        avoid: worker that it should not meet again at once where all are at one place; empty when any will do.
        shun: place that it should not return to while there are workers elsewhere; empty when any will do.
        doubted: whether a verdict on it was put to another worker already.
    """

    number: int
    task: EvalTask
    attempt: int = 1
    kills: tuple[str, ...] = ()
    avoid: str = ""
    shun: str = ""
    doubted: bool = False

    def lost(self, worker: str, place: str) -> Ticket:
        """The ticket for another try, after `worker` at `place` died while it ran this task."""
        return replace(self, attempt=self.attempt + 1, kills=(*self.kills, place), avoid=worker, shun=place)

    def second_opinion(self, worker: str, place: str) -> Ticket:
        """The ticket for another try, after a verdict of `worker` at `place` that the place may be to blame for."""
        return replace(self, attempt=self.attempt + 1, avoid=worker, shun=place, doubted=True)


def _may_go(ticket: Ticket, worker: str, place: str) -> bool:
    """Where workers are at several places only the place counts: whoever has the lost one's name may have moved.

    Otherwise a ticket could be for nobody: not for the namesake at another place, nor for those at the old one.
    """
    return ticket.shun != place if place else ticket.avoid != worker


def quarantine(ticket: Ticket, loss: Loss, detail: str) -> Failure:
    """The verdict on a candidate that took `MAX_KILLS` workers down."""
    return Failure(loss, f"took {len(ticket.kills)} workers down; the last one: {detail}")


@final
class TaskQueue:
    """Tickets that wait for a worker: in order of submission, retried ones where they stood.

    Of tasks with a route, a worker is given the one that has most in common with what it did last, and among several
    the one that has least in common with what the other workers did.
    """

    def __init__(self) -> None:
        self._waiting: deque[Ticket] = deque()
        self._n = 0
        self._last: dict[str, Route] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, task: EvalTask) -> None:
        """Put a new task behind all others."""
        self._waiting.append(Ticket(self._n, task))
        self._n += 1

    def put_back(self, ticket: Ticket) -> None:
        """Return a ticket to its place in the order."""
        self._last.pop(ticket.avoid, None)  # whoever replaces the lost worker begins with nothing
        behind = sum(t.number < ticket.number for t in self._waiting)
        self._waiting.insert(behind, ticket)

    def take(self, worker: str, *, alone: bool, place: str = "") -> Ticket | None:
        """The next ticket for `worker`.

        Args:
            worker: its name.
            alone: whether it is the only one, and is given also what should avoid it.
            place: where it is; what shuns this place is not given. Empty when all workers are at one place.

        Returns:
            None when nothing waits that this worker should have.
        """
        allowed = ((i, t) for i, t in enumerate(self._waiting) if alone or _may_go(t, worker, place))
        at, ticket = next(allowed, (0, None))
        if ticket is None:
            return None
        if ticket.task.route:
            at, ticket = self._nearest(worker, [(at, ticket), *((i, t) for i, t in allowed if t.task.route)])
            self._last[worker] = ticket.task.route
        del self._waiting[at]
        return ticket

    def _nearest(self, worker: str, waiting: list[tuple[int, Ticket]]) -> tuple[int, Ticket]:
        last = self._last.get(worker, ())
        common = [agreement(ticket.task.route, last) for _, ticket in waiting]
        best = max(common)
        nearest = [entry for entry, n in zip(waiting, common, strict=True) if n == best]
        others = [route for name, route in self._last.items() if name != worker]
        if len(nearest) == 1 or not others:
            return nearest[0]
        return min(nearest, key=lambda entry: max(agreement(entry[1].task.route, route) for route in others))

    def drain(self) -> tuple[EvalTask, ...]:
        """Remove and return all tasks."""
        tasks = tuple(t.task for t in self._waiting)
        self._waiting.clear()
        return tasks
