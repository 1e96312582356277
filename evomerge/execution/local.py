"""A pool of worker processes on this machine, and the choice between it and the pool inside this process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Final, final

from evomerge.errors import ConfigError, EvomergeError
from evomerge.execution.inline import InlinePool
from evomerge.execution.pool import MAX_KILLS, Completed, EvaluationPool, TaskQueue, Ticket, WorkerEvent, quarantine
from evomerge.execution.worker import WorkerSpec
from evomerge.types import EvalTask, Failure, Outcome

_MAX_FAILED_STARTS: Final = 3
_STOP_S: Final = 1.0
_POLL_S: Final = 3600.0


def local_pool(
    spec: WorkerSpec, workers: int = 1, *, timeout_s: float | None = None, isolated: bool = False
) -> EvaluationPool:
    """A pool on this machine: one worker runs in this process unless `isolated`, more in processes of their own.

    Args:
        spec: the worker.
        workers: how many, at least 1.
        timeout_s: limit for one task; only processes can enforce it.
        isolated: give a single worker a process of its own, too.
    """
    return ProcessPool(spec, workers, timeout_s=timeout_s) if workers > 1 or isolated else InlinePool(spec)


@dataclass
class _Slot:
    """One worker: its process while it has one, and what it does."""

    name: str
    process: subprocess.Popen[bytes]
    pipe: Connection
    ready: bool = False
    ticket: Ticket | None = None
    deadline: float = field(default=float("inf"))


@final
class ProcessPool(EvaluationPool):
    """Long-lived worker processes, started afresh (no fork), `spec.threads` threads each; one task at a time.

    Their output goes to `NAME.out` in the log folder. They die with the driver, however it dies.
    """

    def __init__(self, spec: WorkerSpec, workers: int, *, timeout_s: float | None = None) -> None:
        if workers < 1:
            raise ValueError(f"a pool needs a worker, not {workers}")
        self._spec = spec
        self._timeout_s = float("inf") if timeout_s is None else timeout_s
        self._queue = TaskQueue()
        self._failed_starts = 0
        self._closed = False
        self._done: list[Completed] = []
        self._news: list[WorkerEvent] = []
        self._slots: list[_Slot] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            for i in range(workers):
                self._slots.append(self._start(f"worker-{i}"))
            undo.pop_all()

    @property
    def n_workers(self) -> int:
        """How many processes there are."""
        return len(self._slots)

    def _start(self, name: str) -> _Slot:
        ours, theirs = Pipe()
        folder = self._spec.log_folder
        with theirs, open(folder / f"{name}.out" if folder is not None else os.devnull, "ab") as out:  # noqa: PTH123
            command = [sys.executable, "-P", "-m", "evomerge.execution.child"]
            process = subprocess.Popen(
                [*command, str(theirs.fileno()), name, str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=_environment(self._spec.threads),
            )
        with suppress(ConnectionError):  # it died at once; its end of the pipe tells so
            ours.send(self._spec)
        return _Slot(name, process, ours)

    def submit(self, task: EvalTask) -> None:
        """See `EvaluationPool.submit`."""
        self._check_open()
        self._queue.add(task)
        self._dispatch()

    def _dispatch(self) -> None:
        untaken = {completed.worker for completed in self._done}
        for i, slot in enumerate(self._slots):
            if not slot.ready or slot.ticket is not None or slot.name in untaken or not len(self._queue):
                continue
            if slot.process.poll() is not None:
                self._lost(i, slot)  # while it was idle: no task is to blame
                continue
            if (ticket := self._queue.take(slot.name, alone=len(self._slots) == 1)) is not None:
                slot.ticket = ticket
                slot.deadline = time.monotonic() + self._timeout_s
                with suppress(ConnectionError):  # it just died: the end of its pipe tells so, in `next_outcome`
                    slot.pipe.send(ticket.task)

    def next_outcome(self, timeout_s: float | None = None) -> Completed | None:
        """See `EvaluationPool.next_outcome`."""
        self._check_open()
        until = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
        self._dispatch()
        while not self._done and (len(self._queue) or any(slot.ticket for slot in self._slots)):
            left = min(until, *(slot.deadline for slot in self._slots)) - time.monotonic()
            pipes = [slot.pipe for slot in self._slots]
            answered = wait(pipes, timeout=min(max(left, 0.0), _POLL_S))
            for i, slot in enumerate(self._slots):
                if slot.pipe in answered:
                    self._receive(i, slot)
                elif time.monotonic() >= slot.deadline:
                    self._time_out(i, slot)
            self._dispatch()
            if not answered and time.monotonic() >= until:
                break
        return self._done.pop(0) if self._done else None

    def _receive(self, i: int, slot: _Slot) -> None:
        try:
            message: Outcome | EvomergeError | None = slot.pipe.recv()
        except (EOFError, ConnectionError):
            self._lost(i, slot)
            return
        if isinstance(message, EvomergeError):
            raise message
        if message is None:
            slot.ready, self._failed_starts = True, 0
        else:
            self._finish(slot, message)

    def _finish(self, slot: _Slot, outcome: Outcome) -> None:
        if slot.ticket is not None:
            self._done.append(Completed(slot.ticket.task, outcome, slot.name, slot.ticket.attempt))
        slot.ticket, slot.deadline = None, float("inf")

    def _time_out(self, i: int, slot: _Slot) -> None:
        self._tell_lost(slot, f"ended after {self._timeout_s:g} s")
        self._finish(slot, Failure("timeout", f"took longer than {self._timeout_s:g} s"))
        self._replace(i, slot)

    def _lost(self, i: int, slot: _Slot) -> None:
        code = _stop(slot.process)
        detail = f"{slot.name} died of signal {-code}" if code < 0 else f"{slot.name} exited with code {code}"
        if not slot.ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise _cannot_start(self._failed_starts, detail, self._spec)
        self._tell_lost(slot, detail)
        if slot.ticket is not None:
            ticket = slot.ticket.lost(slot.name, slot.name)
            if len(ticket.kills) >= MAX_KILLS:
                self._finish(slot, quarantine(ticket, "crash", detail))
            else:
                self._queue.put_back(ticket)
        self._replace(i, slot)

    def _replace(self, i: int, slot: _Slot) -> None:
        slot.process.kill()
        slot.process.wait()
        slot.pipe.close()
        self._slots[i] = self._start(slot.name)

    def drop_waiting(self) -> tuple[EvalTask, ...]:
        """See `EvaluationPool.drop_waiting`."""
        return self._queue.drain()

    def news(self) -> tuple[WorkerEvent, ...]:
        """See `EvaluationPool.news`: losses alone, since processes come as they are wanted."""
        news, self._news = tuple(self._news), []
        return news

    def _tell_lost(self, slot: _Slot, detail: str) -> None:
        candidate = str(slot.ticket.task.id) if slot.ticket is not None else ""
        self._news.append(WorkerEvent("lost", slot.name, detail=detail, candidate=candidate))

    def close(self) -> None:
        """See `EvaluationPool.close`."""
        self._closed = True
        slots, self._slots = self._slots, []
        for slot in slots:
            if slot.ticket is not None or not slot.ready:
                slot.process.kill()
            slot.pipe.close()
        for slot in slots:
            _stop(slot.process)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the pool is closed")


def _stop(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process that is about to end, kill it if it does not, and return its exit code."""
    try:
        return process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _environment(threads: int) -> dict[str, str]:
    numeric = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    path = os.pathsep.join(p for p in sys.path if p)
    return {**os.environ, **numeric, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}


def _cannot_start(times: int, detail: str, spec: WorkerSpec) -> ConfigError:
    return ConfigError(
        "The workers do not start.",
        got=f"{times} workers in a row died before they were ready; {detail}",
        allowed="workers that load their models and survive it",
        fix=f"read the *.out files in {spec.log_folder or 'the log folder'}; most often the memory is too small for "
        "this many workers (cluster.workers).",
    )
