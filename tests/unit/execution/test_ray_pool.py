"""The Ray pool against the contract of all pools, and what only Ray can get wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.errors import ConfigError
from evomerge.execution import ray as ray_module
from evomerge.execution.inline import InlinePool
from evomerge.execution.ray import RayPool
from evomerge.execution.worker import WorkerSpec
from evomerge.testing.fakes import instant_scores
from evomerge.testing.pool_suite import IDENTIFY, IsolatedPoolSuite, PoolFactory, fake_spec, sample_task, score_all
from evomerge.types import Evaluation, Failure

pytestmark = [
    pytest.mark.ray,
    # Ray leaves the handles of its own daemons to the garbage collector
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed (file|<socket):ResourceWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One cluster for all tests that do not ask for their own: a process's own `ray.init` is respected."""
    with RayPool(fake_spec(), 1, cpus_per_worker=0.5):  # starts Ray with our settings; closed at the end
        yield


@pytest.mark.usefixtures("cluster")
class TestRayPool(IsolatedPoolSuite):
    """Two actors on a cluster that runs already."""

    @pytest.fixture
    def make_pool(self) -> PoolFactory:
        return lambda spec, timeout_s=None: RayPool(spec, 2, cpus_per_worker=0.5, timeout_s=timeout_s)


@pytest.mark.usefixtures("cluster")
def test_the_outcomes_are_those_of_the_local_pool() -> None:
    tasks = [sample_task(i, "nan" if i == 4 else "none") for i in range(12)]
    with InlinePool(fake_spec()) as inline, RayPool(fake_spec(), 2, cpus_per_worker=0.5) as pool:
        here, there = score_all(inline, tasks), score_all(pool, tasks)
    for task in tasks:
        a, b = here[task.id].outcome, there[task.id].outcome
        assert type(a) is type(b)
        if isinstance(a, Failure) and isinstance(b, Failure):
            assert (a.kind, a.message) == (b.kind, b.message)
        else:
            assert a == b


@pytest.mark.usefixtures("cluster")
def test_actors_are_killed_from_outside_and_nothing_is_lost(tmp_path: Path) -> None:
    tasks = [sample_task(i) for i in range(20)]
    with RayPool(fake_spec(sleep_s=0.1, marks=tmp_path), 2, cpus_per_worker=0.5) as pool:
        for task in tasks:
            pool.submit(task)
        answers = [pool.next_outcome(30.0) for _ in range(4)]
        os.kill(next(seat.station.pid for seat in pool._crew.seats if seat.station), signal.SIGKILL)
        answers += [pool.next_outcome(30.0) for _ in range(16)]
    found = [a.task.id for a in answers if a is not None]
    assert sorted(found) == [t.id for t in tasks]
    assert not any(isinstance(a.outcome, Failure) for a in answers if a is not None)
    repeated = len((tmp_path / "scored").read_text().split()) - len(tasks)
    assert repeated <= 1


@pytest.mark.usefixtures("cluster")
def test_workers_that_were_killed_while_they_were_idle_are_not_counted_against_the_next_candidate() -> None:
    with RayPool(fake_spec(), 2, cpus_per_worker=0.5) as pool:
        started: list[str] = []
        while started.count("joined") < 2:
            score_all(pool, [sample_task(100 + len(started))])
            started += [event.kind for event in pool.news()]
        for seat in pool._crew.ready:
            assert seat.station is not None
            os.kill(seat.station.pid, signal.SIGKILL)
        time.sleep(2 * ray_module._IDLE_S)
        (answer,) = score_all(pool, [sample_task(0)]).values()
        lost = [event for event in pool.news() if event.kind == "lost"]
    assert (answer.outcome, answer.attempt) == (instant_scores(sample_task(0)), 1)
    assert lost
    assert not any(event.candidate for event in lost)


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_fit_do_not_wait_for_each_other() -> None:
    import ray

    tasks = [sample_task(i) for i in range(6)]
    with RayPool(fake_spec(), 3, cpus_per_worker=0.4 * ray.cluster_resources()["CPU"]) as pool:
        answers = score_all(pool, tasks)
        assert 1 <= pool.n_workers <= 2
    assert {t.id: instant_scores(t) for t in tasks} == {i: a.outcome for i, a in answers.items()}


