"""Architectures whose layers can be run in any order: where the layers are, and what each adds to the stream.

A layer of these families is a residual chain: `h + attention(norm(h))`, then `h + mlp(norm(h))`, or both branches of
the same `h` added at once. So a layer can be repeated, left out or moved, and what it adds can be multiplied by a gain
at one place per branch: behind the output projection, or behind the norm that follows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from evomerge.checkpoints.architecture import config_depth
from evomerge.dataflow.refusals import refusal
from evomerge.errors import ModelError

_DEPTH_KEYS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class Branch:
    """The end of an attention or mlp branch: the module whose output, times the gain, is added to the stream.

    Attributes:
        end: the module's name behind the layer's number, dotted; the same in memory and in checkpoints.
        norm: whether it is a norm behind the output projection. Its output is `(offset + weight) * normalised`; it has
            no bias. Otherwise it is the output projection itself, whose `weight` and `bias` (if any) are linear in the
            output.
        offset: of the norm: 1 where it multiplies by `1 + weight`, else 0.
    """

    end: str
    norm: bool = False
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.offset and not self.norm:
            raise ValueError(f"{self.end}: only a norm has an offset, got {self.offset}")


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps its layers, and where their branches end.

    Attributes:
        model_type: of config.json.
        inner: attribute of the causal language model that holds embeddings, layers and final norm.
        stack: attribute of that one with the list of layers.
        attention: the module of a layer that owns a slot of the cache, dotted.
        attention_end: see `Branch`.
        mlp_end: see `Branch`.
        depth_key: how config.json says the number of layers.
        lists: keys of config.json that hold one entry per layer, and that the architecture fills in where a file
            leaves them out (see `layer_lists`).
    """

    model_type: str
    inner: str
    stack: str
    attention: str
    attention_end: Branch
    mlp_end: Branch
    depth_key: str = "num_hidden_layers"
    lists: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[Branch, Branch]:
        """Both branches: attention, mlp."""
        return self.attention_end, self.mlp_end

    @property
    def post_norm(self) -> bool:
        """Whether a norm stands behind the branches."""
        return self.attention_end.norm

    def layer_name(self, name: str) -> LayerName | None:
        """The parts of a checkpoint's tensor name; None for a tensor outside the layers.

        Checkpoints of the bare inner model leave its name out (`h.0.` for `transformer.h.0.`).
        """
        prefixes = f"{re.escape(self.inner)}\\.{re.escape(self.stack)}|{re.escape(self.stack)}"
        match = re.fullmatch(rf"({prefixes})\.(\d+)\.(.+)", name)
        return None if match is None else LayerName(match[1] + ".", int(match[2]), match[3])


class LayerName(NamedTuple):
    """The name of a layer's tensor in a checkpoint: `prefix + str(layer) + "." + rest`.

    Attributes:
        prefix: with its last dot, `"model.layers."`.
        layer: 0-based.
        rest: `"self_attn.o_proj.weight"`.
    """

    prefix: str
    layer: int
    rest: str


_O_PROJ, _DOWN_PROJ = Branch("self_attn.o_proj"), Branch("mlp.down_proj")


def _named_like_llama(model_type: str, attention: Branch = _O_PROJ, mlp: Branch = _DOWN_PROJ, *lists: str) -> Family:
    """Layers under `model.layers`, attention under `self_attn`; by default the norms stand before the branches."""
    return Family(model_type, "model", "layers", "self_attn", attention, mlp, lists=lists)


def _post_norm(model_type: str, offset: float, attention: str, mlp: str, *lists: str) -> Family:
    """The same with a norm behind each branch, before its output is added."""
    ends = (Branch(attention, norm=True, offset=offset), Branch(mlp, norm=True, offset=offset))
    return _named_like_llama(model_type, *ends, *lists)


