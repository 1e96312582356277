"""A pool that starts its workers when the first task comes: resuming a finished run starts none."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from evomerge.execution.pool import Completed, EvaluationPool, WorkerEvent
from evomerge.types import EvalTask


@final
class LazyPool(EvaluationPool):
    """Behaves as the pool that `start` returns, which is called with the first `submit`.

    Args:
        start: opens the real pool; whatever it raises, the first `submit` raises.
        n_workers: tells how many workers that pool is expected to have; asked until it is there.
    """

    def __init__(self, start: Callable[[], EvaluationPool], n_workers: Callable[[], int]) -> None:
        self._start = start
        self._n_workers = n_workers
        self._pool: EvaluationPool | None = None
        self._closed = False

    @property
    def n_workers(self) -> int:
        """See `EvaluationPool.n_workers`."""
        return self._n_workers() if self._pool is None else self._pool.n_workers

    def submit(self, task: EvalTask) -> None:
        """See `EvaluationPool.submit`."""
        if self._closed:
            raise RuntimeError("the pool is closed")
        if self._pool is None:
            self._pool = self._start()
        self._pool.submit(task)

    def next_outcome(self, timeout_s: float | None = None) -> Completed | None:
        """See `EvaluationPool.next_outcome`."""
        if self._closed:
            raise RuntimeError("the pool is closed")
        return None if self._pool is None else self._pool.next_outcome(timeout_s)

    def drop_waiting(self) -> tuple[EvalTask, ...]:
        """See `EvaluationPool.drop_waiting`."""
        return () if self._pool is None else self._pool.drop_waiting()

    def news(self) -> tuple[WorkerEvent, ...]:
        """See `EvaluationPool.news`."""
        return () if self._pool is None else self._pool.news()

    def waits_for(self) -> str:
        """See `EvaluationPool.waits_for`."""
        return "" if self._pool is None else self._pool.waits_for()

    def close(self) -> None:
        """See `EvaluationPool.close`."""
        self._closed = True
        if self._pool is not None:
            self._pool.close()
