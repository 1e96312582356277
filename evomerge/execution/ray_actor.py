"""The remote side of the Ray pool: an actor whose constructor cannot fail, and a worker inside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from evomerge.errors import EvomergeError
from evomerge.execution.devices import Station, here
from evomerge.execution.worker import Worker, WorkerSpec, limit_threads
from evomerge.types import EvalTask, Outcome


class Ready(NamedTuple):
    """A worker was built; `log` is its file."""

    log: str


class RayWorker:
    """The actor. What a worker's start-up raises is returned, not raised, so that it arrives as it is."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def arrive(self, spec: WorkerSpec) -> Station | EvomergeError:
        """Where the actor is, before it loads anything of size."""
        import ray

        limit_threads(spec.threads)
        try:
            return here(spec.identify, spec.device, ray.get_runtime_context().get_node_id())
        except EvomergeError as error:
            return error

    def start(self, spec: WorkerSpec, name: str) -> Ready | EvomergeError:
        """Build the worker."""
        folder = _log_folder(spec.log_folder)
        limit_threads(spec.threads)
        try:
            self._worker = Worker(replace(spec, log_folder=folder), name)
        except EvomergeError as error:
            return error
        limit_threads(spec.threads)  # torch may have been loaded only now
        return Ready("" if folder is None else str(folder / f"{name}.log"))

    def knock(self) -> None:
        """Be there."""

    def run(self, task: EvalTask) -> Outcome:
        """Score one task."""
        if self._worker is None:
            raise RuntimeError("a task reached a worker that was not started")
        return self._worker.run(task)


def _log_folder(wanted: Path | None) -> Path | None:
    """The run's folder where this node has it, else that of Ray's session on this node."""
    if wanted is None or wanted.is_dir():
        return wanted
    import ray

    context = ray.get_runtime_context()
    folder = Path(context.get_temp_dir()) / context.get_session_name() / "logs"
    return folder if folder.is_dir() else None
