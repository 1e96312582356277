"""What a kernel is told about one tensor: plain numbers that a few kernels turn into all element-wise methods.

All kernels compute in fp32, in the order of the inputs, without fused multiply-add, and round once at the end. The
formulas stand with the settings; the eager and the compiled implementation give equal bits.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

from evomerge.merging.elements import FULL
from evomerge.merging.fused_settings import FusedSetting


def single(value: float) -> float:
    """`value` rounded to fp32, as a Python float (infinite where fp32 overflows)."""
    return ctypes.c_float(value).value


@dataclass(frozen=True, slots=True)
class Cut:
    """A threshold among the entries of one delta, exact to the entry.

    An entry lies above it when the pattern of its magnitude (fp32 without sign) exceeds `bits`, or equals `bits` and
    its element hash is at most `bound`.

    Attributes:
        bits: fp32 pattern of the magnitude at the threshold.
        bound: largest hash that lies above among equals.
    """

    bits: int
    bound: int


KEEP_ALL = Cut(0, FULL)
"""Everything lies above it: a low cut that removes nothing."""

DROP_NONE = Cut(0x7FFFFFFF, 0)
"""No finite magnitude lies above it: a high cut that removes nothing."""


@dataclass(frozen=True, slots=True)
class LinearSetting:
    """Linear kernel: `out = sum_i c_i x_i`, or with deltas `out = base + sum_i c_i (x_i - base)`.

    Attributes:
        inputs: which of the plan's inputs take part; zero coefficients are left out, so that a lone coefficient of 1
            is that input bit for bit.
        coefficients: `c_i`, fp32 values, aligned with `inputs`.
        deltas: whether the base's differences are summed.
    """

    inputs: tuple[int, ...]
    coefficients: tuple[float, ...]
    deltas: bool


@dataclass(frozen=True, slots=True)
class VectorSetting:
    """Linear kernel with coefficients of their own for every row or column of a tensor.

    Attributes:
        inputs: which of the plan's inputs take part.
        table: `c_iv`, fp32, shape `(len(inputs), vectors)`, as bytes in C order and the machine's byte order.
        vectors: how many rows or columns.
        length: elements per vector.
        by: `"rows"`: element e lies in vector `e // length`; `"columns"`: in vector `e % vectors`.
        deltas: whether the base's differences are summed.
    """

    inputs: tuple[int, ...]
    table: bytes
    vectors: int
    length: int
    by: Literal["rows", "columns"]
    deltas: bool


@dataclass(frozen=True, slots=True)
class Ramp:
    """A random mask whose probability rises with the rank of the magnitude in its row (DELLA), fp32 values.

    With the rank r in 0..255 (see `ranks`) and u the mask hash's upper 24 bits over 2**24, an entry is kept when
    `u < keep + keep_step r`, and then divided by `divisor + divisor_step r`.
    """

    keep: float
    keep_step: float
    divisor: float
    divisor_step: float


DENSE_RAMP = Ramp(1.0, 0.0, 1.0, 0.0)
"""Keeps everything and divides by one."""


@dataclass(frozen=True, slots=True)
class GtaParent:
    """How one parent's delta enters generalised task arithmetic.

    Attributes:
        gain: factor of the kept entries (weight times rescale), fp32 value.
        weight: what an agreeing entry adds to the divisor, fp32 value, not negative.
        low: entries above it are kept; None keeps all.
        high: entries above it are dropped; None drops none.
        tie_salt: the parent's part of the hash that breaks ties at `low` and `high`.
        mask_bound: largest mask hash that is kept; None keeps all.
        mask_salt: of the random mask's hash.
        ramp: a mask by rank in the row instead of `mask_bound`; None without.
    """

    gain: float
    weight: float
    low: Cut | None = None
    high: Cut | None = None
    tie_salt: int = 0
    mask_bound: int | None = None
    mask_salt: int = 0
    ramp: Ramp | None = None


@dataclass(frozen=True, slots=True)
class GtaSetting:
    """Generalised task arithmetic in one fused pass.

    With `d_i = x_i - base`:

    ```
    v_i = gain_i d_i where kept, else 0;   s = sum_i v_i
    elect:  m = sum of the v_i whose sign is that of s (none when s = 0);  divisor = sum of their weights
    else:   m = s;   divisor = sum of the weights of the kept
    if normalize and divisor > 0: m = m / divisor
    out = base + scale m
    ```

    Attributes:
        inputs: which of the plan's inputs take part.
        parents: aligned with `inputs`.
        elect: whether signs are elected.
        normalize: whether the sum becomes a weighted mean, of what was elected or else of what was kept.
        scale: lambda, fp32 value.
        tie_salt: the tensor's part of the tie-breaking hash `mix32(element ^ tensor's salt) ^ parent's salt`; hashing
            once for all parents is a fifth of the kernel's time.
    """

    inputs: tuple[int, ...]
    parents: tuple[GtaParent, ...]
    elect: bool
    normalize: bool
    scale: float
    tie_salt: int = 0

    @property
    def trimmed(self) -> bool:
        """Whether any parent has a low cut."""
        return any(p.low is not None for p in self.parents)

    @property
    def capped(self) -> bool:
        """Whether any parent has a high cut."""
        return any(p.high is not None for p in self.parents)

    @property
    def masked(self) -> bool:
        """Whether any parent has a random mask of one probability."""
        return any(p.mask_bound is not None for p in self.parents)

    @property
    def ranked(self) -> tuple[int, ...]:
        """The inputs whose row ranks the kernel reads."""
        return tuple(i for i, p in zip(self.inputs, self.parents, strict=True) if p.ramp is not None)


Setting = LinearSetting | VectorSetting | GtaSetting | FusedSetting


def ranked_inputs(setting: Setting) -> tuple[int, ...]:
    """The inputs whose row ranks a kernel needs to run the setting."""
    return setting.ranked if isinstance(setting, GtaSetting) else ()
