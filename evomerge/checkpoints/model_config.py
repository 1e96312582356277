"""The config of a checkpoint from strangers: what must not reach transformers is refused by name.

transformers reads more from config.json than the shape of a model: names of attention kernels that it downloads and
runs, code beside the weights, classes of quantisers that it imports, and sizes that it allocates before it has seen a
single tensor. Sizes are compared with the tensors of the files, which cannot lie about how large they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from evomerge.checkpoints.architecture import DEPTH_KEYS
from evomerge.checkpoints.strict_json import damaged, quoted
from evomerge.errors import ModelError

_IMPLEMENTATIONS: Final = frozenset(
    {
        f"{before}{name}_implementation{behind}"
        for before in ("", "_")
        for name in ("attn", "experts")
        for behind in ("", "_internal")
    }
)
"""Keys whose value names code for parts of the model; a name with a slash is downloaded and run."""
_BUILT_IN: Final = ("eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")
_KERNELS: Final = ("use_kernels", "kernel_config")
_WEIGHTS: Final = "transformers_weights"
_DTYPES: Final = ("float64", "float32", "float16", "bfloat16", "auto")
_DTYPE_KEYS: Final = ("dtype", "torch_dtype")
_WORD: Final = re.compile(r"[A-Za-z0-9][\w.\-+]{0,127}")
_WIDTHS: Final = (
    "vocab_size",
    "hidden_size",
    "n_embd",
    "d_model",
    "intermediate_size",
    "ffn_dim",
    "n_inner",
    "num_attention_heads",
    "num_key_value_heads",
    "n_head",
    "head_dim",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
)
"""Sizes of which a tensor has to show at least as much along one axis."""
_COUNT: Final = re.compile(
    r"^(num|n|max|d)_|_(size|dim|layers|heads|rank|length|positions|embeddings|experts|groups|window|factor|states?)$"
)
_LARGEST: Final = 1 << 24
"""Of any other count: above the positions of every model that there is."""
_LONGEST: Final = 65_536
"""Entries of a list: above the layers and factors of every model that there is."""
_TOKEN_IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_UNBOUNDED: Final = re.compile(r"token_id|theta|base|_ids?$|seed|model_max_length")


def _refused(path: Path, what: str, got: str, fix: str) -> ModelError:
    return ModelError(what, got=f"{got} in {path}", allowed="a model that runs on the code of transformers", fix=fix)


def _levels(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config and every mapping inside, lists included."""
    waiting: list[Any] = [config]
    while waiting:
        level = waiting.pop()
        if isinstance(level, Mapping):
            yield level
            waiting.extend(level.values())
        elif isinstance(level, list):
            waiting.extend(v for v in level if isinstance(v, Mapping | list))


def _check_code(path: Path, level: Mapping[str, Any]) -> None:
    for key in _IMPLEMENTATIONS & level.keys():
        value = level[key]
        named = list(value.values()) if isinstance(value, Mapping) else [value]
        if not all(v is None or v in _BUILT_IN for v in map(_as_text, named)):
            raise _refused(
                path,
                "A config asks for code that is not part of the model.",
                f"{key} = {quoted(value)}",
                f"remove {key} from config.json; attention is chosen here, never by a checkpoint.",
            )
    if level.get("quantization_config"):
        raise ModelError(
            "A checkpoint is quantised.",
            got=f"quantization_config = {quoted(level['quantization_config'])} in {path}",
            allowed="plain weights: quantised weights cannot be averaged, and quantisers bring code",
            fix="use the model that it was made from.",
        )
    for key in _KERNELS:
        if level.get(key):
            raise _refused(
                path,
                "A config asks for code that is not part of the model.",
                f"{key} = {quoted(level[key])}",
                f"remove {key} from config.json.",
            )


def _check_files(path: Path, level: Mapping[str, Any]) -> None:
    """Other weights, which transformers would load instead of those that are checked and merged here."""
    if level.get(_WEIGHTS) is not None:
        raise _refused(
            path,
            "A config names other weights than those that every model has.",
            f"{_WEIGHTS} = {quoted(level[_WEIGHTS])}",
            f"remove {_WEIGHTS} from config.json, and call the weights model.safetensors.",
        )


def _as_text(value: Any) -> str | None:
    return value if value is None else str(value)


