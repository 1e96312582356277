"""The parts of a mergekit file that makes a recipe's model.

Filters are substrings of tensor names; the embedding belongs to the first slice, the final norm and the head to the
last (mergekit 0.1.5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

from evomerge.errors import RecipeError
from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.equivalence import nearly_cancel, number
from evomerge.recipe.mergekit_settings import filters_for
from evomerge.recipe.mergekit_text import DTYPES, model_text
from evomerge.recipe.method_spec import MethodSpec
from evomerge.recipe.methods import BUILTIN
from evomerge.recipe.recipe import Number, ParentRef, Recipe, Rule

EXACTNESS: Final[Mapping[str, str]] = {
    "linear": "equal up to the rounding of fp32 sums (1 unit in the last place of a term).",
    "slerp": "equal up to rounding, except that mergekit takes the straight line where |cosine| > 0.9995.",
    "task_arithmetic": "equal up to the rounding of fp32 sums (1 unit in the last place of a term).",
    "ties": "equal up to rounding, but for ties: where weighted deltas cancel exactly, mergekit elects plus and"
    " evomerge nothing; among equal magnitudes at the threshold the two keep different ones, and mergekit rounds the"
    " number of kept entries down.",
    "dare_linear": "not equal: the random masks come from other generators, and mergekit rescales to the L1 norm.",
    "dare_ties": "not equal: the random masks come from other generators, and mergekit rescales to the L1 norm.",
}
"""How the default mode compares with mergekit 0.1.5, per method."""


def inexpressible(what: str, got: str, allowed: str) -> RecipeError:
    """The error for a recipe that mergekit cannot express; to be raised."""
    fix = "export the recipe or the checkpoint instead."
    return RecipeError(f"mergekit cannot express this recipe: {what}", got=got, allowed=allowed, fix=fix)


def only_method(recipe: Recipe, rules: Sequence[Rule]) -> MethodSpec:
    """The one method of a recipe that mergekit can express.

    Raises:
        RecipeError: for several methods, a plug-in's, or a base that is missing or has a weight.
    """
    names = sorted({rule.method for rule in rules})
    if len(names) != 1:
        raise inexpressible("it uses several methods.", ", ".join(names), "one method for the whole model")
    if names[0] not in BUILTIN:
        raise inexpressible("its method is a plug-in's.", names[0], ", ".join(BUILTIN))
    if BUILTIN[names[0]].needs_base:
        heavy = [r for r in rules if recipe.base is not None and r.per_parent.get(recipe.base, {}).get("weight", 0)]
        if recipe.base is None or heavy:
            raise inexpressible("its base is missing or has a weight.", repr(recipe.base), "a base without a weight")
    return BUILTIN[names[0]]


def check_divisors(recipe: Recipe, rules: Sequence[Rule], method: MethodSpec) -> None:
    """Normalised weights of both signs: evomerge keeps their divisor away from zero, mergekit does not.

    Raises:
        RecipeError: when that makes a difference.
    """
    if "normalize" not in method.parameters or recipe.compat == "mergekit":
        return
    elects = method.name in ("ties", "dare_ties")
    for rule in rules:
        weights = [float(number(rule, "weight", p)) for p in rule.per_parent]
        if number(rule, "normalize") and (min(weights, default=0.0) < 0 if elects else nearly_cancel(weights)):
            raise inexpressible(
                "it normalises weights of both signs.",
                ", ".join(f"{w:g}" for w in weights),
                "weights of one sign, or normalize: false",
            )


def comments_of(recipe: Recipe, method: MethodSpec) -> tuple[str, ...]:
    """The first lines of the file: how to replay it, and what is exact."""
    how = EXACTNESS[method.name]
    if recipe.compat == "mergekit" and not method.random:
        how = "equal bit for bit on one CPU thread with the same torch."
    seed = f" --random-seed {recipe.seed}" if method.random else ""
    return (
        "Written by evomerge; replay it with mergekit 0.1.5:",
        f"  OMP_NUM_THREADS=1 mergekit-yaml THIS_FILE OUTPUT_FOLDER{seed}",
        f"Compared with evomerge's own merge (compat: {recipe.compat}), the result is {how}",
    )


def dtypes_of(recipe: Recipe, layout: Layout) -> tuple[dict[str, str], tuple[str, ...]]:
    """Mergekit's `dtype` (of the arithmetic) and `out_dtype` (of the file), and what is not exact about them."""
    stored = Counter(DTYPES[t.dtype] for t in layout.tensors if t.dtype in DTYPES)
    out = recipe.dtype if recipe.dtype != "parent" else max(stored, key=lambda d: stored[d], default="float32")
    mixed = recipe.dtype == "parent" and len(stored) > 1
    if recipe.compat == "mergekit":
        return ({} if mixed else {"dtype": out}), ()
    note = f"The parents mix dtypes ({', '.join(sorted(stored))}), which mergekit stores as one."
    dtypes = {"dtype": "float32"} if out == "float32" else {"dtype": "float32", "out_dtype": out}
    return dtypes, ((note,) if mixed else ())


