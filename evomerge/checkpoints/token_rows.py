"""Which tensors have one row per token, and what a config says about tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from evomerge.checkpoints.architecture import language_config
from evomerge.checkpoints.opened import OpenParent
from evomerge.layout import Layout, TensorInfo

TOKEN_IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
_TIES: Final = "tie_word_embeddings"


class TokenTensor(NamedTuple):
    """A tensor with one slice per token.

    Attributes:
        info: the tensor.
        axis: whose positions are token ids.
    """

    info: TensorInfo
    axis: int

    @property
    def rows(self) -> int:
        """How many token ids it has values for."""
        return self.info.shape[self.axis]


def _is_of_positions(tensor: TensorInfo) -> bool:
    return "wpe" in tensor.name or "position" in tensor.name


def token_embedding(layout: Layout) -> TensorInfo | None:
    """The embedding of tokens: the largest matrix of that role, positions aside; None when there is none."""
    found = [t for t in layout.tensors if t.role == "embedding" and len(t.shape) == 2 and not _is_of_positions(t)]
    return max(found, key=lambda t: (t.shape[0], t.name), default=None)


def head_of(layout: Layout) -> TensorInfo | None:
    """The matrix of the head; None when the head is the embedding."""
    found = [t for t in layout.tensors if t.role == "head" and len(t.shape) == 2]
    return max(found, key=lambda t: (t.shape[0], t.name), default=None)


def token_tensors(parent: OpenParent) -> tuple[TokenTensor, ...]:
    """Every tensor with one slice per token: embeddings, the head, the head's bias; in the layout's order.

    An axis counts when it is as long as the token embedding has rows; of a second embedding (tokens per layer) the
    first axis does in any case.
    """
    embedding = token_embedding(parent.layout)
    if embedding is None:
        return ()
    rows, found = embedding.shape[0], []
    for info in parent.layout.tensors:
        if info.layer is not None or _is_of_positions(info):
            continue
        if info.role == "embedding" and len(info.shape) == 2 and info.name != embedding.name:
            axes = [0] if info.shape[0] > rows // 2 else []
        else:
            wanted = info.role in {"embedding", "head"} and bool(info.shape)
            axes = [i for i in (0, len(info.shape) - 1) if wanted and info.shape[i] == rows]
        found += [TokenTensor(info, axis) for axis in axes[:1]]
    return tuple(found)


def language_changes(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of the language model's part of a config, as keys of the whole config to replace."""
    inner = language_config(config)
    if inner is config:
        return dict(changes)
    key = next(k for k, v in config.items() if v is inner)
    return {key: {**inner, **changes}}


def untied_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config to replace so that head and embedding are two tensors."""
    inner = language_changes(config, {_TIES: False})
    return {_TIES: False, **inner}
