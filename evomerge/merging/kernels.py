"""One object that merges: compiled where there is a compiler and a folder for it, eager otherwise; the same bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merging import compiled
from evomerge.merging.compiled import BINS, TYPES, AnyVariant, CompilerError, Variant, mixed_types
from evomerge.merging.eager import CHUNK, merge_eager
from evomerge.merging.fused_compiled import Gives, call_energy, call_scores, fused_variant, has_compiled
from evomerge.merging.fused_eager import merged_delta, scores_of
from evomerge.merging.fused_settings import FUSED_KINDS, FusedSetting
from evomerge.merging.lanes import LaneSum
from evomerge.merging.settings import Setting

_HISTOGRAM_CHUNK: Final = 1 << 18
_COMPILE_S: Final = 0.3
"""Seconds per variant, measured with gcc 12."""

_EAGER_NS: Final = {
    "linear": 1.0,
    "delta": 1.3,
    "vectors": 3.0,
    "delta_vectors": 3.0,
    "gta": 15.0,
    **dict.fromkeys(FUSED_KINDS, 20.0),
    "pcb": 200.0,
}
"""Nanoseconds per parameter that compiling saves, measured on one thread with three bf16 parents."""


class BinEntries(NamedTuple):
    """The entries of one histogram bin, in the order of the tensor.

    Attributes:
        indices: element indices, uint32.
        low: lower 16 bits of the magnitude's fp32 pattern, uint16.
    """

    indices: npt.NDArray[np.uint32]
    low: npt.NDArray[np.uint16]


@final
class Kernels:
    """Runs settings on tensors. Picklable: the copy loads the same shared objects from the same folder.

    Args:
        folder: where compiled variants are kept and looked up; None runs everything in eager torch.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._functions: dict[AnyVariant, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (Kernels, (self.folder,))

    @property
    def compiled(self) -> bool:
        """Whether compiled variants are used at all."""
        return self.folder is not None

    def prepare(self, variants: Iterable[AnyVariant]) -> None:
        """Compile and load variants now.

        Raises:
            CompilerError: when the compiler is missing or fails.
        """
        if self.folder is not None:
            for variant in variants:
                self._functions[variant] = compiled.load(variant, self.folder)

    def _function(self, variant: AnyVariant) -> Any | None:
        """The compiled function, compiled on first use; None where there is none, which is remembered."""
        if variant not in self._functions:
            try:
                self.prepare([variant])
            except CompilerError:
                self._functions[variant] = None
        return self._functions.get(variant)

    def _types(self, tensors: Sequence[torch.Tensor]) -> list[int] | None:
        """Element types of tensors that compiled functions can read; None for others."""
        readable = all(t.dtype in TYPES and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
        return [TYPES[t.dtype] for t in tensors] if self.folder is not None and readable else None

    def merge(
        self,
        setting: Setting,
        base: torch.Tensor | None,
        inputs: Sequence[torch.Tensor],
        out: torch.Tensor,
        *,
        ranks: Mapping[int, torch.Tensor] = MappingProxyType({}),
        first: int = 0,
    ) -> bool:
        """Merge one tensor, or a part of it, into `out`.

        Args:
            setting: the kernel's numbers.
            base: flat `(n,)`; None for sums without base.
            inputs: all inputs of the plan, flat `(n,)`; the setting picks those that take part.
            out: flat contiguous `(n,)`, overwritten; rounded once to its dtype.
            ranks: row ranks `(n,)`, uint8, of the inputs that `settings.ranked_inputs` names.
            first: index in the tensor of the first element given.

        Returns:
            Whether every entry of `out` is finite.
        """
        chosen = [inputs[i] for i in setting.inputs]
        runs = bool(chosen) and (not isinstance(setting, FusedSetting) or has_compiled(setting))
        types = self._types([out, *([] if base is None else [base]), *chosen]) if runs else None
        if types is not None:
            mixed = mixed_types(types[0], None if base is None else types[1], types[len(types) - len(chosen) :])
            function = self._function(compiled.variant_of(setting, types[0], mixed))
            if function is not None:
                return compiled.call_merge(function, setting, base, chosen, out, ranks=ranks, first=first)
        return merge_eager(setting, base, chosen, out, ranks=ranks, first=first)

    def energy(self, setting: FusedSetting, base: torch.Tensor, inputs: Sequence[torch.Tensor]) -> float:
        """The sum of the squares of the merged delta, before it is scaled, in a fixed order.

        Args:
            setting: of a kind that merges deltas.
            base: flat `(n,)`.
            inputs: all inputs of the plan, flat `(n,)`.
        """
        chosen = [inputs[i] for i in setting.inputs]
        function = self._scoring(setting, base, chosen, "energy")
        if function is not None:
            return call_energy(function, setting, base, chosen)
        total = LaneSum()
        for start in range(0, base.numel(), CHUNK):
            part = slice(start, start + CHUNK)
            wide = [x[part].cpu().to(torch.float32) for x in (base, *chosen)]
            merged = merged_delta(setting, wide[0], wide[1:], start).double()
            total.add(merged * merged)
        return total.total()

    def scores(self, setting: FusedSetting, base: torch.Tensor, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The scores that a kind ranks entries by, see `fused_eager.scores_of`: fp32, on the CPU.

        Args:
            setting: of kind sce, with its switch, or pcb; its thresholds do not matter.
            base: flat `(n,)`, a part of a tensor.
            inputs: all inputs of the plan, flat `(n,)`.
        """
        chosen = [inputs[i] for i in setting.inputs]
        function = self._scoring(setting, base, chosen, "scores")
        if function is not None:
            return call_scores(function, setting, base, chosen)
        wide = [x.cpu().to(torch.float32) for x in (base, *chosen)]
        return scores_of(setting, wide[0], wide[1:])

    def _scoring(
        self, setting: FusedSetting, base: torch.Tensor, chosen: Sequence[torch.Tensor], gives: Gives
    ) -> Any | None:
        """The compiled function that looks at a setting's deltas; None where there is none."""
        types = self._types([base, *chosen]) if has_compiled(setting) else None
        if types is None:
            return None
        mixed = mixed_types(types[0], types[0], types[1:])
        return self._function(fused_variant(setting, types[0], mixed, gives=gives))

    def _measuring(self, kind: str, base: torch.Tensor, x: torch.Tensor) -> Any | None:
        """The compiled function that measures one delta; None where there is none."""
        types = self._types([base, x])
        if types is None:
            return None
        return self._function(Variant(kind, types[1], mixed=mixed_types(types[1], types[0], types[1:])))

    def histogram(self, base: torch.Tensor, x: torch.Tensor) -> npt.NDArray[np.int64]:
        """How many entries of `|x - base|` fall in each bin.

        Args:
            base: flat `(n,)`.
            x: flat `(n,)`.

        Returns:
            Counts, shape `(32768,)`: bin b holds the fp32 patterns (sign removed) whose upper 16 bits are b, so that
            bins are ordered by magnitude.
        """
        function = self._measuring("histogram", base, x)
        if function is not None:
            return compiled.call_histogram(function, base, x)
        counts = torch.zeros(BINS, dtype=torch.int64)
        for start in range(0, x.numel(), _HISTOGRAM_CHUNK):
            bins = _patterns(base, x, start) >> 16
            counts += torch.bincount(bins, minlength=BINS).cpu()
        return counts.numpy()

    def collect(self, base: torch.Tensor, x: torch.Tensor, bin_index: int, size: int) -> BinEntries:
        """The entries of one bin of `histogram`.

        Args:
            base: flat `(n,)`.
            x: flat `(n,)`.
            bin_index: which bin.
            size: how many entries it has at most.
        """
        function = self._measuring("collect", base, x)
        if function is not None:
            return BinEntries(*compiled.call_collect(function, base, x, bin_index, size))
        indices, low = [], []
        for start in range(0, x.numel(), _HISTOGRAM_CHUNK):
            patterns = _patterns(base, x, start)
            found = ((patterns >> 16) == bin_index).nonzero().squeeze(1)
            indices.append((found + start).cpu().numpy().astype(np.uint32))
            low.append((patterns[found] & 0xFFFF).cpu().numpy().astype(np.uint16))
        return BinEntries(np.concatenate(indices), np.concatenate(low))

    def lower_sums(self, base: torch.Tensor, x: torch.Tensor) -> npt.NDArray[np.int64]:
        """Sums of the lower 16 bits of the patterns in each bin of `histogram`, shape `(32768,)`, exact.

        With the counts they give the exact sum of the magnitudes of a bin, in any order of the elements.
        """
        function = self._measuring("lower_sums", base, x)
        if function is not None:
            return compiled.call_lower_sums(function, base, x)
        sums = torch.zeros(BINS, dtype=torch.int64)
        for start in range(0, x.numel(), _HISTOGRAM_CHUNK):
            patterns = _patterns(base, x, start).cpu().long()
            sums.index_add_(0, patterns >> 16, patterns & 0xFFFF)
        return sums.numpy()

    def ranks(self, base: torch.Tensor, x: torch.Tensor, length: int) -> torch.Tensor:
        """The rank of every `|x - base|` in its row, in 255ths of the highest rank, rounded.

        Equal magnitudes have their mean rank. Rows of one element have rank 0.

        Args:
            base: flat `(n,)`.
            x: flat `(n,)`.
            length: of a row, which divides n.

        Returns:
            uint8, shape `(n,)`, on the device of `x`.
        """
        function = self._measuring("ranks", base, x)
        if function is not None:
            return compiled.call_ranks(function, base, x, length)
        out = torch.empty(x.numel(), dtype=torch.uint8, device=x.device)
        step = max(_HISTOGRAM_CHUNK // length, 1) * length
        top = max(length - 1, 1)
        for start in range(0, x.numel(), step):
            sizes = _patterns(base, x, start, step).view(-1, length)
            ordered = sizes.sort(dim=1).values
            twice = torch.searchsorted(ordered, sizes) + torch.searchsorted(ordered, sizes, right=True) - 1
            out[start : start + step] = twice.mul_(255).add_(top).floor_divide_(2 * top).view(-1)
        return out


def _patterns(base: torch.Tensor, x: torch.Tensor, start: int, size: int = 0) -> torch.Tensor:
    """int32 patterns of `|x - base|` in fp32, for the chunk that begins at `start`."""
    part = slice(start, start + (size or _HISTOGRAM_CHUNK))
    delta = x[part].to(torch.float32) - base[part].to(torch.float32)
    return delta.view(torch.int32) & 0x7FFFFFFF


def worth_compiling(n_parameters: int, n_evaluations: int, variants: Iterable[AnyVariant]) -> bool:
    """Whether compiling saves more time than it takes, when every evaluation merges the whole model once.

    Args:
        n_parameters: of one model.
        n_evaluations: merges that one worker will make, roughly.
        variants: what would be compiled.
    """
    merging = [v for v in variants if v.kind in _EAGER_NS]
    if not merging or compiled.find_compiler() is None:
        return False
    saved_ns = max(_EAGER_NS[v.kind] for v in merging) * n_parameters * n_evaluations
    return saved_ns * 1e-9 > _COMPILE_S * len(merging)


def compile_kernels(variants: Iterable[AnyVariant], cache_folder: Path) -> Kernels:
    """Compiled kernels, ready before workers start; variants that turn up later are compiled on first use.

    Args:
        variants: see `merging.foresight.variants_of`.
        cache_folder: the one declared folder of shared objects; may be shared by runs and machines.

    Returns:
        Kernels on that folder, or eager ones where nothing can be compiled.
    """
    kernels = Kernels(cache_folder)
    try:
        kernels.prepare(variants)
    except CompilerError:
        return Kernels()
    return kernels
