"""Whole models merged by mergekit 0.1.5 and by us, tensor by tensor: what the parity tests assert and the table shows.

Three ways are measured for every method, dtype and family. `compat` is `compat: mergekit` in the dtype of the parents,
with mergekit's draws for the random methods, at every setting. `plain` and `default` are evomerge's own arithmetic on
the same parents, at the first setting (positive weights) and at every setting, against mergekit in fp32 throughout:
fp32 parents, or parents of 16 bits with `dtype: float32` and `out_dtype` theirs, which is how recipes of the default
mode are exported.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal
from unittest.mock import patch

import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.dtypes import torch_dtype
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import EvomergeError
from evomerge.merging.compat import merge_compat
from evomerge.merging.export import merge_tensors
from evomerge.merging.methods import METHODS
from evomerge.merging.parents import ParentPool
from evomerge.merging.plan import plan_merge
from evomerge.recipe.method_spec import MethodSpec
from evomerge.recipe.methods import method_spec
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.testing.peer import SETTINGS, Agreement, GlobalDraws, Setting, agreement, rows_of, shared_of, total
from evomerge.testing.tiny import tiny_checkpoint

Mode = Literal["compat", "plain", "default"]
MODES: Final[tuple[Mode, ...]] = ("compat", "plain", "default")
BASE: Final = "b"
_SEED: Final = 7
_SPREAD: Final = 0.05
_PEER_ERRORS: Final = (ValueError, RuntimeError, LookupError, TypeError, AttributeError, OSError)
"""What mergekit raises where it cannot merge; the table tells it."""

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One merge of a family's parents.

    Attributes:
        method: mergekit's name.
        setting: its parameters.
        base: the recipe's base; None merges models.
    """

    method: str
    setting: Setting
    base: str | None

    @property
    def spec(self) -> MethodSpec:
        """What the method asks for."""
        return method_spec(self.method)

    @property
    def models(self) -> tuple[str, ...]:
        """The merged parents."""
        return tuple(f"m{i}" for i in range(len(rows_of(self.spec, self.setting))))


@dataclass(frozen=True)
class Cell:
    """What came out for one method, dtype and family.

    Attributes:
        method: mergekit's name.
        dtype: of the parents, torch's spelling.
        family: of `evomerge.testing.tiny`.
        mode: whose arithmetic of ours was compared.
        agreement: over all tensors and settings that both merged.
        refused: settings that neither merged: message of ours.
        failed: settings that one of the two did not merge, or with other tensors; what happened.
        respelled: the tensors compared are those that mergekit makes of each parent.
    """

    method: str
    dtype: str
    family: str
    mode: Mode
    agreement: Agreement
    refused: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    respelled: bool = False

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `cell_from_json` reads."""
        return asdict(self)


def cell_from_json(given: Mapping[str, Any]) -> Cell:
    """The cell that `Cell.to_json` wrote."""
    lists = {name: tuple(given[name]) for name in ("refused", "failed")}
    return Cell(**{**given, **lists, "agreement": Agreement(**given["agreement"])})


def cases_of(method: str, settings: Sequence[Setting] | None = None) -> Iterator[Case]:
    """Every setting of a method, with and without a base where both are possible."""
    spec = method_spec(method)
    bases = [BASE] if spec.needs_base else [None, BASE] if spec.takes_base else [None]
    for setting in SETTINGS[method] if settings is None else settings:
        for base in bases:
            yield Case(method, setting, base)


def make_parents(folder: Path, family: str, dtype: str, **config: Any) -> dict[str, Path]:
    """A base and three models near it, whose deltas are a twentieth of random weights, as tiny checkpoints."""
    folders = {n: folder / n for n in (BASE, "m0", "m1", "m2")}
    for seed, target in enumerate(folders.values()):
        tiny_checkpoint(target, family, seed, **config)
    base = load_file(folders[BASE] / "model.safetensors")
    for name, target in folders.items():
        path = target / "model.safetensors"
        own = {k: v.clone() for k, v in load_file(path).items()}
        mixed = own if name == BASE else {k: base[k] + _SPREAD * x if _weights(x) else x for k, x in own.items()}
        rounded = {k: x.to(getattr(torch, dtype)) if _weights(x) else x for k, x in mixed.items()}
        path.unlink()
        save_file(rounded, path, metadata={"format": "pt"})
        config_file = target / "config.json"
        config_file.write_text(config_file.read_text().replace('"dtype": "float32"', f'"dtype": "{dtype}"'))
    return folders


def _weights(x: torch.Tensor) -> bool:
    return x.is_floating_point()


def mergekit_config(case: Case, folders: Mapping[str, Path], dtypes: Mapping[str, str]) -> dict[str, Any]:
    """The case as mergekit's configuration."""
    rows = zip(case.models, rows_of(case.spec, case.setting), strict=True)
    config: dict[str, Any] = {
        "merge_method": case.method,
        "parameters": shared_of(case.spec, case.setting),
        "models": [{"model": str(folders[name]), "parameters": row} for name, row in rows],
        **dtypes,
    }
    base = case.models[0] if case.method == "slerp" else case.base
    return config if base is None else {**config, "base_model": str(folders[base])}


