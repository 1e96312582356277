from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from evomerge.testing.tiny import FAMILIES, tiny_checkpoint


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One tiny checkpoint of every family. Never write into them."""
    root = tmp_path_factory.mktemp("families")
    return {family: tiny_checkpoint(root / family, family, seed=1) for family in FAMILIES}


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in several shards, with tokenizer. Never write into it."""
    folder = tmp_path_factory.mktemp("sharded") / "model"
    return tiny_checkpoint(folder, "llama", seed=1, tokenizer=True, max_shard_size="20KB")


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path, str], Path]:
    """Copies a checkpoint for tests that damage it."""

    def make(folder: Path, name: str = "copy") -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    return make


@pytest.fixture
def edit_config() -> Callable[..., None]:
    """Changes keys of a folder's config.json; None removes a key."""

    def edit(folder: Path, **changes: Any) -> None:
        path = folder / "config.json"
        config = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return edit
