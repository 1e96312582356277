"""A pool of Ray actors: the same contract as the local pools, on one machine or many.

Ray's state is disposable: nothing is stored in it, tasks and outcomes are small values, and a lost actor, node or
cluster costs the tasks that ran there and nothing else. An actor has one task at a time and gets the next one when the
outcome of the last has been taken (see `EvaluationPool`): that costs it a millisecond or two, and a driver that dies
loses one evaluation per worker, never more.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final, final

from evomerge.errors import EvomergeError
from evomerge.execution.admission import Admission
from evomerge.execution.devices import Station
from evomerge.execution.pool import (
    MAX_KILLS,
    Completed,
    EvaluationPool,
    Loss,
    TaskQueue,
    Ticket,
    WorkerEvent,
    quarantine,
)
from evomerge.execution.ray_actor import Ready, pieces
from evomerge.execution.ray_cluster import lacking, read_nodes
from evomerge.execution.ray_crew import Crew, Needs
from evomerge.execution.ray_errors import cannot_start, head_lost, workers_lost, wrong_devices
from evomerge.execution.ray_seats import Seat, cause
from evomerge.execution.ray_session import connect, split_address
from evomerge.execution.ray_starts import FailedStarts
from evomerge.execution.ray_watch import ClusterWatch, View
from evomerge.execution.worker import WorkerSpec
from evomerge.types import EvalTask, Failure, Outcome

_TICK_S: Final = 2.0
_MAX_FAILED_STARTS: Final = 40
_NODE_NEWS_S: Final = 5.0
_IDLE_S: Final = 0.2
"""A worker that had nothing to do for so long must answer before it is given a task: its death is not the task's."""
_START_S: Final = 1800.0
_SILENCE_S: Final = 0.2
_LAST_CHANCE_S: Final = 6.0
"""A head that seems lost is asked once more for so long: this process itself may have slept."""