def run_mergekit(config: Mapping[str, Any], out: Path) -> Tensors:
    """What `run_merge` writes: the tensors by name, in the order in which it merged them; the folder is left there.

    Raises:
        Exception: whatever mergekit raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
        from mergekit.options import MergeOptions

        order: list[str] = []
        execute = ExecuteMergeMethodTask.execute

        def watched(task: Any, *given: Any, **named: Any) -> Any:
            order.append(task.output_weight.name)
            return execute(task, *given, **named)

        options = MergeOptions(
            quiet=True, copy_tokenizer=False, write_model_card=False, num_threads=1, random_seed=_SEED
        )
        text = yaml.safe_dump(dict(config))
        with patch.object(ExecuteMergeMethodTask, "execute", watched):
            run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), options, config_source=text)
    written = {k: v for shard in sorted(out.glob("*.safetensors")) for k, v in load_file(shard).items()}
    return {name: written[name] for name in dict.fromkeys((*order, *sorted(written))) if name in written}


def recipe_of(case: Case, folders: Mapping[str, Path], mode: Mode) -> Recipe:
    """The case as a recipe."""
    rows = dict(zip(case.models, rows_of(case.spec, case.setting), strict=True))
    names = case.models if case.base is None else (case.base, *case.models)
    refs = tuple(ParentRef(name, str(folders[name])) for name in names)
    rule = Rule(case.method, shared_of(case.spec, case.setting), rows)
    return Recipe(refs, case.base, (rule,), compat="mergekit" if mode == "compat" else "off", seed=_SEED)


def merge_with_global_draws(recipe: Recipe, pool: ParentPool, order: Iterable[str]) -> dict[str, torch.Tensor]:
    """`compat: mergekit` with mergekit's draws: tensors in the order of its merge, from one seeded generator."""
    torch.manual_seed(_SEED)
    merged = {}
    planned = {tensor.info.name: tensor for tensor in plan_merge(recipe, pool).tensors}
    for tensor in (planned[name] for name in dict.fromkeys((*order, *planned)) if name in planned):
        name, rule = tensor.info.name, tensor.rule
        if tensor.copied:
            merged[name] = pool.checkpoint(tensor.sources[0]).tensor(name)
            continue
        given = {p: pool.checkpoint(p).tensor(name) for p in tensor.sources}
        models = [given[p] for p in rule.inputs]
        base = None if rule.base is None else given[rule.base]
        result = merge_compat(rule.name, base, models, tensor.parameters, GlobalDraws())
        merged[name] = result.to(torch_dtype(tensor.dtype))
    return merged


def _attempt(merge: Callable[[], Tensors]) -> Tensors | str:
    """What a merge gives, or the first line of what it says instead."""
    try:
        return merge()
    except EvomergeError as error:
        return error.what
    except _PEER_ERRORS as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def compare(ours: Tensors | str, theirs: Tensors | str) -> Agreement | str:
    """How two merges compare; text when only one of them is there, or they hold other tensors."""
    if isinstance(ours, str) or isinstance(theirs, str):
        ends = [f"{who}: {x if isinstance(x, str) else 'merged'}" for who, x in (("ours", ours), ("mergekit", theirs))]
        return "; ".join(ends)
    odd = sorted(ours.keys() ^ theirs.keys())
    if odd:
        return f"{len(odd)} tensors stand in one of the two only: {', '.join(odd[:3])}"
    return total(agreement(ours[name], theirs[name]) for name in ours)


