"""The keys of a job about memory: what they may say, and which of them a resumed run may change."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.config import seating, workers
from evomerge.config.load import job_document, resolve_job
from evomerge.config.run_files import _fixed
from evomerge.config.seating import check_devices
from evomerge.config.storage import check_cache, check_gpus
from evomerge.config.workers import storage_of
from evomerge.errors import ConfigError, ModelError
from evomerge.execution.ray_cluster import ClusterDescription, NodeDescription
from evomerge.merging.residence import Storage
from evomerge.testing.tiny import tiny_checkpoint

CLUSTER = ClusterDescription(
    (
        NodeDescription("head", cpus=1, gpus=0),
        NodeDescription("a", cpus=5, gpus=2, device="H200"),
        NodeDescription("b", cpus=5, gpus=1, device="H200"),
        NodeDescription("gone", cpus=64, gpus=8, alive=False),
    )
)


def resolved(folder: Path, **cluster: Any) -> Any:
    job = {
        "parents": {"base": folder / "base", "models": {"a": folder / "a"}},
        "space": "layer-wise-ties",
        "suite": {"tasks": ["t"]},
        "objectives": [{"name": "t", "task": "t"}],
        "cluster": cluster,
    }
    return resolve_job(job_document(job), folder)


@pytest.mark.parametrize(("key", "value"), [("parents", "gpu"), ("task_vectors", "int4")])
def test_unknown_places_and_forms_are_refused(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key):
        resolved(tmp_path, **{key: value})


def test_a_resumed_run_may_move_its_parents_but_not_pack_them(tmp_path: Path) -> None:
    plain = _fixed(resolved(tmp_path))
    assert "cluster" not in plain
    assert _fixed(resolved(tmp_path, parents="host", workers=7)) == plain
    assert _fixed(resolved(tmp_path, task_vectors="int8")) == {**plain, "cluster": {"task_vectors": "int8"}}


@pytest.mark.parametrize(
    ("cluster", "device", "expected"),
    [
        ({"workers": 3}, "cpu", Storage(None, None, 2, 3)),
        ({"workers": 3, "parents": "host", "task_vectors": "int8"}, "cpu", Storage("host", "base", 2, 3)),
        ({"workers": 3, "backend": "local"}, "cuda", Storage(None, None, 2, 3, 3)),  # all on the first GPU
        ({"workers": 3, "backend": "ray"}, "cuda", Storage(None, None, 2, 3, 1)),
        ({"workers": 64, "address": "there", "device": "cpu"}, "cpu", Storage(None, None, 2, 5)),  # a host holds five
        ({"address": "there", "gpus_per_worker": 0.5}, "cpu", Storage(None, None, 2, 4, 2, 0.5)),  # two on each GPU
    ],
)
def test_who_shares_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], device: str, expected: Storage
) -> None:
    monkeypatch.setattr(seating, "choose_device", lambda _: device)
    monkeypatch.setattr(seating, "describe", lambda _: CLUSTER)
    monkeypatch.setattr(workers, "hop_parents", lambda _: ("a",))
    job = resolved(tmp_path, **cluster)
    found = seating.find_seating(job.job.cluster)
    assembled: Any = SimpleNamespace(resolved=job, parents=SimpleNamespace(base="base"), seating=found)
    assert storage_of(assembled) == expected


@pytest.mark.parametrize(
    ("gpus", "family", "message"),
    [
        (1.5, "llama", "A worker takes a share of one GPU, or whole ones"),
        (3, "llama", "fewer layers than it should have devices"),
        (2, "mamba", "model_type 'mamba', and cluster.gpus_per_worker above 1"),
        (0.3, "mamba", ""),
        (2, "llama", ""),
    ],
)
def test_gpus_that_no_model_can_lie_on_are_refused(tmp_path: Path, gpus: float, family: str, message: str) -> None:
    template = open_checkpoint(tiny_checkpoint(tmp_path / "m", family, 0))
    parents: Any = SimpleNamespace(template=template)
    check_gpus(resolved(tmp_path, device="cpu", gpus_per_worker=gpus), parents)
    job = resolved(tmp_path, gpus_per_worker=gpus)
    if not message:
        check_gpus(job, parents)
        return
    with pytest.raises((ConfigError, ModelError), match=message):
        check_gpus(job, parents)


def test_a_relative_cache_is_refused(tmp_path: Path) -> None:
    for stated in ("/local/ssd/x", "$SLURM_TMPDIR/x", None):
        check_cache(resolved(tmp_path, cache=stated))
    with pytest.raises(ConfigError, match="cache of a node needs an absolute path"):
        check_cache(resolved(tmp_path, cache="scratch/x"))


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({}, seating.Seating("cuda", 3, 2, 1, 1.0, 1.0)),
        ({"workers": 2}, seating.Seating("cuda", 2, 2, 1, 1.0, 1.0)),
        ({"gpus_per_worker": 2}, seating.Seating("cuda", 1, 1, 1, 1.0, 2.0)),
        ({"gpus_per_worker": 0.25, "cpus_per_worker": 0.5}, seating.Seating("cuda", 12, 8, 4, 0.5, 0.25)),
        ({"device": "cpu"}, seating.Seating("cpu", 11, 5, 1, 1.0, 0.0)),
        ({"device": "cpu", "gpus_per_worker": 1}, seating.Seating("cpu", 3, 2, 1, 1.0, 1.0)),
        ({"gpus_per_worker": 8}, seating.Seating("cuda", 1, 1, 1, 1.0, 8.0)),  # none fits yet
    ],
)
def test_a_driver_without_a_gpu_uses_those_of_its_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], expected: seating.Seating
) -> None:
    monkeypatch.setattr(seating, "choose_device", lambda _: pytest.fail("the driver's own device does not matter"))
    monkeypatch.setattr(seating, "describe", lambda _: CLUSTER)
    assert seating.find_seating(resolved(tmp_path, address="auto", **cluster).job.cluster) == expected


@pytest.mark.parametrize(
    ("cluster", "n_gpus", "message"),
    [
        ({"device": "cuda"}, 0, "This machine has no CUDA device"),
        ({"device": "cuda", "backend": "local"}, 0, "This machine has no CUDA device"),
        ({"gpus_per_worker": 1}, 0, "gpus_per_worker: 1, and 0 here"),
        ({"gpus_per_worker": 2, "device": "cuda"}, 1, "gpus_per_worker: 2, and 1 here"),
        ({"gpus_per_worker": 2}, 2, ""),
        ({"gpus_per_worker": 0.5, "device": "cuda"}, 1, ""),
        ({"gpus_per_worker": 1, "backend": "local"}, 0, ""),  # local workers on CPUs reserve nothing
        ({"device": "cuda", "address": "there"}, 0, ""),  # its nodes may have some
        ({"device": "auto"}, 0, ""),
    ],
)
def test_gpus_that_are_not_here_are_refused_where_workers_can_only_be_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], n_gpus: int, message: str
) -> None:
    monkeypatch.setattr(seating, "_gpus_here", lambda: n_gpus)
    monkeypatch.setattr(seating, "has_joined", lambda: False)
    job = resolved(tmp_path, **cluster)
    if not message:
        check_devices(job)
        return
    with pytest.raises(ConfigError, match=message):
        check_devices(job)


def test_a_process_that_has_joined_a_cluster_may_ask_for_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seating, "_gpus_here", lambda: 0)
    monkeypatch.setattr(seating, "has_joined", lambda: True)
    check_devices(resolved(tmp_path, device="cuda"))
    with pytest.raises(ConfigError, match="no CUDA device"):
        check_devices(resolved(tmp_path, device="cuda", backend="local"))


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"gpus_per_worker": 2}, ""),
        ({"gpus_per_worker": 4}, "each asks for 1 CPU and 4 GPUs, and the largest node (a) has 5 CPUs and 2 GPUs"),
        ({"device": "cpu", "cpus_per_worker": 6}, "each asks for 6 CPUs and 0 GPUs, and the largest node (a) has 5"),
    ],
)
def test_a_demand_that_no_node_could_meet_is_told_when_a_job_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(seating, "describe", lambda _: CLUSTER)
    found = seating.find_seating(resolved(tmp_path, address="auto", **cluster).job.cluster).lacking
    assert words in found
    assert bool(found) == bool(words)
