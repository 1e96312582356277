"""Real libraries write where they may, continue what an earlier life showed, and are read back."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evomerge.errors import ConfigError
from evomerge.tracking.tracker import TrackedRun
from evomerge.tracking.trackers import LIBRARIES, TRACKERS, MLflow, TensorBoard, WeightsAndBiases, check_trackers

NUMBERS = {1: {"search/skills": 0.25, "search/failed": 0.0}, 2: {"search/skills": 0.75, "search/failed": 1.0}}


def run_in(folder: Path, identity: str = "0123456789abcdef") -> TrackedRun:
    (folder / "run").mkdir(exist_ok=True)
    return TrackedRun("first", folder / "run", identity, {"optimizer": "cma", "genes": 3.0})


def show(tracker: Any, numbers: Mapping[int, Mapping[str, float]]) -> None:
    for step, values in numbers.items():
        tracker.log(step, values)


def test_tensorboard_shows_what_it_was_told(tmp_path: Path) -> None:
    tracker = TensorBoard(run_in(tmp_path))
    show(tracker, NUMBERS)
    tracker.finish({"chosen": "g0001-i00"})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "run" / "tracking" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("search/skills")] == [(1, 0.25), (2, 0.75)]
    assert b"g0001-i00" in events.Tensors("result/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # what MLflow asks of its own database
def test_mlflow_continues_the_run_of_an_earlier_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    show(MLflow(run_in(tmp_path)), {1: NUMBERS[1]})
    again = MLflow(run_in(tmp_path))
    show(again, {2: NUMBERS[2]})
    again.finish({"chosen": "g0001-i00"})
    other = MLflow(run_in(tmp_path, "f" * 16))
    other.close()
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'tracking' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("evomerge")
    runs = {r.data.tags["evomerge_run"]: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"0123456789abcdef", "f" * 16}
    first = runs["0123456789abcdef"]
    history = client.get_metric_history(first.info.run_id, "search/skills")
    assert [(m.step, m.value) for m in history] == [(1, 0.25), (2, 0.75)]
    assert first.data.params["optimizer"] == "cma"
    assert (first.data.tags["chosen"], first.info.status) == ("g0001-i00", "FINISHED")


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_mlflow_is_called_once_per_log_and_never_waits_for_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")  # somebody's own choice
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")  # set and deleted: restored afterwards in either case
    tracker = MLflow(run_in(tmp_path))
    assert (MLFLOW_HTTP_REQUEST_TIMEOUT.get(), MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()) == (77, 2)
    calls: list[str] = []

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return lambda *args, **settings: calls.append(name)

    monkeypatch.setattr(tracker, "_client", Counted())
    show(tracker, NUMBERS)
    tracker.finish({"chosen": "g0001-i00", "state": "finished"})
    assert calls == ["log_batch"] * 3 + ["set_terminated"]


def test_wandb_is_asked_for_one_run_in_all_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    asked: list[dict[str, Any]] = []

    class Run:
        def __init__(self) -> None:
            self.logged: list[tuple[int, dict[str, float]]] = []
            self.summary: dict[str, str] = {}
            self.ended = 0

        def log(self, values: dict[str, float], *, step: int) -> None:
            self.logged.append((step, values))

        def finish(self) -> None:
            self.ended += 1

    runs: list[Run] = []

    def init(**settings: Any) -> Run:
        asked.append(settings)
        runs.append(Run())
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    for _ in range(2):
        tracker = WeightsAndBiases(run_in(tmp_path))
        show(tracker, NUMBERS)
        tracker.finish({"chosen": "g0001-i00"})
        tracker.close()
    assert {(a["id"], a["resume"], a["project"], a["dir"]) for a in asked} == {
        ("0123456789abcdef", "allow", "evomerge", str(tmp_path / "run" / "tracking"))
    }
    assert all(a["settings"].console == "off" and a["settings"].disable_git for a in asked)
    assert [r.logged for r in runs] == [list(NUMBERS.items())] * 2
    assert [(r.summary, r.ended) for r in runs] == [({"chosen": "g0001-i00"}, 1)] * 2


def test_every_tracker_of_a_job_is_there() -> None:
    assert set(TRACKERS) == set(LIBRARIES)
    check_trackers(list(TRACKERS))


def test_a_missing_library_is_told_before_anything_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed[\s\S]*track: wandb[\s\S]*Fix: pip install wandb"):
        check_trackers(["wandb"])


def test_mlflow_says_nothing_on_the_terminal(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom evomerge.tracking.tracker import TrackedRun\n"
        "from evomerge.tracking.trackers import MLflow\nfolder = Path(sys.argv[1])\n"
        "tracker = MLflow(TrackedRun('first', folder, '0123456789abcdef', {'genes': 3.0}))\n"
        "tracker.log(1, {'a': 1.0})\ntracker.finish({'chosen': 'c'})\n"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        env=own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_folder_with_the_name_of_a_library_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no_such_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("evomerge.tracking.trackers.LIBRARIES", {"wandb": "no_such_tracker"})
    with pytest.raises(ConfigError, match="library of a tracker is not installed"):
        check_trackers(["wandb"])
