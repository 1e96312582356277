"""Work on several tensors at a time, each on one thread: the same bits however many there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from evomerge.virtual.spectral import one_thread

T = TypeVar("T")


def in_order(jobs: Iterable[Callable[[], T]], at_once: int) -> Iterator[T]:
    """The jobs' results in the jobs' order.

    No more than `at_once` results and running jobs are held together. Inside a job torch has one thread; the number
    outside is as it was when the last result has been taken, or the stream is closed.

    Args:
        jobs: taken as they are needed.
        at_once: how many run at a time; 1 runs them here.

    Raises:
        whatever a job raises, in its turn; jobs that have not begun are dropped, running ones waited for.
    """
    if at_once == 1:
        for job in jobs:
            with one_thread():
                result = job()
            yield result
        return
    import torch

    threads, waiting = torch.get_num_threads(), iter(jobs)
    pool = ThreadPoolExecutor(at_once, initializer=lambda: torch.set_num_threads(1))
    try:
        running: deque[Future[T]] = deque(pool.submit(job) for job in islice(waiting, at_once))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(job) for job in islice(waiting, 1))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # some libraries keep one number for all threads
