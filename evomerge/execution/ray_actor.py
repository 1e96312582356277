"""The remote side of the Ray pool: an actor whose constructor cannot fail, and a worker inside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from evomerge.errors import EvomergeError
from evomerge.execution.devices import Station, here
from evomerge.execution.worker import Worker, WorkerSpec, limit_threads
from evomerge.types import EvalTask, Outcome

_PIECE_BYTES: Final = 64 * 1024


def pieces(value: WorkerSpec | EvalTask) -> tuple[bytes, ...]:
    """A value as arguments that travel inside a call, whatever its size, written by Ray's own serializer.

    Ray puts arguments over 100 KB into the store of the driver's node; a driver whose node has died would be ended by
    Ray without a word when it does.
    """
    from ray import cloudpickle

    data = cloudpickle.dumps(value)
    return tuple(data[i : i + _PIECE_BYTES] for i in range(0, len(data), _PIECE_BYTES))


def _whole(parts: tuple[bytes, ...]) -> Any:
    from ray import cloudpickle

    return cloudpickle.loads(b"".join(parts))  # from our own driver, as Ray reads every argument


class Ready(NamedTuple):
    """A worker was built; `log` is its file."""

    log: str


class RayWorker:
    """The actor. What a worker's start-up raises is returned, not raised, so that it arrives as it is."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def arrive(self, identify: str, device: str, threads: int) -> Station | EvomergeError:
        """Where the actor is, before it loads anything of size; arguments as in `WorkerSpec`."""
        import ray

        limit_threads(threads)
        try:
            return here(identify, device, ray.get_runtime_context().get_node_id())
        except EvomergeError as error:
            return error

    def start(self, name: str, *spec_pieces: bytes) -> Ready | EvomergeError:
        """Build the worker from the pieces of its `WorkerSpec`."""
        spec: WorkerSpec = _whole(spec_pieces)
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

    def run(self, *task_pieces: bytes) -> Outcome:
        """Score one task, in pieces."""
        if self._worker is None:
            raise RuntimeError("a task reached a worker that was not started")
        return self._worker.run(_whole(task_pieces))


def _log_folder(wanted: Path | None) -> Path | None:
    """The run's folder where this node has it, else that of Ray's session on this node."""
    if wanted is None or wanted.is_dir():
        return wanted
    import ray

    context = ray.get_runtime_context()
    folder = Path(context.get_temp_dir()) / context.get_session_name() / "logs"
    return folder if folder.is_dir() else None
