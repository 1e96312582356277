"""What mutations of checkpoints have in common: a victim's files, and how to write lies into them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TENSOR = "model.layers.0.mlp.down_proj.weight"
"""A plain matrix of the victim."""


class Victim(NamedTuple):
    """A folder to be damaged, and the world around it.

    Attributes:
        folder: of a sound tiny checkpoint with a tokenizer, or of an adapter.
        outside: a folder beside it that must never be read; it holds a sound checkpoint.
        canary: a file that must never come to be.
    """

    folder: Path
    outside: Path
    canary: Path


@dataclass(frozen=True)
class Mutation:
    """One way to damage a checkpoint.

    Attributes:
        name: unique, in a few words.
        kind: `header`, `index`, `file`, `config`, `tokenizer`, `values` or `adapter`.
        change: damages the victim.
        match: a regular expression that the refusal matches; empty for what is legal.
        legal: why it is accepted with right tensors; empty for what is refused.
    """

    name: str
    kind: str
    change: Callable[[Victim], object]
    match: str = ""
    legal: str = ""

    def __post_init__(self) -> None:
        if bool(self.match) == bool(self.legal):
            raise ValueError(f"{self.name}: either refused, with words, or legal, with a reason")


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a sound file, and the bytes behind it."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(path: Path, header: object, data: bytes) -> None:
    """A file with this header, an object or its text as bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def with_bytes(change: Callable[[bytes], bytes], name: str = WEIGHTS) -> Callable[[Victim], object]:
    """A mutation of a file's bytes."""

    def apply(victim: Victim) -> None:
        path = victim.folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


def with_header(change: Callable[[dict[str, Any]], object], name: str = WEIGHTS) -> Callable[[Victim], object]:
    """A mutation of a header: edited in place, or replaced by what `change` returns (an object, or bytes)."""

    def apply(victim: Victim) -> None:
        header, data = header_of(victim.folder / name)
        found = change(header)
        write_header(victim.folder / name, header if found is None else found, data)

    return apply


def with_json(name: str, **fields: object) -> Callable[[Victim], object]:
    """Keys of a JSON file replaced; a missing file is made."""

    def apply(victim: Victim) -> None:
        path = victim.folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps(content | fields), encoding="utf-8")

    return apply


def with_text(name: str, text: str | bytes) -> Callable[[Victim], object]:
    """A file replaced."""

    def apply(victim: Victim) -> None:
        path = victim.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return apply


def in_turn(*changes: Callable[[Victim], object]) -> Callable[[Victim], object]:
    """Several mutations."""

    def apply(victim: Victim) -> None:
        for change in changes:
            change(victim)

    return apply


def nested(depth: int) -> str:
    """A JSON list inside lists."""
    return "[" * depth + "]" * depth
