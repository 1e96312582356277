"""The trackers that ship: thin adapters of libraries that are installed only where somebody wants them."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, final

from evomerge.errors import ConfigError
from evomerge.tracking.tracker import TrackedRun, Tracker

LIBRARIES: Final = MappingProxyType({"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"})
"""Name in a job -> the library that must be importable."""

_MLFLOW_DEFAULTS: Final = MappingProxyType(
    {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }
)
"""MLflow's own, 120 s and 7 retries, would let the search wait for minutes for a server that is gone, and its INFO
would write over the progress bars.
"""


@final
class TensorBoard(Tracker):
    """Event files in `RUN/tracking/tensorboard`: `tensorboard --logdir runs` shows all runs side by side."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(log_dir=str(run.local_folder / "tensorboard"))
        self._writer.add_text("job", "\n".join(f"- {name}: {value}" for name, value in run.settings.items()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, notes: Mapping[str, str]) -> None:
        """See `Tracker.finish`."""
        self._writer.add_text("result", "\n".join(f"- {name}: {value}" for name, value in notes.items()))

    def close(self) -> None:
        """See `Tracker.close`."""
        self._writer.close()


@final
class WeightsAndBiases(Tracker):
    """A run of the project `evomerge`, or of `$WANDB_PROJECT`; `$WANDB_MODE=offline` keeps it in `RUN/tracking`."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        run.local_folder.mkdir(exist_ok=True)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "evomerge"),
            name=run.name,
            id=run.identity,
            resume="allow",
            dir=str(run.local_folder),
            config=dict(run.settings),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._run.log(dict(values), step=step)

    def finish(self, notes: Mapping[str, str]) -> None:
        """See `Tracker.finish`."""
        self._run.summary.update(dict(notes))

    def close(self) -> None:
        """See `Tracker.close`."""
        self._run.finish()


@final
class MLflow(Tracker):
    """A run of the experiment `evomerge` at `$MLFLOW_TRACKING_URI`; without it, in `RUN/tracking/mlflow.db`.

    The search waits for every call, so there is one per `log`, and none waits long, unless the environment says so.
    """

    def __init__(self, run: TrackedRun) -> None:
        for name, value in _MLFLOW_DEFAULTS.items():
            os.environ.setdefault(name, value)  # read at every request, the level when MLflow is imported
        from mlflow import MlflowClient

        run.local_folder.mkdir(exist_ok=True)
        own = f"sqlite:///{(run.local_folder / 'mlflow.db').resolve()}"
        self._client: Any = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or own)
        self._id = self._earlier(run) or self._new(run)

    def _earlier(self, run: TrackedRun) -> str | None:
        experiment = self._client.get_experiment_by_name("evomerge")
        if experiment is None:
            return None
        wanted = f"tags.evomerge_run = '{run.identity}'"
        found = self._client.search_runs([experiment.experiment_id], filter_string=wanted, max_results=1)
        return found[0].info.run_id if found else None

    def _new(self, run: TrackedRun) -> str:
        experiment = self._client.get_experiment_by_name("evomerge")
        id_ = self._client.create_experiment("evomerge") if experiment is None else experiment.experiment_id
        made = self._client.create_run(id_, run_name=run.name, tags={"evomerge_run": run.identity})
        from mlflow.entities import Param

        settings = [Param(name, str(value)) for name, value in run.settings.items()]
        self._client.log_batch(made.info.run_id, params=settings)
        return str(made.info.run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def finish(self, notes: Mapping[str, str]) -> None:
        """See `Tracker.finish`."""
        from mlflow.entities import RunTag

        self._client.log_batch(self._id, tags=[RunTag(name, value) for name, value in notes.items()])
        self._client.set_terminated(self._id)

    def close(self) -> None:
        """Nothing is pending: every call has been answered."""


TRACKERS: Final[Mapping[str, type[TensorBoard | WeightsAndBiases | MLflow]]] = MappingProxyType(
    {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
)


def check_trackers(names: Sequence[str]) -> None:
    """Every named tracker's library must be there, before anything is searched.

    Raises:
        ConfigError: when one is not.
    """
    for name in names:
        spec = importlib.util.find_spec(LIBRARIES[name])
        if spec is None or spec.origin is None:  # a folder of that name, as W&B writes one, is no library
            raise ConfigError(
                "The library of a tracker is not installed.",
                got=f"track: {name}",
                allowed="tensorboard, wandb and mlflow where they are installed",
                fix=f"pip install {LIBRARIES[name]}, or take {name} out of `track`.",
            )
