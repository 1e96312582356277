"""A pool of Ray actors: the same contract as the local pools, on one machine or many. The only module that knows Ray.

Ray's state is disposable: nothing is stored in it, tasks and outcomes are small values, and a lost actor, node or
cluster costs the tasks that ran there and nothing else. An actor has one task at a time and gets the next one when the
outcome of the last has been taken (see `EvaluationPool`): that costs it a millisecond or two, and a driver that dies
loses one evaluation per worker, never more.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Final, NamedTuple, final

from evomerge.errors import ConfigError, EvomergeError
from evomerge.execution.pool import MAX_KILLS, Completed, EvaluationPool, Loss, TaskQueue, Ticket, quarantine
from evomerge.execution.worker import Worker, WorkerSpec, limit_threads
from evomerge.types import EvalTask, Failure, Outcome

_RETRY_S: Final = 0.2
_MAX_RETRY_S: Final = 5.0
_MAX_FAILED_STARTS: Final = 40
_OBJECT_STORE_BYTES: Final = 128 * 1024**2
_NODE_NEWS_S: Final = 3.0
_KNOCK_S: Final = 10.0
_START_S: Final = 1800.0
_RAY_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no statistics over the network
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # an actor without GPUs sees none; today's default warns
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # the raylet's remarks would go to our standard output; they are in its logs
}


class Process(NamedTuple):
    """Where an actor lives: Ray's node id, and its process."""

    node: str
    pid: int


