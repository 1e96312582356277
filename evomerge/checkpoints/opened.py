"""What a merge reads from: an opened parent, be it a checkpoint of its own or one that is made from others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.layout import Layout
from evomerge.types import Digest

if TYPE_CHECKING:
    import torch


class OpenParent(ABC):
    """A parent whose tensors can be read.

    Contract: what the attributes say never changes; tensors are views that nobody writes to; a pickled parent opens
    the same tensors in another process of any machine that sees the same files.

    Attributes:
        source: the folder or hub id, as the user wrote it; for a made parent what it is called there.
        revision: the hub's commit, None for a folder.
        folder: of config.json, absolute; of the tokenizer's files too, unless `tokenizer_folder` says otherwise.
        config: the content of config.json, with the changes that a made parent needs.
        layout: every tensor that a merge has to decide, with layer and role.
        tied_embeddings: whether the head shares the embedding's tensor.
        header_digest: of names, dtypes and shapes; no tensor's value is in it.
    """

    source: str
    revision: str | None
    folder: Path
    config: Mapping[str, Any]
    layout: Layout
    tied_embeddings: bool
    header_digest: Digest

    @property
    @abstractmethod
    def content(self) -> Digest:
        """What names the weights: a digest of their bytes, or of everything that they are made from."""

    @abstractmethod
    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of the layout in its stored dtype and shape. Do not write to it.

        Raises:
            KeyError: for an unknown name.
            ModelError: when a made parent has not been made yet.
        """

    @abstractmethod
    def close(self) -> None:
        """Drop what can be read again; tensors handed out before stay valid."""

    def check_unchanged(self) -> None:  # noqa: B027 - what lies in memory cannot change
        """Notice files that were written to since they were read; cheap, where they were not.

        Raises:
            ModelError: naming the file.
        """

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's files lie, absolute: whose tokens the rows of the embedding stand for."""
        return self.folder

    def release(self, name: str) -> None:  # noqa: B027 - there may be nothing to do
        """Let go of the memory that reading a tensor took, where it can be read again; a hint."""

    @cached_property
    def result_dtypes(self) -> Mapping[str, str]:
        """Name -> dtype of a merge's tensor for which this parent is the template, safetensors spelling.

        Its own, but for tensors that were made: they are held in fp32, and a merge is stored as what lies beneath.
        """
        return {t.name: t.dtype for t in self.layout.tensors}

    @property
    def is_ready(self) -> bool:
        """Whether tensors can be read now; False for a parent that has yet to be made."""
        return True
