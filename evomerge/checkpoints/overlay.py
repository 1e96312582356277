"""A parent that is another one but for some tensors: adapters, aligned vocabularies, virtual parents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

from evomerge.checkpoints.dtypes import torch_dtype
from evomerge.checkpoints.header import HeaderEntry, read_header
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.pages import release
from evomerge.checkpoints.proofs import FileProof, prove, proven
from evomerge.digest import digest_json
from evomerge.errors import ModelError
from evomerge.layout import Layout, TensorInfo
from evomerge.types import Digest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OverlaySpec:
    """What an overlay consists of, known before a single tensor is made.

    Attributes:
        source: what recipes and messages call it.
        content: digest of everything that it is made from.
        file: safetensors file with the tensors that differ; may not exist yet; None when none is needed.
        changed: the tensors of `file`, with their shapes and dtypes; names that `under` lacks are added.
        aliases: name -> name in `under` whose values it has (a head that repeats the embedding).
        config: keys of config.json that replace those of `under`.
        tokenizer: folder of the tokenizer's files where they are not those of `under`.
        revision: the hub's commit of what `source` names; None for a folder, or where it names nothing.
    """

    source: str
    content: Digest
    file: Path | None = None
    changed: tuple[TensorInfo, ...] = ()
    aliases: Mapping[str, TensorInfo] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Path | None = None
    revision: str | None = None


@final
class Overlay(OpenParent):
    """A parent whose tensors are those of `under`, except for the ones that a file or an alias gives.

    Args:
        under: what lies beneath, itself a checkpoint or an overlay.
        spec: what differs. An alias's key is the name in `under`; its `TensorInfo` is the new tensor.
    """

    def __init__(self, under: OpenParent, spec: OverlaySpec) -> None:
        self.under = under
        self.spec = spec
        self.source = spec.source
        self.revision: str | None = spec.revision
        self.folder = under.folder
        self.config: Mapping[str, Any] = MappingProxyType({**under.config, **spec.config})
        self._aliases = {info.name: name for name, info in spec.aliases.items()}
        replaced = {t.name: t for t in (*spec.aliases.values(), *spec.changed)}
        kept = [t for t in under.layout.tensors if t.name not in replaced]
        tensors = tuple(sorted((*kept, *replaced.values()), key=lambda t: t.name))
        self.layout = Layout(under.layout.n_layers, tensors)
        has_head = any(t.role == "head" and len(t.shape) == 2 for t in tensors)
        self.tied_embeddings = under.tied_embeddings and not has_head
        self._changed = {t.name: t for t in spec.changed}
        self.header_digest = digest_json([under.header_digest, *([t.name, t.dtype, list(t.shape)] for t in tensors)])
        self._map: torch.Tensor | None = None
        self._proof: FileProof | None = None
        self._entries: Mapping[str, HeaderEntry] = {}

    @property
    def content(self) -> Digest:
        """See `OpenParent.content`."""
        return self.spec.content

    @property
    def tokenizer_folder(self) -> Path:
        """See `OpenParent.tokenizer_folder`."""
        return self.under.tokenizer_folder if self.spec.tokenizer is None else self.spec.tokenizer

    @property
    def is_ready(self) -> bool:
        """See `OpenParent.is_ready`."""
        return self.under.is_ready and (self.spec.file is None or self.spec.file.is_file())

    @cached_property
    def result_dtypes(self) -> Mapping[str, str]:
        """See `OpenParent.result_dtypes`."""
        beneath = self.under.result_dtypes
        aliases = {new: beneath[name] for new, name in self._aliases.items()}
        return {t.name: aliases.get(t.name) or beneath.get(t.name, t.dtype) for t in self.layout.tensors}

    def tensor(self, name: str) -> torch.Tensor:
        """See `OpenParent.tensor`."""
        if name in self._changed:
            return self._own(name)
        return self.under.tensor(self._aliases.get(name, name))

    def _own(self, name: str) -> torch.Tensor:
        mapped = self._open() if self._map is None else self._map
        entry = self._entries[name]
        return mapped[entry.start : entry.stop].view(torch_dtype(entry.dtype)).reshape(entry.shape)

    def _open(self) -> torch.Tensor:
        """Map the file, which must hold what the spec says.

        Raises:
            ModelError: when it is not there or holds something else.
        """
        import torch

        file = self.spec.file
        if file is None or not file.is_file():
            raise ModelError(
                "A parent that is made from others has not been made yet.",
                got=f"{self.source}: no {file}",
                allowed="a made parent in evomerge's cache folder, which all workers share",
                fix="`evomerge search` makes it before the workers start; set EVOMERGE_CACHE to a shared folder.",
            )
        header = read_header(file)
        found = {n: (e.dtype, e.shape) for n, e in header.entries.items()}
        if found != {t.name: (t.dtype, t.shape) for t in self.spec.changed}:
            raise ModelError(
                "A made parent's file holds other tensors than it should.",
                got=str(file),
                allowed=f"{len(self.spec.changed)} tensors of {self.source}",
                fix="remove the file; it is made again.",
            )
        self._entries = header.entries
        self._map = torch.from_file(str(file), shared=False, size=header.size, dtype=torch.uint8)
        return self._map

    def release(self, name: str) -> None:
        """See `OpenParent.release`."""
        if name not in self._changed:
            self.under.release(self._aliases.get(name, name))
        elif self._map is not None:
            entry = self._entries[name]
            release(self._map[entry.start : entry.stop])

    def proof(self) -> FileProof | None:
        """The digest of the made file, see `proofs.proven`; None where there is no file, or not yet.

        Raises:
            ModelError: when it has other bytes than before.
        """
        file = self.spec.file
        if self._proof is not None and file is not None:
            self._proof = proven(file, self._proof)
        elif file is not None and file.is_file():
            self._proof = prove(file)
        return self._proof

    def remember(self, proof: FileProof | None) -> None:
        """Take over what another process has read of the made file; None where it has read nothing."""
        self._proof = proof

    def check_unchanged(self) -> None:
        """See `OpenParent.check_unchanged`."""
        self.under.check_unchanged()
        if self._proof is not None:
            self.proof()

    def close(self) -> None:
        """See `OpenParent.close`."""
        self._map = None
        self.under.close()

    def __reduce__(self) -> tuple[Callable[..., Overlay], tuple[object, ...]]:
        return Overlay, (self.under, self.spec)

    def __repr__(self) -> str:
        return f"Overlay({self.source}, {len(self._changed)} tensors over {self.under!r})"