class _Actor:
    """The remote side. Its constructor needs nothing and cannot fail, so that Ray can always restart it."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def start(self, spec: WorkerSpec, name: str) -> Process | EvomergeError:
        """Build the worker; its error is returned, not raised, so that it arrives as it is."""
        import ray

        limit_threads(spec.threads)
        try:
            self._worker = self._worker or Worker(spec, name)
        except EvomergeError as error:
            return error
        limit_threads(spec.threads)  # torch may have been loaded only now
        return Process(ray.get_runtime_context().get_node_id(), os.getpid())

    def run(self, task: EvalTask) -> Outcome:
        """Score one task."""
        if self._worker is None:
            raise RuntimeError("a task reached a worker that was not started")
        return self._worker.run(task)


@dataclass
class _Slot:
    """One actor as the driver sees it.

    Attributes:
        name: of the worker.
        actor: Ray's handle.
        place: where it lives once it has started; None while it starts.
        starting: the pending call of `start`.
        retry_at: when to call `start` again after a failed one, monotonic seconds.
        failed_starts: in a row.
        call: the pending call of `run`.
        ticket: what it runs.
        deadline: when `call` will have taken too long, monotonic seconds.
    """

    name: str
    actor: Any
    place: Process | None = None
    starting: Any = None
    retry_at: float = 0.0
    failed_starts: int = 0
    call: Any = None
    ticket: Ticket | None = None
    deadline: float = float("inf")

    def clear(self) -> Ticket | None:
        """Forget the call, and return what it ran."""
        ticket, self.call, self.ticket, self.deadline = self.ticket, None, None, float("inf")
        return ticket


@final
class RayPool(EvaluationPool):
    """Workers as Ray actors.

    Args:
        spec: the worker.
        workers: how many actors, at least 1. On a cluster that cannot hold them all yet, those that fit work.
        address: of a running cluster; None starts a local one, which `close` stops again.
        cpus_per_worker: CPUs that an actor reserves.
        gpus_per_worker: GPUs that an actor reserves.
        timeout_s: limit for one task.
        start_timeout_s: how long to wait for the first worker, queueing for resources included.

    A process that has called `ray.init` itself keeps its cluster: the pool uses it and does not stop it.

    Raises:
        ConfigError: when Ray is not installed, does not start, or the cluster does not answer.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        workers: int,
        *,
        address: str | None = None,
        cpus_per_worker: float = 1.0,
        gpus_per_worker: float = 0.0,
        timeout_s: float | None = None,
        start_timeout_s: float = _START_S,
    ) -> None:
        if workers < 1:
            raise ValueError(f"a pool needs a worker, not {workers}")
        self._ray = _import_ray()
        self._spec = spec
        self._timeout_s = float("inf") if timeout_s is None else timeout_s
        self._queue = TaskQueue()
        self._done: list[Completed] = []
        self._closed = False
        self._owns_ray = _connect(self._ray, address, max(workers * cpus_per_worker, 1.0))
        # max_restarts=-1: Ray brings a lost actor back, here or on another node; max_task_retries=0: what runs again,
        # and where, is decided below, because only we know whom to blame.
        self._remote = self._ray.remote(_Actor).options(
            num_cpus=cpus_per_worker,
            num_gpus=gpus_per_worker,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=1,
        )
        self._slots = [self._new_slot(f"worker-{i}") for i in range(workers)]
        self._start_timeout_s = start_timeout_s
        self._last_start = time.monotonic()

    @property
    def n_workers(self) -> int:
        """How many actors were asked for."""
        return len(self._slots)

    def _new_slot(self, name: str) -> _Slot:
        actor = self._remote.remote()
        return _Slot(name, actor, starting=actor.start.remote(self._spec, name))

    def submit(self, task: EvalTask) -> None:
        """See `EvaluationPool.submit`."""
        self._check_open()
        self._queue.add(task)
        self._dispatch()

    def _dispatch(self) -> None:
        started = [slot for slot in self._slots if slot.place is not None]
        untaken = {completed.worker for completed in self._done}
        for slot in started:
            if slot.call is not None or slot.name in untaken:
                continue
            if (ticket := self._queue.take(slot.name, alone=len(started) == 1)) is not None:
                slot.call, slot.ticket = slot.actor.run.remote(ticket.task), ticket
                slot.deadline = time.monotonic() + self._timeout_s

    def next_outcome(self, timeout_s: float | None = None) -> Completed | None:
        """See `EvaluationPool.next_outcome`."""
        self._check_open()
        until = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
        self._dispatch()
        while not self._done and (len(self._queue) or any(slot.ticket for slot in self._slots)):
            self._check_starts()
            self._restart_due()
            self._wait(until)
            self._end_overdue()
            self._dispatch()
            if time.monotonic() >= until:
                break
        return self._done.pop(0) if self._done else None

    def _check_starts(self) -> None:
        """Somebody must be at work, or have been a moment ago."""
        if any(slot.place is not None for slot in self._slots):
            self._last_start = time.monotonic()
        elif time.monotonic() - self._last_start > self._start_timeout_s:
            free = {name: n for name, n in self._ray.available_resources().items() if name in {"CPU", "GPU"}}
            raise _cannot_start(f"none of {self.n_workers} was ready after {self._start_timeout_s:g} s; free: {free}")

    def _restart_due(self) -> None:
        for slot in self._slots:
            if slot.place is None and slot.starting is None and time.monotonic() >= slot.retry_at:
                slot.starting = slot.actor.start.remote(self._spec, slot.name)

    def _wait(self, until: float) -> None:
        """Wait for any call to end, but not past the next thing to do, and take in all that have ended."""
        owners = {slot.starting: slot for slot in self._slots if slot.starting is not None}
        owners |= {slot.call: slot for slot in self._slots if slot.call is not None}
        retries = [slot.retry_at for slot in self._slots if slot.place is None and slot.starting is None]
        retries += [self._last_start + self._start_timeout_s] if not any(slot.place for slot in self._slots) else []
        overdue = (slot.deadline for slot in self._slots)
        left = max(min(until, *retries, *overdue, time.monotonic() + _MAX_RETRY_S) - time.monotonic(), 0.0)
        if not owners:
            time.sleep(left)
            return
        refs = list(owners)
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=left)
        if ready:
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            self._receive(owners[ref], ref)

    def _receive(self, slot: _Slot, ref: Any) -> None:
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            answer = Failure("crash", f"the answer did not arrive: {error}".partition("\n")[0], str(error))
        except self._ray.exceptions.RayError as error:
            self._lost(slot, error)
            return
        if ref is slot.starting:
            self._started(slot, answer)
        else:
            self._finish(slot, answer)

    def _finish(self, slot: _Slot, outcome: Outcome) -> None:
        if (ticket := slot.clear()) is not None:
            self._done.append(Completed(ticket.task, outcome, slot.name, ticket.attempt))

    def _started(self, slot: _Slot, answer: Process | EvomergeError | Failure) -> None:
        if isinstance(answer, EvomergeError):
            raise answer
        if isinstance(answer, Failure):
            raise _cannot_start(answer.message)
        slot.starting, slot.place, slot.failed_starts = None, answer, 0

    def _lost(self, slot: _Slot, error: Exception) -> None:
        """An actor is gone: the task it ran is a suspect, and Ray restarts the actor."""
        if slot.starting is not None:
            slot.failed_starts += 1
            if slot.failed_starts >= _MAX_FAILED_STARTS:
                raise _cannot_start(f"{slot.name} was lost {slot.failed_starts} times while it started: {error}")
        node = slot.place.node if slot.place is not None else ""
        self._restart(slot, _RETRY_S * 1.5**slot.failed_starts)
        if isinstance(error, self._ray.exceptions.ActorDiedError):
            slot.actor = self._remote.remote()  # for good: Ray does not restart this one
        if slot.ticket is None:
            return
        again = slot.ticket.lost(slot.name, node)
        if len(again.kills) >= MAX_KILLS:
            again = self._without_lost_nodes(again)
        if len(again.kills) >= MAX_KILLS:
            loss: Loss = "memory" if isinstance(error, self._ray.exceptions.OutOfMemoryError) else "crash"
            self._finish(slot, quarantine(again, loss, f"{slot.name}: {type(error).__name__}"))
        else:
            self._queue.put_back(again)
            slot.clear()

    def _restart(self, slot: _Slot, after_s: float) -> None:
        slot.place, slot.starting = None, None
        slot.retry_at = time.monotonic() + min(after_s, _MAX_RETRY_S)

    def _without_lost_nodes(self, ticket: Ticket) -> Ticket:
        """The ticket without those kills that were the death of a whole node: no candidate does that."""
        nodes = self._ray.nodes()
        if len(nodes) > 1:
            time.sleep(_NODE_NEWS_S)  # the cluster hears of a lost node a moment after its actors are gone
            nodes = self._ray.nodes()
        alive = {node["NodeID"] for node in nodes if node["Alive"]}
        kills = tuple(node for node in ticket.kills if node in alive)
        return replace(ticket, kills=kills)

    def _end_overdue(self) -> None:
        for slot in self._slots:
            if time.monotonic() >= slot.deadline:
                self._ray.kill(slot.actor, no_restart=False)
                self._finish(slot, Failure("timeout", f"took longer than {self._timeout_s:g} s"))
                self._restart(slot, _RETRY_S)

    def drop_waiting(self) -> tuple[EvalTask, ...]:
        """See `EvaluationPool.drop_waiting`."""
        self._check_open()
        return self._queue.drain()

    def close(self) -> None:
        """See `EvaluationPool.close`."""
        if self._closed:
            return
        self._closed = True
        if not self._ray.is_initialized():
            return
        for slot in self._slots:
            self._ray.kill(slot.actor, no_restart=True)
        if self._owns_ray:
            self._ray.shutdown()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the pool is closed")


