"""The worker's boundary: what an error means, and what never passes as a score."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from evomerge.errors import ConfigError, EvaluationError, EvomergeError, MergeError, ModelError, NonFinite, RecipeError
from evomerge.execution.pool import TaskQueue, Ticket, quarantine
from evomerge.execution.worker import Worker, WorkerLog, WorkerSpec, failure_kind, limit_threads
from evomerge.testing.pool_suite import FAKE, sample_task
from evomerge.types import Evaluation, Failure, NonFiniteScores, TaskAnswers

_PARTS = {"got": "g", "allowed": "a", "fix": "f"}


class OutOfMemoryError(RuntimeError):
    """Called as torch's own."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NonFinite("a logit", **_PARTS), "nan"),
        (NonFiniteScores("scores"), "nan"),
        (MergeError("no", **_PARTS), "merge"),
        (RecipeError("no", **_PARTS), "merge"),
        (EvaluationError("no", **_PARTS), "evaluate"),
        (MemoryError(), "memory"),
        (OutOfMemoryError("CUDA out of memory"), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "memory"),
        (RuntimeError("anything else"), "crash"),
        (ModelError("a parent vanished", **_PARTS), "crash"),
    ],
)
def test_what_an_error_means(error: Exception, kind: str) -> None:
    assert failure_kind(error) == kind


def test_a_failure_says_what_where_and_how(tmp_path: Path) -> None:
    worker = Worker(WorkerSpec(FAKE, log_folder=tmp_path), "w")
    failure = worker.run(sample_task(0, "nan"))
    assert isinstance(failure, Failure)
    assert failure.kind == "nan"
    assert failure.message.startswith("NonFiniteScores: task add: 1 scores are not finite")
    assert "Traceback" in failure.traceback
    assert failure.host
    assert "candidate c0000 on search: nan" in (tmp_path / "w.log").read_text()
    assert isinstance(worker.run(sample_task(1)), Evaluation)


def test_a_keyboard_interrupt_is_not_a_candidates_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(WorkerSpec(FAKE), "w")

    def interrupt(task: object) -> Evaluation:
        raise KeyboardInterrupt("stop")

    monkeypatch.setattr(worker, "_score", interrupt)
    with pytest.raises(KeyboardInterrupt, match="stop"):
        worker.run(sample_task(0))


def test_memory_is_given_back_after_it_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    cuda = SimpleNamespace(is_available=lambda: True, empty_cache=lambda: emptied.append(True))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))  # type: ignore[arg-type]
    Worker(WorkerSpec(FAKE), "w").run(sample_task(0, "memory"))
    assert emptied == [True]


def test_a_scorer_that_does_not_exist_is_named() -> None:
    for target in ("no.such.module:x", "evomerge.testing.fakes:missing"):
        with pytest.raises(ConfigError, match=target):
            Worker(WorkerSpec(target), "w")


def test_a_spec_must_make_sense() -> None:
    with pytest.raises(ValueError, match="not 0 and"):
        WorkerSpec(FAKE, threads=0)
    with pytest.raises(ValueError, match="not 1 and 'nothing'"):
        WorkerSpec("nothing")


def test_a_log_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    WorkerLog(tmp_path / "missing", "w").write("x")
    (tmp_path / "w.log").mkdir()
    log = WorkerLog(tmp_path, "w")
    log.write("x")
    log.write("y")
    assert list(tmp_path.iterdir()) == [tmp_path / "w.log"]


def test_threads_are_limited_for_what_is_loaded_and_what_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "unset")
    told: list[int] = []
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(set_num_threads=told.append))  # type: ignore[arg-type]
    limit_threads(2)
    import os

    assert (os.environ["OMP_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"], told) == ("2", "false", [2])


def test_errors_and_specs_cross_process_borders() -> None:
    for error in (MergeError("what", **_PARTS), ConfigError("other", **_PARTS)):
        back = pickle.loads(pickle.dumps(error))
        assert isinstance(back, EvomergeError)
        assert (type(back), str(back)) == (type(error), str(error))
    spec = WorkerSpec(FAKE, {"sleep_s": 1.0}, 2, Path("logs"))
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_the_queue_keeps_the_order_and_keeps_suspects_apart() -> None:
    queue = TaskQueue()
    for i in range(4):
        queue.add(sample_task(i))
    first, second = queue.take("a", alone=False), queue.take("b", alone=False)
    assert first is not None
    assert second is not None
    queue.put_back(second)
    queue.put_back(first.lost("a", "here"))
    third = queue.take("a", alone=False)
    assert third == second  # the suspect is not for the worker that it was lost with
    assert queue.take("b", alone=False) == Ticket(0, sample_task(0), 2, ("here",), "a", "here")
    suspect = first.lost("a", "here").lost("b", "there")
    queue.put_back(suspect)
    assert queue.take("b", alone=True) == suspect
    assert quarantine(suspect, "crash", "b died") == Failure("crash", "took 2 workers down; the last one: b died")
    assert quarantine(suspect, "memory", "b died").kind == "memory"
    assert [t.id for t in queue.drain()] == ["c0002", "c0003"]
    assert len(queue) == 0


def test_suspects_whose_workers_changed_places_are_for_somebody() -> None:
    """Two workers are lost at once, and those who get their names come up at each other's place."""
    queue = TaskQueue()
    for i in range(2):
        queue.add(sample_task(i))
    there, here = queue.take("a", alone=False, place="there"), queue.take("b", alone=False, place="here")
    assert there is not None
    assert here is not None
    queue.put_back(there.lost("a", "there"))
    queue.put_back(here.lost("b", "here"))
    assert queue.take("a", alone=False, place="here") == there.lost("a", "there")
    assert queue.take("b", alone=False, place="there") == here.lost("b", "here")


def test_answers_must_be_finite() -> None:
    with pytest.raises(NonFiniteScores, match="task t: 2 scores are not finite"):
        TaskAnswers("t", ("a", "b", "c"), (float("nan"), float("inf"), 0.0))
