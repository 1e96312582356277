"""The simulator of clusters: closed forms, a slow obvious simulation, and what must hold at any size."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FILE = Path(__file__).parents[3] / "benchmarks" / "scaling_model.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling_model", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


M = load()
FREE = M.Driver(0.0, 0.0)


@pytest.mark.parametrize("mode", ["generational", "asynchronous"])
@pytest.mark.parametrize("workers", [1, 4, 16])
def test_equal_times_and_a_free_driver_leave_nobody_idle(mode: str, workers: int) -> None:
    found = M.simulate(mode, workers, np.full(64, 2.0), FREE, population=16)
    assert found.per_hour == pytest.approx(3600 * workers / 2.0)
    assert found.idle == pytest.approx(0.0)


def test_a_generation_smaller_than_the_cluster_leaves_the_rest_idle() -> None:
    found = M.simulate("generational", 64, np.full(160, 1.0), FREE, population=16)
    assert found.idle == pytest.approx(0.75)


def test_one_worker_waits_for_the_driver_once_per_candidate() -> None:
    found = M.simulate("asynchronous", 1, np.full(100, 1.0), M.Driver(0.1, 0.3), ahead=1)
    assert found.per_hour == pytest.approx(3600 / 1.4)
    assert found.driver == pytest.approx(0.4 / 1.4)


def test_a_driver_that_is_too_slow_is_the_bound() -> None:
    found = M.simulate("asynchronous", 1000, np.full(5000, 1.0), M.Driver(0.01, 0.01))
    assert found.per_hour == pytest.approx(3600 / 0.02, rel=0.03)
    assert found.driver > 0.95


def naive(mode: str, workers: int, times: list[float], population: int) -> float:
    """Seconds of a search with a free driver, by hand."""
    if mode == "generational":
        total = 0.0
        for first in range(0, len(times), population):
            free = [0.0] * workers
            for t in times[first : first + population]:
                free[free.index(min(free))] += t
            total += max(free)
        return total
    free = [0.0] * workers
    for t in times:
        free[free.index(min(free))] += t
    return max(free)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["generational", "asynchronous"]),
    st.integers(1, 9),
    st.lists(st.floats(0.1, 5.0), min_size=1, max_size=40),
    st.integers(1, 12),
)
def test_a_free_driver_gives_list_scheduling(mode: str, workers: int, times: list[float], population: int) -> None:
    found = M.simulate(mode, workers, np.array(times), FREE, population=population)
    seconds = naive(mode, workers, times, population)
    assert 3600 * len(times) / found.per_hour == pytest.approx(seconds)
    assert found.idle == pytest.approx(1 - sum(times) / (workers * seconds), abs=1e-9)


def test_without_a_barrier_16_workers_idle_less() -> None:
    times = M.latencies(1.0, 0.6, 800, seed=1)
    shares = [M.simulate(mode, 16, times, M.Driver(0.001, 0.003)).idle for mode in ("generational", "asynchronous")]
    assert shares[0] > 0.4
    assert shares[1] < 0.1


def test_latencies_have_the_mean_and_the_spread_that_was_asked_for() -> None:
    times = M.latencies(2.0, 0.6, 200_000, seed=0)
    assert times.mean() == pytest.approx(2.0, rel=0.01)
    assert times.std() / times.mean() == pytest.approx(0.6, rel=0.02)


GPU = M.Hardware("g", memory=100e9, copy=1e12, flops=1e14, host=1e10, node=1e10, shared=4e10)


def test_a_candidate_takes_what_its_bytes_and_tokens_take() -> None:
    merge, score = M.candidate_s(M.Model(1e9, 4, 1), M.Work(tokens=1e5, steps=100, cv=0.6, fixed_s=0.05), GPU)
    assert merge == pytest.approx(5 * 2e9 / 1e12)
    assert score == pytest.approx(2e9 * 1e5 / 1e14 + 100 * 2e9 / 1e12 + 0.05)


def test_parents_that_do_not_fit_come_over_the_bus() -> None:
    model = M.Model(10e9, 4, 1)
    assert not M.on_device(model, GPU)
    assert M.candidate_s(model, M.Work(0, 0, 0.6, 0), GPU)[0] == pytest.approx(5 * 20e9 / 1e10)
    assert M.on_device(M.Model(10e9, 4, 2), GPU)


def test_the_shared_folder_is_the_bound_of_many_nodes() -> None:
    model = M.Model(1e9, 4, 1)
    loads = [
        M.load_s(model, GPU, gpus, cached=False) - M.load_s(model, GPU, gpus, cached=True) for gpus in (8, 32, 320)
    ]
    assert loads == pytest.approx([8e9 / 1e10, 4 * 8e9 / 4e10, 40 * 8e9 / 4e10])
    assert all(math.isfinite(s) for s in loads)