@final
class Writer:
    """The models or slices of one file."""

    def __init__(self, recipe: Recipe, layout: Layout, method: MethodSpec, rules: Mapping[str, Rule]) -> None:
        self._recipe = recipe
        self._layout = layout
        self._method = method
        self._rules = rules
        self._base = recipe.base if method.needs_base else None
        named = {p for rule in rules.values() for p in rule.per_parent}
        taking_part = named if method.per_parent() else {p.name for p in recipe.parents}
        self._models = [p for p in recipe.parents if p.name in taking_part and p.name != self._base]
        self._refs = {p.name: p for p in recipe.parents}
        self._vectors = {t.name for t in layout.tensors if len(t.shape) <= 1}

    def base(self) -> dict[str, Any]:
        """`base_model`: the base, or the first model, which then also gives config and tokenizer."""
        first = self._refs[self._base] if self._base is not None else self._models[0]
        return {"base_model": model_text(first)}

    def body(self) -> dict[str, Any]:
        """One `models:` block when all layers are alike, else slices of layers."""
        runs = self._runs()
        everything = [t.name for t in self._layout.tensors]
        if len(runs) <= 1:
            return {**self._parameters(None, everything), "models": [self._model(m, everything) for m in self._models]}
        return {"slices": [self._slice(run, i == 0, i == len(runs) - 1) for i, run in enumerate(runs)]}

    def _number(self, tensor: str, parameter: str, parent: str | None) -> Number:
        value = number(self._rules[tensor], parameter, parent)
        if parameter == "density" and value and tensor in self._vectors and self._recipe.compat == "off":
            return 1.0  # the default arithmetic never thins out norm gains and biases
        return value if isinstance(value, bool) else float(value)

    def _setting(self, parameter: str, parent: str | None, names: Sequence[str]) -> Any:
        return filters_for({name: self._number(name, parameter, parent) for name in names})

    def _parameters(self, parent: str | None, names: Sequence[str]) -> dict[str, Any]:
        wanted = self._method.shared() if parent is None else self._method.per_parent()
        found = {p: self._setting(p, parent, names) for p in wanted}
        return {"parameters": found} if found else {}

    def _model(self, parent: ParentRef, names: Sequence[str]) -> dict[str, Any]:
        return {"model": model_text(parent), **self._parameters(parent.name, names)}

    def _runs(self) -> list[tuple[int, int]]:
        """Neighbouring layers with equal rules: [start, end)."""
        runs: list[tuple[int, int]] = []
        for layer in range(self._layout.n_layers):
            if runs and self._roles(layer) == self._roles(layer - 1):
                runs[-1] = (runs[-1][0], layer + 1)
            else:
                runs.append((layer, layer + 1))
        return runs

    def _roles(self, layer: int) -> dict[str, Rule]:
        found = {t.role: self._rules[t.name] for t in self._layout.tensors if t.layer == layer}
        return {role: Rule(r.method, r.shared, r.per_parent) for role, r in found.items()}

    def _slice(self, run: tuple[int, int], is_first: bool, is_last: bool) -> dict[str, Any]:
        def belongs(t: TensorInfo) -> bool:
            if t.layer is not None:
                return run[0] <= t.layer < run[1]
            return is_first if t.role == "embedding" else is_last

        names = [t.name for t in self._layout.tensors if belongs(t)]
        sources = [self._source(m, run, names) for m in self._models]
        if self._base is not None:
            sources.append({"model": model_text(self._refs[self._base]), "layer_range": list(run)})
        return {"sources": sources, **self._parameters(None, names)}

    def _source(self, parent: ParentRef, run: tuple[int, int], names: Sequence[str]) -> dict[str, Any]:
        model = {"model": model_text(parent), "layer_range": list(run)}
        return {**model, **self._parameters(parent.name, names)}
