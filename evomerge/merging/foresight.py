"""Which compiled variants a recipe will ask for, without measuring anything: headers only."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final, TypeVar, final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.checkpoints.dtypes import torch_dtype
from evomerge.merging.compiled import TYPES, AnyVariant, Variant, mixed_types, variant_of
from evomerge.merging.fused_compiled import fused_variant
from evomerge.merging.fused_settings import FusedSetting
from evomerge.merging.kernels import Kernels, compile_kernels, worth_compiling
from evomerge.merging.measures import Measurement
from evomerge.merging.methods import Facts, KernelMethod
from evomerge.merging.parents import ParentPool
from evomerge.merging.plan import TensorPlan, plan_merge, template_of
from evomerge.merging.settings import Cut, GtaSetting, ranked_inputs
from evomerge.recipe.recipe import Recipe

_T = TypeVar("_T")
_ANY_CUT: Final = Cut(1, 0)


@final
class _Guess(Facts):
    """Facts of the right form and no truth: enough to see which variant a setting needs."""

    def __init__(self, shape: tuple[int, ...], n: int, *, has_base: bool) -> None:
        self._shape = shape
        self._n = n
        self._has_base = has_base

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Facts.shape`."""
        return self._shape

    @property
    def has_base(self) -> bool:
        """See `Facts.has_base`."""
        return self._has_base

    def gram(self, *, deltas: bool = False) -> npt.NDArray[np.float64]:
        """Unit vectors at angles of 60 degrees: nothing vanishes."""
        del deltas
        return 0.5 * np.eye(self._n) + 0.5

    def vector_grams(self, *, deltas: bool, columns: bool) -> npt.NDArray[np.float64]:
        """The same; one vector stands for all."""
        del columns
        return self.gram(deltas=deltas)[None]

    def model_gram(self) -> npt.NDArray[np.float64]:
        """The same."""
        return self.gram(deltas=True)

    def cut(self, index: int, count: int) -> Cut:
        """Some cut."""
        return _ANY_CUT

    def model_cut(self, index: int, density: float) -> Cut:
        """Some cut."""
        return _ANY_CUT

    def norm(self, index: int, count: int) -> float:
        """Magnitudes of one."""
        return float(count)

    def ranks(self, index: int) -> torch.Tensor:
        """Nobody's."""
        raise ValueError("ranks are measured when a kernel runs")

    def measure(self, measurement: Measurement[_T]) -> _T:
        """What the measurement guesses."""
        return measurement.guess(self._shape, self._n)


def _variants(tensor: TensorPlan, pool: ParentPool) -> set[AnyVariant]:
    dtypes = [torch_dtype(tensor.dtype), *(pool.flat(p, tensor.info.name).dtype for p in tensor.sources)]
    if not isinstance(tensor.rule.method, KernelMethod) or not TYPES.keys() >= set(dtypes):
        return set()
    out, *sources = (TYPES[d] for d in dtypes)
    base = sources.pop(0) if tensor.rule.base is not None else None
    setting = tensor.rule.method.compile(
        tensor.parameters, _Guess(tensor.info.shape, len(tensor.rule.inputs), has_base=base is not None)
    )
    if not setting.inputs:
        return set()
    mixed = mixed_types(out, base, [sources[i] for i in setting.inputs])
    variants: set[AnyVariant] = {variant_of(setting, out, mixed)}
    pairs = {sources[i]: mixed_types(sources[i], base, [sources[i]]) for i in setting.inputs}
    if isinstance(setting, FusedSetting) and base is not None:
        if setting.kind == "pcb" or (setting.parent_words and "trim" in setting.switches):
            variants |= {Variant(kind, x, mixed=t) for kind in ("histogram", "collect") for x, t in pairs.items()}
        types = mixed_types(base, base, [sources[i] for i in setting.inputs])
        if tensor.rule.shared.get("norm"):
            variants.add(fused_variant(setting, base, types, gives="energy"))
        if setting.kind == "pcb" or (setting.kind == "sce" and "trim" in setting.switches):
            variants.add(fused_variant(setting, base, types, gives="scores"))
    if isinstance(setting, GtaSetting) and base is not None:
        kinds = ["histogram", "collect"] if setting.trimmed or setting.capped else []
        kinds += ["lower_sums"] if kinds and tensor.rule.shared.get("rescale") else []
        kinds += ["ranks"] if setting.ranked else []
        variants |= {Variant(kind, x, mixed=types) for kind in kinds for x, types in pairs.items()}
    return variants


def variants_of(recipe: Recipe, pool: ParentPool) -> frozenset[AnyVariant]:
    """The compiled functions that applying a recipe calls; other recipes of the same space mostly call the same.

    Args:
        recipe: a typical candidate; its parents are in the pool. No tensor is read.
        pool: the parents.

    Raises:
        MergeError, RecipeError, ConfigError: as `plan.plan_merge`.
    """
    if recipe.compat == "mergekit":
        return frozenset()
    found: set[AnyVariant] = set()
    for tensor in plan_merge(recipe, pool).tensors:
        if not tensor.copied:
            found |= _variants(tensor, pool)
    return frozenset(found)


def kept_bytes(recipe: Recipe, pool: ParentPool) -> int:
    """Bytes that merging a recipe again and again keeps beside the parents: a byte per element whose rank is read.

    Everything else that is measured once is a few kilobytes per tensor.

    Args:
        recipe: a typical candidate; its parents are in the pool. No tensor is read.
        pool: the parents.

    Raises:
        MergeError, RecipeError, ConfigError: as `plan.plan_merge`.
    """
    if recipe.compat == "mergekit":
        return 0
    total = 0
    for tensor in plan_merge(recipe, pool).tensors:
        method = tensor.rule.method
        if not tensor.copied and isinstance(method, KernelMethod):
            guess = _Guess(tensor.info.shape, len(tensor.rule.inputs), has_base=tensor.rule.base is not None)
            total += math.prod(tensor.info.shape) * len(ranked_inputs(method.compile(tensor.parameters, guess)))
    return total


def kernels_for_merge(recipe: Recipe, pool: ParentPool, cache_folder: Path) -> Kernels:
    """Kernels for merging one recipe once: compiled when the model is large enough to pay for it, eager otherwise.

    Args:
        recipe: what will be merged; its parents are in the pool.
        pool: the parents.
        cache_folder: where compiled variants are kept.

    Raises:
        MergeError, RecipeError, ConfigError: as `plan.plan_merge`.
    """
    variants = variants_of(recipe, pool)
    layout = pool.checkpoint(template_of(recipe)).layout
    if worth_compiling(sum(math.prod(t.shape) for t in layout.tensors), 1, variants):
        return compile_kernels(variants, cache_folder)
    return Kernels()
