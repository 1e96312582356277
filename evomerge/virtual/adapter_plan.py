"""What an adapter changes in its base: the adapter's module paths matched with the base's tensors, shapes compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from evomerge.checkpoints.adapters import Adapter, Factors
from evomerge.checkpoints.architecture import is_input_first
from evomerge.checkpoints.folder import find_file
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.token_rows import head_of, language_changes, token_embedding, untied_config
from evomerge.checkpoints.tokenizers import TOKENIZER
from evomerge.errors import ModelError
from evomerge.layout import TensorInfo

_HEADS: Final = ("lm_head", "embed_out", "output_layer", "output", "head")
_LISTED: Final = 5


class Change(NamedTuple):
    """One tensor that an adapter changes.

    Attributes:
        info: the result: name, shape, fp32.
        under: the base's tensor that it starts from.
        factors: low-rank change; None for a tensor that was trained whole.
        transposed: the tensor is stored as `(in, out)`, or has tokens as rows.
        whole: name in the adapter's file of a tensor that replaces the base's.
        is_bias: the factors' bias is meant, not their product.
    """

    info: TensorInfo
    under: str
    factors: Factors | None = None
    transposed: bool = False
    whole: str | None = None
    is_bias: bool = False


class Changes(NamedTuple):
    """All that an adapter changes.

    Attributes:
        tensors: one per tensor.
        aliases: the base's embedding -> a head that keeps its values, where the two part.
        config: keys of config.json to replace.
        tokenizer: the adapter's folder, where it brings token rows and their tokenizer; else None.
    """

    tensors: tuple[Change, ...]
    aliases: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    tokenizer: Path | None


@final
class _Base:
    """The tensors of a base, found by an adapter's names, which may have longer or shorter prefixes than its files."""

    def __init__(self, base: OpenParent) -> None:
        self.tensors = {t.name: t for t in base.layout.tensors}
        self.embedding = token_embedding(base.layout)
        self.head = head_of(base.layout)
        self.tied = base.tied_embeddings
        self.input_first = is_input_first(base.config)

    def find(self, name: str) -> TensorInfo | None:
        """The tensor `name`, or the only one whose name ends in it or is an end of it."""
        if name in self.tensors:
            return self.tensors[name]
        if self.is_head(name):  # some architectures have another name in memory than in their files
            return self.head
        found = [t for n, t in self.tensors.items() if n.endswith(f".{name}") or name.endswith(f".{n}")]
        return found[0] if len(found) == 1 else None

    @staticmethod
    def is_head(name: str) -> bool:
        """Whether a name is that of a head's matrix."""
        path, _, leaf = name.rpartition(".")
        return leaf == "weight" and path.rpartition(".")[2] in _HEADS

    def start(self, name: str) -> tuple[TensorInfo, str] | None:
        """The tensor to be changed and the one that it starts from; a tied head starts from the embedding."""
        found = self.find(name)
        if found is None and self.tied and self.embedding is not None and self.is_head(name):
            return TensorInfo(name, self.embedding.shape, "F32", None, "head"), self.embedding.name
        return None if found is None else (replace(found, dtype="F32"), found.name)


