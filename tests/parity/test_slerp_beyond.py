"""SLERP beyond its ends, which mergekit takes: the same bits in its arithmetic, refused in ours."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import yaml

from evomerge.api import merge
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import RecipeError
from evomerge.testing.tiny import tiny_checkpoint

pytest.importorskip("mergekit")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("t", [1.5, -0.4, [-1, 2]])
def test_beyond_the_ends(tmp_path: Path, t: float | list[float], dtype: str) -> None:
    a, b = (str(tiny_checkpoint(tmp_path / name, "llama", seed, dtype)) for seed, name in enumerate("ab"))
    config = {"merge_method": "slerp", "base_model": a, "models": [{"model": a}, {"model": b}], "parameters": {"t": t}}
    text = yaml.safe_dump(config)
    (tmp_path / "file.yaml").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False, num_threads=1)
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(tmp_path / "theirs"), options)
    merge(tmp_path / "file.yaml", tmp_path / "ours")
    ours, theirs = open_checkpoint(tmp_path / "ours"), open_checkpoint(tmp_path / "theirs")
    for info in theirs.layout.tensors:
        assert torch.equal(ours.tensor(info.name), theirs.tensor(info.name)), info.name
    with pytest.raises(RecipeError, match=r"(?s)illegal value.*a number in \[0, 1\]"):
        merge(tmp_path / "file.yaml", tmp_path / "refused", compat="off")