_BEHIND = ("post_attention_layernorm", "post_feedforward_layernorm")
_KINDS_OF_LAYERS = "layer_types"
_FAMILY_LIST: Final = (
    *map(_named_like_llama, ("cohere", "gemma", "granite", "llama", "mistral", "olmo", "phi3", "stablelm")),
    *(_named_like_llama(name, _O_PROJ, _DOWN_PROJ, _KINDS_OF_LAYERS) for name in ("cohere2", "qwen2", "qwen3")),
    _named_like_llama("smollm3", _O_PROJ, _DOWN_PROJ, _KINDS_OF_LAYERS, "no_rope_layers"),
    _named_like_llama("phi", Branch("self_attn.dense"), Branch("mlp.fc2")),
    _named_like_llama("starcoder2", _O_PROJ, Branch("mlp.c_proj")),
    _post_norm("olmo2", 0.0, *_BEHIND),
    _post_norm("olmo3", 0.0, *_BEHIND, _KINDS_OF_LAYERS),
    _post_norm("exaone4", 0.0, *_BEHIND, _KINDS_OF_LAYERS),
    _post_norm("gemma2", 1.0, *_BEHIND, _KINDS_OF_LAYERS),
    _post_norm("gemma3_text", 1.0, *_BEHIND, _KINDS_OF_LAYERS),
    _post_norm("glm4", 0.0, "post_self_attn_layernorm", "post_mlp_layernorm"),
    Family("gpt2", "transformer", "h", "attn", Branch("attn.c_proj"), Branch("mlp.c_proj"), depth_key="n_layer"),
    Family("gpt_neox", "gpt_neox", "layers", "attention", Branch("attention.dense"), Branch("mlp.dense_4h_to_h")),
)
FAMILIES: Final[Mapping[str, Family]] = MappingProxyType({f.model_type: f for f in _FAMILY_LIST})
"""`model_type` -> family."""


def config_mapping(config: Any) -> Mapping[str, Any]:
    """A config as config.json would hold it: the mapping itself, or a transformers config's."""
    return config if isinstance(config, Mapping) else config.to_dict()


def family_of(config: Any) -> Family:
    """How to run a path through an architecture.

    Args:
        config: the content of config.json, or a transformers config; no weights are needed.

    Raises:
        ModelError: by name and with the reason, for architectures whose layers are not a plain residual chain, and
            for those that nobody has checked.
    """
    mapping = config_mapping(config)
    model_type = str(mapping.get("model_type"))
    family = FAMILIES.get(model_type)
    reason = refusal(mapping)
    if family is None or reason is not None:
        raise ModelError(
            "Paths cannot run through the layers of this architecture.",
            got=f"model_type {model_type!r}: {reason or 'nobody has checked its layers'}",
            allowed=f"{', '.join(sorted(FAMILIES))}; a merge without a path takes any architecture",
            fix="search a space without paths (kind: merge), or use parents of one of these architectures.",
        )
    return family


def layer_lists(config: Any) -> dict[str, tuple[Any, ...]]:
    """Per-layer settings of a config, one entry per layer, those that it leaves to the architecture's rule included.

    Args:
        config: as for `family_of`.

    Returns:
        Key of config.json -> entries; only keys that the architecture has or the config states.

    Raises:
        ModelError: as `family_of`, and for a list that is not as long as the model is deep.
    """
    family = family_of(config)
    mapping = config_mapping(config)
    # a cache follows layer_types wherever a config states them, also where the layers do not
    keys = dict.fromkeys((*family.lists, _KINDS_OF_LAYERS))
    found = {key: mapping.get(key) for key in keys}
    if any(found[key] is None for key in family.lists):
        from transformers import CONFIG_MAPPING

        complete = CONFIG_MAPPING[family.model_type].from_dict(dict(mapping))
        found |= {key: getattr(complete, key, None) for key in family.lists}
    lists = {key: tuple(values) for key, values in found.items() if values is not None}
    depth = config_depth(mapping)
    for key, values in lists.items():
        if depth is not None and len(values) != depth:
            raise ModelError(
                "A per-layer setting of config.json does not fit the model.",
                got=f"{key} with {len(values)} entries for {depth} layers",
                allowed="one entry per layer",
                fix="correct config.json.",
            )
    return lists


def path_config(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """config.json of the stock model that runs a path: as deep as the path, per-layer lists along it.

    Args:
        config: the content of the template's config.json.
        layers: the layer of each hop; the template has them.

    Raises:
        ModelError: as `layer_lists`.
    """
    family = family_of(config)
    stated = [key for key in _DEPTH_KEYS if key in config] or [family.depth_key]
    lists = {key: [values[i] for i in layers] for key, values in layer_lists(config).items()}
    return {**config, **dict.fromkeys(stated, len(layers)), **lists}
