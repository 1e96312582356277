"""LoRA adapters as PEFT saves them: a config, and low-rank factors of the changes to some tensors of a base.

Read by name, not by running PEFT: `base_model.model.PATH.lora_A.weight` and its kin, whole modules that were trained
beside them (`modules_to_save`, biases), DoRA's magnitudes. Everything else that an adapter may hold is refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, final

from evomerge.checkpoints.adapter_config import AdapterConfig, read_adapter_config
from evomerge.checkpoints.dtypes import FLOATING, torch_dtype
from evomerge.checkpoints.folder import find_file
from evomerge.checkpoints.header import FileState, Header, read_header
from evomerge.checkpoints.proofs import changed
from evomerge.checkpoints.source import locate
from evomerge.checkpoints.strict_json import damaged, quoted
from evomerge.digest import digest_file, digest_json
from evomerge.errors import ModelError
from evomerge.types import Digest

if TYPE_CHECKING:
    import torch

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_PICKLE: Final = "adapter_model.bin"
PREFIX: Final = "base_model.model."
"""What PEFT puts before every module path."""
_PARTS: Final = MappingProxyType(
    {
        ".lora_A.weight": "a",
        ".lora_B.weight": "b",
        ".lora_B.bias": "bias",
        ".lora_embedding_A": "a",
        ".lora_embedding_B": "b",
        ".lora_magnitude_vector": "magnitude",
        ".lora_magnitude_vector.weight": "magnitude",
        ".base_layer.weight": "base",
    }
)
"""How an adapter's tensors end, and which part of a change they are."""
_MAX_PATH: Final = 256
"""Characters of a module's path."""
_MAX_DEPTH: Final = 64
"""Modules inside modules."""
_MAX_WORK: Final = 100_000_000
"""Looks into the tables of patterns, for all modules of an adapter."""
_FOREIGN: Final = ("lora_", "token_adapter", "base_layer", "trainable_tokens", "modules_to_save", "original_module")
"""Words in the names of what is not understood: other kinds of adapters, and wrappers inside wrappers."""


class Factors(NamedTuple):
    """One module's change as the names of its tensors in the adapter's file; None for what it has not.

    With `s` = `scale`: `W + s B A`, and with a magnitude `m`, row by row, `m (W + s B A) / |W + s B A|` (DoRA).

    Attributes:
        a: shape `(rank, in)`; of an embedding `(rank, tokens)`.
        b: shape `(out, rank)`.
        scale: what the product is multiplied by.
        embedding: the product is stored transposed in the checkpoint: its rows are tokens.
        bias: shape `(out,)`; `scale` times it is added to the module's bias.
        magnitude: shape `(out,)`, or `(dim,)` of an embedding.
        base: the whole `W`, where the adapter brings it along (embeddings that may have been resized).
    """

    a: str
    b: str
    scale: float
    embedding: bool = False
    bias: str | None = None
    magnitude: str | None = None
    base: str | None = None


@dataclass(frozen=True)
class _Named:
    """The tensors of an adapter's file, sorted by what they are."""

    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    saved: dict[str, str] = field(default_factory=dict)


def _check_work(file: Path, config: AdapterConfig, paths: Collection[str]) -> None:
    """Refuses names and patterns that would take long to compare."""
    for path in paths:
        if len(path) > _MAX_PATH or path.count(".") > _MAX_DEPTH:
            got = f"a module's name of {len(path)} characters and {path.count('.')} dots, {quoted(path, 40)}"
            raise damaged(file, got, f"at most {_MAX_PATH} characters and {_MAX_DEPTH} dots")
    work = (config.rank_pattern.work + config.alpha_pattern.work) * len(paths)
    if work > _MAX_WORK:
        got = f"{len(config.rank_pattern.values) + len(config.alpha_pattern.values)} patterns for {len(paths)} modules"
        raise damaged(file, got, "fewer patterns; names of modules count little")