def head_name(config: Mapping[str, Any]) -> str:
    """What transformers calls the weight of an architecture's head; `lm_head.weight` where it does not say."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    model = getattr(transformers, CLASSES.get(config["model_type"], ""), None)
    tied = getattr(model, "_tied_weights_keys", None)
    names = [n for n in tied if n.endswith(".weight")] if isinstance(tied, Mapping | list) else []
    return str(names[0]) if len(names) == 1 else "lm_head.weight"


def plan_changes(adapter: Adapter, base: OpenParent) -> Changes:
    """Match an adapter with a base; from headers.

    Raises:
        ModelError: listing the adapter's tensors that have no place in the base, or another shape.
    """
    known, faults = _Base(base), list[str]()
    found = [_of_factors(adapter, path, factors, known, faults) for path, factors in adapter.factors.items()]
    found += [_of_bias(path, factors, known, faults) for path, factors in adapter.factors.items() if factors.bias]
    found += [_of_whole(adapter, path, name, known, faults) for path, name in adapter.saved.items()]
    changes = {c.info.name: c for c in found if c is not None}
    if len(changes) < len(found) - len(faults):
        faults.append("two of its tensors change one of the base")
    parted = _part_head(adapter, base, known, changes, faults)
    if faults:
        raise _misfit(adapter, faults)
    tokens = [t for t in changes.values() if t.info.role in {"embedding", "head"}]
    brings = bool(tokens) and find_file(adapter.folder, TOKENIZER) is not None
    config = {**_rows_config(base, changes, known), **(untied_config(base.config) if parted.untied else {})}
    return Changes(tuple(changes.values()), parted.aliases, config, adapter.folder if brings else None)


def _shape_fault(path: str, got: object, info: TensorInfo) -> str:
    return f"{path} is for {got}, and {info.name} has shape {list(info.shape)}"


def _of_factors(adapter: Adapter, path: str, factors: Factors, known: _Base, faults: list[str]) -> Change | None:
    start = known.start(f"{path}.weight")
    if start is None or len(start[0].shape) != 2:
        faults.append(f"{path} is no matrix of the base")
        return None
    info, under = start
    out, into = adapter.shape(factors.b)[0], adapter.shape(factors.a)[1]
    transposed = factors.embedding or (known.input_first and info.layer is not None)
    shape = (into, out) if transposed else (out, into)
    stored = info.shape if factors.base is None else adapter.shape(factors.base)
    resized = factors.embedding and factors.base is not None and stored[1:] == info.shape[1:]
    if shape != stored or not (stored == info.shape or resized):
        faults.append(_shape_fault(path, f"{out} x {into}", info))
        return None
    return Change(replace(info, shape=shape), under, factors, transposed)


def _of_bias(path: str, factors: Factors, known: _Base, faults: list[str]) -> Change | None:
    info = known.find(f"{path}.bias")
    if info is None:
        faults.append(f"{path} has no bias in the base for the adapter's")
        return None
    return Change(replace(info, dtype="F32"), info.name, factors, is_bias=True)


def _of_whole(adapter: Adapter, path: str, name: str, known: _Base, faults: list[str]) -> Change | None:
    start = known.start(path)
    if start is None:
        faults.append(f"{path} is not in the base")
        return None
    info, under = start
    shape = adapter.shape(name)
    has_tokens = info.role in {"embedding", "head"} and len(shape) == len(info.shape)
    if shape != info.shape and not (has_tokens and shape[1:] == info.shape[1:]):
        faults.append(_shape_fault(path, list(shape), info))
        return None
    return Change(replace(info, shape=shape), under, whole=name)


class _Parted(NamedTuple):
    untied: bool
    aliases: Mapping[str, TensorInfo]


def _part_head(
    adapter: Adapter, base: OpenParent, known: _Base, changes: dict[str, Change], faults: list[str]
) -> _Parted:
    """Whether a tied base's head and embedding become two, and the head that keeps the base's values if so."""
    embedding = known.embedding
    if not known.tied or embedding is None:
        return _Parted(False, {})
    if any(c.info.role == "head" and len(c.info.shape) == 2 for c in changes.values()):
        return _Parted(True, {})
    change = changes.get(embedding.name)
    if change is None or (change.whole is not None and not adapter.config.is_whole(embedding.name)):
        return _Parted(False, {})  # the stored embedding is the shared one: the head follows it
    head = TensorInfo(head_name(base.config), change.info.shape, embedding.dtype, None, "head")
    if change.factors is not None and change.factors.base is not None:
        changes[head.name] = Change(replace(head, dtype="F32"), embedding.name, whole=change.factors.base)
        return _Parted(True, {})
    if change.info.shape != embedding.shape:
        faults.append(f"{embedding.name} has other rows than the head, which is not in the adapter")
    return _Parted(True, {embedding.name: head})


def _rows_config(base: OpenParent, changes: Mapping[str, Change], known: _Base) -> dict[str, Any]:
    """`vocab_size`, where the adapter brings an embedding of other rows."""
    if known.embedding is None or known.embedding.name not in changes:
        return {}
    rows = changes[known.embedding.name].info.shape[0]
    return {} if rows == known.embedding.shape[0] else language_changes(base.config, {"vocab_size": rows})


def _misfit(adapter: Adapter, faults: list[str]) -> ModelError:
    more = f" and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    trained_on = f"; its config names {adapter.config.base}" if adapter.config.base else ""
    return ModelError(
        "An adapter does not fit the model that it is put on.",
        got=f"{adapter.source}: {'; '.join(faults[:_LISTED])}{more}{trained_on}",
        allowed="the model that the adapter was trained on",
        fix="say which that is: `{adapter: FOLDER, on: MODEL}`, or `MODEL+FOLDER` in a mergekit file.",
    )
