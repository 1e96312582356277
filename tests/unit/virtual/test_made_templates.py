"""A made parent as the template of a merge: held in fp32, stored as what lies beneath."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from evomerge.dataflow.export import write_recipe
from evomerge.merging.parents import ParentPool
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.recipe import Making, ParentRef
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.virtual.opening import ParentOpener


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_results_have_the_dtypes_of_what_lies_beneath(tmp_path: Path, dtype: str) -> None:
    folders = [tiny_checkpoint(tmp_path / name, "llama", seed, dtype) for seed, name in enumerate(("b", "m", "o"))]
    base, model, own = (ParentRef(f.name, str(f)) for f in folders)
    ref = ParentRef("chat", "chat", made=Making("transplant", (model, own), base))
    opener = ParentOpener(tmp_path / "made")
    opened = opener.open(ref)
    assert {t.dtype for t in opened.layout.tensors} == {"F32"}
    opener.make()
    write_recipe(parent_recipe(ref), ParentPool({"chat": opened}), tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as f:
        written = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    assert {t.dtype for t in written.values()} == {getattr(torch, dtype)}
    assert all(torch.equal(t, opened.tensor(n).to(t.dtype)) for n, t in written.items())
