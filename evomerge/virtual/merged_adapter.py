"""A merge of adapters as an adapter: where it is a sum of their changes, it is written in factors, and exactly.

`base + sum_i c_i s_i B_i A_i` is the adapter with `A = [A_1; A_2; ...]` and `B = [c_1 s_1 B_1, c_2 s_2 B_2, ...]`, of
the sum of the ranks; coefficients may differ from tensor to tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from evomerge.checkpoints.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, Adapter, Factors, open_adapter
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.overlay import Overlay
from evomerge.checkpoints.seal import Seal
from evomerge.checkpoints.staging import check_apart
from evomerge.checkpoints.writer import write_files
from evomerge.digest import canonical_json
from evomerge.errors import RecipeError
from evomerge.merging.export import METADATA_KEY
from evomerge.merging.kernels import Kernels
from evomerge.merging.methods import KernelMethod
from evomerge.merging.parents import ParentPool, PoolFacts
from evomerge.merging.plan import TensorPlan, plan_merge
from evomerge.merging.settings import LinearSetting
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.recipe.serialize import recipe_to_json
from evomerge.virtual.adapter import ADAPTER as MAKER
from evomerge.virtual.adapter_plan import plan_changes

if TYPE_CHECKING:
    import torch

_WHOLE: Final = 1e-6
"""How far the coefficients of models may be from a sum of 1."""


class MergedAdapter(NamedTuple):
    """An adapter that is not yet in any folder.

    Attributes:
        config: content of adapter_config.json.
        tensors: name -> factor, fp32.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


class _Source(NamedTuple):
    """One of the merged adapters.

    Attributes:
        adapter: opened.
        weight: of the parent that it makes.
        paths: tensor of the base -> path of the module that changes it.
        transposed: the tensors that are stored as `(in, out)`.
    """

    adapter: Adapter
    weight: float
    paths: Mapping[str, str]
    transposed: frozenset[str]


def _refuse(got: str, allowed: str) -> RecipeError:
    return RecipeError(
        "A merge cannot be written as an adapter.", got=got, allowed=allowed, fix="export it as a checkpoint."
    )


def _base(recipe: Recipe, pool: ParentPool) -> tuple[OpenParent, str]:
    """What all adapters sit on, and what people call it."""
    if recipe.base is not None:
        ref = next(p for p in recipe.parents if p.name == recipe.base)
        if ref.made is None:
            return pool.checkpoint(recipe.base), ref.source
    for ref in recipe.parents:
        opened, made = pool.checkpoint(ref.name), ref.made
        if isinstance(opened, Overlay) and made is not None and made.method == MAKER.spec.name and made.base:
            return opened.under, made.base.source
    raise _refuse("no adapter among the parents", "adapters on one base")


def _source(ref: ParentRef, opened: OpenParent, base: OpenParent) -> _Source | None:
    """The adapter behind a parent; None for the base itself.

    Raises:
        RecipeError: for any other parent, or an adapter that is more than low-rank changes.
    """
    made = ref.made
    if made is None and opened.content == base.content:
        return None
    if made is None or made.method != MAKER.spec.name or not isinstance(opened, Overlay):
        raise _refuse(f"parent {ref.name}, {'a checkpoint' if made is None else made.method}", "adapters on one base")
    if opened.under.content != base.content:
        raise _refuse(f"parent {ref.name}, on {opened.under.source} instead of {base.source}", "adapters on one base")
    adapter = open_adapter(ref.source, ref.revision)
    changes = plan_changes(adapter, base)
    if not adapter.plain or changes.aliases or changes.config:
        got = f"parent {ref.name}, with whole modules, biases, magnitudes or a head of its own"
        raise _refuse(got, "adapters of low-rank changes alone")
    path_of = {factors: path for path, factors in adapter.factors.items()}
    paths = {c.info.name: path_of[c.factors] for c in changes.tensors if c.factors is not None}
    turned = frozenset(c.info.name for c in changes.tensors if c.transposed)
    return _Source(adapter, float(made.settings.get("weight", 1.0)), paths, turned)


def _coefficients(tensor: TensorPlan, pool: ParentPool, touched: bool) -> Mapping[str, float]:
    """Parent -> what its change of the tensor is multiplied by.

    Raises:
        RecipeError: when the result is not the base plus a sum of changes.
    """
    rule, name = tensor.rule, tensor.info.name
    facts = PoolFacts(pool, name, tensor.info.shape, base=rule.base, parents=rule.inputs, kernels=Kernels())
    setting = rule.method.compile(tensor.parameters, facts) if isinstance(rule.method, KernelMethod) else None
    if isinstance(setting, LinearSetting):
        whole = abs(sum(setting.coefficients) - 1.0) <= _WHOLE
        if not setting.deltas and not whole:
            got = f"{name}: {rule.name} with coefficients of sum {sum(setting.coefficients):g}"
            raise _refuse(got, "models whose coefficients add up to 1, or changes added to the base")
        return {rule.inputs[i]: c for i, c in zip(setting.inputs, setting.coefficients, strict=True)}
    if touched or rule.base is None:
        allowed = "methods that add changes up: task_arithmetic, linear and their like"
        raise _refuse(f"{name}, merged by {rule.name}", allowed)
    return {}


