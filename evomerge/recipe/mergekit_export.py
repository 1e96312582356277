"""Whether mergekit can make a recipe's model, and in which dtypes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evomerge.errors import RecipeError
from evomerge.layout import Layout
from evomerge.recipe.equivalence import nearly_cancel, number
from evomerge.recipe.mergekit_file import MERGEKIT
from evomerge.recipe.mergekit_output import is_expressible
from evomerge.recipe.mergekit_text import DTYPES
from evomerge.recipe.method_spec import MethodSpec
from evomerge.recipe.methods import BUILTIN
from evomerge.recipe.recipe import Recipe, Rule


def inexpressible(what: str, got: str, allowed: str) -> RecipeError:
    """The error for a recipe that mergekit cannot express; to be raised."""
    fix = "export the recipe or the checkpoint instead."
    return RecipeError(f"mergekit cannot express this recipe: {what}", got=got, allowed=allowed, fix=fix)


def only_method(recipe: Recipe, rules: Sequence[Rule]) -> MethodSpec:
    """The one method of a recipe that mergekit can express.

    Raises:
        RecipeError: for several methods, one that mergekit does not have, or a base that is missing or has a weight.
    """
    names = sorted({rule.method for rule in rules})
    if len(names) != 1:
        raise inexpressible("it uses several methods.", ", ".join(names), "one method for the whole model")
    if names[0] not in MERGEKIT:
        what = "its method is not mergekit's." if names[0] in BUILTIN else "its method is a plug-in's."
        raise inexpressible(what, names[0], ", ".join(MERGEKIT))
    method = MERGEKIT[names[0]]
    base = method.base_of(recipe.base)
    heavy = base is not None and any(rule.per_parent.get(base, {}).get("weight", 0) for rule in rules)
    if heavy or (method.needs_base and base is None):
        raise inexpressible("its base is missing or has a weight.", repr(recipe.base), "a base without a weight")
    return method


_FLAGS = ("normalize", "normalize_weights")


def check_divisors(recipe: Recipe, rules: Sequence[Rule], method: MethodSpec) -> None:
    """Normalised weights of both signs: evomerge keeps their divisor away from zero, mergekit does not.

    Raises:
        RecipeError: when that makes a difference.
    """
    flag = next((f for f in _FLAGS if f in method.parameters), None)
    if flag is None or recipe.compat == "mergekit":
        return
    elects = method.name in ("ties", "dare_ties", "della", "breadcrumbs_ties")
    for rule in rules:
        weights = [float(number(rule, "weight", p)) for p in rule.per_parent]
        if number(rule, flag) and (min(weights, default=0.0) < 0 if elects else nearly_cancel(weights)):
            raise inexpressible(
                "it normalises weights of both signs.",
                ", ".join(f"{w:g}" for w in weights),
                f"weights of one sign, or {flag}: false",
            )


def dtypes_of(recipe: Recipe, layout: Layout) -> tuple[dict[str, str], tuple[str, ...]]:
    """Mergekit's `dtype` (of the arithmetic) and `out_dtype` (of the file), and what is not exact about them."""
    if recipe.compat == "mergekit":
        found = {} if recipe.dtype == "parent" else {"dtype": recipe.dtype}
        if recipe.arithmetic in ("stored", recipe.dtype):
            return dict(found), ()
        return {"dtype": recipe.arithmetic, **({} if not found else {"out_dtype": recipe.dtype})}, ()
    stored = Counter(DTYPES[t.dtype] for t in layout.tensors if t.dtype in DTYPES)
    out = recipe.dtype if recipe.dtype != "parent" else max(stored, key=lambda d: stored[d], default="float32")
    mixed = recipe.dtype == "parent" and len(stored) > 1
    note = f"The parents mix dtypes ({', '.join(sorted(stored))}), which mergekit stores as one."
    dtypes = {"dtype": "float32"} if out == "float32" else {"dtype": "float32", "out_dtype": out}
    return dtypes, ((note,) if mixed else ())


def chat_template_text(recipe: Recipe) -> dict[str, str]:
    """`chat_template` of the file.

    Raises:
        RecipeError: when mergekit would take the text for a name.
    """
    if recipe.chat_template is None:
        return {}
    if not is_expressible(recipe.chat_template):
        raise inexpressible("its chat template is no text that mergekit takes.", repr(recipe.chat_template[:100]), "20 characters or more, with a {")  # fmt: skip  # noqa: E501
    return {"chat_template": recipe.chat_template}