def _import_ray() -> ModuleType:
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # before the import, which reads it
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError(
            "Ray is not installed.",
            got=f"cluster.backend: ray, but {error}",
            allowed="an installation with ray, or cluster.backend: local",
            fix="pip install ray, or set cluster.backend=local.",
        ) from error
    module: ModuleType = ray
    return module


def _reach(address: str) -> None:
    """Knock at a `host:port` address: Ray itself would try for minutes before it says that nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _connect(ray: ModuleType, address: str | None, cpus: float) -> bool:
    """Connect to the cluster, or start one; True when it is ours to stop."""
    if ray.is_initialized():
        return False
    local = address is None or address == "local"
    own: dict[str, Any] = {}
    if local:
        # More workers than cores are slow, not impossible; without this the surplus actors would wait for ever.
        own = {"num_cpus": max(int(cpus + 0.999), os.cpu_count() or 1), "object_store_memory": _OBJECT_STORE_BYTES}
    logging.getLogger("ray").setLevel(logging.ERROR)  # the driver owns the terminal
    main = threading.current_thread() is threading.main_thread()
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        if address is not None and not local:
            _reach(address)
        ray.init(
            address="local" if local else address,
            include_dashboard=False if local else None,
            log_to_driver=False,
            configure_logging=False,
            namespace=f"evomerge-{os.getpid()}",
            **own,
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(
            "Ray does not start." if local else "The Ray cluster does not answer.",
            got=f"{type(error).__name__}: {error}",
            allowed="a local Ray, a running cluster's address, or cluster.backend: local",
            fix="check `ray status` and cluster.address, or set cluster.backend=local.",
        ) from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray installs its own, but stopping politely is the driver's business
    return True


def _cannot_start(detail: str) -> ConfigError:
    return ConfigError(
        "The workers do not start.",
        got=detail,
        allowed="workers that load their models and survive it",
        fix="see Ray's logs of the session (or `logs/` of the run); most often the memory is too small for this many "
        "workers (cluster.workers).",
    )
