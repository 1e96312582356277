from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.dataflow.export import write_recipe
from evomerge.merging.export import merge_tensors
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.recipe.recipe import Making, ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_digest, recipe_from_text, recipe_to_text
from evomerge.virtual.opening import ParentOpener

Family = Mapping[str, ParentRef]


def blend(family: Family, opener: ParentOpener) -> Recipe:
    """Half of one model's delta and 0.8 of a made parent's."""
    cut = ParentRef("cut", "cut", made=Making("star", (family["code"],), family["base"], {"eta": 80.0}))
    making = Making("tsv_m", (family["math"], cut), family["base"], {"scale": 1.0})
    parents = (family["base"], family["chat"], ParentRef("both", "both", made=making))
    weights = {"chat": {"weight": 0.5}, "both": {"weight": 0.8}}
    rule = Rule("task_arithmetic", {"normalize": False, "lambda": 1.0}, weights)
    return Recipe(tuple(opener.known(p) for p in parents), "base", (rule,), dtype="float32")


def test_a_made_parent_is_blended_with_a_real_one(tmp_path: Path, family: Family) -> None:
    opener = ParentOpener(tmp_path / "cache")
    recipe = blend(family, opener)
    opened = {p.name: opener.open(p) for p in recipe.parents}
    opener.make()
    pool = ParentPool(opened)
    merged = dict(merge_tensors(recipe, pool))
    assert set(merged) == {t.name for t in opened["base"].layout.tensors}
    for name, tensor in merged.items():
        base, chat, both = (opened[p].tensor(name).float() for p in ("base", "chat", "both"))
        assert tensor.allclose(base + 0.5 * (chat - base) + 0.8 * (both - base), atol=1e-6)

    write_recipe(recipe, pool, tmp_path / "out", kernels=Kernels())
    written = open_checkpoint(tmp_path / "out")
    assert all(written.tensor(n).equal(t) for n, t in merged.items())


def test_another_machine_makes_the_same_parent_from_the_recipe_alone(tmp_path: Path, family: Family) -> None:
    first = ParentOpener(tmp_path / "here")
    recipe = blend(family, first)
    text = recipe_to_text(recipe)
    assert json.loads(text)["version"] == 3
    again = recipe_from_text(text)
    assert again == recipe
    assert recipe_digest(again) == recipe_digest(recipe)
    second = ParentOpener(tmp_path / "there")
    parents = {p.name: second.open(p) for p in again.parents}
    assert [parents[p.name].content for p in again.parents] == [p.content for p in recipe.parents]
    second.make()
    first.make()
    name = "model.layers.1.mlp.down_proj.weight"
    assert parents["both"].tensor(name).equal(first.open(recipe.parents[2]).tensor(name))
    assert parents["both"].tensor(name).dtype == torch.float32
