"""`evomerge merge` with paths: passthrough files and recipes in, stock checkpoints out, refusals with exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from evomerge.recipe.path import Hop
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_to_text
from evomerge.testing.tiny import tiny_checkpoint

Command = Callable[..., Any]
FRANKEN = """\
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 4]}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        tiny_checkpoint(tmp_path / name, "qwen3", seed, num_hidden_layers=4, tokenizer=True)
    return tmp_path


def test_a_frankenmerge_becomes_a_checkpoint_and_its_recipe_replays(folder: Path, command: Command) -> None:
    (folder / "franken.yaml").write_text(FRANKEN)
    done = command("merge", folder / "franken.yaml", "--to", folder / "out")
    assert done.code == 0
    assert "AutoModelForCausalLM" in done.out
    config = json.loads((folder / "out" / "config.json").read_text())
    assert (config["num_hidden_layers"], len(config["layer_types"])) == (6, 6)
    assert command("merge", folder / "out" / "evomerge_recipe.json", "--to", folder / "again").code == 0
    files = sorted(p.name for p in (folder / "out").iterdir())
    assert "tokenizer.json" in files
    for name in files:
        assert (folder / "again" / name).read_bytes() == (folder / "out" / name).read_bytes()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "out")
    with torch.no_grad():
        assert model(torch.arange(3, 9)[None]).logits.isfinite().all()


@pytest.mark.parametrize(
    ("hops", "code", "words"),
    [
        ((Hop(0, "a"), Hop(7, "b")), 2, "hop 1: layer 7"),
        ((Hop(0, "a"), Hop(1)), 0, ""),
    ],
)
def test_recipes_with_paths_are_merged_or_refused(
    hops: tuple[Hop, ...], code: int, words: str, folder: Path, command: Command
) -> None:
    soup = Rule("linear", {}, {"a": {"weight": 0.5}, "b": {"weight": 0.5}})
    recipe = Recipe((ParentRef("a", "a"), ParentRef("b", "b")), None, (soup,), path=hops)
    (folder / "recipe.json").write_text(recipe_to_text(recipe))
    done = command("merge", folder / "recipe.json", "--to", folder / "out")
    assert done.code == code
    assert words in done.err
    assert (folder / "out").exists() == (code == 0)


def test_architectures_that_cannot_run_paths_are_refused_by_name(tmp_path: Path, command: Command) -> None:
    for seed, name in enumerate("ab"):
        tiny_checkpoint(tmp_path / name, "gpt2", seed, n_layer=4, scale_attn_by_inverse_layer_idx=True)
    (tmp_path / "franken.yaml").write_text(FRANKEN)
    done = command("merge", tmp_path / "franken.yaml", "--to", tmp_path / "out")
    assert done.code == 3
    assert "scale_attn_by_inverse_layer_idx" in done.err
