"""The corpus of hostile checkpoints through every door: refused early in words, nothing read outside, nothing run."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoints.compatible import check_compatible, check_finite
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import EvomergeError
from evomerge.evaluation.tokens import load_tokenizer, model_facts
from evomerge.merging.resident import load_model
from evomerge.recipe.recipe import Making, ParentRef
from evomerge.testing.hostile_adapters import write_adapter
from evomerge.testing.hostile_checkpoints import corpus, sound_checkpoint
from evomerge.testing.hostile_model import Mutation, Victim
from evomerge.virtual.opening import ParentOpener

CORPUS = corpus()
SECONDS = 2.0
"""Of processor time, for all doors together."""
LONGEST = 3000
"""Characters of a message."""


class Reads:
    """What this process opens while it listens, with links followed."""

    def __init__(self) -> None:
        self.listening = False
        self.paths: set[str] = set()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.listening and event in {"open", "os.listdir", "os.scandir"} and isinstance(arguments[0], str | Path):
            self.paths.add(os.path.realpath(arguments[0]))


READS = Reads()
INSTALLED = tuple(
    os.path.realpath(p)
    for p in (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), Path(__file__).parents[2])
)
SYSTEM = ("/proc/", "/sys/", "/dev/null", "/dev/urandom", "/usr/share/zoneinfo", "/etc/localtime", "/etc/os-release")


@contextmanager
def reading_only(*folders: Path) -> Iterator[None]:
    """Fails when anything is opened that lies neither in these folders nor where code is installed."""
    READS.paths.clear()
    READS.listening = True
    try:
        yield
    finally:
        READS.listening = False
    allowed = (*map(os.path.realpath, folders), *INSTALLED, *SYSTEM)
    assert not (strays := [p for p in READS.paths if not p.startswith(allowed)]), strays


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound_checkpoint(tmp_path_factory.mktemp("sound") / "model")


def damaged(mutation: Mutation, sound: Path, box: Path) -> Victim:
    victim = Victim(box / "victim", box / "outside", box / "canary")
    if mutation.kind == "adapter":
        write_adapter(victim.folder)
    else:
        shutil.copytree(sound, victim.folder)
    shutil.copytree(sound, victim.outside)
    mutation.change(victim)
    return victim


def through_adapter_door(folder: Path, sound: Path) -> OpenParent:
    opener = ParentOpener(folder.parent / "made")
    base = ParentRef("base", str(sound))
    found = opener.open(ParentRef("a", str(folder), made=Making("adapter", (), base, {})))
    opener.make()
    return found


def through_all_doors(folder: Path, sound: Path) -> OpenParent:
    """What comes before a model is built, in the order of a search."""
    checkpoint = open_checkpoint(folder)
    check_compatible({"base": open_checkpoint(sound), "stranger": checkpoint}, "base")
    check_finite(checkpoint)
    tokenizer = load_tokenizer(folder)
    model_facts(folder, tokenizer)
    tokenizer("12+34= aaaa\n")
    return checkpoint


def test_the_corpus_is_large_and_named() -> None:
    assert len(CORPUS) >= 500
    assert len({m.name for m in CORPUS}) == len(CORPUS)
    assert {m.kind for m in CORPUS} == {"header", "index", "file", "config", "tokenizer", "values", "adapter"}


@pytest.mark.parametrize(
    "mutation", [m for m in CORPUS if m.match], ids=lambda m: m.name[:60].encode("unicode_escape").decode()
)
def test_hostile_checkpoints_are_refused(mutation: Mutation, sound: Path, tmp_path: Path, monkeypatch: Any) -> None:
    victim = damaged(mutation, sound, tmp_path)
    monkeypatch.chdir(victim.outside)  # a relative name that is followed leads here
    door = through_adapter_door if mutation.kind == "adapter" else through_all_doors
    began = time.process_time()
    with (
        reading_only(victim.folder, sound, tmp_path / "made"),
        pytest.raises(EvomergeError, match=mutation.match) as caught,
    ):
        door(victim.folder, sound)
    assert time.process_time() - began < SECONDS
    assert caught.value.exit_code in {2, 3}
    assert all((caught.value.what, caught.value.got, caught.value.allowed, caught.value.fix))
    text = str(caught.value)
    assert len(text) < LONGEST
    assert all(c.isprintable() or c == "\n" for c in text.replace(str(tmp_path), "")), repr(text)
    assert not victim.canary.exists()
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize("mutation", [m for m in CORPUS if m.legal], ids=lambda m: m.name)
def test_odd_but_legal_checkpoints_give_right_tensors(mutation: Mutation, sound: Path, tmp_path: Path) -> None:
    victim = damaged(mutation, sound, tmp_path)
    expected = open_checkpoint(sound)
    if mutation.kind == "adapter":
        with reading_only(victim.folder, sound, tmp_path / "made"):
            made = through_adapter_door(victim.folder, sound)
            name = "model.layers.0.mlp.down_proj.weight"
            change = made.tensor(name) - expected.tensor(name).float()
        torch.testing.assert_close(change, torch.full((32, 48), 2 * 2 * 0.1 * 0.1))
        return
    with reading_only(victim.folder, sound):
        found = through_all_doors(victim.folder, sound)
        model = load_model(str(victim.folder), "auto", "cpu")
    assert type(model).__module__.startswith("transformers.")
    if mutation.kind != "values":
        for info in expected.layout.tensors:
            assert torch.equal(found.tensor(info.name), expected.tensor(info.name))
    assert not victim.canary.exists()


def test_a_shard_that_changes_after_its_header_was_read_is_noticed(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    data = (folder / "model.safetensors").read_bytes()
    for other in (data[:-8], data + b"\0" * 8, data[:-8] + b"\1" * 8):
        (folder / "model.safetensors").write_bytes(other)
        with pytest.raises(EvomergeError, match="changed while it was in use"):
            checkpoint.tensor("lm_head.weight")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(EvomergeError, match="changed while it was in use"):
        checkpoint.tensor("lm_head.weight")


def test_patterns_of_known_tokenizers_are_taken() -> None:
    from evomerge.checkpoints.tokenizer_bombs import pattern_fault

    known = (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}",
        r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+(?i:'s|'t)?|\p{N}{1,3}",
        r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
        r" ?[^(\s|[.,!?\u2026\u3002])]+",
        r"[\s\S]",
    )
    assert [pattern_fault(p) for p in known] == [None] * len(known)
    assert re.search("variable", pattern_fault(r"([a-z]?)*x") or "")