def _check_words(path: Path, config: Mapping[str, Any]) -> None:
    """The keys that transformers looks names up by."""
    if not _WORD.fullmatch(config["model_type"]):
        raise damaged(path, f"model_type = {quoted(config['model_type'])}", "the name of an architecture")
    named = config.get("architectures")
    if named is not None and not (isinstance(named, list) and all(_is_word(n) for n in named)):
        raise damaged(path, f"architectures = {quoted(named)}", "a list of class names")
    for key in _DTYPE_KEYS:
        if config.get(key) is not None and config[key] not in _DTYPES:
            raise damaged(path, f"{key} = {quoted(config[key])}", ", ".join(_DTYPES))
    classes = config.get("auto_map")
    if classes is not None and not isinstance(classes, Mapping):
        raise damaged(path, f"auto_map = {quoted(classes)}", "a mapping of classes to names, which is never followed")
    ties = config.get("tie_word_embeddings")
    if ties is not None and not isinstance(ties, bool):
        raise damaged(path, f"tie_word_embeddings = {quoted(ties)}", "true or false")


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def _numbers(value: Any) -> Iterable[Any]:
    """A value, or what a list or mapping holds at any depth, that should be a number."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting.extend(one)
        elif isinstance(one, Mapping):
            waiting.extend(one.values())
        else:
            yield one


def _check_rope(path: Path, level: Mapping[str, Any]) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        value = level.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise damaged(path, f"{key} = {quoted(value)}", "a mapping")
        for number in _numbers(value):
            if _is_number(number) and not (math.isfinite(number) and abs(number) < 1e30):
                raise damaged(path, f"{key} = {quoted(value)}", "finite numbers")
    theta = level.get("rope_theta")
    if theta is not None and not (_is_number(theta) and 0 < theta < 1e30):
        raise damaged(path, f"rope_theta = {quoted(theta)}", "a positive number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_counts(path: Path, level: Mapping[str, Any]) -> None:
    for key, value in level.items():
        if isinstance(value, list) and len(value) > _LONGEST:
            raise damaged(path, f"{quoted(key)} of {len(value)} entries", f"at most {_LONGEST} entries")
        if key in DEPTH_KEYS and not (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            if value is not None:
                raise damaged(path, f"{key} = {quoted(value)}", "a whole number above 0")
        elif _COUNT.search(key) and not _UNBOUNDED.search(key):
            for number in _numbers(value):
                if _is_number(number) and not abs(number) <= _LARGEST:
                    raise damaged(path, f"{quoted(key)} = {quoted(value)}", f"finite numbers, at most {_LARGEST}")


def check_token_ids(path: Path, level: Mapping[str, Any]) -> None:
    """Refuse ids of tokens that are no ids; -1 stands for none.

    Args:
        path: of the config, for messages.
        level: its content, or a part of it.

    Raises:
        ModelError: naming the first.
    """
    for key in _TOKEN_IDS:
        value = level.get(key)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not (isinstance(one, int) and not isinstance(one, bool) and -1 <= one <= _LARGEST):
                raise damaged(path, f"{key} = {quoted(value)}", "the ids of tokens")


def _check_labels(path: Path, level: Mapping[str, Any]) -> None:
    """Loading makes a name for every label."""
    value = level.get("num_labels")
    if value is not None and not (_is_number(value) and 0 <= value <= _LONGEST):
        raise damaged(path, f"num_labels = {quoted(value)}", f"at most {_LONGEST}")


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config by what it says, before anything is compared with the weights.

    Args:
        path: of config.json, for messages.
        config: its content; `model_type` is a text.

    Raises:
        ModelError: for values that are not what transformers takes them for, then for names of attention, expert or
            kernel code other than the built-in ones, for names of other weights, then for sizes that no model has.
    """
    _check_words(path, config)
    for level in _levels(config):
        _check_code(path, level)
        _check_files(path, level)
        _check_rope(path, level)
        _check_labels(path, level)
        check_token_ids(path, level)
        _check_counts(path, level)


def check_widths(path: Path, config: Mapping[str, Any], longest_axis: int) -> None:
    """Refuse sizes that the tensors belie: transformers would build a model after them.

    Args:
        path: of config.json, for messages.
        config: its content.
        longest_axis: of all tensors of the files.

    Raises:
        ModelError: naming the first such size.
    """
    for level in _levels(config):
        for key in _WIDTHS:
            for number in _numbers(level.get(key)):
                if number is None:
                    continue
                if not isinstance(number, int) or isinstance(number, bool) or not -1 <= number <= longest_axis:
                    raise damaged(
                        path,
                        f"{key} = {quoted(level[key])}",
                        f"whole numbers of at most {longest_axis}, the longest axis of a tensor of the files",
                        "The config of a checkpoint does not fit its tensors.",
                    )
