"""The element types of safetensors files: how wide they are, and what torch calls them."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ITEMSIZE = MappingProxyType(
    {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "F8_E4M3": 1,
        "F8_E4M3FNUZ": 1,
        "F8_E5M2": 1,
        "F8_E5M2FNUZ": 1,
        "F8_E8M0": 1,
        "I16": 2,
        "U16": 2,
        "F16": 2,
        "BF16": 2,
        "I32": 4,
        "U32": 4,
        "F32": 4,
        "F64": 8,
        "I64": 8,
        "U64": 8,
        "C64": 8,
    }
)
"""Bytes of one element, by safetensors name. Sub-byte types (F4, F6) are refused: nothing here can merge them."""

FLOATING = frozenset({"F16", "BF16", "F32", "F64"})
"""The types whose values are weights as they stand; these may be mixed between parents."""

EIGHT_BIT_FLOAT = frozenset({"F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"})
"""Types that mean something only together with scales stored elsewhere."""

_TORCH = MappingProxyType(
    {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2": "float8_e5m2",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "I16": "int16",
        "U16": "uint16",
        "F16": "float16",
        "BF16": "bfloat16",
        "I32": "int32",
        "U32": "uint32",
        "F32": "float32",
        "F64": "float64",
        "I64": "int64",
        "U64": "uint64",
        "C64": "complex64",
    }
)
_SAFETENSORS = MappingProxyType({torch_name: name for name, torch_name in _TORCH.items()})


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors name, for instance `"BF16"` -> `torch.bfloat16`."""
    import torch

    dtype = getattr(torch, _TORCH[name])
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"torch.{_TORCH[name]} is not a dtype")
    return dtype


def safetensors_name(dtype: torch.dtype | str) -> str:
    """The safetensors name of a torch dtype or of its spelling, for instance `"bfloat16"` -> `"BF16"`.

    Raises:
        ValueError: for a dtype that safetensors files cannot hold.
    """
    spelled = str(dtype).removeprefix("torch.")
    if spelled not in _SAFETENSORS:
        raise ValueError(f"dtype {spelled!r} cannot be stored; known: {', '.join(sorted(_SAFETENSORS))}")
    return _SAFETENSORS[spelled]


def torch_spelling(name: str) -> str:
    """What config files write for a safetensors dtype, for instance `"BF16"` -> `"bfloat16"`."""
    return _TORCH[name]