def adapter_of(recipe: Recipe, pool: ParentPool) -> MergedAdapter:
    """The merge as an adapter on the base: equal to the full merge but for fp32's rounding.

    Any method counts that comes down to one linear combination per tensor (`task_arithmetic`, `linear` whose weights
    add up to 1, `slerp`, ...), with other coefficients for every layer and role.

    Args:
        recipe: every parent is an adapter on one base, or that base.
        pool: the parents, made.

    Raises:
        RecipeError: naming the first parent or tensor that makes it something else than a sum of low-rank changes.
        MergeError, RecipeError, ConfigError: as `merging.plan.plan_merge`.
    """
    if recipe.path is not None or recipe.compat != "off":
        got = "a path through the layers" if recipe.path is not None else f"compat: {recipe.compat}"
        raise _refuse(got, "a merge of weights in evomerge's own arithmetic")
    base, called = _base(recipe, pool)
    found = {p.name: _source(p, pool.checkpoint(p.name), base) for p in recipe.parents}
    sources = {name: source for name, source in found.items() if source is not None}
    plan = plan_merge(recipe, pool)
    tensors, ranks = dict[str, "torch.Tensor"](), dict[str, int]()
    for tensor in plan.tensors:
        name = tensor.info.name
        touched = {n: s for n, s in sources.items() if name in s.paths}
        if tensor.copied:
            continue
        given = _coefficients(tensor, pool, bool(touched))
        live = {n: (s, given[n]) for n, s in touched.items() if given.get(n, 0.0) != 0.0}
        if live:
            first, _ = next(iter(live.values()))
            path = first.paths[name]
            factors = first.adapter.factors[path]
            tensors |= _joined(name, path, factors.embedding, live)
            ranks[path] = sum(s.adapter.rank(s.paths[name]) for s, _ in live.values())
    turned = any(s.transposed for s in sources.values() if s.transposed - _embeddings(s))
    return MergedAdapter(_config(ranks, called, turned), tensors)


def _embeddings(source: _Source) -> frozenset[str]:
    factors = source.adapter.factors
    return frozenset(name for name, path in source.paths.items() if factors[path].embedding)


def _joined(
    name: str, path: str, embedding: bool, live: Mapping[str, tuple[_Source, float]]
) -> dict[str, torch.Tensor]:
    """The factors of one module: A's below each other, scaled B's beside each other."""
    import torch

    above, beside = [], []
    for source, coefficient in live.values():
        factors: Factors = source.adapter.factors[source.paths[name]]
        above.append(source.adapter.tensor(factors.a).float())
        scale = coefficient * source.weight * factors.scale
        beside.append(source.adapter.tensor(factors.b).float().mul(scale))
    a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    return {f"{PREFIX}{path}.{a}": torch.cat(above, 0), f"{PREFIX}{path}.{b}": torch.cat(beside, 1)}


def _config(ranks: Mapping[str, int], base: str, turned: bool) -> dict[str, Any]:
    """A config under which every module's scale is 1.

    Raises:
        RecipeError: when there are no modules: the merge is the base.
    """
    if not ranks:
        raise _refuse("the base itself: every coefficient is zero", "a merge that changes the base")
    r = max(ranks.values())
    others = {path: rank for path, rank in ranks.items() if rank != r}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": turned,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": r,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "r": r,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "use_dora": False,
        "use_rslora": False,
    }


def write_adapter(
    recipe: Recipe,
    pool: ParentPool,
    folder: Path,
    *,
    extra_files: Mapping[str, str | bytes] = MappingProxyType({}),
    seal: Seal | None = None,
) -> None:
    """Write a merge of adapters as a PEFT adapter on their base (see `adapter_of`).

    Args:
        recipe: its canonical JSON goes into the metadata of the weights.
        pool: the parents, made.
        folder: new or empty; appears complete or not at all.
        extra_files: plain name -> content, for instance recipe and model card.
        seal: a file that is written last, of the digests of all others.

    Raises:
        RecipeError, MergeError, ConfigError: as `adapter_of`.
        ConfigError, DiskFull: when the folder is neither new nor empty, or cannot be written.
    """
    from safetensors.torch import save

    check_apart(folder, pool.checkpoints.values())
    merged = adapter_of(recipe, pool)
    metadata = {"format": "pt", METADATA_KEY: canonical_json(recipe_to_json(recipe))}
    files = {n: c.encode() if isinstance(c, str) else c for n, c in extra_files.items()}
    files[ADAPTER_CONFIG] = (json.dumps(merged.config, indent=2, ensure_ascii=False) + "\n").encode()
    files[ADAPTER_WEIGHTS] = save(dict(merged.tensors), metadata)
    write_files(folder, files, seal)
