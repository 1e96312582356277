"""Searching on packed task vectors, choosing on the originals; workers that decide where parents live."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge import hostmemory
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.evaluation.plan import EvalPlan, Item, MetricPlan, Scored, Source, TaskPlan, pack
from evomerge.execution import scoring
from evomerge.execution.gpus import device_free
from evomerge.execution.memory import measure_rates, measure_sizes, task_vector_bytes
from evomerge.execution.scoring import MergeScorer, ScoringSpec
from evomerge.hostmemory import host_free
from evomerge.merging.kernels import Kernels
from evomerge.merging.packed8 import packed_bytes
from evomerge.merging.residence import DEVICE, DISK, HOST, Sizes, Storage
from evomerge.recipe.path import Hop, Hops
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_to_json
from evomerge.seeds import generator
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.types import CandidateId, Digest, EvalTask, Evaluation, SetName


def plan() -> EvalPlan:
    """Log-likelihoods, which show every bit; the three sets hold the same questions."""
    rng = generator(0, "packed")
    rows = [rng.integers(3, 64, 8).tolist() for _ in range(3)]
    items = [Item(Digest(f"{s}{i}"), 0, i, (Scored(pack(rows[i]), pack([5, 6])),)) for s in "srt" for i in range(3)]
    sets: dict[Any, tuple[int, ...]] = {"search": (0, 1, 2), "select": (3, 4, 5), "report": (6, 7, 8)}
    task = TaskPlan("said", "loglikelihood", MetricPlan("perplexity"), tuple(items), sets, (Source("t", 0),))
    return EvalPlan((task,), {}, 128, (2,), 0, None, {})


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ScoringSpec:
    folder = tmp_path_factory.mktemp("packed")
    folders = {n: tiny_checkpoint(folder / n, "llama", i, tokenizer=True) for i, n in enumerate("bxy")}
    checkpoints = {n: open_checkpoint(f) for n, f in folders.items()}
    return ScoringSpec(checkpoints, "b", plan(), Kernels(), device="cpu", self_check=False)


def task(set_name: SetName, path: Hops | None = None) -> EvalTask:
    rule = Rule("task_arithmetic", {}, {"x": {"weight": 0.5}, "y": {"weight": 0.75}})
    recipe = Recipe(tuple(ParentRef(n, n) for n in "bxy"), "b", (rule,), path=path)
    return EvalTask(CandidateId("c"), recipe_to_json(recipe), set_name)


def said(evaluation: Evaluation) -> list[float]:
    (found,) = evaluation.answers.values()
    return np.asarray(found.scores, np.float64).tolist()


@pytest.mark.parametrize("path", [None, (Hop(0, None), Hop(1, "x"), Hop(0, "y"))])
def test_searching_reads_packed_parents_and_choosing_the_originals(spec: ScoringSpec, path: Hops | None) -> None:
    exact = MergeScorer(spec, "cpu")
    packed = MergeScorer(replace(spec, storage=Storage(packed_from="b")), "cpu")
    expected = {s: said(exact(task(s, path))) for s in ("search", "select", "report")}
    assert expected["search"] == expected["select"]
    for _ in range(2):  # whatever came before
        near = said(packed(task("search", path)))
        assert near != expected["search"]
        assert near == pytest.approx(expected["search"], rel=0.02)
        assert said(packed(task("select", path))) == expected["select"]
        assert said(packed(task("report", path))) == expected["report"]


@pytest.mark.parametrize("place", [DEVICE, HOST, DISK])
def test_the_place_changes_no_answer(spec: ScoringSpec, place: Any) -> None:
    placed = pickle.loads(pickle.dumps(replace(spec, storage=Storage(place))))
    assert said(MergeScorer(placed, "cpu")(task("search"))) == said(MergeScorer(spec, "cpu")(task("search")))


def test_a_worker_chooses_by_what_it_finds(spec: ScoringSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    for sizes, place in ((Sizes(9, 1, 10**10, 0), DEVICE), (Sizes(9, 1, None, 100), DISK)):
        monkeypatch.setattr(scoring, "measure_sizes", lambda *_, sizes=sizes: sizes)
        assert scoring._holding(spec, "cpu").place == place
    held = scoring._holding(replace(spec, storage=Storage(HOST, "b")), "cpu")
    assert (held.place, held.packed_from) == (HOST, "b")


def test_sizes_are_those_of_the_files(spec: ScoringSpec) -> None:
    file = Path(spec.checkpoints["x"].folder) / "model.safetensors"
    found = measure_sizes(spec.checkpoints, "b", "auto", "cpu", Storage(n_models=2, workers=3))
    assert found.parents == 3 * found.model
    assert 0 < file.stat().st_size - found.model < 10_000  # the header
    assert (found.n_models, found.workers, found.device_free, found.packed) == (2, 3, None, 0)
    half = measure_sizes(spec.checkpoints, "b", "bfloat16", "cpu", Storage(packed_from="b"))
    assert 2 * half.model == found.model
    assert half.packed == 2 * task_vector_bytes(spec.checkpoints["x"])
    assert half.parents == found.model + half.packed
    assert packed_bytes(found.model // 4) <= half.packed / 2 < 1.1 * packed_bytes(found.model // 4)


def test_free_memory_is_what_the_control_group_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostmemory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(hostmemory, "_GROUPS", (tmp_path / "none", tmp_path))
    assert host_free() > 0  # neither file: all that there is
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:    60 kB\n")
    assert host_free() == 60 * 1024
    for name, text in {"max": "max", "current": "30000", "stat": "anon 1\nfile 10000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert host_free() == 60 * 1024  # no limit
    (tmp_path / "memory.max").write_text("50000\n")
    assert host_free() == 30_000
    assert device_free("cpu") is None


def test_the_probe_measures_memory_alone() -> None:
    found = measure_rates()
    assert found.measured == ("memory",)
    assert 1e8 < found.memory < 1e13
