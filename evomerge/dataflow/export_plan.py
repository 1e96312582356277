"""What the checkpoint of a path will hold, decided from headers and configs alone; what cannot be exact is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from evomerge.checkpoints.dtypes import FLOATING
from evomerge.checkpoints.opened import OpenParent
from evomerge.dataflow.families import Family, LayerName, family_of, layer_lists, path_config
from evomerge.dataflow.fold import check_foldable, offsets_of
from evomerge.errors import ModelError
from evomerge.layout import Layout, TensorInfo
from evomerge.merging.parents import ParentPool
from evomerge.merging.plan import MergePlan, TensorPlan, plan_merge, template_of
from evomerge.recipe.path import Hops, check_hops, check_layers
from evomerge.recipe.recipe import Recipe, Rule

_TOKEN_LISTS: Final = ("architectures",)
_TOKEN_SUFFIXES: Final = ("_token_id", "_token_ids", "_tokens")


class Target(NamedTuple):
    """Where a source tensor goes: its name in the export, and the gain that is folded into it with this offset."""

    name: str
    gain: float
    offset: float


class Piece(NamedTuple):
    """One tensor that is merged, every place where it is written, and the dtype that it is written in.

    That is the merged tensor's, except in mergekit's arithmetic: gains are multiplied there before the result is cast.
    """

    plan: MergePlan
    tensor: TensorPlan
    targets: tuple[Target, ...]
    dtype: str


@dataclass(frozen=True)
class ExportPlan:
    """A whole export.

    Attributes:
        template: the parent that gives config and tokenizer.
        layout: every tensor of the export, layers numbered by hop.
        config_changes: keys of config.json with their new values: depth, and per-layer lists along the path.
        pieces: in the order in which they are written: outside the layers first, then layer by layer as they are met.
    """

    template: str
    layout: Layout
    config_changes: Mapping[str, Any]
    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "config_changes", MappingProxyType(dict(self.config_changes)))


def plan_export(recipe: Recipe, hops: Hops, pool: ParentPool) -> ExportPlan:
    """Decide every tensor of a path's checkpoint.

    A hop of a parent holds what a merge of that parent alone (`linear`, weight 1) would hold in its layer.

    Args:
        recipe: its parents are in the pool.
        hops: its path.
        pool: the parents.

    Raises:
        RecipeError: for a path that is none, or names layers that there are not.
        ModelError: when paths cannot run through the architecture, the parents are of several architectures, a list in
            the config cannot be understood, or gains cannot be folded.
        MergeError, ConfigError, RecipeError: as `merging.plan.plan_merge`.
    """
    template = pool.checkpoint(template_of(recipe))
    check_hops(hops, [p.name for p in recipe.parents])
    check_layers(hops, template.layout.n_layers)
    family = family_of(template.config)
    _check_config(template)
    _check_parents(recipe, pool)
    plain = replace(recipe, path=None)
    plans = _plans(plain, hops, pool)
    outside = _outside(plans[None], family)
    inside = _inside(hops, plans, _plans(_as_computed(plain), hops, pool), family)
    changed = path_config(template.config, [hop.layer for hop in hops])
    changes = {k: v for k, v in changed.items() if k not in template.config or template.config[k] != v}
    pieces = (*outside, *inside)
    return ExportPlan(template_of(recipe), _layout(pieces, len(hops), family), changes, pieces)


def _plans(plain: Recipe, hops: Hops, pool: ParentPool) -> dict[str | None, MergePlan]:
    """The merge, and a copy of each parent whose layers run."""
    plans: dict[str | None, MergePlan] = {None: plan_merge(plain, pool)}
    copied = plain.compat == "mergekit"  # its linear loses the sign of zeros, its passthrough does not
    for parent in dict.fromkeys(hop.parent for hop in hops if hop.parent is not None):
        rule = Rule("passthrough") if copied else Rule("linear", {"normalize": True}, {parent: {"weight": 1.0}})
        rule = replace(rule, per_parent={parent: {"scale": 1.0}}) if copied else rule
        plans[parent] = plan_merge(replace(plain, rules=(rule,)), pool)
    return plans


def _as_computed(recipe: Recipe) -> Recipe:
    """The recipe that stores what mergekit's arithmetic computes, before it is cast."""
    if recipe.compat == "off" or recipe.dtype == "parent" or recipe.arithmetic == "stored":
        return recipe
    return replace(recipe, dtype=recipe.arithmetic, arithmetic="stored")


