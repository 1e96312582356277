"""The space of paths through the layers of parents, and of the merge that an earlier stage found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

from evomerge.digest import digest_json
from evomerge.errors import SpaceError
from evomerge.recipe.equivalence import the_only_parent
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.recipe.serialize import recipe_digest
from evomerge.space.base import CandidateSpace, Gene
from evomerge.space.dimension import Dimension, Value
from evomerge.space.gains import Gains
from evomerge.space.path_plan import PathPlan
from evomerge.space.path_recipes import Composer, Run, hops_of, rests_on, wanted_of, without_path
from evomerge.space.space import SearchSpace
from evomerge.space.steps import MERGED, Genotype, Ground, PathGene, Wanted
from evomerge.types import Digest, Vector


@final
@dataclass(frozen=True)
class Paths:
    """The genes of a path and what they mean, without recipes.

    Attributes:
        plan: what the search space says.
        sources: whose layers run, in order.
        n_layers: of every source.
    """

    plan: PathPlan
    sources: tuple[str, ...]
    n_layers: int

    @cached_property
    def ground(self) -> Ground:
        """What the genotype stands on."""
        return self.plan.ground(self.sources, self.n_layers)

    @cached_property
    def genotype(self) -> Genotype:
        """How genes choose layers."""
        return self.plan.genotype_on(self.ground)

    @cached_property
    def gains(self) -> Gains:
        """How genes say what hops add."""
        return self.plan.gains_of(self.genotype, self.ground)

    @cached_property
    def genes(self) -> tuple[PathGene, ...]:
        """All genes: layers, then gains."""
        return (*self.genotype.genes, *self.gains.genes)

    def runs(self, values: Mapping[str, Value]) -> tuple[Run, ...]:
        """The path of these values; never empty."""
        steps = self.genotype.steps(values)
        return tuple(Run(s.source, s.layer, g) for s, g in zip(steps, self.gains.of(steps, values), strict=True))

    def encode(self, wanted: Sequence[Wanted], gains: Sequence[float]) -> dict[str, Value] | None:
        """Values whose path is the wanted one with exactly these gains; None when there are none."""
        layers = self.genotype.encode(wanted)
        if layers is None:
            return None
        steps = self.genotype.steps(layers)
        added = self.gains.encode(steps, gains)
        values = None if added is None else {**layers, **added}
        if values is None or [r.gain for r in self.runs(values)] != list(gains):
            return None
        fits = len(steps) == len(wanted) and all(
            s.source in w.sources and s.layer == w.layer for s, w in zip(steps, wanted, strict=True)
        )
        return values if fits else None

    def describe(self) -> dict[str, Any]:
        """For digests: what dimensions do not say."""
        own = {"sources": self.sources, "first": self.ground.first, "n_layers": self.n_layers}
        return {**self.plan.describe(), **own, **self.genotype.describe(), **self.gains.describe()}


@final
@dataclass(frozen=True)
class PathSpace(CandidateSpace):
    """Paths through the layers of the parents.

    Attributes:
        plan: what the search space says.
        models: names of the parents, in order, without the base.
        base: name of the base, which may be a source too; None without one.
        n_layers: of the architecture.
        merged: the merge that the source `merged` stands for, without a path; None when no stage found one.
        begin: values that the search starts from; empty for the plain stack.
    """

    plan: PathPlan
    models: tuple[str, ...]
    base: str | None
    n_layers: int
    merged: Recipe | None = None
    begin: tuple[tuple[str, Value], ...] = ()

    @cached_property
    def _only(self) -> str | None:
        """The parent that the merge amounts to; None when it is a real merge, or there is none."""
        return None if self.merged is None else the_only_parent(self.merged)

    @cached_property
    def paths(self) -> Paths:
        """The genes. A merge that amounts to one parent is that parent, and stands only once among the sources."""
        plan = self.plan
        sources = plan.sources_of(self.models, self.merged is not None)
        if self._only is not None:
            sources = tuple(dict.fromkeys(self._only if s == MERGED else s for s in sources))
            plan = replace(plan, embeddings=self._only if plan.embeddings == MERGED else plan.embeddings)
            plan = replace(plan, extra=self._only if plan.extra == MERGED else plan.extra)
        return Paths(plan, sources, self.n_layers)

    @property
    def starts(self) -> tuple[float, ...]:
        """None: paths weigh nothing."""
        return ()

    @cached_property
    def space(self) -> SearchSpace:
        """See `CandidateSpace.space`."""
        begin = dict(self.begin)
        return SearchSpace(tuple(starting_at(g.dimension, begin.get(g.dimension.name)) for g in self.paths.genes))

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """See `CandidateSpace.genes`; first those that choose layers, then those of gains."""
        return tuple(g.gene for g in self.paths.genes)

    @cached_property
    def digest(self) -> Digest:
        """See `CandidateSpace.digest`."""
        merged = None if self.merged is None else recipe_digest(self.merged)
        who = {"models": self.models, "base": self.base, "merged": merged}
        return digest_json({"kind": "path", **who, **self.paths.describe(), "space": self.space.digest})

    @property
    def runs_paths(self) -> bool:
        """See `CandidateSpace.runs_paths`."""
        return True

    @property
    def hop_parents(self) -> tuple[str, ...]:
        """See `CandidateSpace.hop_parents`."""
        return tuple(s for s in self.paths.sources if s != MERGED)

    def build(
        self, values: Mapping[str, Value], *, parents: tuple[ParentRef, ...], base: str | None, seed: int
    ) -> Recipe:
        """See `CandidateSpace.build`; `seed` is not used: the merge's own decides its random masks.

        Raises:
            SpaceError: also when the path runs `merged` layers and no earlier stage handed its merge over.
        """
        self.space.encode(values)
        return self._composer(refs_of(parents, self.models, self.base, self.paths.sources)).recipe(
            self.paths.runs(values)
        )

    def _composer(self, refs: Mapping[str, ParentRef]) -> Composer:
        if MERGED in self.paths.sources and self.merged is None:
            raise SpaceError(
                "The search space runs layers of `merged`, and nothing has been merged yet.",
                got="a first stage, or a job without stages",
                allowed="`merged` in a stage behind another one, or in a space of kind both",
                fix="put a stage that merges before this one, or leave `merged` out of the sources.",
            )
        return Composer(refs, self.paths.ground.first, self.merged, self.n_layers)

    def encode_recipe(self, recipe: Recipe, *, seed: int) -> Vector | None:
        """See `CandidateSpace.encode_recipe`; gains must be those of the grid exactly."""
        only = the_only_parent(recipe)
        if only is None and not self._rests_on_merge(recipe):
            return None
        if only is not None and (self.paths.ground.first, recipe.dtype, recipe.compat) != (only, "parent", "off"):
            return None
        hops = hops_of(recipe, self.n_layers)
        values = self.paths.encode(wanted_of(hops, {None: (only or MERGED,)}), [h.gain for h in hops])
        return None if values is None else self.space.encode(values)

    def _rests_on_merge(self, recipe: Recipe) -> bool:
        """Whether a recipe's rules are those that this space writes for its merge."""
        refs = {p.name: p for p in recipe.parents}
        first = None if self.paths.ground.first == MERGED else self.paths.ground.first
        if self.merged is None or (first is not None and first not in refs):
            return False
        return rests_on(recipe, self._composer(refs).with_embeddings(first))

    def around(self, elites: Sequence[Recipe]) -> CandidateSpace:
        """This space with the first elite's merge as the source `merged`; the search starts from the elite's path.

        A space whose sources do not hold `merged`, and a space without elites, keeps its sources.
        """
        if not elites:
            return self
        holds_merged = self.plan.sources is None or MERGED in self.plan.sources
        own = replace(self, merged=without_path(elites[0]), begin=()) if holds_merged else replace(self, begin=())
        vector = own.encode_recipe(elites[0], seed=elites[0].seed)
        return own if vector is None else replace(own, begin=tuple(own.space.decode(vector).items()))


def starting_at(dimension: Dimension, value: Value | None) -> Dimension:
    """The dimension with another start; `None` keeps its own."""
    whole: Any = dimension  # every kind of dimension has a start of its own type
    return dimension if value is None else replace(whole, start=value)


def refs_of(
    parents: Sequence[ParentRef], models: Sequence[str], base: str | None, sources: Sequence[str]
) -> dict[str, ParentRef]:
    """The parents by name: base first, models in order.

    Raises:
        SpaceError: when one that the sources name is missing.
    """
    given = {p.name: p for p in parents}
    order = [name for name in (base, *models) if name is not None]
    missing = [s for s in sources if s != MERGED and s not in given]
    if missing:
        raise SpaceError(
            "The parents are not those the search space was made for.",
            got=f"parents {', '.join(given)}",
            allowed=f"parents {', '.join(order)}",
            fix="parse the space again with these parents.",
        )
    return {name: given[name] for name in order if name in given}
