"""A share of a GPU, several GPUs, and a node of its own: what a worker makes of them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.checkpoints.tickets import NodeParents
from evomerge.errors import ConfigError, ModelError
from evomerge.evaluation.plan import EvalPlan, Item, MetricPlan, Scored, Source, TaskPlan, pack
from evomerge.evaluation.suite import SuiteSpec, TaskSpec
from evomerge.execution import memory
from evomerge.execution.gpus import check_spreads, device_free, limit_share, spread_over, worker_devices
from evomerge.execution.memory import measure_sizes
from evomerge.execution.node import node_cache, settle
from evomerge.execution.scoring import MergeScorer, ScoringSpec, build_scorer
from evomerge.execution.worker import Worker, WorkerSpec
from evomerge.merging.kernels import Kernels
from evomerge.merging.residence import ACTIVATIONS, DEVICE, HOST, Storage, choose_residence
from evomerge.recipe.path import Hop
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_to_json
from evomerge.seeds import generator
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.types import CandidateId, Digest, EvalTask, Failure

GB = 10**9


class FakeCuda:
    """Two GPUs of 80 GB, of which so much is free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n: int = 2, free: int = 80 * GB) -> None:
        self.fractions: list[float] = []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, 80 * GB))
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self.fractions.append)


def test_a_worker_takes_as_many_gpus_as_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    assert worker_devices("cpu", 2) == ("cpu",)
    assert worker_devices("cuda", 0.25) == worker_devices("cuda", 1) == ("cuda",)
    assert worker_devices("cuda", 2) == ("cuda:0", "cuda:1")
    with pytest.raises(ModelError, match="sees fewer GPUs"):
        worker_devices("cuda", 3)


def test_a_share_of_a_gpu_is_a_share_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch, free=30 * GB)
    for device, share in (("cpu", 0.5), ("cuda", 1.0), ("cuda", 2.0), ("cuda", 0.25)):
        limit_share(device, share)
    assert cuda.fractions == [0.25]
    assert device_free("cuda", 0.25) == 20 * GB
    assert device_free("cuda") == device_free("cuda", 0.5) == 30 * GB
    assert device_free("cpu", 0.5) is None


def parents(folder: Path, n: int = 2, **config: Any) -> Mapping[str, OpenParent]:
    found = {f"p{i}": tiny_checkpoint(folder / str(i), "llama", i, tokenizer=True, **config) for i in range(n)}
    return {name: open_checkpoint(path) for name, path in found.items()}


def test_the_forecast_and_the_worker_agree_on_four_workers_of_one_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = parents(tmp_path)
    monkeypatch.setattr(memory, "parent_bytes", lambda _: 4 * GB)
    monkeypatch.setattr(memory, "model_bytes", lambda *_: 4 * GB)
    FakeCuda(monkeypatch)
    forecast = measure_sizes(opened, "p0", "auto", "cuda", Storage(per_device=4, gpus=0.25))
    assert (forecast.device_free, forecast.per_device) == (80 * GB, 4)
    FakeCuda(monkeypatch, free=28 * GB)  # three others have begun
    own = measure_sizes(opened, "p0", "auto", "cuda", Storage(per_device=1, gpus=0.25))
    assert (own.device_free, own.per_device) == (20 * GB, 1)
    for sizes in (forecast, own):
        assert choose_residence(sizes).place == DEVICE
        assert not choose_residence(replace(sizes, parents=15 * GB), DEVICE).fits


def test_two_gpus_hold_what_one_has_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = parents(tmp_path, num_hidden_layers=6)
    monkeypatch.setattr(memory, "parent_bytes", lambda _: 30 * GB)
    monkeypatch.setattr(memory, "model_bytes", lambda *_: 30 * GB)
    monkeypatch.setattr(memory, "host_free", lambda: 500 * GB)
    FakeCuda(monkeypatch)
    one = measure_sizes(opened, "p0", "auto", "cuda", Storage())
    two = measure_sizes(opened, "p0", "auto", "cuda", Storage(gpus=2))
    assert (one.fullest, choose_residence(one).place) == (1.0, HOST)
    assert 0.5 <= two.fullest < 0.65
    found = choose_residence(two)
    assert found.place == DEVICE
    assert found.device_bytes == pytest.approx(two.fullest * 90 * GB)
    assert found.device_bytes + ACTIVATIONS <= 80 * GB


@pytest.mark.parametrize("family", ["mamba", "qwen3_next", "jetmoe"])
def test_what_keeps_more_than_keys_and_values_is_not_spread(tmp_path: Path, family: str) -> None:
    with pytest.raises(ModelError, match=f"model_type '{family}'"):
        spread_over(open_checkpoint(tiny_checkpoint(tmp_path / "m", family, 0)), ("cpu", "cpu"))