@final
class Adapter:
    """One checked adapter. Made by `open_adapter`.

    Attributes:
        source: the folder or hub id, as the user wrote it.
        revision: the hub's commit, None for a folder.
        folder: where the files lie, absolute.
        config: what its config says.
        factors: module path -> its low-rank change; the path as PEFT names it, without `base_model.model.`.
        saved: tensor path -> name in the file of a tensor that replaces the base's as a whole.
    """

    def __init__(self, source: str, revision: str | None, folder: Path) -> None:
        self.source = source
        self.revision = revision
        self.folder = folder
        self.config: AdapterConfig = read_adapter_config(_required(folder, ADAPTER_CONFIG))
        self._file = _required(folder, ADAPTER_WEIGHTS)
        self._header: Header = read_header(self._file)
        self._content: Digest | None = None
        named = _sorted_by_part(self._file, self._header)
        _check_work(self._file, self.config, named.parts)
        self.factors: Mapping[str, Factors] = MappingProxyType(
            {path: self._factors(path, parts) for path, parts in sorted(named.parts.items())}
        )
        self.saved: Mapping[str, str] = MappingProxyType(dict(sorted(named.saved.items())))
        if not self.factors and not self.saved:
            raise damaged(self._file, "no tensors", "the tensors of an adapter")

    def _factors(self, path: str, parts: Mapping[str, str]) -> Factors:
        if not {"a", "b"} <= parts.keys():
            raise damaged(self._file, f"{quoted(path)} with {', '.join(sorted(parts))} alone", "both factors, A and B")
        a, b = self.shape(parts["a"]), self.shape(parts["b"])
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise damaged(self._file, f"{quoted(path)}: A {list(a)}, B {list(b)}", "A (rank, in) and B (out, rank)")
        stated = self.config.rank_of(path)
        if stated != a[0]:
            raise damaged(self._file, f"{quoted(path)} of rank {a[0]}, {stated} in {ADAPTER_CONFIG}", "one rank")
        embedding = parts["a"].endswith("embedding_A")
        scale = self.config.scale_of(path)
        for name in ("bias", "magnitude"):
            width = b[0]
            if name in parts and self.shape(parts[name]) != (width,):
                got = f"{quoted(parts[name])} of shape {list(self.shape(parts[name]))}"
                raise damaged(self._file, got, f"shape [{width}]")
        if ("magnitude" in parts) != self.config.dora:
            got = f"use_dora = {self.config.dora}, and {quoted(path)} {'with' if 'magnitude' in parts else 'without'}"
            raise damaged(self._file, f"{got} a magnitude", "magnitudes where the config says DoRA")
        more = (parts.get("bias"), parts.get("magnitude"), parts.get("base"))
        return Factors(parts["a"], parts["b"], scale, embedding, *more)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor of the file."""
        return self._header.entries[name].shape

    def dtype(self, name: str) -> str:
        """Of a tensor of the file, safetensors spelling."""
        return self._header.entries[name].dtype

    def rank(self, path: str) -> int:
        """Of a module's change."""
        return self.shape(self.factors[path].a)[0]

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of the file in its stored dtype and shape, in memory of its own.

        Raises:
            ModelError: when the file is no longer the one whose header was read.
        """
        import torch

        entry = self._header.entries[name]
        with self._file.open("rb") as f:
            if FileState.of(os.fstat(f.fileno())) != self._header.state:
                raise changed(self._file, "other bytes than when its header was read")
            f.seek(entry.start)
            raw = bytearray(f.read(entry.nbytes))
        return torch.frombuffer(raw, dtype=torch_dtype(entry.dtype)).reshape(entry.shape)

    @property
    def content(self) -> Digest:
        """What names the change: digest of the weights' bytes and of the numbers of the config. Read once."""
        if self._content is None:
            self._content = digest_json([digest_file(self._file), digest_file(self.folder / ADAPTER_CONFIG)])
        return self._content

    @property
    def plain(self) -> bool:
        """Whether there are low-rank changes and nothing else: no whole modules, biases or magnitudes."""
        return not self.saved and all(f[4:] == (None, None, None) for f in self.factors.values())

    def __repr__(self) -> str:
        return f"Adapter({self.source}, {len(self.factors)} modules, {len(self.saved)} whole tensors)"


def _required(folder: Path, name: str) -> Path:
    path = find_file(folder, name)
    if path is not None:
        return path
    pickled = name == ADAPTER_WEIGHTS and (folder / _PICKLE).exists()
    raise ModelError(
        "An adapter holds its weights as a pickle only, which can run code when it is read."
        if pickled
        else "A folder is no adapter.",
        got=f"{_PICKLE} in {folder}" if pickled else f"no {name} in {folder}",
        allowed=f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, as PEFT saves them",
        fix="load it with PEFT where you trust it, and call save_pretrained."
        if pickled
        else "name the folder of an adapter; whole models go under `models` by themselves.",
    )


def _sorted_by_part(file: Path, header: Header) -> _Named:
    """Every tensor of the file in its place.

    Raises:
        ModelError: for names of other kinds of adapters, and tensors that are not floating.
    """
    named = _Named()
    for name, entry in header.entries.items():
        if entry.dtype not in FLOATING or not entry.numel:
            raise damaged(file, f"{quoted(name)} of dtype {entry.dtype}, shape {entry.shape}", "floating tensors")
        path = name.removeprefix(PREFIX).replace(".base_layer.bias", ".bias")
        suffix = next((s for s in _PARTS if path.endswith(s)), None)
        if suffix is not None:
            named.parts.setdefault(path.removesuffix(suffix), {})[_PARTS[suffix]] = name
        else:
            named.saved[path] = name
        rest = path if suffix is None else path.removesuffix(suffix)
        if any(word in rest for word in _FOREIGN):
            raise ModelError(
                "An adapter holds a tensor that is not understood.",
                got=f"{quoted(name)} in {file}",
                allowed="lora_A and lora_B of linear modules and embeddings, DoRA magnitudes, biases, modules_to_save",
                fix="merge the adapter into its base with PEFT (merge_and_unload), and name the result as a model.",
            )
    return named


def open_adapter(source: str | Path, revision: str | None = None) -> Adapter:
    """Open an adapter and check its config and header; no tensor is read.

    Args:
        source: a folder, or a hub id with an optional `@revision`.
        revision: of the hub id; ignored for folders.

    Raises:
        ModelError: when it is not found, is no adapter, holds pickles only, is damaged, or is of a kind that is not
            understood.
    """
    located = locate(source, revision)
    return Adapter(str(source), located.revision, located.folder)
