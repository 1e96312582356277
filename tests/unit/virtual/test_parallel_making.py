from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from evomerge.layout import TensorInfo
from evomerge.virtual.deltas import at_once
from evomerge.virtual.maker import MadePlan
from evomerge.virtual.parallel import in_order


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def job(i: int) -> tuple[int, int]:
    time.sleep(0.002 * (i % 3))
    return i, torch.get_num_threads()


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order_and_jobs_have_one_thread(threads: int) -> None:
    assert list(in_order((partial(job, i) for i in range(9)), threads)) == [(i, 1) for i in range(9)]
    assert torch.get_num_threads() == 2
    assert list(in_order(iter(()), threads)) == []


def test_no_more_are_taken_than_can_run() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[Callable[[], tuple[int, int]]]:
        for i in range(9):
            taken.append(i)
            yield partial(job, i)

    stream = in_order(jobs(), 3)
    next(stream)
    assert taken == [0, 1, 2]
    next(stream)
    assert taken == [0, 1, 2, 3]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_comes_in_its_turn_and_nothing_runs_on(threads: int) -> None:
    before = threading.active_count()

    def fail() -> tuple[int, int]:
        raise ValueError("the third")

    got = []

    def take() -> None:
        jobs = [partial(job, 0), partial(job, 1), fail, partial(job, 3)]
        for result in in_order(jobs, threads):
            got.append(result[0])

    with pytest.raises(ValueError, match="the third"):
        take()
    assert got == [0, 1]
    assert threading.active_count() == before
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_stream_that_is_left_ends_its_threads() -> None:
    before = threading.active_count()
    stream = in_order((partial(job, i) for i in range(9)), 2)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_how_many_tensors_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(side: int) -> MadePlan:
        info = TensorInfo("model.layers.0.up.weight", (side, side), "F32", 0, "mlp")
        return MadePlan(None, (info,))  # type: ignore[arg-type]

    assert at_once(plan(32)) == 2
    assert at_once(plan(1 << 20)) == 1  # no memory for two
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert at_once(plan(32)) == 8
    assert at_once(MadePlan(None)) == 8  # type: ignore[arg-type]