def test_an_unknown_architecture_is_not_spread() -> None:
    with pytest.raises(ModelError, match="model_type 'nobodys'"):
        check_spreads({"model_type": "nobodys"})
    check_spreads({"model_type": "llama"})


def spec(opened: Mapping[str, OpenParent], **rest: Any) -> ScoringSpec:
    rng = generator(0, "gpus")
    items = [
        Item(Digest(f"i{i}"), 0, i, (Scored(pack(rng.integers(3, 64, 4 + i).tolist()), pack([5, 6])),))
        for i in range(6)
    ]
    sets: dict[Any, tuple[int, ...]] = {"search": (0, 1, 2, 3), "select": (4,), "report": (5,)}
    task = TaskPlan("t", "loglikelihood", MetricPlan("perplexity"), tuple(items), sets, (Source("t", 0),))
    plan = EvalPlan((task,), SuiteSpec((TaskSpec("t"),)), 128, (2,), 0, None, {})
    return ScoringSpec(opened, "p0", plan, Kernels(), device="cpu", self_check=False, **rest)


def task(**rest: Any) -> EvalTask:
    rule = Rule("ties", {}, {n: {"weight": 0.5, "density": 0.5} for n in ("p1", "p2")})
    recipe = Recipe(tuple(ParentRef(f"p{i}", f"p{i}") for i in range(3)), "p0", (rule,), **rest)
    return EvalTask(CandidateId("c"), recipe_to_json(recipe), "search")


def test_a_spread_worker_answers_as_a_whole_one(tmp_path: Path) -> None:
    opened = parents(tmp_path, 3, num_hidden_layers=4)
    whole = MergeScorer(spec(opened), "cpu")
    moves: list[int] = []

    def send(tensor: torch.Tensor, shard: int) -> torch.Tensor:
        moves.append(shard)
        return tensor

    spread = MergeScorer(spec(opened, storage=Storage(packed_from="p0")), "cpu", ("cpu", "cpu"), send)
    for asked in (task(), task(path=(Hop(0), Hop(3), Hop(1, "p1"), Hop(2), Hop(3)))):
        select = replace(asked, set_name="select")  # not packed
        assert spread(select).answers == whole(select).answers
        assert spread(asked).answers
    assert {0, 1} == set(moves)


def test_a_worker_opens_its_parents_on_its_node_and_tells_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "ssd"))
    opened = parents(tmp_path / "shared", 3)
    sent = pickle.loads(pickle.dumps(spec(opened, cache="$NODE_DISK/cache")))
    assert isinstance(sent.checkpoints, NodeParents)
    assert sent.cache == "$NODE_DISK/cache"
    (tmp_path / "logs").mkdir()
    worker = Worker(WorkerSpec(arguments={"spec": sent}, log_folder=tmp_path / "logs"), "worker-0")
    folder = worker._score.resident._pool.checkpoint("p1").folder  # type: ignore[attr-defined]
    assert folder.is_relative_to(tmp_path / "ssd" / "cache")
    assert (tmp_path / "logs" / "worker-0.log").read_text().count("copied ") == 3
    found = worker.run(task())
    assert not isinstance(found, Failure)
    assert found.answers == MergeScorer(spec(opened), "cpu")(task()).answers


def test_an_answer_of_weights_that_changed_is_none(tmp_path: Path) -> None:
    opened = parents(tmp_path, 3)
    sent = pickle.loads(pickle.dumps(spec(opened)))
    worker = Worker(WorkerSpec(arguments={"spec": sent}), "w")
    assert not isinstance(worker.run(task()), Failure)
    with (tmp_path / "1" / "model.safetensors").open("r+b") as f:
        f.seek(-8, 2)
        f.write(b"\x00" * 4)
    failure = worker.run(task())
    assert isinstance(failure, Failure)
    assert "changed while it was in use" in failure.message
    with pytest.raises(ModelError, match="changed while it was in use"):
        build_scorer(pickle.loads(pickle.dumps(sent)))


def test_where_the_cache_of_a_node_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.delenv("NOT_SET", raising=False)
    assert node_cache("$HERE/x").parent == node_cache("${HERE}/x").parent == tmp_path / "x"
    for wrong in ("$NOT_SET/x", "relative/x"):
        with pytest.raises(ConfigError, match="cache of a node has no folder"):
            node_cache(wrong)


def test_compiled_kernels_move_to_the_node_and_eager_ones_stay(tmp_path: Path) -> None:
    on_node = NodeParents({})
    assert (
        settle(on_node, Kernels(Path("/driver")), str(tmp_path)).kernels.folder == node_cache(str(tmp_path)) / "kernels"
    )
    assert settle(on_node, Kernels(Path("/driver")), None).kernels.folder == Path("/driver")
    assert settle(on_node, Kernels(), str(tmp_path)).kernels.folder is None
    own: Mapping[str, OpenParent] = {}
    assert settle(own, Kernels(), str(tmp_path)).parents is own
