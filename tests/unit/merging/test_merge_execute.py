"""Tensors that kernels do not merge: integers, plug-ins' methods, and mergekit's arithmetic with another dtype."""

from __future__ import annotations

from typing import final

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import MergeError, NonFinite
from evomerge.merging.export import merge_tensors
from evomerge.merging.kernels import Kernels
from evomerge.merging.methods import MergeMethod
from evomerge.merging.parents import ParentPool
from evomerge.merging.resident import ResidentModel
from evomerge.recipe.method_spec import MethodSpec, ParameterSpec
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.registry import Registry
from evomerge.testing.tiny import tiny_checkpoint


@final
class Extreme(MergeMethod):
    """The entry of largest magnitude, times `gain`."""

    spec = MethodSpec("extreme", True, 1, None, {"gain": ParameterSpec(False, "real", 1.0)})

    def merge(self, base, parents, parameters):
        stacked = torch.stack([p.sub_(base) for p in parents])  # writes into its copies
        chosen = stacked.gather(0, stacked.abs().argmax(0, keepdim=True))[0]
        return base + chosen * float(parameters.shared["gain"])


@final
class Wrong(MergeMethod):
    spec = MethodSpec("wrong", False, 1, None)

    def merge(self, base, parents, parameters):
        return parents[0].reshape(-1)[:1]


EXTREME, WRONG = Extreme(), Wrong()


@pytest.fixture
def plugins(monkeypatch):
    table = {"extreme": f"{__name__}:EXTREME", "wrong": f"{__name__}:WRONG"}
    monkeypatch.setattr("evomerge.merging.methods.METHODS", Registry("evomerge.none", "merge method", table))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("execute")
    return {n: tiny_checkpoint(folder / n, "llama", i, dtype="bfloat16") for i, n in enumerate("bxy")}


@pytest.fixture(scope="module")
def pool(folders):
    return ParentPool({n: open_checkpoint(f) for n, f in folders.items()})


def recipe(rule, names="bxy", **rest):
    return Recipe(tuple(ParentRef(n, n) for n in names), "b", (rule,), **rest)


def test_a_plugins_method_merges_in_place_and_streamed(plugins, pool):
    made = recipe(Rule("extreme", {"gain": 0.5}))
    before = pool.checkpoint("x").tensor("model.norm.weight").clone()
    merged = dict(merge_tensors(made, pool))
    assert torch.equal(pool.checkpoint("x").tensor("model.norm.weight"), before)
    b, x, y = (pool.checkpoint(n).tensor("lm_head.weight").float() for n in "bxy")
    chosen = torch.where((x - b).abs() >= (y - b).abs(), x - b, y - b)
    assert torch.equal(merged["lm_head.weight"], (b + 0.5 * chosen).bfloat16())
    resident = ResidentModel(pool, "b", kernels=Kernels())
    resident.apply(made)
    assert torch.equal(resident.model.lm_head.weight, merged["lm_head.weight"])
    resident.apply(made)
    assert resident.n_merged == 0
    resident.apply(recipe(Rule("extreme", {"gain": 0.75})))
    assert resident.n_merged == len(merged)


def test_a_plugin_that_returns_another_shape_is_refused(plugins, pool):
    with pytest.raises(MergeError, match="returned another shape"):
        list(merge_tensors(recipe(Rule("wrong")), pool))


def test_a_plugin_that_overflows_is_a_failure(plugins, pool):
    with pytest.raises(NonFinite, match="extreme"):
        list(merge_tensors(recipe(Rule("extreme", {"gain": 1e39})), pool))


def with_counter(source, target, value):
    """A copy of a checkpoint with an integer tensor in it."""
    target.mkdir()
    for name in ("config.json",):
        (target / name).write_bytes((source / name).read_bytes())
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, "model.steps": torch.tensor([value, 7])}, target / "model.safetensors", {"format": "pt"})
    return open_checkpoint(target)


def test_integers_are_copied_when_equal_and_refused_when_not(folders, tmp_path):
    counted = {n: with_counter(folders[n], tmp_path / n, 3 if n == "y" else 2) for n in "bxy"}
    weights = {"x": {"weight": 0.5}, "y": {"weight": 0.5}}
    made = recipe(Rule("task_arithmetic", {}, {"x": weights["x"]}), names="bx", dtype="float32")
    merged = dict(merge_tensors(made, ParentPool({n: counted[n] for n in "bx"})))
    assert merged["model.steps"].tolist() == [2, 7]
    assert merged["model.steps"].dtype == torch.int64
    assert merged["model.norm.weight"].dtype == torch.float32
    with pytest.raises(MergeError, match=r"model\.steps"):
        list(merge_tensors(recipe(Rule("task_arithmetic", {}, weights)), ParentPool(counted)))


def test_compat_computes_in_the_recipes_dtype(pool):
    rule = Rule("task_arithmetic", {}, {"x": {"weight": 0.3}, "y": {"weight": 0.4}})
    stored, wide = (dict(merge_tensors(recipe(rule, compat="mergekit", dtype=d), pool)) for d in ("parent", "float32"))
    name = "lm_head.weight"
    b, x, y = (pool.checkpoint(n).tensor(name) for n in "bxy")
    assert torch.equal(
        wide[name], b.float() + torch.stack([0.3 * (x.float() - b.float()), 0.4 * (y.float() - b.float())]).sum(0)
    )
    assert stored[name].dtype == torch.bfloat16
    assert not torch.equal(stored[name], wide[name].bfloat16())  # bf16 arithmetic is another arithmetic
