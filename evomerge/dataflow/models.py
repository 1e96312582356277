"""The models that paths run through: the merged one, and one per parent that a path has named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, final

from evomerge.dataflow.prefixes import Chain
from evomerge.dataflow.views import PathRunner
from evomerge.errors import RecipeError
from evomerge.layout import ROLES
from evomerge.merging.resident import ResidentModel
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.path import Hop, Hops, check_layers
from evomerge.recipe.recipe import Recipe

_AT_THE_END = ("norm", "head")
"""Roles of what stands outside the layers and comes behind them; a prefix does not depend on it."""
_AT_THE_BEGINNING = tuple(role for role in ROLES if role not in _AT_THE_END)


def source_recipe(recipe: Recipe, parent: str) -> Recipe:
    """The merge whose layers are `parent`'s own, in the dtype that `recipe` gives them.

    Args:
        recipe: what a path belongs to.
        parent: the name of one of its parents.
    """
    (ref,) = (p for p in recipe.parents if p.name == parent)
    return replace(recipe, rules=parent_recipe(ref).rules, path=None)


class PathModel(NamedTuple):
    """A candidate with a path, ready to be asked.

    Attributes:
        model: a transformers model; good until the next one is made.
        layers: its layers, one per hop.
        chain: what they compute.
        token_bytes: of one token's hidden state.
    """

    model: Any
    layers: list[Any]
    chain: Chain
    token_bytes: int


@dataclass
class _Source:
    """A parent in memory: the recipe that was applied, from packed parents or not, and the layers that were merged."""

    resident: ResidentModel
    applied: tuple[Recipe, bool] | None = None
    layers: set[int] = field(default_factory=set)

    def hold(self, recipe: Recipe, layers: Collection[int]) -> None:
        """Have the layers of a recipe merged."""
        wanted = (recipe, self.resident.packs)
        if self.applied != wanted:
            self.applied, self.layers = wanted, set()
        if not self.layers.issuperset(layers):
            self.resident.apply(recipe, layers)
            self.layers.update(layers)


@final
class PathModels:
    """Makes the model of one recipe with a path after the other.

    Args:
        merged: into which rules are merged.
        new_source: makes another model of the same template, for a parent's own layers.

    Raises:
        ModelError: when paths cannot run through the architecture.
    """

    def __init__(self, merged: ResidentModel, new_source: Callable[[], ResidentModel]) -> None:
        self._merged = merged
        self._new_source = new_source
        self._sources: dict[str, _Source] = {}
        self._runner = PathRunner(merged.model, {}, merged.ferry)

    def model(self, recipe: Recipe) -> PathModel:
        """The model of a recipe; changes the merged model in place.

        Raises:
            RecipeError: when it has no path, one through layers that there are not, or rules that do not fit.
            MergeError: when it does not fit the parents or the model.
            NonFinite: when a tensor that runs holds NaN or infinity.
        """
        if recipe.path is None:
            raise RecipeError("The recipe has no path.", got="path None", allowed="hops", fix="apply it as a merge.")
        check_layers(recipe.path, self._runner.n_layers)
        self._merged.apply(recipe, _layers_of(recipe.path, None))
        for parent in dict.fromkeys(hop.parent for hop in recipe.path):
            if parent is not None:
                self._source(parent).hold(source_recipe(recipe, parent), _layers_of(recipe.path, parent))
        model = self._runner.model(recipe.path)
        config = self._merged.model.config
        token_bytes = config.hidden_size * self._merged.model.dtype.itemsize
        return PathModel(model, self._runner.layers(model), self._chain(recipe.path), token_bytes)

    def _source(self, parent: str) -> _Source:
        if parent not in self._sources:
            self._sources[parent] = _Source(self._new_source())
            models = {name: source.resident.model for name, source in self._sources.items()}
            self._runner = PathRunner(self._merged.model, models, self._merged.ferry)
        return self._sources[parent]

    def _chain(self, path: Hops) -> Chain:
        root = self._merged.key(None, _AT_THE_BEGINNING)
        return Chain(root, tuple(self._step(hop) for hop in path), _n_own(path))

    def _step(self, hop: Hop) -> Hashable:
        resident = self._merged if hop.parent is None else self._sources[hop.parent].resident
        return resident.key(hop.layer), hop.gain


def _layers_of(path: Hops, parent: str | None) -> set[int]:
    return {hop.layer for hop in path if hop.parent == parent}


def _n_own(path: Hops) -> int:
    """How many first hops are those of one parent, as it runs itself."""
    parent = path[0].parent
    if parent is None:
        return 0
    agree = [hop == Hop(i, parent) for i, hop in enumerate(path)]
    return agree.index(False) if False in agree else len(agree)
