"""Recipes of paths in one canonical form, so that equal models have equal recipes; and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.equivalence import the_only_parent
from evomerge.recipe.path import Hop, Hops, plain_path
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.space.steps import MERGED, Wanted


class Run(NamedTuple):
    """One hop before it is written into a recipe.

    Attributes:
        source: a parent's name, or `merged`.
        layer: which.
        gain: of the hop.
    """

    source: str
    layer: int
    gain: float


@dataclass(frozen=True)
class Composer:
    """Writes paths as recipes.

    Attributes:
        refs: the parents by name, base first, then in the space's order.
        first: source of whatever stands outside the layers: a parent's name, or `merged`.
        merged: the merge that the source `merged` stands for, without a path; None when there is none.
        n_layers: of the architecture.
    """

    refs: Mapping[str, ParentRef]
    first: str
    merged: Recipe | None
    n_layers: int

    def recipe(self, runs: Sequence[Run]) -> Recipe:
        """The canonical recipe of a path.

        A merge that amounts to one parent is that parent. A path that is a model's plain stack with its own embeddings
        is that model; a path without merged layers under a parent's embeddings is that parent's recipe with a path;
        and any other is the merge's with a path, whose first rule gives a parent's embeddings if it has them.
        """
        only = None if self.merged is None else the_only_parent(self.merged)
        first = self._named(self.first, only)
        hops = tuple(Hop(r.layer, self._named(r.source, only), r.gain) for r in runs)
        path = None if hops == plain_path(self.n_layers, first) else hops
        if first is None or (self.merged is not None and any(h.parent is None for h in hops)):
            return self._merge_with(path, first)
        own = parent_recipe(self.refs[first])
        return replace(own, parents=self._with_parents(own.parents, path), path=path)

    @staticmethod
    def _named(source: str, only: str | None) -> str | None:
        return only if source == MERGED else source

    def _merge_with(self, path: Hops | None, first: str | None) -> Recipe:
        merged = self.with_embeddings(first)
        return replace(merged, parents=self._with_parents(merged.parents, path), path=path)

    def with_embeddings(self, first: str | None) -> Recipe:
        """The merge, with what stands outside the layers from a parent; None leaves it as merged.

        Raises:
            ValueError: when there is no merge.
        """
        if self.merged is None:
            raise ValueError("the path runs merged layers, and there is no merge")
        if first is None:
            return self.merged
        parents = self.merged.parents
        if first not in {p.name for p in parents}:
            parents = (*parents, self.refs[first])
        return replace(self.merged, rules=outside_of(first, self.merged.rules), parents=parents)

    def _with_parents(self, parents: tuple[ParentRef, ...], path: Hops | None) -> tuple[ParentRef, ...]:
        """Parents, and behind them those that only hops need, in the order of `refs`."""
        needed = {h.parent for h in path or ()} - {p.name for p in parents}
        return (*parents, *(ref for name, ref in self.refs.items() if name in needed))


def outside_of(parent: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Rules that take what stands outside the layers from a parent, and the layers from `rules`."""
    outside = Rule("linear", shared={"normalize": True}, per_parent={parent: {"weight": 1.0}}, layers=())
    return (outside, *(rule for rule in rules if rule.layers != ()))


def without_path(recipe: Recipe) -> Recipe:
    """The merge that a recipe's merged layers come from."""
    return replace(recipe, path=None)


def hops_of(recipe: Recipe, n_layers: int) -> Hops:
    """The path that a recipe runs."""
    return plain_path(n_layers) if recipe.path is None else recipe.path


def wanted_of(hops: Sequence[Hop], same: Mapping[str | None, tuple[str, ...]]) -> tuple[Wanted, ...]:
    """The hops as a genotype is asked for them.

    Args:
        hops: of a recipe.
        same: a hop's parent -> the sources whose layers it may be; by default the parent itself.
    """
    return tuple(Wanted(same.get(h.parent, (h.parent or MERGED,)), h.layer) for h in hops)


def rests_on(recipe: Recipe, merged: Recipe) -> bool:
    """Whether a recipe's layers and embeddings are those of `merged`, whatever its path.

    Parents that only its hops name may stand behind those of `merged`.
    """

    def rest(of: Recipe) -> tuple[object, ...]:
        return (of.rules, of.base, of.dtype, of.compat, of.seed)

    # compared part by part: a recipe cut to fewer parents than its rules name would be none
    return recipe.parents[: len(merged.parents)] == merged.parents and rest(recipe) == rest(merged)


def gives_outside(rules: Sequence[Rule], parent: str) -> bool:
    """Whether the rules take what stands outside the layers from a parent, as `outside_of` writes it."""
    return tuple(rules) == outside_of(parent, rules[1:])
