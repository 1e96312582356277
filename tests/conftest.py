"""Fixtures for all tests."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]


def _zoo_key() -> str:
    """Changes whenever another zoo could come out: the sources of the zoo, and the numeric libraries."""
    sources = [*sorted((ROOT / "evomerge" / "zoo").glob("*.py")), ROOT / "evomerge" / "seeds.py", Path(__file__)]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    for package in ("torch", "transformers", "tokenizers", "numpy"):
        digest.update(f"{package}=={version(package)}".encode())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def small_zoo() -> Path:
    """The small toy zoo of seed 0 (`base math string lang tasks`), trained once and kept in `.cache/`; read only."""
    from evomerge.zoo.build import build_zoo
    from evomerge.zoo.spec import small_spec

    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    folder = cache / f"zoo-small-{_zoo_key()}"
    with FileLock(cache / "zoo-small.lock"):
        return build_zoo(folder, small_spec(seed=0)).folder
