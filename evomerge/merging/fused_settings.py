"""Settings of the fused kernels: element-wise methods that are neither linear nor generalised task arithmetic.

Each kind is one formula on the deltas `d_i = x_i - base` of one element; fp32, in the order of the inputs, without
fused multiply-add, rounded once at the end. `fused_eager` defines the bits, fused.c gives the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

FusedKind = Literal["ram", "sce", "nearswap", "gate", "magmax", "emr", "consensus", "sign", "pcb", "universal"]

FUSED_KINDS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "ram": 101,
        "sce": 102,
        "nearswap": 103,
        "gate": 104,
        "magmax": 105,
        "emr": 106,
        "consensus": 107,
        "sign": 108,
        "pcb": 109,
        "universal": 110,
    }
)
"""Kind -> its number in fused.c, beyond the kinds of kernels.c."""

SHARED: Final = 4
"""Most shared numbers that a kind has."""

PER_PARENT: Final = 8
"""Most numbers, and most words, that a kind has per parent."""


@dataclass(frozen=True, slots=True)
class Rows:
    """One number per row of a tensor.

    Attributes:
        width: of a row: element j stands in row j // width.
        data: the numbers, fp32 in the machine's byte order.
    """

    width: int
    data: bytes

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """The numbers, shape `(rows,)`; read only."""
        return np.frombuffer(self.data, np.float32)


@dataclass(frozen=True, slots=True)
class FusedSetting:
    """What a fused kernel is told about one tensor; all numbers are fp32 values.

    `scale` is the first shared number of every kind; the result is `base + scale * m`, unless said otherwise:

    ```
    ram        shared epsilon; parents gain.  active: |d| > epsilon.  One active: gain d.  More: their mean.
    sce        parents weight; words low cut (bits, bound), tie salt.  Entries of sum_i (d_i - mean)^2 above the cut:
               weighted mean of the d_i that have the sign of sum_i d_i.
    nearswap   shared t.  The input where |d| <= t, else base + t sign(d).
    gate       shared threshold; rows one number each.  The input where |d| number >= threshold, else the base.
    magmax     parents gain.  The v_i = gain d_i of the largest magnitude, the last of several.
    emr        parents gain.  The largest magnitude of the v_i that have the sign of sum_i v_i, with that sign.
    consensus  shared strength, votes; parents gain.  s = sum_i v_i where at least `votes` models have
               |v_i| > strength |s - v_i|.
    sign       parents step; parent words low cut, tie salt; words tie salt.  sum_i step_i sign(d_i) above the cuts.
    pcb        shared steepness; parents low, high, origin, inverse, least, most, inverse, gain: see `paper_methods`.
    universal  shared 1 - election, sharpness; parents gain, mean, slope, centre, least; parent words low cut, tie
               salt, mask bound, mask salt; words tie salt: see `universal`.
    ```

    Attributes:
        kind: which formula.
        inputs: which of the plan's inputs take part.
        shared: scale and what the kind shares.
        parents: aligned with `inputs`.
        words: 32-bit words that the kind shares.
        parent_words: aligned with `inputs`; empty when the kind has none.
        rows: for kinds that know rows.
        switches: which optional steps the kind runs: trim, mask, spread, elect, sharp.
    """

    kind: FusedKind
    inputs: tuple[int, ...]
    shared: tuple[float, ...] = (1.0,)
    parents: tuple[tuple[float, ...], ...] = ()
    words: tuple[int, ...] = ()
    parent_words: tuple[tuple[int, ...], ...] = ()
    rows: Rows | None = None
    switches: frozenset[str] = frozenset()
