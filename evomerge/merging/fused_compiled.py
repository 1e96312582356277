"""The fused kinds in C: which variant runs a setting, and how it is called. `compiled` builds and opens it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch

from evomerge.merging.fused_settings import FUSED_KINDS, PER_PARENT, SHARED, FusedKind, FusedSetting
from evomerge.merging.lanes import LANES, halved

Gives = Literal["merge", "energy", "scores"]

_GIVES: Final = {"merge": 0, "energy": 1, "scores": 2}
_SWITCHES: Final = ("trim", "mask", "spread", "elect", "sharp")
_MOST_PAIRED: Final = 12
"""Most inputs of a kind that works on pairs: unrolled, their number is squared."""


@dataclass(frozen=True, slots=True)
class FusedVariant:
    """One compiled function: the macros of fused.c.

    Attributes:
        kind: which formula.
        dtype: 16 bfloat16, 17 float16, 32 float32: of the output.
        n: number of inputs.
        switches: the optional steps.
        gives: the merged tensor, the sum of the squares of the merged delta, or the scores that entries are ranked by.
        mixed: as `compiled.Variant.mixed`.
    """

    kind: FusedKind
    dtype: int
    n: int
    switches: frozenset[str] = frozenset()
    gives: Gives = "merge"
    mixed: tuple[int, ...] = ()

    sources: ClassVar[tuple[str, ...]] = ("kernels.c", "fused.c")
    """Files of which the translation unit is made."""

    def macros(self) -> list[str]:
        """The `-D` flags."""
        flags = [f"-DKIND={FUSED_KINDS[self.kind]}", f"-DTYPE={self.dtype}", f"-DN={self.n}"]
        flags += [f"-D{name.upper()}={int(name in self.switches)}" for name in _SWITCHES]
        flags += [f"-DGIVES={_GIVES[self.gives]}"]
        return [*flags, f"-DMIXED={','.join(str(t) for t in (self.dtype, *self.mixed))}"] if self.mixed else flags


def has_compiled(setting: FusedSetting) -> bool:
    """Whether there is compiled code for a setting: not for many models whose every pair counts."""
    return setting.kind != "pcb" or len(setting.inputs) <= _MOST_PAIRED


def fused_variant(
    setting: FusedSetting, dtype: int, mixed: tuple[int, ...] = (), *, gives: Gives = "merge"
) -> FusedVariant:
    """The variant that runs a setting and writes elements of `dtype`."""
    return FusedVariant(setting.kind, dtype, len(setting.inputs), setting.switches, gives, mixed)


def bind(library: Any) -> Any:
    """The function of an opened library."""
    function = library.merge
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer] * 7 + [count, pointer, count, count]
    function.restype = ctypes.c_int
    return function


def _padded(kind: Any, lines: Sequence[Sequence[float]], width: int) -> Any:
    """Lines of numbers as one C array, each filled up with zeros."""
    return (kind * (len(lines) * width))(*(v for line in lines for v in (*line, *(0,) * (width - len(line)))))


def _call(
    function: Any,
    setting: FusedSetting,
    base: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    *,
    target: int,
    first: int,
) -> int:
    pointers = (ctypes.c_void_p * len(inputs))(*(x.data_ptr() for x in inputs))
    nothing = ((),) * len(inputs)
    numbers = (
        _padded(ctypes.c_float, [setting.shared], SHARED),
        _padded(ctypes.c_float, setting.parents or nothing, PER_PARENT),
        _padded(ctypes.c_uint32, [setting.words], SHARED),
        _padded(ctypes.c_uint32, setting.parent_words or nothing, PER_PARENT),
    )
    rows, width = (setting.rows.data, setting.rows.width) if setting.rows is not None else (None, 1)
    return int(function(base.data_ptr(), pointers, *numbers, rows, width, target, first, base.numel()))


def call_fused(
    function: Any,
    setting: FusedSetting,
    base: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    out: torch.Tensor,
    *,
    first: int,
) -> bool:
    """Run a compiled merge on flat contiguous tensors; whether every entry of `out` is finite."""
    return bool(_call(function, setting, base, inputs, target=out.data_ptr(), first=first))


def call_energy(function: Any, setting: FusedSetting, base: torch.Tensor, inputs: Sequence[torch.Tensor]) -> float:
    """The sum of the squares of the merged delta, in the order of `measures.LaneSum`."""
    lanes = torch.zeros(LANES, dtype=torch.float64)
    _call(function, setting, base, inputs, target=lanes.data_ptr(), first=0)
    return halved(lanes)


def call_scores(
    function: Any, setting: FusedSetting, base: torch.Tensor, inputs: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The scores of `fused_eager.scores_of`."""
    lists = len(inputs) if setting.kind == "pcb" else 1
    scores = torch.empty(lists, base.numel(), dtype=torch.float32)
    _call(function, setting, base, inputs, target=scores.data_ptr(), first=0)
    return list(scores)
