"""The makers of this package that copy rows or add factors pass the suite that plug-ins pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.recipe.recipe import Number, ParentRef
from evomerge.testing.maker_suite import MakerSuite
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.virtual.adapter import ADAPTER
from evomerge.virtual.aligned import ALIGNED
from evomerge.virtual.maker import Ingredients
from evomerge.virtual.retokenized import RETOKENIZED


def speaking(folder: Path, rows: int, family: str = "llama") -> OpenParent:
    """A checkpoint with a tokenizer of `rows` tokens."""
    return open_checkpoint(tiny_checkpoint(folder, family, rows, tokenizer=True, vocab_size=rows))


def on_base(root: Path, weight: float) -> Ingredients:
    """A rank-3 change of one matrix and a norm of its own."""
    base, folder = open_checkpoint(tiny_checkpoint(root / "base", "llama", 1)), root / "adapter"
    rng, at = torch.Generator().manual_seed(0), "base_model.model.model."
    tensors = {
        f"{at}layers.0.mlp.up_proj.lora_A.weight": torch.randn(3, 32, generator=rng),
        f"{at}layers.0.mlp.up_proj.lora_B.weight": torch.randn(48, 3, generator=rng),
        f"{at}norm.weight": torch.randn(32, generator=rng),
    }
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 1}')
    return Ingredients(ParentRef("made", str(folder)), (), base, {"weight": weight})


class TestAdapter(MakerSuite):
    maker = ADAPTER

    @pytest.fixture
    def ingredients(self, tmp_path: Path) -> Ingredients:
        """At half weight."""
        return on_base(tmp_path, 0.5)


class TestWholeAdapter(MakerSuite):
    maker = ADAPTER

    @pytest.fixture
    def ingredients(self, tmp_path: Path) -> Ingredients:
        """At weight 1, where whole tensors are handed out as they are."""
        return on_base(tmp_path, 1.0)


class TestAligned(MakerSuite):
    maker = ALIGNED

    @pytest.fixture
    def ingredients(self, tmp_path: Path) -> Ingredients:
        """A parent of 60 tokens under a reference of 64."""
        parent, reference = speaking(tmp_path / "parent", 60), speaking(tmp_path / "reference", 64)
        return Ingredients(ParentRef("made", "made"), (parent,), reference, {})


class TestRetokenized(MakerSuite):
    maker = RETOKENIZED
    settings: ClassVar[Mapping[str, Number]] = {"member": 1.0, "base": -1.0, "source": -1.0}

    @pytest.fixture
    def ingredients(self, tmp_path: Path) -> Ingredients:
        """The second of three parents of 60, 50 and 64 tokens, tied."""
        of = tuple(speaking(tmp_path / str(rows), rows, "gpt2") for rows in (60, 50, 64))
        defaults = {n: p.default for n, p in RETOKENIZED.spec.parameters.items() if p.default is not None}
        settings = {**defaults, **self.settings, "pad_to_multiple_of": 24.0}
        return Ingredients(ParentRef("made", "made"), of, None, settings)
