"""What parents state about their licences, and the texts that travel: read from their own folders only."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.config import results
from evomerge.config.card import stated_licence
from evomerge.config.results import licence_texts

CARD = "---\nlicense: mit\n---\n"


def snapshot(home: Path) -> Path:
    """A model as the hub's client keeps it: links into its blobs."""
    repository = home / "models--org--model"
    folder = repository / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, (name, text) in enumerate({"README.md": CARD, "LICENSE": "terms"}.items()):
        (repository / "blobs" / str(number)).write_text(text)
        (folder / name).symlink_to(f"../../blobs/{number}")
    return folder


def texts_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    monkeypatch.setattr(results, "licence_folders", lambda recipe, parents: [("a", folder)])
    return licence_texts(None, None)  # type: ignore[arg-type]


def test_models_of_the_hub_keep_their_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = snapshot(tmp_path)
    assert stated_licence(folder) == "mit"
    assert texts_of(folder, monkeypatch) == {"LICENSE": b"terms"}


def test_nothing_is_read_through_links_that_lead_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text(CARD)
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("README.md", "LICENSE"):
        (folder / name).symlink_to(tmp_path / "secret")
    assert stated_licence(folder) is None
    assert texts_of(folder, monkeypatch) == {}
