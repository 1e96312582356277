"""Merges as files: the same tensors as in memory, streamed one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import torch

from evomerge.checkpoints.writer import write_checkpoint
from evomerge.digest import canonical_json
from evomerge.merging.execute import merge_into, new_tensor, prepare
from evomerge.merging.foresight import kernels_for_merge
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.plan import plan_merge, template_of
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.serialize import recipe_to_json

METADATA_KEY = "evomerge.recipe"
"""Where an exported checkpoint's weight files hold the recipe's canonical JSON."""


def merge_tensors(
    recipe: Recipe, pool: ParentPool, kernels: Kernels | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The merged tensors by name, in the template's order, one at a time: the bits of `ResidentModel.apply`.

    Args:
        recipe: its parents are in the pool.
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


def write_merge(
    recipe: Recipe,
    pool: ParentPool,
    folder: Path,
    *,
    extra_files: Mapping[str, str | bytes] = MappingProxyType({}),
    kernels: Kernels | None = None,
) -> None:
    """Write a merge as a checkpoint that stock transformers loads; one tensor is in memory at a time.

    Args:
        recipe: its canonical JSON goes into the metadata of the weight files.
        pool: the parents.
        folder: new or empty; appears complete or not at all.
        extra_files: plain name -> content, for instance recipe and model card.
        kernels: None compiles for this one merge where that pays (see `foresight.kernels_for_merge`).

    Raises:
        MergeError, RecipeError, NonFinite: as `merge_tensors`.
        ConfigError, DiskFull, ModelError: as `checkpoints.writer.write_checkpoint`.
    """
    if kernels is None:
        with TemporaryDirectory(prefix="evomerge-kernels-") as cache:
            used = kernels_for_merge(recipe, pool, Path(cache))
            write_merge(recipe, pool, folder, extra_files=extra_files, kernels=used)
        return
    metadata = {"format": "pt", METADATA_KEY: canonical_json(recipe_to_json(recipe))}
    write_checkpoint(
        folder,
        merge_tensors(recipe, pool, kernels),
        template=pool.checkpoint(template_of(recipe)),
        metadata=metadata,
        extra_files=extra_files,
        dtype=recipe.dtype,
    )
