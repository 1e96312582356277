"""mergekit 0.1.5 on tiny models of every family: the columns of docs/families.md that need it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.merging.export import merge_tensors
from evomerge.testing.family_checks import RULES, family_recipe, open_siblings
from evomerge.testing.family_table import read_rows
from evomerge.testing.tiny_families import ALL

pytest.importorskip("mergekit")
pytestmark = pytest.mark.parity

from evomerge.testing.family_peer import agreement, run_mergekit, tensors_of  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
ROWS = read_rows(PAGE.read_text(encoding="utf-8"))
FEW = (
    "llama",
    "gpt2",
    "gemma3",
    "olmo2",
    "bloom",
    "falcon",
    "gpt_oss",
    "mixtral",
    "qwen3_moe",
    "deepseek_v3",
    "granitemoe",
)


def assert_as_told(family: str, folder: Path) -> None:
    folders, pool = open_siblings(folder / "siblings", family)
    assert tuple(agreement(m, folders, pool, folder / m) for m in RULES) == ROWS[family][8:]


def merged_like_mergekit(base: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """TIES by mergekit's own kernel on tensors in memory."""
    columns = [RULES["ties"].per_parent[p] for p in ("x", "y")]
    lists = {name: [c[name] for c in columns] for name in ("weight", "density")}
    from mergekit.merge_methods import merge_tensors as theirs

    merged: torch.Tensor = theirs([base, x, y], "ties", base_index=0, parameters=lists)
    return merged


@pytest.mark.parametrize("family", FEW)
def test_mergekit_agrees_as_the_table_says(family: str, tmp_path: Path) -> None:
    assert_as_told(family, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("family", [f for f in ALL if f not in FEW])
def test_mergekit_agrees_as_the_table_says_for_the_other_families(family: str, tmp_path: Path) -> None:
    assert_as_told(family, tmp_path)


def test_mergekit_trims_all_experts_together_and_we_trim_each(tmp_path: Path) -> None:
    folders, pool = open_siblings(tmp_path / "siblings", "mixtral")
    run_mergekit(RULES["ties"], folders, tmp_path / "theirs")
    theirs = tensors_of(tmp_path / "theirs")["model.layers.0.mlp.experts.down_proj"]
    names = [f"model.layers.0.block_sparse_moe.experts.{e}.w2.weight" for e in range(4)]
    base, x, y = (torch.stack([pool.checkpoint(p).tensor(n) for n in names]) for p in ("base", "x", "y"))
    assert torch.equal(merged_like_mergekit(base, x, y), theirs)
    ours = dict(merge_tensors(family_recipe(RULES["ties"], folders, compat="mergekit"), pool))
    for e, name in enumerate(names):
        assert torch.equal(ours[name], merged_like_mergekit(base[e], x[e], y[e]))
        assert not torch.equal(ours[name], theirs[e])


def test_mergekit_leaves_out_the_experts_of_some_layers(tmp_path: Path) -> None:
    folders, pool = open_siblings(tmp_path / "siblings", "deepseek_v3")
    run_mergekit(RULES["linear"], folders, tmp_path / "theirs")
    theirs = tensors_of(tmp_path / "theirs")
    assert any(".experts." in t.name for t in pool.checkpoint("x").layout.tensors)
    assert not any(".experts." in name for name in theirs)
