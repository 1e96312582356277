"""Pools whose workers take a given time: in a simulated clock, for tests, and asleep in threads, for benchmarks."""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple, final

import numpy as np

from evomerge.execution.pool import Completed, EvaluationPool, TaskQueue, Ticket
from evomerge.execution.worker import Scorer
from evomerge.seeds import generator
from evomerge.types import EvalTask, Failure, Outcome

Latency = Callable[[EvalTask], float]
"""How long a task takes, seconds."""


def log_normal(mean_s: float, cv: float, seed: int) -> Latency:
    """Log-normal latencies, a function of the task's id.

    Args:
        mean_s: expected latency, seconds.
        cv: standard deviation over the mean: `sqrt(exp(s^2) - 1)` for a logarithm with standard deviation s.
        seed: of the trace.
    """
    variance = float(np.log1p(cv**2))

    def latency(task: EvalTask) -> float:
        draw = generator(seed, "latency", str(task.id)).standard_normal()
        return mean_s * float(np.exp(np.sqrt(variance) * draw - variance / 2))

    return latency


def _scored(scorer: Scorer, task: EvalTask) -> Outcome:
    try:
        return scorer(task)
    except RuntimeError as error:
        return Failure("crash", str(error))


class Span(NamedTuple):
    """When a worker was busy with what, in seconds of the pool's clock."""

    worker: int
    task: EvalTask
    start_s: float
    end_s: float


class _Running(NamedTuple):
    ends_at: float
    number: int
    worker: int
    start: float
    ticket: Ticket


@final
class SimulatedPool(EvaluationPool):
    """Workers in a clock of their own: the next answer is that of the worker whose task ends first.

    Args:
        scorer: called in this thread; a `RuntimeError` fails the candidate.
        workers: how many.
        latency: how long tasks take.
    """

    def __init__(self, scorer: Scorer, workers: int, latency: Latency) -> None:
        self._scorer = scorer
        self._workers = workers
        self._latency = latency
        self._queue = TaskQueue()
        self._idle = list(range(workers))
        self._running: list[_Running] = []
        self._free: int | None = None
        self._now = 0.0
        self.spans: list[Span] = []

    @property
    def n_workers(self) -> int:
        """As made."""
        return self._workers

    def submit(self, task: EvalTask) -> None:
        """See `EvaluationPool.submit`."""
        self._queue.add(task)
        self._dispatch()

    def _dispatch(self) -> None:
        if self._free is not None:
            self._idle.append(self._free)
            self._free = None
        while self._idle and (ticket := self._queue.take("any", alone=True)) is not None:
            ends_at = self._now + self._latency(ticket.task)
            heapq.heappush(self._running, _Running(ends_at, ticket.number, self._idle.pop(), self._now, ticket))

    def next_outcome(self, timeout_s: float | None = None) -> Completed | None:
        """See `EvaluationPool.next_outcome`; time passes when there is time to wait."""
        self._dispatch()
        if not self._running or (timeout_s == 0.0 and self._running[0].ends_at > self._now):
            return None
        done = heapq.heappop(self._running)
        self._now, self._free = max(self._now, done.ends_at), done.worker
        self.spans.append(Span(done.worker, done.ticket.task, done.start, done.ends_at))
        return Completed(done.ticket.task, _scored(self._scorer, done.ticket.task), f"w{done.worker}", 1)

    def drop_waiting(self) -> tuple[EvalTask, ...]:
        """See `EvaluationPool.drop_waiting`."""
        return self._queue.drain()

    def close(self) -> None:
        """See `EvaluationPool.close`."""
        self._queue.drain()
        self._running = []


_STOP: Final = None


@final
class SleepingPool(EvaluationPool):
    """Threads that sleep as long as their task takes, then score it; they keep to the contract of a real pool.

    Args:
        scorer: called in the threads; it should take next to no time.
        workers: how many.
        latency: how long tasks take.
    """

    def __init__(self, scorer: Scorer, workers: int, latency: Latency) -> None:
        self._scorer = scorer
        self._latency = latency
        self._queue = TaskQueue()
        self._mail: list[queue.SimpleQueue[Ticket | None]] = [queue.SimpleQueue() for _ in range(workers)]
        self._answers: queue.SimpleQueue[tuple[int, Ticket, Outcome]] = queue.SimpleQueue()
        self._idle = list(range(workers))
        self._n_out = 0
        self._free: int | None = None
        self.spans: list[Span] = []
        self._threads = [threading.Thread(target=self._work, args=(i,), daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def n_workers(self) -> int:
        """As made."""
        return len(self._mail)

    def _work(self, worker: int) -> None:
        while (ticket := self._mail[worker].get()) is not _STOP:
            start = time.monotonic()
            time.sleep(self._latency(ticket.task))
            outcome = _scored(self._scorer, ticket.task)
            self.spans.append(Span(worker, ticket.task, start, time.monotonic()))
            self._answers.put((worker, ticket, outcome))

    def submit(self, task: EvalTask) -> None:
        """See `EvaluationPool.submit`."""
        self._queue.add(task)
        self._dispatch()

    def _dispatch(self) -> None:
        if self._free is not None:
            self._idle.append(self._free)
            self._free = None
        while self._idle and (ticket := self._queue.take("any", alone=True)) is not None:
            self._n_out += 1
            self._mail[self._idle.pop()].put(ticket)

    def next_outcome(self, timeout_s: float | None = None) -> Completed | None:
        """See `EvaluationPool.next_outcome`."""
        self._dispatch()
        if not self._n_out:
            return None
        try:
            worker, ticket, outcome = self._answers.get(timeout=timeout_s) if timeout_s else self._answers.get_nowait()
        except queue.Empty:
            return None
        self._n_out -= 1
        self._free = worker
        return Completed(ticket.task, outcome, f"w{worker}", 1)

    def drop_waiting(self) -> tuple[EvalTask, ...]:
        """See `EvaluationPool.drop_waiting`."""
        return self._queue.drain()

    def close(self) -> None:
        """See `EvaluationPool.close`."""
        self._queue.drain()
        for mail in self._mail:
            mail.put(_STOP)


def searching(spans: list[Span]) -> list[Span]:
    """Those of the search phase."""
    return [span for span in spans if span.task.set_name == "search"]


def idle_share(spans: list[Span], workers: int) -> float:
    """Share of the workers' time, from the first task's start to the last one's end, in which they had no task.

    Args:
        spans: of all workers.
        workers: how many.
    """
    length = max(s.end_s for s in spans) - min(s.start_s for s in spans)
    return 1.0 - sum(s.end_s - s.start_s for s in spans) / (workers * length)
