"""A folder with an adapter where a model is wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import ModelError


@pytest.mark.parametrize("config", [None, '{"model_type": "llama"}'])
def test_an_adapter_is_told_before_a_missing_config(tmp_path: Path, config: str | None) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"(?s)LoRA adapter is not a checkpoint.*`MODEL\+FOLDER` in a mergekit file"):
        open_checkpoint(tmp_path)