@pytest.mark.usefixtures("cluster")
def test_a_verdict_that_the_host_may_be_to_blame_for_is_given_by_two() -> None:
    tasks = [sample_task(0, "memory"), sample_task(1), sample_task(2, "raise")]
    with RayPool(fake_spec(), 2, cpus_per_worker=0.5) as pool:
        started: list[str] = []
        while started.count("joined") < 2:
            score_all(pool, [sample_task(100 + len(started))])
            started += [event.kind for event in pool.news()]
        answers = score_all(pool, tasks)
    outcomes = [answers[task.id].outcome for task in tasks]
    assert [o.kind if isinstance(o, Failure) else type(o) for o in outcomes] == ["memory", Evaluation, "crash"]
    assert [answers[task.id].attempt for task in tasks] == [2, 1, 1]


@pytest.mark.usefixtures("cluster")
def test_a_cluster_without_room_is_told() -> None:
    with RayPool(fake_spec(), 1, cpus_per_worker=99.0, start_timeout_s=0.5) as pool:
        pool.submit(sample_task(0))
        with pytest.raises(
            ConfigError, match=r"none was ready for 0\.5 s; each needs 99 CPUs and 0 GPUs, free: .'CPU'"
        ):
            pool.next_outcome(30.0)


@pytest.mark.usefixtures("cluster")
def test_threads_are_limited_in_the_actors() -> None:
    spec = WorkerSpec("evomerge.testing.fakes:build_environment_report", threads=1, identify=IDENTIFY)
    with RayPool(spec, 1, cpus_per_worker=0.5) as pool:
        answer = score_all(pool, [sample_task(0)])[sample_task(0).id]
    assert answer.outcome.answers["OMP_NUM_THREADS"].scores == (1.0,)  # type: ignore[union-attr]


@pytest.mark.usefixtures("cluster")
def test_a_pool_on_a_running_cluster_leaves_it_running() -> None:
    import ray

    RayPool(fake_spec(), 1, cpus_per_worker=0.5).close()
    assert ray.is_initialized()


def test_a_missing_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed\.") as caught:
        RayPool(fake_spec(), 1)
    assert "cluster.backend=local" in caught.value.fix


_NO_CLUSTER = """
from evomerge.errors import ConfigError
from evomerge.execution.ray import RayPool
from evomerge.execution.worker import WorkerSpec
try:
    RayPool(WorkerSpec("a:b"), 1, address="127.0.0.1:1")
except ConfigError as error:
    print(error.what, error.got.partition(":")[0])
"""


def test_a_cluster_that_does_not_answer_is_told() -> None:
    done = subprocess.run([sys.executable, "-c", _NO_CLUSTER], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith("The Ray cluster does not answer."), done.stderr


_DRIVER = """
import os, signal, sys
from evomerge.execution.ray import RayPool
from evomerge.execution.worker import WorkerSpec
from evomerge.testing.pool_suite import fake_spec, sample_task, score_all
polite = lambda *_: None
signal.signal(signal.SIGTERM, polite)
pool = RayPool(fake_spec(sleep_s=0.05), 2)
assert signal.getsignal(signal.SIGTERM) is polite
score_all(pool, [sample_task(i) for i in range(4)])
for i in range(400):
    pool.submit(sample_task(i))
pool.next_outcome()
import ray
print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
sys.stdin.readline()
pool.close()
"""


def _session_processes(session: str) -> list[int]:
    """Processes of one Ray session, by their command line or environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if session.encode() in text and state not in "ZX":
            found.append(int(folder.name))
    return found


@pytest.mark.kill
def test_no_process_outlives_the_driver() -> None:
    """Two drivers with clusters of their own, side by side; one is killed, the other closes its pool."""
    pipe = subprocess.PIPE
    drivers = [
        subprocess.Popen([sys.executable, "-c", _DRIVER], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for _ in range(2)
    ]
    sessions = [driver.stdout.readline().strip() for driver in drivers if driver.stdout is not None]
    assert len(set(sessions)) == 2
    assert all(len(_session_processes(session)) >= 4 for session in sessions)
    killed, closed = drivers
    killed.kill()
    killed.communicate()
    out, err = closed.communicate("\n")
    assert (out, err, closed.returncode) == ("", "", 0)
    deadline = time.monotonic() + 20.0
    while any(_session_processes(session) for session in sessions) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [_session_processes(session) for session in sessions] == [[], []]
