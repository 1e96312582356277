"""A merge written by `run_merge` of mergekit 0.1.5 and by us with `compat: mergekit` holds the same tensors."""

from __future__ import annotations

import warnings

import pytest
import torch
import yaml

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.dataflow.export import write_recipe
from evomerge.merging.parents import ParentPool
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.testing.tiny import tiny_checkpoint

pytest.importorskip("mergekit")
pytestmark = pytest.mark.parity

CASES = {
    "linear": (None, {"normalize": True}, {"x": {"weight": 0.7}, "y": {"weight": 0.4}}),
    "slerp": (None, {"t": 0.35}, {}),
    "task_arithmetic": ("b", {"lambda": 0.9}, {"x": {"weight": 0.7}, "y": {"weight": 0.4}}),
    "ties": ("b", {}, {"x": {"weight": 0.7, "density": 0.3}, "y": {"weight": 0.4, "density": 0.6}}),
}


def parents(folder, dtype):
    return {n: tiny_checkpoint(folder / n, "llama", i, dtype=dtype, tie=False) for i, n in enumerate("bxy")}


def run_mergekit(folders, method, out):
    base, shared, per_parent = CASES[method]
    names = list(per_parent) or ["x", "y"]
    config = {
        "merge_method": method,
        "parameters": shared,
        "models": [{"model": str(folders[n]), "parameters": per_parent.get(n, {})} for n in names],
    }
    if base or method == "slerp":
        config["base_model"] = str(folders[base or names[0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        text = yaml.safe_dump(config)
        parsed = MergeConfiguration.model_validate(yaml.safe_load(text))
        run_merge(parsed, str(out), MergeOptions(copy_tokenizer=False, quiet=True, num_threads=1), config_source=text)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", CASES)
def test_files_hold_the_same_tensors(tmp_path, method, dtype):
    base, shared, per_parent = CASES[method]
    folders = parents(tmp_path, dtype)
    run_mergekit(folders, method, tmp_path / "theirs")
    refs = tuple(ParentRef(n, str(folders[n])) for n in "bxy" if n != "b" or base)
    recipe = Recipe(refs, base, (Rule(method, shared, per_parent),), compat="mergekit")
    pool = ParentPool({r.name: open_checkpoint(r.source) for r in refs})
    write_recipe(recipe, pool, tmp_path / "ours")
    ours, theirs = open_checkpoint(tmp_path / "ours"), open_checkpoint(tmp_path / "theirs")
    assert [t.name for t in ours.layout.tensors] == [t.name for t in theirs.layout.tensors]
    for info in ours.layout.tensors:
        assert torch.equal(ours.tensor(info.name), theirs.tensor(info.name)), info.name
