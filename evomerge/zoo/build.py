"""Build a whole zoo in a folder: atomically, in one-thread processes, the same bits for the same seed."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

from evomerge.errors import ConfigError
from evomerge.files import disk_full_is_told, fsync_folder
from evomerge.zoo.spec import ZooSpec
from evomerge.zoo.tasks import write_task_configs, write_tasks

BASE = "base"
EXPERTS = ("math", "string", "lang")
MODELS = (BASE, *EXPERTS)
MANIFEST = "zoo.json"


class Progress(NamedTuple):
    """What a build tells its caller: `model` has done `step` of at most `most_steps` (equal when it is finished)."""

    model: str
    step: int
    most_steps: int


class Built(NamedTuple):
    """The outcome: where the zoo is, and whether it was already there."""

    folder: Path
    reused: bool


Told = Callable[[Progress], None]


def build_zoo(folder: Path, spec: ZooSpec, progress: Told = lambda _: None) -> Built:
    """Train and write `base/ math/ string/ lang/ tasks/`, or say that this very zoo is already there.

    Every model is trained in a process of its own with one thread, so that the bits do not depend on the number
    of cores or on the caller's thread settings. The folder appears in one step when all is done.

    Args:
        folder: a new or empty folder, or one that holds a zoo of an equal spec (its task files are then brought up
            to date with where the folder lies).
        spec: seed, sizes and schedule.
        progress: called in this thread, some times a second.

    Raises:
        ConfigError: when the folder holds anything else.
        DiskFull: when there is no space; nothing is left behind.
    """
    folder = folder.absolute()
    if _holds(folder, spec) == "same":
        write_task_configs(folder / "tasks", folder / "tasks")
        return Built(folder, reused=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.building")
    with disk_full_is_told(folder):
        try:
            staging.mkdir()
            _write_all(staging, spec, home=folder, progress=progress)
            if folder.exists():
                folder.rmdir()
            staging.rename(folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    fsync_folder(folder.parent)
    return Built(folder, reused=False)


def _holds(folder: Path, spec: ZooSpec) -> Literal["nothing", "same"]:
    """Whether the folder is free for a zoo or holds this one.

    Raises:
        ConfigError: for anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return "nothing"
    found = _manifest(folder)
    if found == spec.to_json():
        return "same"
    raise ConfigError(
        "The zoo cannot be built here.",
        got=f"{folder} is not empty" + (f" and holds another zoo: {json.dumps(found)}" if found is not None else ""),
        allowed=f"a new or empty folder, or one with the zoo {json.dumps(spec.to_json())}",
        fix="name another folder, or remove this one.",
    )


def _manifest(folder: Path) -> object:
    """The content of a zoo's manifest, None when there is none that can be read."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_all(staging: Path, spec: ZooSpec, *, home: Path, progress: Told) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        steps: queue.Queue[Progress] = manager.Queue()
        with ProcessPoolExecutor(max_workers=2, mp_context=context, initializer=_set_up_trainer) as pool:
            base = pool.submit(_train_base, staging, spec, steps)
            (staging / "tasks").mkdir()
            write_tasks(staging / "tasks", spec.items, home / "tasks")
            _follow([base], steps, progress)
            _follow([pool.submit(_train_expert, staging, name, spec, steps) for name in EXPERTS], steps, progress)
    (staging / MANIFEST).write_text(json.dumps(spec.to_json(), indent=2) + "\n", encoding="utf-8")


def _follow(jobs: list[Future[None]], steps: queue.Queue[Progress], progress: Told) -> None:
    """Pass progress on until all jobs are done; a job's exception is raised here."""
    while True:
        finished = all(job.done() for job in jobs)
        try:
            while True:
                progress(steps.get(timeout=0 if finished else 0.2))
        except queue.Empty:
            if finished:
                break
    for job in jobs:
        job.result()


def _set_up_trainer() -> None:
    """Set up a training process: one thread, whatever the caller's settings, and nothing printed."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def _reporter(model: str, steps: queue.Queue[Progress]) -> Callable[[int, int], None]:
    def report(step: int, most_steps: int) -> None:
        if step % 10 == 0:
            steps.put(Progress(model, step, most_steps))

    return report


def _train_base(staging: Path, spec: ZooSpec, steps: queue.Queue[Progress]) -> None:
    from evomerge.zoo.folders import save_model
    from evomerge.zoo.train import train_base

    model = train_base(spec.size, spec.schedule, spec.seed, _reporter(BASE, steps))
    save_model(model, staging / BASE, BASE, spec)
    steps.put(Progress(BASE, 1, 1))


def _train_expert(staging: Path, name: str, spec: ZooSpec, steps: queue.Queue[Progress]) -> None:
    from evomerge.zoo.folders import load_model, save_model
    from evomerge.zoo.train import train_expert

    model = load_model(staging / BASE)
    train_expert(model, name, spec.schedule, spec.seed, _reporter(name, steps))
    save_model(model, staging / name, name, spec)
    steps.put(Progress(name, 1, 1))