@final
class RayPool(EvaluationPool):
    """Workers as Ray actors, spread over the nodes.

    Args:
        spec: the worker.
        workers: at most so many; None for as many as the cluster holds at any time. What fits works.
        address: of a running cluster; None starts a local one, which `close` stops again.
        cpus_per_worker: CPUs that an actor reserves.
        gpus_per_worker: GPUs that an actor reserves: a share of one, or a whole number.
        timeout_s: limit for one task.
        start_timeout_s: how long to be without any worker, queueing for resources included.
        admission: who may score; by default workers of the first one's class.

    A process that has called `ray.init` itself keeps its cluster: the pool uses it and does not stop it.

    Raises:
        ConfigError: when Ray is not installed, does not start, or the cluster does not answer or let us in.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        workers: int | None,
        *,
        address: str | None = None,
        cpus_per_worker: float = 1.0,
        gpus_per_worker: float = 0.0,
        timeout_s: float | None = None,
        start_timeout_s: float = _START_S,
        admission: Admission | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"a pool needs a worker, not {workers}")
        self._needs = Needs(cpus_per_worker, gpus_per_worker)
        self._timeout_s = float("inf") if timeout_s is None else timeout_s
        self._start_timeout_s = start_timeout_s
        self._admission = admission or Admission()
        self._queue = TaskQueue()
        self._done: list[Completed] = []
        self._news: list[WorkerEvent] = []
        self._closed = False
        self._failed_starts = FailedStarts()
        self._at_work_at = time.monotonic()
        self._has_worked = False
        self._trouble = ""
        self._session = connect(address, max((workers or 1) * cpus_per_worker, 1.0))
        self._ray = self._session.ray
        with ExitStack() as undo:
            undo.callback(self._leave)
            self._spec_pieces = pieces(spec)
            head = split_address(str(self._ray.get_runtime_context().gcs_address))
            self._watch = ClusterWatch(self._look, (self._ray.exceptions.RayError, RuntimeError), head)
            undo.callback(self._watch.close)
            self._crew = Crew(self._ray, spec, self._needs, limit=workers, admission=self._admission, watch=self._watch)
            undo.callback(self._crew.close)
            self._at_work_at = time.monotonic()
            self._hire()
            undo.pop_all()

    def _look(self) -> View:
        nodes, free = read_nodes(self._ray.nodes()), self._ray.available_resources()
        return View(nodes, {str(name): float(n) for name, n in free.items()}, time.monotonic())

    def _hire(self) -> None:
        self._crew.resize(has_work=len(self._queue) > 0)
        self._crew.fill()

    @property
    def n_workers(self) -> int:
        """How many actors have found a place; at least 1."""
        return max(1, self._crew.n_placed)

    def news(self) -> tuple[WorkerEvent, ...]:
        """See `EvaluationPool.news`."""
        news, self._news = tuple(self._news), []
        return news

    def waits_for(self) -> str:
        """See `EvaluationPool.waits_for`: an autoscaler, or somebody, may bring a larger node."""
        return "" if self._crew.n_placed else lacking(self._watch.view.nodes, *self._needs)

    def _tell(self, kind: Any, seat: Seat, detail: str) -> None:
        candidate = "" if seat.ticket is None else str(seat.ticket.task.id)
        device = "" if seat.station is None else seat.station.kind.device
        versions = seat.station.kind.versions if seat.station is not None and kind == "joined" else {}
        self._news.append(WorkerEvent(kind, seat.name, seat.host, device, detail, candidate, versions))

    # -- tasks in, answers out

    def submit(self, task: EvalTask) -> None:
        """See `EvaluationPool.submit`."""
        self._check_open()
        self._queue.add(task)
        self._dispatch()

    def _dispatch(self) -> None:
        if self._watch.is_silent:
            return
        ready = self._crew.ready
        is_spread = len({seat.node for seat in ready}) > 1
        untaken = {completed.worker for completed in self._done}
        for seat in ready:
            if seat.call is not None or seat.name in untaken or not len(self._queue):
                continue
            if time.monotonic() - seat.heard_at > _IDLE_S:
                seat.call, seat.deadline = seat.actor.knock.remote(), time.monotonic() + self._timeout_s
                continue
            place = seat.node if is_spread else ""
            if (ticket := self._queue.take(seat.name, alone=len(ready) == 1, place=place)) is not None:
                seat.call, seat.ticket = seat.actor.run.remote(*pieces(ticket.task)), ticket
                seat.deadline = time.monotonic() + self._timeout_s

    def next_outcome(self, timeout_s: float | None = None) -> Completed | None:
        """See `EvaluationPool.next_outcome`."""
        self._check_open()
        until = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
        self._dispatch()
        while not self._done and (len(self._queue) or any(seat.ticket for seat in self._crew.seats)):
            self._check_cluster()
            if self._watch.is_silent:
                time.sleep(max(min(until - time.monotonic(), _SILENCE_S), 0.0))
            else:
                self._hire()
                self._wait(until)
                self._end_overdue()
                self._dispatch()
            if time.monotonic() >= until:
                break
        return self._done.pop(0) if self._done else None

    def drop_waiting(self) -> tuple[EvalTask, ...]:
        """See `EvaluationPool.drop_waiting`."""
        self._check_open()
        return self._queue.drain()

    # -- how many workers, and whether there are any

    def _check_cluster(self) -> None:
        """The head must answer, and somebody must be at work, or have been a while ago."""
        if self._watch.is_lost and time.monotonic() - self._watch.fresh(_LAST_CHANCE_S).at > _LAST_CHANCE_S:
            raise head_lost(self._watch.silent_s)
        now = time.monotonic()
        if self._crew.ready:
            self._at_work_at, self._has_worked = now, True
        elif error := self._hopeless():
            raise error
        elif now - self._at_work_at > self._start_timeout_s:
            raise self._nobody()

    def _hopeless(self) -> EvomergeError | None:
        """Why waiting is in vain: nobody is about to start, and every node was given up."""
        if any(seat.stage == "starting" for seat in self._crew.seats):
            return None
        return self._failed_starts.nowhere_left(self._watch.view, self._admission.refused_nodes, self._needs)

    def _nobody(self) -> EvomergeError:
        free = {name: n for name, n in self._watch.view.free.items() if name in {"CPU", "GPU"}}
        detail = f"none was ready for {self._start_timeout_s:g} s; each needs {self._needs.cpus:g} CPUs and "
        detail += f"{self._needs.gpus:g} GPUs, free: {free}"
        detail += f"; {why}" if (why := self.waits_for()) else ""
        detail += f"; the last trouble: {self._trouble}" if self._trouble else ""
        if self._has_worked:
            return workers_lost(detail)
        if self._admission.reasons and self._admission.expected is not None:
            return wrong_devices(self._admission.expected.device, self._admission.reasons)
        return cannot_start(detail)

    # -- what comes back

    def _wait(self, until: float) -> None:
        """Wait for any call to end, but not past the next thing to do, and take in all that have ended."""
        owners = {seat.call: seat for seat in self._crew.seats if seat.call is not None}
        now = time.monotonic()
        due = [seat.wake_at for seat in self._crew.seats if seat.stage == "resting"]
        due += [seat.deadline for seat in self._crew.seats]
        left = max(min(until, *due, now + _TICK_S, self._at_work_at + self._start_timeout_s) - now, 0.0)
        if not owners:
            time.sleep(left)
            return
        refs = list(owners)
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=left)
        if ready:
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            self._receive(owners[ref], ref)

    def _receive(self, seat: Seat, ref: Any) -> None:
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            why = f"{type(error.cause).__name__}: {error.cause}".partition("\n")[0]  # Ray's own text has it last
            answer = Failure("crash", f"the answer did not arrive: {why}", str(error))
        except self._ray.exceptions.RayError as error:
            self._lost(seat, error)
            return
        if seat.stage == "ready" and seat.ticket is None:
            seat.clear()  # it is there
        elif seat.stage == "ready":
            self._judge(seat, answer)
        elif isinstance(answer, Station):
            self._arrived(seat, answer)
        elif isinstance(answer, Ready):
            self._started(seat, answer)
        else:
            self._failed_start(seat, answer)

    def _arrived(self, seat: Seat, station: Station) -> None:
        """A worker has a place; it is turned away before it loads anything when it is of another class."""
        seat.station = station
        if station.node in self._admission.refused_nodes:
            self._crew.dismiss(seat)  # it was on its way when the node was refused
        elif why := self._admission.judge(station):
            self._refuse(seat, station, why)
        else:
            seat.stage, seat.call = "starting", seat.actor.start.remote(seat.name, *self._spec_pieces)

    def _refuse(self, seat: Seat, station: Station, why: str) -> None:
        if self._admission.refuse(station.node, why):
            self._tell("refused", seat, why)
        self._crew.dismiss(seat)

    def _started(self, seat: Seat, answer: Ready) -> None:
        seat.clear()
        seat.stage, seat.failed_starts = "ready", 0
        self._failed_starts.forgive(seat.node)
        self._at_work_at, self._has_worked = time.monotonic(), True
        self._tell("joined", seat, f"log: {answer.log}" if answer.log else "")

    def _failed_start(self, seat: Seat, answer: EvomergeError | Failure) -> None:
        """What stops the first worker stops the run; of later ones the node is to blame, if it does so repeatedly."""
        error = answer if isinstance(answer, EvomergeError) else cannot_start(answer.message)
        if seat.station is None or not self._has_worked:
            raise error
        why = f"{error.what} {error.got}".replace("\n", " ")
        if self._failed_starts.add(seat.node, error):
            self._refuse(seat, seat.station, why)
            return
        self._trouble = why
        seat.failed_starts += 1
        self._tell("lost", seat, why)
        self._crew.dismiss(seat)

    def _judge(self, seat: Seat, outcome: Outcome) -> None:
        """Hand an answer out, unless the place may be to blame for it and nobody else was asked."""
        if isinstance(outcome, Failure) and outcome.kind == "memory" and self._ask_another(seat):
            seat.clear()
            return
        self._finish(seat, outcome)

    def _ask_another(self, seat: Seat) -> bool:
        """Put a verdict to another worker, when there is one and this is the first verdict."""
        if seat.ticket is None or seat.ticket.doubted or len(self._crew.ready) < 2:
            return False
        self._queue.put_back(seat.ticket.second_opinion(seat.name, seat.node))
        return True

    def _finish(self, seat: Seat, outcome: Outcome) -> None:
        if (ticket := seat.clear()) is not None:
            self._done.append(Completed(ticket.task, outcome, seat.name, ticket.attempt))

    def _lost(self, seat: Seat, error: Exception) -> None:
        """An actor is gone: the task that it ran is a suspect, and a new actor takes the seat."""
        if seat.stage != "ready":
            self._trouble = cause(error)
            seat.failed_starts += 1
            if seat.failed_starts >= _MAX_FAILED_STARTS:
                raise cannot_start(f"{seat.name} was lost {seat.failed_starts} times while it started: {cause(error)}")
        if seat.station is not None:
            self._tell("lost", seat, cause(error))
        if seat.ticket is not None:
            self._suspect(seat, seat.ticket.lost(seat.name, seat.node), error)
        seat.clear()
        if isinstance(error, self._ray.exceptions.ActorDiedError):
            seat.rest()
        else:
            self._crew.dismiss(seat)  # it may only be out of reach

    def _suspect(self, seat: Seat, again: Ticket, error: Exception) -> None:
        if len(again.kills) >= MAX_KILLS:
            again = self._without_lost_nodes(again)
        if len(again.kills) >= MAX_KILLS:
            loss: Loss = "memory" if isinstance(error, self._ray.exceptions.OutOfMemoryError) else "crash"
            seat.ticket = again
            self._finish(seat, quarantine(again, loss, f"{seat.name}: {cause(error)}"))
        else:
            self._queue.put_back(again)

    def _without_lost_nodes(self, ticket: Ticket) -> Ticket:
        """The ticket without those kills that were the death of a whole node: no candidate does that."""
        view = self._watch.fresh(_NODE_NEWS_S)
        alive = {node.node for node in view.nodes if node.alive}
        return replace(ticket, kills=tuple(node for node in ticket.kills if node in alive))

    def _end_overdue(self) -> None:
        for seat in self._crew.seats:
            if time.monotonic() >= seat.deadline:
                self._tell("lost", seat, f"ended after {self._timeout_s:g} s")
                if self._ask_another(seat):
                    seat.clear()
                self._finish(seat, Failure("timeout", f"took longer than {self._timeout_s:g} s"))
                self._crew.dismiss(seat)

    # -- the end

    def close(self) -> None:
        """See `EvaluationPool.close`."""
        if self._closed:
            return
        self._closed = True
        self._watch.close()
        if self._ray.is_initialized():
            self._crew.close()
            self._leave()

    def _leave(self) -> None:
        if self._session.owned:
            self._ray.shutdown()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the pool is closed")
