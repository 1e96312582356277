"""What works with a model family, measured on tiny siblings; docs/families.md is the table of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.dataflow.export import write_recipe
from evomerge.dataflow.families import FAMILIES as PATH_FAMILIES
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.placement import own_memory, place
from evomerge.merging.resident import ResidentModel
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.testing.tiny import tiny_siblings

NAMES: Final = ("base", "x", "y")
RULES: Final[Mapping[str, Rule]] = {
    "linear": Rule("linear", {}, {"x": {"weight": 0.6}, "y": {"weight": 0.4}}),
    "ties": Rule("ties", {}, {"x": {"weight": 0.7, "density": 0.3}, "y": {"weight": 0.4, "density": 0.6}}),
}
_PARENT: Final = Rule("task_arithmetic", {}, {"x": {"weight": 1.0}, "y": {"weight": 0.0}})
_N_NEW: Final = 4


@dataclass(frozen=True)
class FamilyFacts:
    """What works with a family.

    Attributes:
        family: its name in `tiny_families.ALL`.
        model_type: transformers' name.
        memory: how its weights lie in memory: `as stored`, `renamed`, or `rearranged` (stacked, joined, split).
        in_place: merged in memory and written to disk, by each of `RULES`, the weights are equal bit for bit.
        loads: the written folder loads without missing or unexpected tensors and gives the same logits bit for bit.
        generates: both generate the same tokens.
        parent: the recipe of one parent gives its weights bit for bit.
        paths: layer paths run through it.
    """

    family: str
    model_type: str
    memory: str
    in_place: bool
    loads: bool
    generates: bool
    parent: bool
    paths: bool


def family_recipe(rule: Rule, folders: Mapping[str, Path], compat: str = "off") -> Recipe:
    """A recipe of one rule over siblings; `linear` without their base."""
    names = [n for n in NAMES if n != "base" or rule.method != "linear"]
    base = "base" if "base" in names else None
    return Recipe(tuple(ParentRef(n, str(folders[n])) for n in names), base, (rule,), compat=compat)  # type: ignore[arg-type]


def open_siblings(folder: Path, family: str, dtype: str = "float32") -> tuple[dict[str, Path], ParentPool]:
    """A base and two siblings, saved below a folder and opened.

    Raises:
        ConfigError: for an unknown family.
        ModelError: when their layers cannot be told.
    """
    folders = tiny_siblings(folder, family, NAMES, dtype)
    return folders, ParentPool({n: open_checkpoint(f) for n, f in folders.items()})


def load_stock(folder: Path) -> tuple[Any, bool]:
    """A model as anybody loads it, and whether its files held exactly its weights.

    The weights are then laid out like those of a resident model: torch's elementwise functions on the CPU may round
    otherwise where memory is aligned otherwise.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as progress

    progress.disable_progress_bar()
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    progress.enable_progress_bar()
    own_memory(model, "cpu")
    return model.eval(), not any(info.get(k) for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def same_weights(left: Any, right: Any) -> bool:
    """Whether two models hold equal tensors under equal names."""
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())


def same_logits(left: Any, right: Any) -> bool:
    """Whether two models give equal, finite logits."""
    ids = torch.arange(5, 13)[None]
    with torch.no_grad():
        ours, theirs = (model(ids, use_cache=False).logits for model in (left, right))
    return bool(torch.isfinite(ours).all()) and torch.equal(ours, theirs)


def _tokens(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 13)[None]
    made: torch.Tensor = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=_N_NEW, min_new_tokens=_N_NEW, do_sample=False
    )
    return made


def _memory(model: Any, pool: ParentPool) -> str:
    held = {n: t.data_ptr() for n, t in model.state_dict().items()}
    whole = {(t.data_ptr(), tuple(t.shape)) for t in model.state_dict().values()}
    words = "as stored"
    for name, found in place(model, pool.checkpoint("base").layout.tensors).items():
        start = found.parts[0].memory.data_ptr()
        if (start, found.shape) not in whole:
            return "rearranged"
        if held.get(name) != start:
            words = "renamed"
    return words


def check_family(family: str, folder: Path, dtype: str = "float32", kernels: Kernels | None = None) -> FamilyFacts:
    """Measure a family on a base and two siblings.

    Args:
        family: a name in `tiny_families.ALL`.
        folder: new or empty; holds the checkpoints.
        dtype: of the weights, torch's spelling.
        kernels: eager when None.

    Raises:
        ConfigError, ModelError, MergeError: when it cannot be merged in memory or written at all.
    """
    folders, pool = open_siblings(folder, family, dtype)
    resident = ResidentModel(pool, "base", kernels=kernels or Kernels())
    in_place = loads = generates = True
    for name, rule in RULES.items():
        recipe = family_recipe(rule, folders)
        resident.apply(recipe)
        write_recipe(recipe, pool, folder / name, kernels=kernels or Kernels())
        written, complete = load_stock(folder / name)
        in_place &= same_weights(resident.model, written)
        loads &= complete and same_logits(resident.model, written)
        ours = _tokens(resident.model)
        generates &= ours.shape[1] == 8 + _N_NEW and torch.equal(ours, _tokens(written))
    resident.apply(family_recipe(_PARENT, folders))
    parent = same_weights(resident.model, load_stock(folders["x"])[0])
    kind = str(resident.model.config.model_type)
    return FamilyFacts(
        family, kind, _memory(resident.model, pool), in_place, loads, generates, parent, kind in PATH_FAMILIES
    )
