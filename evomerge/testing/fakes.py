"""Scorers without models: for tests of pools, of the search loop, and of anything that survives bad candidates."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Literal

import numpy as np

from evomerge.digest import canonical_json
from evomerge.execution.devices import WorkerClass
from evomerge.execution.worker import Scorer
from evomerge.types import EvalTask, Evaluation, TaskAnswers

Trouble = Literal["none", "raise", "nan", "memory", "kill", "hang", "kill-once"]


def recipe_numbers(task: EvalTask) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Every number in the recipe, in the order of its canonical JSON; shape `(k,)`."""
    found: list[float] = []

    def collect(value: object) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                collect(value[key])
        elif isinstance(value, list | tuple):
            for part in value:
                collect(part)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append(float(value))

    collect(dict(task.recipe))
    return np.array(found or [0.0])


def instant_scores(task: EvalTask, tasks: tuple[str, ...] = ("add", "rev"), n_items: int = 20) -> Evaluation:
    """Answers that depend on the recipe's numbers alone: the nearer they are to 0.7, the more items are right."""
    answers = {}
    for k, name in enumerate(tasks):
        error = float(np.mean((recipe_numbers(task) - 0.7 + 0.2 * k) ** 2))
        skill = 1.0 / (1.0 + 8.0 * error)
        wanted = task.items[name] if task.items else [f"{task.set_name}-{name}-{i}" for i in range(n_items)]
        items = tuple(wanted)
        text = [hashlib.sha256(f"{item} {canonical_json(task.recipe)}".encode()).digest() for item in items]
        draws = [int.from_bytes(digest[:4], "big") / 2**32 for digest in text]
        answers[name] = TaskAnswers(name, items, tuple(float(u < skill) for u in draws))
    return Evaluation(task.set_name, answers, {"merge": 0.0, "score": 0.0})


def make_trouble(trouble: Trouble, marks: Path | None, task: EvalTask) -> None:
    """Do what `trouble` says; `kill-once` leaves a mark in `marks` and spares the task the next time."""
    if trouble == "raise":
        raise RuntimeError(f"candidate {task.id} is made to fail")
    if trouble == "memory":
        raise MemoryError(f"candidate {task.id} is made to run out of memory")
    if trouble == "nan":
        TaskAnswers("add", ("an item",), (float("nan"),))
    if trouble == "hang":
        time.sleep(3600)
    if trouble == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "kill-once" and marks is not None:
        mark = marks / str(task.id)
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def build_fake(*, sleep_s: float = 0.0, marks: Path | None = None, start: Trouble = "none") -> Scorer:
    """A scorer of `instant_scores`; a recipe with a key `trouble` gets into it.

    Args:
        sleep_s: how long each task takes, seconds.
        marks: a folder for what must be known across processes: one file per scored task, and of `kill-once`.
        start: trouble at start-up, before anything is scored.
    """
    if start != "none":
        make_trouble(start, marks, EvalTask(id="start", recipe={}, set_name="search"))  # type: ignore[arg-type]

    def score(task: EvalTask) -> Evaluation:
        time.sleep(sleep_s)
        make_trouble(task.recipe.get("trouble", "none"), marks, task)
        if marks is not None:
            with (marks / "scored").open("a") as f:
                f.write(f"{task.id}\n")
        return instant_scores(task)

    return score


def build_environment_report() -> Scorer:
    """A scorer whose "answers" are the thread limits that its process was started with."""

    def score(task: EvalTask) -> Evaluation:
        name = "OMP_NUM_THREADS"
        return Evaluation(task.set_name, {name: TaskAnswers(name, ("value",), (float(os.environ.get(name, "-1")),))})

    return score


def identify(device: str) -> WorkerClass:
    """A device class without loading torch: `device` itself, or what `EVOMERGE_FAKE_DEVICE` says on a node."""
    return WorkerClass(os.environ.get("EVOMERGE_FAKE_DEVICE", device), {"numpy": "1"})
