"""Generation 0: the recipes that every search starts from, and where the space can hold them, their vectors."""

from __future__ import annotations

from typing import Literal, NamedTuple

from evomerge.recipe.baselines import parent_recipe, soup_recipe, task_arithmetic_recipe
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.space.base import CandidateSpace
from evomerge.types import Vector

StartKind = Literal["parent", "soup", "task-arithmetic", "injected"]


class Start(NamedTuple):
    """A recipe of generation 0.

    Attributes:
        kind: what it is.
        name: for people: the parent's name, `soup`, `task arithmetic 0.3`.
        recipe: what the vector builds, or the plain recipe when there is no vector.
        vector: shape (d,), quantised; None when the space does not hold the recipe, which is then scored as a baseline
            without being told to the optimizer.
    """

    kind: StartKind
    name: str
    recipe: Recipe
    vector: Vector | None


def make_start(
    kind: StartKind,
    name: str,
    recipe: Recipe,
    space: CandidateSpace,
    *,
    parents: tuple[ParentRef, ...],
    base: str | None,
    seed: int,
) -> Start:
    """`recipe` with its vector, where the space holds it."""
    vector = space.encode_recipe(recipe, seed=seed)
    if vector is not None:
        recipe = space.build(space.space.decode(vector), parents=parents, base=base, seed=seed)
    return Start(kind, name, recipe, vector)


def generation_zero(
    space: CandidateSpace, *, parents: tuple[ParentRef, ...], base: str | None, seed: int
) -> tuple[Start, ...]:
    """The parents (base last), the uniform soup of the models, and task arithmetic at the space's strengths.

    Args:
        space: what is searched.
        parents: the job's parents, base included; the models in their order.
        base: name of the base among them, or None.
        seed: as in `CandidateSpace.build`.
    """
    models = [p for p in parents if p.name != base]
    ancestor = next((p for p in parents if p.name == base), None)
    wanted: list[tuple[StartKind, str, Recipe]] = [("parent", p.name, parent_recipe(p)) for p in models]
    if ancestor is not None:
        wanted.append(("parent", ancestor.name, parent_recipe(ancestor)))
    if len(models) > 1:
        wanted.append(("soup", "soup", soup_recipe(models)))
    if ancestor is not None:
        for strength in space.starts:
            recipe = task_arithmetic_recipe(models, ancestor, strength)
            wanted.append(("task-arithmetic", f"task arithmetic {strength:g}", recipe))
    return tuple(
        make_start(kind, name, recipe, space, parents=parents, base=base, seed=seed) for kind, name, recipe in wanted
    )