def _outside(plan: MergePlan, family: Family) -> list[Piece]:
    """What stands outside the layers, under its own names.

    Raises:
        ModelError: for a further layer behind the last one (multi-token prediction), whose number a hop may have.
    """
    found = [t for t in plan.tensors if t.info.layer is None]
    for tensor in found:
        if family.layer_name(tensor.info.name) is not None:
            raise ModelError(
                "The model has layers behind its last one, which cannot follow a path.",
                got=tensor.info.name,
                allowed="as many layers as config.json says",
                fix="remove these tensors from the parents if the model runs without them.",
            )
    return [Piece(plan, t, (Target(t.info.name, 1.0, 0.0),), t.dtype) for t in found]


def _inside(
    hops: Hops, plans: Mapping[str | None, MergePlan], computed: Mapping[str | None, MergePlan], family: Family
) -> list[Piece]:
    """The tensors of all layers that run: each is merged once and written for every hop that runs it.

    Args:
        hops: the path.
        plans: of the result.
        computed: of what gains are multiplied into.
        family: of the architecture.
    """
    uses: dict[tuple[str | None, int], list[int]] = {}
    for k, hop in enumerate(hops):
        uses.setdefault((hop.parent, hop.layer), []).append(k)
    offsets = offsets_of(family)
    found: list[Piece] = []
    for (parent, layer), places in uses.items():
        plan = plans[parent]
        tensors = [(t, _parts(family, t.info)) for t in plan.tensors if t.info.layer == layer]
        unrounded = {t.info.name: t for t in computed[parent].tensors if t.info.layer == layer}
        if any(hops[k].gain != 1.0 for k in places):
            check_foldable(family, {parts.rest: t.dtype for t, parts in tensors}, FLOATING, layer)
        for tensor, (prefix, _, rest) in tensors:
            targets = tuple(
                Target(f"{prefix}{k}.{rest}", hops[k].gain if rest in offsets else 1.0, offsets.get(rest, 0.0))
                for k in places
            )
            if any(target.gain != 1.0 for target in targets):
                found.append(Piece(computed[parent], unrounded[tensor.info.name], targets, tensor.dtype))
            else:
                found.append(Piece(plan, tensor, targets, tensor.dtype))
    return found


def _parts(family: Family, info: TensorInfo) -> LayerName:
    """The parts of a layer's tensor name.

    Raises:
        ModelError: when its name is not one of the architecture's.
    """
    parts = family.layer_name(info.name)
    if parts is None or parts.layer != info.layer:
        raise ModelError(
            "A layer's tensor has a name that the architecture does not use.",
            got=f"{info.name}, of layer {info.layer}",
            allowed=f"{family.inner}.{family.stack}.NUMBER.NAME",
            fix="convert the checkpoint: load it with transformers and save it again.",
        )
    return parts


def _layout(pieces: tuple[Piece, ...], n_hops: int, family: Family) -> Layout:
    found = []
    for piece in pieces:
        for target in piece.targets:
            parts = family.layer_name(target.name) if piece.tensor.info.layer is not None else None
            layer = None if parts is None else parts.layer
            found.append(replace(piece.tensor.info, name=target.name, layer=layer, dtype=piece.dtype))
    return Layout(n_hops, tuple(sorted(found, key=lambda t: t.name)))


def _check_config(template: OpenParent) -> None:
    """Refuse a config with a list that may be one entry per layer, and whose meaning nobody knows.

    Raises:
        ModelError: naming the list.
    """
    n_layers, lists = template.layout.n_layers, layer_lists(template.config)
    for key, value in template.config.items():
        known = key in lists or key in _TOKEN_LISTS or key.endswith(_TOKEN_SUFFIXES)
        if isinstance(value, list) and len(value) == n_layers and not known:
            raise ModelError(
                "The config has a list of unknown meaning, as long as the model is deep.",
                got=f"{key}: {value!r}"[:200],
                allowed=f"per-layer lists that can follow a path: {', '.join(lists) or 'none'}",
                fix=f"remove {key} from config.json if the model runs without it, or report the architecture.",
            )


def _check_parents(recipe: Recipe, pool: ParentPool) -> None:
    """All parents are of the template's architecture, with the same kind of attention in every layer.

    Raises:
        ModelError: naming the first that is not.
    """
    name = template_of(recipe)
    template = pool.checkpoint(name).config
    lists = layer_lists(template)
    for parent in recipe.parents:
        config = pool.checkpoint(parent.name).config
        if config.get("model_type") != template.get("model_type"):
            got, wanted = str(config.get("model_type")), str(template.get("model_type"))
        else:
            found = layer_lists(config)
            key = next((k for k in lists if found.get(k) != lists[k]), None)
            if key is None:
                continue
            got, wanted = f"{key} {found.get(key)!r}", f"{key} {lists[key]!r}"
        raise ModelError(
            "A path cannot run through several architectures.",
            got=f"{parent.name}: {got}"[:300],
            allowed=f"{wanted}, as {name} has it"[:300],
            fix="use parents of one architecture with equal layer kinds.",
        )
