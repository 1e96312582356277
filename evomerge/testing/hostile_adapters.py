"""Mutations of a LoRA adapter, and of the values in weights."""

# ruff: noqa: E501 - tables: one line a case

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evomerge.testing.hostile_files import pickled
from evomerge.testing.hostile_model import (
    TENSOR,
    WEIGHTS,
    Mutation,
    Victim,
    header_of,
    with_bytes,
    with_json,
    with_text,
    write_header,
)

ADAPTER = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_MODULE = "base_model.model.model.layers.0.mlp.down_proj"
_A, _B = f"{_MODULE}.lora_A.weight", f"{_MODULE}.lora_B.weight"


def write_tensors(path: Path, tensors: Mapping[str, tuple[tuple[int, ...], float]]) -> None:
    """A safetensors file of fp32 tensors, each of a shape and one value."""
    entries, data = {}, b""
    for name, (shape, value) in tensors.items():
        raw = struct.pack("<f", value) * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    write_header(path, entries, data)


def write_adapter(folder: Path, **config: Any) -> Path:
    """A sound adapter of rank 2 on the victim's down projection of layer 0."""
    folder.mkdir(parents=True, exist_ok=True)
    victim = Victim(folder, folder, folder)
    with_json(_CONFIG, **{"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config})(victim)
    write_tensors(folder / ADAPTER, {_A: ((2, 48), 0.1), _B: ((32, 2), 0.1)})
    return folder


def _tensors(**tensors: tuple[tuple[int, ...], float]) -> Callable[[Victim], object]:
    """The adapter's file, its sound tensors and more."""
    sound = {_A: ((2, 48), 0.1), _B: ((32, 2), 0.1)}
    return lambda victim: write_tensors(victim.folder / ADAPTER, sound | tensors)


def _only(tensors: Mapping[str, tuple[tuple[int, ...], float]]) -> Callable[[Victim], object]:
    return lambda victim: write_tensors(victim.folder / ADAPTER, tensors)


def adapter_mutations() -> tuple[Mutation, ...]:
    """Mutations of what `write_adapter` writes."""
    a, big = "adapter", ((2, 48), 0.1)
    config: list[tuple[str, dict[str, Any], str]] = [
        ("rank 0", {"r": 0}, "r = '0'"),
        ("rank negative", {"r": -2}, "r = '-2'"),
        ("rank NaN", {"r": float("nan")}, "r = 'nan'"),
        ("rank a text", {"r": "2"}, "r = "),
        ("rank a boolean", {"r": True}, "r = 'True'"),
        ("rank a float", {"r": 2.0}, "r = "),
        ("rank of 400 digits", {"r": 10**400}, "r = "),
        ("rank of another", {"r": 3}, "rank"),
        ("alpha NaN", {"lora_alpha": float("nan")}, "lora_alpha = 'nan'"),
        ("alpha infinite", {"lora_alpha": float("inf")}, "lora_alpha = 'inf'"),
        ("alpha a text", {"lora_alpha": "4"}, "lora_alpha = "),
        ("alpha missing", {"lora_alpha": None}, "lora_alpha = "),
        ("another kind", {"peft_type": "IA3"}, "peft_type"),
        ("a kind of code", {"peft_type": "os.system"}, "peft_type"),
        ("layers copied", {"layer_replication": [[0, 10**9]]}, "layer_replication"),
        ("a pattern that explodes", {"rank_pattern": {"(a+)+$": 2}}, "rank_pattern"),
        ("a rank of zero by pattern", {"rank_pattern": {"down_proj": 0}}, "rank_pattern"),
        ("a pattern a list", {"alpha_pattern": ["x"]}, "alpha_pattern"),
        ("alpha NaN by pattern", {"alpha_pattern": {"down_proj": float("nan")}}, "alpha_pattern"),
        ("DoRA without magnitudes", {"use_dora": True}, "use_dora"),
        ("whole modules a text", {"modules_to_save": "lm_head"}, "modules_to_save"),
        ("whole modules of numbers", {"modules_to_save": [1]}, "modules_to_save"),
        ("a base changed first", {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
    ]
    files = [
        ("no factor B", _only({_A: big}), "both factors"),
        ("factors that do not fit", _only({_A: ((3, 48), 0.1), _B: ((32, 2), 0.1)}), "A .rank, in."),
        ("a factor of rank 3", _only({_A: ((2, 8, 6), 0.1), _B: ((32, 2), 0.1)}), "A .rank, in."),
        ("wrong width", _only({_A: ((2, 47), 0.1), _B: ((32, 2), 0.1)}), "shape|width|fit"),
        ("wrong height", _only({_A: big, _B: ((31, 2), 0.1)}), "shape|height|fit"),
        ("an alien module", _tensors(**{"base_model.model.trap.lora_A.weight": big, "base_model.model.trap.lora_B.weight": ((32, 2), 0.1)}), "trap"),
        ("an alien tensor", _tensors(**{"base_model.model.trap.weight": big}), "trap"),
        ("a path", _tensors(**{"base_model.model.../../etc/passwd": big}), "passwd"),
        ("another adapter inside", _tensors(**{"base_model.model.x.lora_E": big}), "not understood"),
        ("a router's tokens", _tensors(**{"base_model.model.x.token_adapter.base_layer": big}), "not understood"),
        ("an empty factor", _only({_A: ((0, 48), 0.1), _B: ((32, 0), 0.1)}), "floating tensors"),
        ("a name of 1,000 dots", _tensors(**{"a" + ".a" * 100 + ".lora_A.weight": big, "a" + ".a" * 100 + ".lora_B.weight": ((32, 2), 0.1)}), "dots"),
        ("not a number", _only({_A: ((2, 48), math.nan), _B: ((32, 2), 0.1)}), "NaN"),
        ("infinite", _only({_A: ((2, 48), math.inf), _B: ((32, 2), 0.1)}), "NaN"),
        ("a product that overflows", _only({_A: ((2, 48), 3e38), _B: ((32, 2), 3e38)}), "NaN"),
        ("only a pickle", lambda v: ((v.folder / ADAPTER).unlink(), (v.folder / "adapter_model.bin").write_bytes(pickled(v.canary))), "a pickle only"),
        ("a pickle in disguise", lambda v: (v.folder / ADAPTER).write_bytes(pickled(v.canary)), "damaged"),
        ("a link out", lambda v: ((v.folder / ADAPTER).unlink(), (v.folder / ADAPTER).symlink_to(v.outside / WEIGHTS)), "does not lie in its folder"),
        ("a config that links out", lambda v: ((v.folder / _CONFIG).unlink(), (v.folder / _CONFIG).symlink_to(v.outside / "config.json")), "does not lie in its folder"),
        ("cut", with_bytes(lambda d: d[:-1], ADAPTER), "truncated"),
        ("config not JSON", with_text(_CONFIG, "{"), "damaged"),
    ]  # fmt: skip
    made = [Mutation(f"adapter: {name}", a, with_json(_CONFIG, **fields), words) for name, fields, words in config]
    made += [Mutation(f"adapter: {name}", a, change, words) for name, change, words in files]
    elsewhere = "the base is what the job names; the adapter's word for it is never opened"
    return (
        *made,
        Mutation("adapter: a base elsewhere", a, with_json(_CONFIG, base_model_name_or_path="../outside"), legal=elsewhere),
        Mutation("adapter: a base on the hub", a, with_json(_CONFIG, base_model_name_or_path="org/trap"), legal=elsewhere),
        Mutation("adapter: code named", a, with_json(_CONFIG, auto_mapping={"base_model_class": "Trap", "parent_library": "trap"}), legal="no class is looked up"),
    )  # fmt: skip


_SPECIAL = {
    "F32": {"NaN": 0x7FC00000, "signalling NaN": 0x7F800001, "Inf": 0x7F800000, "-Inf": 0xFF800000},
    "BF16": {"NaN": 0x7FC0, "signalling NaN": 0x7F81, "Inf": 0x7F80, "-Inf": 0xFF80},
    "F16": {"NaN": 0x7E00, "signalling NaN": 0x7C01, "Inf": 0x7C00, "-Inf": 0xFC00},
    "F64": {"NaN": 0x7FF8 << 48, "signalling NaN": (0x7FF0 << 48) + 1, "Inf": 0x7FF0 << 48, "-Inf": 0xFFF0 << 48},
}
"""Bit patterns that are no numbers, by dtype."""
_SUBNORMAL = {"F32": 1, "BF16": 1, "F16": 0x8001, "F64": 1}
_CODES = {"F32": ("I", 4), "BF16": ("H", 2), "F16": ("H", 2), "F64": ("Q", 8)}


def _with_value(dtype: str, bits: int, tensor: str, place: int) -> Callable[[Victim], object]:
    """One tensor stored in `dtype`, one of its elements these bits and the others zero."""

    def apply(victim: Victim) -> None:
        path = victim.folder / WEIGHTS
        header, data = header_of(path)
        code, width = _CODES[dtype]
        n = math.prod(header[tensor]["shape"])
        values = bytearray(n * width)
        at = place % n * width
        values[at : at + width] = struct.pack(f"<{code}", bits)
        body, entries = b"", {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            raw = bytes(values) if name == tensor else data[first:last]
            kind = dtype if name == tensor else entry["dtype"]
            entries[name] = {**entry, "dtype": kind, "data_offsets": [len(body), len(body) + len(raw)]}
            body += raw
        write_header(path, entries, body)

    return apply


def value_mutations() -> tuple[Mutation, ...]:
    """NaN and infinity in every dtype, at the first and the last element; subnormal numbers are numbers."""
    made = [
        Mutation(f"{dtype} {word} at {place}", "values", _with_value(dtype, bits, TENSOR, place), "not finite")
        for dtype, words in _SPECIAL.items()
        for word, bits in words.items()
        for place in (0, -1)
    ]
    made += [
        Mutation(f"F32 NaN in {name}", "values", _with_value("F32", _SPECIAL["F32"]["NaN"], name, 0), "not finite")
        for name in ("model.norm.weight", "lm_head.weight", "model.embed_tokens.weight")
    ]
    made += [
        Mutation(f"{dtype} subnormal", "values", _with_value(dtype, bits, TENSOR, 0), legal="a number")
        for dtype, bits in _SUBNORMAL.items()
    ]
    return tuple(made)
