"""Merges as streams of tensors: the same bits as in memory, one after the other; `dataflow.export` writes them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from evomerge.merging.execute import merge_into, new_tensor, prepare
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.plan import plan_merge
from evomerge.recipe.recipe import Recipe

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
