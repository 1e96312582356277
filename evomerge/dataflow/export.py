"""Recipes as checkpoints that stock transformers loads, with a path through the layers or without one.

A path becomes a deeper or shallower model of the parents' own class: layers numbered by hop, a repeated layer written
once for each time it runs, gains folded into the weights that end its branches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import torch

from evomerge.checkpoints.dtypes import torch_dtype
from evomerge.checkpoints.parts import TensorPart
from evomerge.checkpoints.seal import Seal
from evomerge.checkpoints.staging import check_apart
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.dataflow.export_plan import ExportPlan, Piece, Target, plan_export
from evomerge.dataflow.fold import fold_gain
from evomerge.digest import canonical_json
from evomerge.errors import NonFinite
from evomerge.layout import Layout
from evomerge.merging.execute import merge_into, new_tensor, prepare
from evomerge.merging.export import METADATA_KEY, merge_tensors, stream_merge, stream_tensor
from evomerge.merging.foresight import kernels_for_merge
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.plan import TensorPlan, plan_merge, template_of
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.serialize import recipe_to_json


def check_export(recipe: Recipe, pool: ParentPool) -> None:
    """Refuse a recipe that cannot be written exactly, from headers and configs; integer buffers are compared.

    Args:
        recipe: its parents are in the pool.
        pool: the parents.

    Raises:
        ModelError, RecipeError, MergeError, ConfigError: as `export_plan.plan_export` for a recipe with a path, as
            `merging.plan.plan_merge` for one without; MergeError also when the parents of a merged layer disagree in a
            tensor that cannot be merged.
    """
    if recipe.path is None:
        plan_merge(recipe, pool)
    else:
        _check_copies(plan_export(recipe, recipe.path, pool), pool)


def _check_copies(plan: ExportPlan, pool: ParentPool) -> None:
    """Merge what is only copied, for its refusal."""
    for piece in plan.pieces:
        if piece.tensor.copied:
            merge_into(piece.tensor, prepare(piece.plan, piece.tensor, pool, Kernels()), _memory(piece.tensor))


def _memory(tensor: TensorPlan) -> torch.Tensor:
    return new_tensor(tensor).view(-1)


def recipe_tensors(
    recipe: Recipe, pool: ParentPool, kernels: Kernels | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a recipe's checkpoint by name, each once; one merged tensor is in memory at a time.

    Before gains, they have the bits of the models that a search runs (`ResidentModel.apply`).

    Args:
        recipe: its parents are in the pool.
        pool: the parents.
        kernels: eager when None.

    Raises:
        ModelError, RecipeError, MergeError, ConfigError: as `check_export`.
        NonFinite: when a tensor holds NaN or infinity, merged or multiplied by its gain.
    """
    if recipe.path is None:
        yield from merge_tensors(recipe, pool, kernels)
    else:
        yield from _path_tensors(plan_export(recipe, recipe.path, pool), pool, kernels or Kernels())


def _path_tensors(plan: ExportPlan, pool: ParentPool, kernels: Kernels) -> Iterator[tuple[str, torch.Tensor]]:
    for piece in plan.pieces:
        merged = new_tensor(piece.tensor)
        merge_into(piece.tensor, prepare(piece.plan, piece.tensor, pool, kernels), merged.view(-1))
        for target in piece.targets:
            yield target.name, _folded(merged, piece, target)


def _path_parts(plan: ExportPlan, pool: ParentPool, kernels: Kernels) -> Iterator[tuple[str, TensorPart]]:
    """What `_path_tensors` gives, part by part; those of a repeated layer's tensors in turns."""
    for piece in plan.pieces:
        for part in stream_tensor(piece.plan, piece.tensor, pool, kernels):
            for target in piece.targets:
                yield target.name, part._replace(values=_folded(part.values, piece, target))


def _folded(merged: torch.Tensor, piece: Piece, target: Target) -> torch.Tensor:
    """A merged tensor, or a part of it, with a target's gain.

    Raises:
        NonFinite: when the gain takes it out of the range of its dtype.
    """
    folded = fold_gain(merged, target.gain, target.offset).to(torch_dtype(piece.dtype))
    if folded is not merged and not bool(torch.isfinite(folded).all()):
        raise NonFinite(
            "A gain takes a tensor out of the range of its dtype.",
            got=f"{target.name} ({piece.dtype}) times {target.gain:g}",
            allowed="finite values",
            fix="export with a wider dtype (`dtype: float32` in the recipe), or use smaller gains.",
        )
    return folded


def _as_stored(recipe: Recipe, pool: ParentPool) -> Layout:
    """The template's tensors in the dtypes of the result."""
    plan = plan_merge(recipe, pool)
    layout = pool.checkpoint(plan.template).layout
    return Layout(layout.n_layers, tuple(replace(t.info, dtype=t.dtype) for t in plan.tensors))


def _of_one_state(pool: ParentPool, parts: Iterator[tuple[str, TensorPart]]) -> Iterator[tuple[str, TensorPart]]:
    """The parts; then an error, so that nothing is kept, if a parent that was digested has changed meanwhile."""
    yield from parts
    for parent in pool.checkpoints.values():
        parent.check_unchanged()


def write_recipe(
    recipe: Recipe,
    pool: ParentPool,
    folder: Path,
    *,
    extra_files: Mapping[str, str | bytes] = MappingProxyType({}),
    kernels: Kernels | None = None,
    seal: Seal | None = None,
) -> None:
    """Write a recipe, with a path or without, as a checkpoint that stock transformers loads.

    Tensors are merged and written part by part; the pool forgets what it measured.

    Args:
        recipe: its canonical JSON goes into the metadata of the weight files.
        pool: the parents.
        folder: new or empty; appears complete or not at all.
        extra_files: plain name -> content, for instance recipe and model card.
        kernels: None compiles for this one merge where that pays (see `foresight.kernels_for_merge`).
        seal: a file that is written last, of the digests of all others.

    Raises:
        ConfigError: when the folder lies in a parent's.
        ModelError, RecipeError, MergeError, ConfigError: as `check_export`; nothing stays behind.
        NonFinite: as `recipe_tensors`; nothing stays behind.
        ConfigError, DiskFull, ModelError: as `checkpoints.writer.write_checkpoint`.
    """
    check_apart(folder, pool.checkpoints.values())
    plan = None if recipe.path is None else plan_export(recipe, recipe.path, pool)
    if plan is not None:
        _check_copies(plan, pool)
    with ExitStack() as stack:
        if kernels is None:
            cache = stack.enter_context(TemporaryDirectory(prefix="evomerge-kernels-"))
            kernels = kernels_for_merge(recipe, pool, Path(cache))
        write_checkpoint(
            folder,
            _of_one_state(
                pool, stream_merge(recipe, pool, kernels) if plan is None else _path_parts(plan, pool, kernels)
            ),
            template=pool.checkpoint(template_of(recipe) if plan is None else plan.template),
            metadata={"format": "pt", METADATA_KEY: canonical_json(recipe_to_json(recipe))},
            extra_files=extra_files,
            dtype=recipe.dtype,
            layout=_as_stored(recipe, pool) if plan is None else plan.layout,
            config_changes={} if plan is None else plan.config_changes,
            chat_template=recipe.chat_template,
            seal=seal,
        )
