"""The recipes that every search is compared with: a parent, the uniform soup, task arithmetic of one strength."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.errors import RecipeError
from evomerge.recipe.recipe import ParentRef, Recipe, Rule


def parent_recipe(parent: ParentRef) -> Recipe:
    """The merge that is `parent` itself."""
    rule = Rule("linear", shared={"normalize": True}, per_parent={parent.name: {"weight": 1.0}})
    return Recipe(parents=(parent,), base=None, rules=(rule,))


def soup_recipe(models: Sequence[ParentRef]) -> Recipe:
    """The uniform average of one or more models (arXiv 2203.05482, uniform soup)."""
    weights = {m.name: {"weight": 1.0} for m in models}
    return Recipe(parents=tuple(models), base=None, rules=(Rule("linear", {"normalize": True}, weights),))


def task_arithmetic_recipe(models: Sequence[ParentRef], base: ParentRef, strength: float) -> Recipe:
    """Base plus `strength` times the sum of all deltas (arXiv 2212.04089, task addition).

    Args:
        models: the models whose deltas are added; the base is not among them.
        base: what the deltas are taken from.
        strength: the common weight; known to work between 0.3 and 0.7.

    Raises:
        RecipeError: when the base is among the models.
    """
    if base.name in {m.name for m in models}:
        raise RecipeError(
            "Task arithmetic cannot add the base's delta to itself.",
            got=f"base {base.name!r} among the models",
            allowed="models other than the base",
            fix="leave the base out of the models.",
        )
    rule = Rule(
        "task_arithmetic",
        shared={"normalize": False, "lambda": 1.0},
        per_parent={m.name: {"weight": float(strength)} for m in models},
    )
    return Recipe(parents=(base, *models), base=base.name, rules=(rule,))
