"""The simplest pool: one worker in this process. No isolation, no time limit."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import final

from evomerge.execution.pool import Completed, EvaluationPool, TaskQueue
from evomerge.execution.worker import Worker, WorkerSpec
from evomerge.types import EvalTask


@final
class InlinePool(EvaluationPool):
    """Scores in the calling thread, inside `next_outcome`, in order of submission.

    A candidate that kills the process kills the search (which can be resumed); one that hangs, hangs it. Use a pool
    of processes where candidates are not trusted.

    Raises:
        EvomergeError: whatever the worker's start-up raises.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._queue = TaskQueue()
        self._worker: Worker | None = None
        self._threads = _set_torch_threads(spec.threads)
        with ExitStack() as undo:
            undo.callback(self.close)
            self._worker = Worker(spec, "inline")
            undo.pop_all()
        loaded = _set_torch_threads(spec.threads)  # torch may have been loaded only now
        self._threads = self._threads or loaded

    @property
    def n_workers(self) -> int:
        """Always 1."""
        return 1

    def submit(self, task: EvalTask) -> None:
        """See `EvaluationPool.submit`."""
        self._open_worker()
        self._queue.add(task)

    def next_outcome(self, timeout_s: float | None = None) -> Completed | None:
        """See `EvaluationPool.next_outcome`; a task that has begun is finished, whatever `timeout_s` says."""
        del timeout_s
        worker = self._open_worker()
        ticket = self._queue.take(worker.name, alone=True)
        if ticket is None:
            return None
        return Completed(ticket.task, worker.run(ticket.task), worker.name, ticket.attempt)

    def drop_waiting(self) -> tuple[EvalTask, ...]:
        """See `EvaluationPool.drop_waiting`."""
        return self._queue.drain()

    def close(self) -> None:
        """See `EvaluationPool.close`."""
        self._worker = None
        self._queue.drain()
        if self._threads is not None:
            _set_torch_threads(self._threads)
            self._threads = None

    def _open_worker(self) -> Worker:
        if self._worker is None:
            raise RuntimeError("the pool is closed")
        return self._worker


def _set_torch_threads(n: int) -> int | None:
    """Make torch use `n` threads, as every other worker does: sums depend on it. Returns how many it used before."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    before: int = torch.get_num_threads()
    torch.set_num_threads(n)
    return before
