"""Folders, hub ids and revisions; the hub itself is replaced, no test needs a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.checkpoints.source import HUB_EXCLUDED, HUB_PATTERNS, locate
from evomerge.errors import ModelError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Records what is asked of the hub; set `answer` to a folder or to an error."""
    record: dict[str, Any] = {"calls": []}

    def snapshot_download(source: str, **options: Any) -> str:
        record["calls"].append((source, options))
        if isinstance(record["answer"], Exception):
            raise record["answer"]
        return str(record["answer"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return record


def test_folders_go_before_the_hub(
    zoo: Mapping[str, Path], hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(zoo["llama"].parent.parent)
    relative = f"{zoo['llama'].parent.name}/llama"  # could be a hub id as well
    assert locate(relative) == (zoo["llama"], None)
    assert locate(zoo["llama"], "main").revision is None
    assert hub["calls"] == []


@pytest.mark.parametrize(
    ("source", "revision", "name", "asked"),
    [
        ("org/name", None, "org/name", None),
        ("org/name@v1.0", None, "org/name", "v1.0"),
        ("org/name@v1.0", "abc", "org/name", "abc"),
        ("gpt2", None, "gpt2", None),
    ],
)
def test_hub_ids_with_revisions(
    *,
    zoo: Mapping[str, Path],
    hub: dict[str, Any],
    tmp_path: Path,
    source: str,
    revision: str | None,
    name: str,
    asked: Any,
) -> None:
    snapshot = tmp_path / "0123abc"
    snapshot.symlink_to(zoo["llama"])
    hub["answer"] = tmp_path / "fedcba"
    (tmp_path / "fedcba").mkdir()
    for file in zoo["llama"].iterdir():
        (tmp_path / "fedcba" / file.name).write_bytes(file.read_bytes())
    checkpoint = open_checkpoint(source, revision)
    assert (checkpoint.source, checkpoint.revision) == (source, "fedcba")
    options = {"revision": asked, "allow_patterns": list(HUB_PATTERNS), "ignore_patterns": list(HUB_EXCLUDED)}
    assert hub["calls"] == [(name, options)]


def test_nothing_that_can_run_is_downloaded() -> None:
    from fnmatch import fnmatch

    def wanted(name: str) -> bool:
        return any(fnmatch(name, p) for p in HUB_PATTERNS) and not any(fnmatch(name, p) for p in HUB_EXCLUDED)

    names = ["pytorch_model.bin", "modeling_x.py", "training_args.bin", "model.pt", "original/consolidated.00.pth"]
    assert not any(wanted(n) for n in [*names, "consolidated.safetensors", "onnx/model.safetensors", "model.gguf"])
    names = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.model"]
    assert all(wanted(n) for n in [*names, "chat_template.jinja", "merges.txt", "tokenizer.json", "qwen.tiktoken"])


@pytest.mark.parametrize(
    "failure",
    [
        errors.LocalEntryNotFoundError("no snapshot\nsecond line"),
        errors.OfflineModeIsEnabled("offline"),
        errors.HFValidationError("bad id"),
        ConnectionError("down"),
        errors.HTTPError("broken"),
    ],
)
def test_an_unreachable_hub_is_told_in_four_parts(hub: dict[str, Any], failure: Exception) -> None:
    hub["answer"] = failure
    with pytest.raises(ModelError, match="'org/name@v1': no such folder here") as caught:
        open_checkpoint("org/name@v1")
    assert type(failure).__name__ in caught.value.got
    assert "second line" not in str(caught.value)
    assert "name its folder" in caught.value.fix
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "source", ["./zoo/base", "/no/such/folder", "a/b/c", "../x", "", "name with spaces", "org/-x/"]
)
def test_missing_folders_never_ask_the_hub(hub: dict[str, Any], source: str) -> None:
    with pytest.raises(ModelError, match="not a hub id"):
        locate(source)
    assert hub["calls"] == []


@pytest.mark.parametrize("source", ["~nobody-of-this-name/model", "x" * 5000, "a\0b"])
def test_impossible_paths_are_told(hub: dict[str, Any], source: str) -> None:
    with pytest.raises(ModelError, match="no such folder here"):
        locate(source)
    assert hub["calls"] == []


def test_paths_never_ask_the_hub(hub: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="not a hub id"):
        locate(Path("org/name"))
    assert hub["calls"] == []


def test_a_file_is_not_a_checkpoint(zoo: Mapping[str, Path]) -> None:
    with pytest.raises(ModelError, match="must be a folder") as caught:
        locate(zoo["llama"] / "model.safetensors")
    assert str(zoo["llama"]) in caught.value.fix
