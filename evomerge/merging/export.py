"""Merges as streams: the same bits as in memory, one tensor or a part of one at a time; `dataflow.export` writes them.

Kernel methods merge part by part into one small buffer, with parents read from mapped files whose pages are given back
on the way, so that a checkpoint larger than the memory can be merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch

from evomerge.checkpoints.parts import TensorPart
from evomerge.merging.execute import merge_into, merge_parts, new_tensor, prepare
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.plan import MergePlan, TensorPlan, plan_merge
from evomerge.recipe.recipe import Recipe

PART: Final = 1 << 22
"""Elements of a part: 8 MiB in bf16."""

_PARTS_PER_RELEASE: Final = 8

METADATA_KEY = "evomerge.recipe"
"""Where an exported checkpoint's weight files hold the recipe's canonical JSON."""


def merge_tensors(
    recipe: Recipe, pool: ParentPool, kernels: Kernels | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The merged tensors by name, in the template's order, one at a time: the bits of `ResidentModel.apply`.

    Args:
        recipe: its parents are in the pool; its path plays no part.
        pool: the parents.
        kernels: eager when None.

    Raises:
        MergeError: when the recipe does not fit the parents.
        RecipeError: when a rule does not fit its method.
        NonFinite: when a merged tensor holds NaN or infinity.
    """
    used = kernels or Kernels()
    plan = plan_merge(recipe, pool)
    for tensor in plan.tensors:
        out = new_tensor(tensor)
        merge_into(tensor, prepare(plan, tensor, pool, used), out.view(-1))
        yield tensor.info.name, out


def stream_tensor(
    plan: MergePlan, tensor: TensorPlan, pool: ParentPool, kernels: Kernels, size: int = PART
) -> Iterator[TensorPart]:
    """One merged tensor part by part; afterwards the pool has forgotten what it measured on it.

    Args:
        plan: of the whole merge.
        tensor: one of its tensors.
        pool: the parents.
        kernels: compiled or eager.
        size: elements of a part.

    Raises:
        MergeError: when the parents disagree in a tensor that cannot be merged.
        NonFinite: when the tensor holds NaN or infinity.
    """
    work = prepare(plan, tensor, pool, kernels)
    pool.release(tensor.info.name)
    for number, part in enumerate(merge_parts(tensor, work, size), 1):
        yield part
        if number % _PARTS_PER_RELEASE == 0:
            pool.release(tensor.info.name)
    pool.forget(tensor.info.name)


def stream_merge(
    recipe: Recipe, pool: ParentPool, kernels: Kernels | None = None, size: int = PART
) -> Iterator[tuple[str, TensorPart]]:
    """The merged tensors of `merge_tensors` in parts, in the template's order.

    Anonymous memory stays below a constant for methods that run on the kernels, whatever the size of the tensors;
    other methods hold whole tensors (see docs/memory.md).

    Args:
        recipe: its parents are in the pool; its path plays no part.
        pool: the parents; forgets what it measured.
        kernels: eager when None.
        size: elements of a part.

    Raises:
        MergeError, RecipeError, NonFinite: as `merge_tensors`.
    """
    used = kernels or Kernels()
    plan = plan_merge(recipe, pool)
    for tensor in plan.tensors:
        for part in stream_tensor(plan, tensor, pool, used, size):
            yield tensor.info.name, part
