"""Train a zoo's models in two one-thread processes: bits do not depend on the caller's cores or thread settings."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

from evomerge.errors import ModelError
from evomerge.zoo.spec import ZooSpec
from evomerge.zoo.variants import BASE, STEPS

_TELL_EVERY = 10


class Progress(NamedTuple):
    """`model` has done `step` of at most `most_steps` training steps; equal when it is finished and saved."""

    model: str
    step: int
    most_steps: int


Told = Callable[[Progress], None]
_Steps = multiprocessing.Queue  # of Progress, or of the OSError that ended a lane


def train_models(folder: Path, spec: ZooSpec, progress: Told) -> None:
    """Train and save all models of `spec` into `folder`, which exists.

    Raises:
        OSError: when a process could not write.
        ModelError: when a process ended early for another reason.
    """
    context = multiprocessing.get_context("spawn")
    steps: _Steps[Progress | OSError] = context.Queue()
    base_is_saved = context.Event()
    lanes = [
        context.Process(target=_lane, args=(names, folder, spec, steps, base_is_saved), daemon=True)
        for names in spec.kind.lanes
    ]
    try:
        for lane in lanes:
            lane.start()
        while any(lane.is_alive() for lane in lanes):
            _pass_on(steps, progress, timeout_s=0.2)
            _check_exit([lane.exitcode for lane in lanes], steps, progress)
        _pass_on(steps, progress, timeout_s=0.2)
    finally:
        for lane in lanes:
            lane.terminate()
            lane.join()
        steps.close()


def _pass_on(steps: _Steps[Progress | OSError], progress: Told, timeout_s: float) -> None:
    """Tell what has arrived.

    Raises:
        OSError: the one that ended a lane.
    """
    try:
        while True:
            event = steps.get(timeout=timeout_s)
            if isinstance(event, OSError):
                raise event
            progress(event)
    except queue.Empty:
        return


def _check_exit(exit_codes: list[int | None], steps: _Steps[Progress | OSError], progress: Told) -> None:
    bad = [code for code in exit_codes if code not in (None, 0)]
    if bad:
        _pass_on(steps, progress, timeout_s=0.2)
        raise ModelError(
            "The zoo could not be trained.",
            got=f"a training process that ended with exit code {bad[0]}",
            allowed="0",
            fix="see its message above; a negative code is the number of the signal that killed it (9: out of memory).",
        )


def _lane(
    names: tuple[str, ...], folder: Path, spec: ZooSpec, steps: _Steps[Progress | OSError], base_is_saved: Event
) -> None:
    """What one process does: its models in order, experts only after the base."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its lanes
    try:
        _train(names, folder, spec, steps, base_is_saved)
    except OSError as error:
        steps.put(error)
        raise SystemExit(1) from error


def _train(
    names: tuple[str, ...], folder: Path, spec: ZooSpec, steps: _Steps[Progress | OSError], base_is_saved: Event
) -> None:
    import torch
    from transformers.utils import logging

    from evomerge.zoo import train, train_steps
    from evomerge.zoo.folders import load_model, save_model

    trainers = train_steps if spec.variant == STEPS else train
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in names:

        def report(step: int, most_steps: int, name: str = name) -> None:
            if step % _TELL_EVERY == 0 and step < most_steps:  # the end is told once the model is saved
                _end_without_parent()
                steps.put(Progress(name, step, most_steps))

        if name == BASE:
            model = trainers.train_base(spec.size, spec.schedule, spec.seed, report)
        else:
            while not base_is_saved.wait(timeout=1):
                _end_without_parent()
            model = load_model(folder / BASE)
            trainers.train_expert(model, name, spec.schedule, spec.seed, report)
        save_model(model, folder / name, name, spec)
        if name == BASE:
            base_is_saved.set()
        steps.put(Progress(name, 1, 1))


def _end_without_parent() -> None:
    """Do not go on for nobody when the parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise SystemExit(1)
