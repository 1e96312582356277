"""How mergekit merges a family's tiny siblings, compared with `compat: mergekit`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from evomerge.dataflow.export import write_recipe
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.recipe.recipe import Rule
from evomerge.testing.family_checks import RULES, family_recipe, load_stock, same_weights

Agreement = Literal["same files", "same model", "other values", "lacks tensors", "fails"]
"""The same tensors under the same names; under other names, which load as the same model; other values; files that
lack weights of the model; no files at all."""


def run_mergekit(rule: Rule, folders: Mapping[str, Path], out: Path) -> None:
    """Merge with mergekit, on the CPU, without a tokenizer.

    Args:
        rule: shared and per-parent parameters are written as they are; base is the parent `base`.
        folders: parent -> checkpoint.
        out: where to.
    """
    config: dict[str, Any] = {
        "merge_method": rule.method,
        "parameters": dict(rule.shared),
        "models": [{"model": str(folders[n]), "parameters": dict(v)} for n, v in rule.per_parent.items()],
    }
    if rule.method != "linear":
        config["base_model"] = str(folders["base"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import yaml
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, num_threads=1)
        run_merge(MergeConfiguration.model_validate(config), str(out), options, config_source=yaml.safe_dump(config))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, without any check."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def agreement(method: str, folders: Mapping[str, Path], pool: ParentPool, folder: Path) -> Agreement:
    """Merge with both, and compare what they wrote.

    Args:
        method: one of `family_checks.RULES`.
        folders: the siblings.
        pool: the same, opened.
        folder: new or empty.
    """
    rule = RULES[method]
    try:
        run_mergekit(rule, folders, folder / "theirs")
    except RuntimeError:
        return "fails"
    write_recipe(family_recipe(rule, folders, compat="mergekit"), pool, folder / "ours", kernels=Kernels())
    ours, theirs = tensors_of(folder / "ours"), tensors_of(folder / "theirs")
    if ours.keys() == theirs.keys():
        return "same files" if all(torch.equal(t, theirs[n]) for n, t in ours.items()) else "other values"
    (left, _), (right, complete) = load_stock(folder / "ours"), load_stock(folder / "theirs")
    if not complete:
        return "lacks tensors"
    return "same model" if same_weights(left, right) else "other values"
