"""What runs where candidates are scored: a scorer that is built once, and the border where errors become values."""

from __future__ import annotations

import gc
import importlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol, cast, final

from evomerge.errors import ConfigError, EvaluationError, MergeError, NonFinite, RecipeError
from evomerge.types import EvalTask, Evaluation, Failure, FailureKind, NonFiniteScores, Outcome

MODEL_SCORER: Final = "evomerge.execution.scoring:build_scorer"
IDENTIFY: Final = "evomerge.execution.devices:identify"


class Scorer(Protocol):
    """Scores one task; may raise anything. The same task gives the same answers, whatever was scored before."""

    def __call__(self, task: EvalTask) -> Evaluation:
        """The answers to `task.items` (all items of `task.set_name` when None)."""


@dataclass(frozen=True)
class WorkerSpec:
    """How to build a worker, anywhere: small and picklable.

    Attributes:
        scorer: `"module:attribute"` of a callable that takes `arguments` and returns a `Scorer`.
        arguments: its keyword arguments; picklable.
        threads: for the numeric libraries.
        log_folder: where the worker's log goes (`RUN/logs`); None keeps no log.
        device: `auto`, `cpu` or `cuda`: what its device class is told of.
        identify: `"module:attribute"` of what tells the device class, see `devices.identify`.
    """

    scorer: str = MODEL_SCORER
    arguments: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    log_folder: Path | None = None
    device: str = "auto"
    identify: str = IDENTIFY

    def __post_init__(self) -> None:
        if self.threads < 1 or ":" not in self.scorer:
            raise ValueError(f"a worker needs a thread and a module:attribute, not {self.threads} and {self.scorer!r}")


_KINDS: Final[tuple[tuple[tuple[type[Exception], ...], FailureKind], ...]] = (
    ((NonFinite, NonFiniteScores), "nan"),
    ((MergeError, RecipeError), "merge"),
    ((EvaluationError,), "evaluate"),
    ((MemoryError,), "memory"),
)


def failure_kind(error: Exception) -> FailureKind:
    """What an error raised by a scorer means for its candidate."""
    for types, kind in _KINDS:
        if isinstance(error, types):
            return kind
    # torch's own type, and what its CPU allocator raises, told without importing torch
    out_of_memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return "memory" if out_of_memory else "crash"


@final
class WorkerLog:
    """A worker's log: one file of its own, kept only where the folder exists (it may not on another host)."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self._path = folder / f"{name}.log" if folder is not None and folder.is_dir() else None

    def write(self, text: str) -> None:
        """Append a paragraph with the time; a log that cannot be written is no reason to stop."""
        if self._path is None:
            return
        try:
            with self._path.open("a") as f:
                f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text.rstrip()}\n")
        except OSError:
            self._path = None


def limit_threads(threads: int) -> None:
    """Set what torch uses, if it is loaded; the environment for libraries that load later."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


@final
class Worker:
    """Scores one task after the other and never raises on account of a candidate.

    Args:
        spec: what to build; the scorer is built here, once.
        name: for records and the log.

    Raises:
        ConfigError: when the scorer's factory does not exist.
        EvomergeError: whatever the factory raises.
    """

    def __init__(self, spec: WorkerSpec, name: str) -> None:
        self.name = name
        self._log = WorkerLog(spec.log_folder, name)
        started = time.perf_counter()
        self._score = _factory(spec.scorer)(**spec.arguments)
        for note in getattr(self._score, "notes", ()):
            self._log.write(note)
        self._log.write(
            f"ready after {time.perf_counter() - started:.1f} s, pid {os.getpid()} on {socket.gethostname()}"
        )

    def run(self, task: EvalTask) -> Outcome:
        """Score a task: its evaluation with `timing_s["total"]` added, or the failure that its error means."""
        started = time.perf_counter()
        self._log.write(f"{task.id} begins on the {task.set_name} set")
        try:
            evaluation = self._score(task)
        except Exception as error:  # the worker boundary: nothing that a candidate causes may end the search
            return self._failure(task, error)
        for note in evaluation.notes:
            self._log.write(f"candidate {task.id} on {task.set_name}: {note}")
        timing = {**evaluation.timing_s, "total": time.perf_counter() - started}
        return replace(evaluation, timing_s=timing)

    def _failure(self, task: EvalTask, error: Exception) -> Failure:
        text = traceback.format_exc()
        kind = failure_kind(error)
        self._log.write(f"candidate {task.id} on {task.set_name}: {kind}\n{text}")
        what = str(error).partition("\n")[0] or type(error).__name__
        if kind == "memory":
            _free_memory()
        return Failure(kind, f"{type(error).__name__}: {what}", text, socket.gethostname())


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _factory(target: str) -> Callable[..., Scorer]:
    module, _, attribute = target.partition(":")
    try:
        return cast("Callable[..., Scorer]", getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "The scorer of the workers does not load.",
            got=f"{target}: {type(error).__name__}: {error}",
            allowed="module:attribute of an importable callable",
            fix="install what brings it on every host, or correct its name.",
        ) from error
