"""The local pools against their contract, and what becomes of their processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evomerge.errors import ConfigError
from evomerge.execution.inline import InlinePool
from evomerge.execution.local import ProcessPool, local_pool
from evomerge.execution.worker import WorkerSpec
from evomerge.testing.fakes import instant_scores
from evomerge.testing.pool_suite import FAKE, IsolatedPoolSuite, PoolFactory, PoolSuite, sample_task, score_all


class TestInlinePool(PoolSuite):
    """One worker in this process."""

    @pytest.fixture
    def make_pool(self) -> PoolFactory:
        return lambda spec, timeout_s=None: InlinePool(spec)


class TestProcessPool(IsolatedPoolSuite):
    """Two processes."""

    @pytest.fixture
    def make_pool(self) -> PoolFactory:
        return lambda spec, timeout_s=None: ProcessPool(spec, 2, timeout_s=timeout_s)


class TestOneProcess(IsolatedPoolSuite):
    """A single process has nobody to hand a suspect to but its successor."""

    @pytest.fixture
    def make_pool(self) -> PoolFactory:
        return lambda spec, timeout_s=None: local_pool(spec, 1, timeout_s=timeout_s, isolated=True)


def test_one_worker_needs_no_process() -> None:
    with local_pool(WorkerSpec(FAKE)) as pool:
        assert isinstance(pool, InlinePool)
    with local_pool(WorkerSpec(FAKE), 2) as pool:
        assert pool.n_workers == 2


def test_a_pool_without_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="a pool needs a worker, not 0"):
        ProcessPool(WorkerSpec(FAKE), 0)


def test_workers_that_die_at_start_end_in_an_error_not_in_a_loop(tmp_path: Path) -> None:
    spec = WorkerSpec(FAKE, {"start": "kill"}, log_folder=tmp_path)
    with ProcessPool(spec, 2) as pool:
        pool.submit(sample_task(0))
        with pytest.raises(ConfigError, match=r"died before they were ready; worker-[01] died of signal 9"):
            pool.next_outcome(30.0)


def test_an_unexpected_error_at_start_is_in_the_output_file(tmp_path: Path) -> None:
    spec = WorkerSpec(FAKE, {"start": "raise"}, log_folder=tmp_path)
    with ProcessPool(spec, 1) as pool:
        pool.submit(sample_task(0))
        with pytest.raises(ConfigError, match="worker-0 exited with code 1"):
            pool.next_outcome(30.0)
    assert "RuntimeError: candidate start is made to fail" in (tmp_path / "worker-0.out").read_text()


def test_workers_that_died_while_they_were_idle_are_not_counted_against_the_next_candidate() -> None:
    with ProcessPool(WorkerSpec(FAKE), 1) as pool:
        for i in range(3):
            score_all(pool, [sample_task(i)])
            process = pool._slots[0].process
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and nobody has noticed
        (answer,) = score_all(pool, [sample_task(9)]).values()
        assert (answer.outcome, answer.attempt) == (instant_scores(sample_task(9)), 1)
        assert [(event.kind, event.candidate) for event in pool.news()] == [("lost", "")] * 3


def test_a_timeout_of_the_caller_is_kept() -> None:
    with ProcessPool(WorkerSpec(FAKE, {"sleep_s": 3.0}), 1) as pool:
        pool.submit(sample_task(0))
        started = time.monotonic()
        assert pool.next_outcome(0.2) is None
        assert 0.15 < time.monotonic() - started < 2.0


def test_failures_have_their_whole_traceback_in_the_log(tmp_path: Path) -> None:
    with ProcessPool(WorkerSpec(FAKE, log_folder=tmp_path), 1) as pool:
        score_all(pool, [sample_task(0, "raise")])
    log = (tmp_path / "worker-0.log").read_text()
    assert "ready after" in log
    assert "candidate c0000 on search: crash" in log
    assert "RuntimeError: candidate c0000 is made to fail" in log


def test_each_process_keeps_to_its_threads() -> None:
    with ProcessPool(WorkerSpec("evomerge.testing.fakes:build_environment_report", threads=3), 1) as pool:
        answer = score_all(pool, [sample_task(0)])[sample_task(0).id]
    assert answer.outcome.answers["OMP_NUM_THREADS"].scores == (3.0,)  # type: ignore[union-attr]


_DRIVER = """
import sys, time
from pathlib import Path
from evomerge.execution.local import ProcessPool
from evomerge.execution.worker import WorkerSpec
from evomerge.testing.fakes import instant_scores
from evomerge.testing.pool_suite import FAKE, sample_task
pool = ProcessPool(WorkerSpec(FAKE, {"sleep_s": 600.0}), 2)
for i in range(2):
    pool.submit(sample_task(i))
pool.next_outcome(1.0)
print(*(slot.process.pid for slot in pool._slots), flush=True)
pool.next_outcome()
"""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.kill
@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_workers_do_not_outlive_their_driver(sig: signal.Signals) -> None:
    driver = subprocess.Popen([sys.executable, "-c", _DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    assert len(pids) == 2
    assert all(_alive(pid) for pid in pids)
    driver.send_signal(sig)
    driver.wait()
    driver.stdout.close()
    deadline = time.monotonic() + 5.0
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def test_ctrl_c_reaches_the_driver_only() -> None:
    with ProcessPool(WorkerSpec(FAKE, {"sleep_s": 0.3}), 1) as pool:
        score_all(pool, [sample_task(0)])
        pid = pool._slots[0].process.pid
        pool.submit(sample_task(1))
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        answer = pool.next_outcome(30.0)
        assert answer is not None
        assert (answer.task.id, answer.attempt) == ("c0001", 1)


def test_the_worker_in_this_process_computes_with_as_many_threads_as_any_other() -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with InlinePool(WorkerSpec(FAKE, threads=2)):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 3
        with pytest.raises(ConfigError, match="does not load"):
            InlinePool(WorkerSpec("evomerge.nowhere:scorer", threads=2))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
