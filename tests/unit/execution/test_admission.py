"""Device classes: which workers may score side by side, and what is said of those that may not."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.errors import ConfigError
from evomerge.execution.admission import Admission
from evomerge.execution.devices import Station, WorkerClass, gpu_class, here, identify, numeric_versions

H200 = WorkerClass("NVIDIA H200 (9.0)", {"torch": "2.13.0", "numpy": "2.3"})
A100 = replace(H200, device="NVIDIA A100-SXM4-80GB (8.0)")
OTHER_TORCH = replace(H200, versions={"torch": "2.14.0", "numpy": "2.3"})


def at(kind: WorkerClass, node: str = "n") -> Station:
    return Station(kind, "host", 1, node)


def test_the_first_worker_decides_for_the_others() -> None:
    admission = Admission()
    assert admission.expected is None
    assert admission.judge(at(H200)) == ""
    assert admission.judge(at(H200)) == ""
    assert admission.judge(at(A100)) == "NVIDIA A100-SXM4-80GB (8.0) instead of NVIDIA H200 (9.0)"
    assert admission.judge(at(OTHER_TORCH)) == "torch 2.14.0 instead of 2.13.0"
    assert admission.expected == H200


def test_an_earlier_life_decides_for_all() -> None:
    assert Admission("refuse", A100).judge(at(H200)) == "NVIDIA H200 (9.0) instead of NVIDIA A100-SXM4-80GB (8.0)"


def test_where_all_are_recorded_all_may_score() -> None:
    admission = Admission("record", A100)
    assert [admission.judge(at(kind)) for kind in (H200, OTHER_TORCH)] == ["", ""]


def test_a_missing_package_is_a_difference() -> None:
    bare = replace(H200, versions={"torch": "2.13.0"})
    assert H200.difference(bare) == "numpy none instead of 2.3"
    assert bare.difference(H200) == "numpy 2.3 instead of none"


def test_nodes_are_refused_once_and_forgotten_when_they_go() -> None:
    admission = Admission()
    assert admission.refuse("a", "another device")
    assert not admission.refuse("a", "another device again")
    assert admission.refuse("b", "another device")
    assert admission.reasons == ("another device",)
    assert admission.refused_nodes == {"a", "b"}
    admission.forget(frozenset({"b", "c"}))
    assert admission.refused_nodes == {"b"}


def test_gpus_are_told_by_name_and_capability() -> None:
    assert gpu_class([("NVIDIA H200", (9, 0))]) == "NVIDIA H200 (9.0)"
    assert gpu_class([("NVIDIA H200", (9, 0))] * 2) == "2 x NVIDIA H200 (9.0)"
    assert gpu_class([("A", (9, 0)), ("B", (8, 6))]) == "A (9.0) and B (8.6)"


def test_this_process_tells_what_it_runs_on() -> None:
    station = here("evomerge.execution.devices:identify", "cpu", "node")
    assert station.kind == identify("cpu")
    assert station.kind.device.startswith(f"{platform.machine()} ")
    assert (station.pid, station.node) == (os.getpid(), "node")
    assert {"python", "torch", "transformers", "numpy", "evomerge"} <= numeric_versions().keys()


def test_an_identifier_that_does_not_load_is_told() -> None:
    with pytest.raises(ConfigError, match=r"no_such_module: ModuleNotFoundError|no_such_module:x"):
        here("no_such_module:x", "cpu")


def test_the_class_of_earlier_lives_is_read_from_the_journal(tmp_path: Path) -> None:
    from evomerge.config.workers import recorded_class
    from evomerge.runs.store import RunStore
    from evomerge.runs.worker_records import WorkerNews

    run = tmp_path / "run"
    with RunStore.create(run, {"job.yaml": "", "manifest.json": "{}"}) as store:
        assert recorded_class(run) is None
        store.append(WorkerNews("lost", "worker-9", detail="x" * 1000))
        store.append(WorkerNews("joined", "worker-0", "host", H200.device, "log", versions=H200.versions))
        store.append(WorkerNews("joined", "worker-1", "host", A100.device, "log", versions=A100.versions))
        assert recorded_class(run) == H200
        written = [r for r in store.records() if isinstance(r, WorkerNews)]
    assert written[0] == WorkerNews("lost", "worker-9", detail="x" * 200)
    assert all(len(str(r.to_json())) < 400 for r in written)
