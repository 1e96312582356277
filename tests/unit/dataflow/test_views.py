from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.dataflow.views import PathRunner
from evomerge.merging.resident import load_model
from evomerge.recipe.path import Hop, plain_path
from evomerge.testing.tiny import tiny_checkpoint


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_identity_path_is_the_parent(family: str, tmp_path: Path) -> None:
    parent = load_model(str(tiny_checkpoint(tmp_path, family, 0)), "auto", "cpu")
    path = PathRunner(parent, {"p": parent}).model(plain_path(2, "p"))
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        assert torch.equal(path(ids).logits, parent(ids).logits)
    assert type(path) is type(parent)


def test_gains_change_what_is_added(tmp_path: Path) -> None:
    parent = load_model(str(tiny_checkpoint(tmp_path, "llama", 0)), "auto", "cpu")
    runner, ids = PathRunner(parent, {}), torch.arange(3, 13)[None]
    with torch.no_grad():
        skipped = runner.model((Hop(0),))(ids).logits
        assert torch.equal(runner.model((Hop(0), Hop(1, gain=0)))(ids).logits, skipped)
