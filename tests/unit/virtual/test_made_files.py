"""What names a made parent, and what happens to damaged files and to what the cache holds already."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.checkpoints.writer import DIGEST_FILE
from evomerge.config.inspection import inspect_parents
from evomerge.config.load import job_document, resolve_job
from evomerge.config.parent_refs import ParentRefs
from evomerge.digest import digest_file
from evomerge.errors import ConfigError, ModelError
from evomerge.recipe.recipe import Making, ParentRef
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.virtual.opening import ParentOpener


@pytest.fixture
def ref(tmp_path: Path) -> ParentRef:
    folders = [tiny_checkpoint(tmp_path / name, "llama", seed) for seed, name in enumerate(("b", "m", "o"))]
    base, model, own = (ParentRef(f.name, str(f)) for f in folders)
    return ParentRef("chat", "chat", made=Making("transplant", (model, own), base))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_how_ingredients_run_is_part_of_the_content(tmp_path: Path, ref: ParentRef) -> None:
    before = ParentOpener(tmp_path / "made").open(ref).content
    edit_config(tmp_path / "m", _name_or_path="elsewhere", transformers_version="9")
    assert ParentOpener(tmp_path / "made").open(ref).content == before
    edit_config(tmp_path / "m", hidden_act="relu")
    edit_config(tmp_path / "o", hidden_act="relu")
    edit_config(tmp_path / "b", hidden_act="relu")
    assert ParentOpener(tmp_path / "made").open(ref).content != before


@pytest.mark.parametrize("damage", ["flipped", "cut", "no digest"])
def test_a_damaged_file_is_made_again(tmp_path: Path, ref: ParentRef, damage: str) -> None:
    first = ParentOpener(tmp_path / "made")
    opened = first.open(ref)
    first.make()
    (file,) = (tmp_path / "made").glob("*/model.safetensors")
    sound = file.read_bytes()
    assert first.made() == {"chat": digest_file(file)}
    if damage == "no digest":
        file.with_name(DIGEST_FILE).unlink()
    else:
        file.write_bytes(sound[:-8] if damage == "cut" else sound[:-8] + bytes(8))
    again = ParentOpener(tmp_path / "made")
    again.open(ref)
    assert [p.parent.content for p in again.pending()] == [opened.content]
    again.make()
    assert file.read_bytes() == sound
    assert again.pending() == ()


def test_a_sound_file_is_not_made_again(tmp_path: Path, ref: ParentRef) -> None:
    first = ParentOpener(tmp_path / "made")
    first.open(ref)
    first.make()
    (file,) = (tmp_path / "made").glob("*/model.safetensors")
    written = file.stat().st_mtime_ns
    again = ParentOpener(tmp_path / "made")
    again.open(replace(ref, name="other"))
    again.make()
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize("maker", ["aligned", "untied", "retokenized", "adapter"])
def test_makers_that_a_job_asks_for_in_another_way_are_no_methods(tmp_path: Path, maker: str) -> None:
    job = {
        "parents": {"base": "b", "models": {"m": {"make": maker, "of": ["base"]}}},
        "space": "layer-wise-task-arithmetic",
        "suite": {"tasks": ["x"]},
        "objectives": [{"name": "x", "task": "x"}],
    }
    resolved = resolve_job(job_document(job), tmp_path)
    with pytest.raises(ConfigError, match=f"no method '{maker}' that makes parents"):
        ParentRefs(resolved.job.parents, resolved.document).all()


def test_a_folder_called_base_is_a_model_unless_it_is_named_as_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    folders = [str(tiny_checkpoint(tmp_path / name, "llama", seed)) for seed, name in enumerate(("base", "m"))]
    found = inspect_parents(folders, None).survey
    assert (found.base, found.models) == (None, ("base-2", "m"))
    with pytest.raises(ModelError, match="nothing to compare"):
        inspect_parents(folders[:1], None)