@dataclass(frozen=True)
class Bench:
    """The parents of one family in one dtype, opened.

    Attributes:
        family: of `evomerge.testing.tiny`.
        dtype: torch's spelling.
        folders: by name; what mergekit reads.
        pool: what we read: the same, or what mergekit makes of each parent alone where it writes other tensors (it
            takes the stacked experts that transformers holds in memory, and some families' other names).
        scratch: an empty folder for mergekit's results.
        respelled: whether we read what mergekit makes of each parent.
    """

    family: str
    dtype: str
    folders: Mapping[str, Path]
    pool: ParentPool
    scratch: Path
    respelled: bool

    @classmethod
    def open(cls, folder: Path, family: str, dtype: str, **config: Any) -> Bench:
        """Make the parents and open them."""
        folders = make_parents(folder, family, dtype, **config)
        pool = _pool(folders)
        alone = {name: folder / f"alone-{name}" for name in folders}
        found = [_attempt(partial(run_mergekit, _copy_of(folders[n]), alone[n])) for n in folders]
        names = {t.name for t in pool.checkpoint(BASE).layout.tensors}
        respelled = any(not isinstance(tensors, str) and tensors.keys() != names for tensors in found)
        return cls(family, dtype, folders, _pool(alone) if respelled else pool, folder, respelled)

    def ours(self, case: Case, mode: Mode, order: Iterable[str]) -> Tensors | str:
        """Our tensors, or what we say instead; with mergekit's draws, made in this order, for random ones of compat."""
        recipe = recipe_of(case, self.folders, mode)
        if mode == "compat" and case.spec.random:
            return _attempt(lambda: merge_with_global_draws(recipe, self.pool, order))
        return _attempt(lambda: dict(merge_tensors(recipe, self.pool)))

    def theirs(self, case: Case, mode: Mode) -> Tensors | str:
        """Mergekit's tensors, in the dtype of the parents, or in fp32 for the default mode."""
        wide = mode != "compat" and self.dtype != "float32"
        dtypes = {"dtype": "float32", "out_dtype": self.dtype} if wide else {}
        out = self.scratch / f"out-{len(list(self.scratch.glob('out-*')))}"
        merged = _attempt(lambda: run_mergekit(mergekit_config(case, self.folders, dtypes), out))
        if isinstance(merged, str) or all(bool(x.isfinite().all()) for x in merged.values()):
            return merged
        return "NaN or infinity in what it writes"

    def measure(self, method: str, mode: Mode, settings: Sequence[Setting] | None = None) -> Cell:
        """A method merged by both, at the mode's settings or at those given."""
        found: list[Agreement] = []
        refused: list[str] = []
        failed: list[str] = []
        for case in cases_of(method, SETTINGS[method][:1] if mode == "plain" else settings):
            theirs = self.theirs(case, mode)
            ours = self.ours(case, mode, () if isinstance(theirs, str) else theirs)
            compared = compare(ours, theirs)
            if isinstance(compared, Agreement):
                found.append(compared)
            elif isinstance(ours, str) and isinstance(theirs, str):
                refused.append(ours)
            else:
                failed.append(compared)
        return Cell(method, self.dtype, self.family, mode, total(found), tuple(refused), tuple(failed), self.respelled)


def _pool(folders: Mapping[str, Path]) -> ParentPool:
    return ParentPool({name: open_checkpoint(folder) for name, folder in folders.items()})


def _copy_of(folder: Path) -> dict[str, Any]:
    return {"merge_method": "passthrough", "models": [{"model": str(folder)}]}


def built_methods() -> tuple[str, ...]:
    """Mergekit's methods that this evomerge merges with, in mergekit's order."""
    known = set(METHODS.names())
    return tuple(name for name in SETTINGS if name in known)
