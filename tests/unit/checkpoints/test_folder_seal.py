"""Digests taken while a checkpoint is written: of every byte of every file, whatever the order of the tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evomerge.checkpoints.parts import TensorPart
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.checkpoints.seal import Seal, digest_of_bytes, matches
from evomerge.checkpoints.writer import write_checkpoint, write_files
from evomerge.errors import ConfigError
from evomerge.testing.tiny import tiny_checkpoint

SEAL = Seal("seal.json", lambda digests: json.dumps(dict(digests)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("zoo") / "llama", "llama", seed=1)


def sealed(model: Path, folder: Path, *, parts: bool, shard: float = 10_000) -> Mapping[str, str]:
    with closing(open_checkpoint(model)) as source:
        names = [tensor.name for tensor in source.layout.tensors]

        def stream() -> Iterator[tuple[str, torch.Tensor | TensorPart]]:
            for name in reversed(names) if parts else names:
                tensor = source.tensor(name)
                if not parts or tensor.numel() < 2:
                    yield name, tensor
                    continue
                flat = tensor.reshape(-1)
                half = flat.numel() // 2
                for start, values in ((0, flat[:half]), (half, flat[half:])):
                    yield name, TensorPart(start, values, flat.numel())

        write_checkpoint(folder, stream(), template=source, max_shard_bytes=shard, seal=SEAL)
    found: Mapping[str, str] = json.loads((folder / "seal.json").read_text())
    return found


def test_every_file_matches_and_parts_change_nothing(model: Path, tmp_path: Path) -> None:
    whole = sealed(model, tmp_path / "whole", parts=False)
    assert set(whole) == {p.name for p in (tmp_path / "whole").iterdir()} - {"seal.json"}
    assert sum(name.endswith(".safetensors") for name in whole) > 1
    assert all(matches(tmp_path / "whole" / name, digest) for name, digest in whole.items())
    assert sealed(model, tmp_path / "parts", parts=True) == whole


def test_every_byte_counts(model: Path, tmp_path: Path) -> None:
    digests = sealed(model, tmp_path / "m", parts=False, shard=1e9)
    path = tmp_path / "m" / "model.safetensors"
    content = path.read_bytes()
    for position in (0, 20, 8 + int.from_bytes(content[:8], "little"), len(content) // 2, len(content) - 1):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert not matches(path, digests[path.name])
    for other in (content[:-1], content + b"\0", b""):
        path.write_bytes(other)
        assert not matches(path, digests[path.name])
    save_file({"x": torch.zeros(3)}, path)
    assert not matches(path, digests[path.name])
    path.write_bytes(content)
    assert matches(path, digests[path.name])
    assert not matches(path, "crc:12")


def test_small_files_alone(tmp_path: Path) -> None:
    write_files(tmp_path / "m", {"a": b"1"}, SEAL)
    assert json.loads((tmp_path / "m" / "seal.json").read_text()) == {"a": digest_of_bytes(b"1")}


def test_the_name_of_the_seal_is_taken(model: Path, tmp_path: Path) -> None:
    with closing(open_checkpoint(model)) as source, pytest.raises(ConfigError, match="extra file cannot be written"):
        write_checkpoint(tmp_path / "m", [], template=source, extra_files={"seal.json": ""}, seal=SEAL)
