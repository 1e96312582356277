"""The space of merges and paths together: what is merged, and which layers of the merge and of the parents run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

from evomerge.digest import digest_json
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.equivalence import the_only_parent
from evomerge.recipe.path import Hop
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.space.base import CandidateSpace, Gene
from evomerge.space.depth import DepthPlace
from evomerge.space.dimension import Value
from evomerge.space.merge_space import MergeSpace
from evomerge.space.path_plan import PathPlan
from evomerge.space.path_recipes import Composer, gives_outside, hops_of, wanted_of, without_path
from evomerge.space.path_space import Paths, refs_of
from evomerge.space.space import SearchSpace
from evomerge.space.steps import MERGED
from evomerge.types import Digest, Vector

OUTSIDE: frozenset[DepthPlace] = frozenset(("embedding", "head"))


@final
@dataclass(frozen=True)
class BothSpace(CandidateSpace):
    """Merges of the parents, and paths through the layers of the merge and of the parents.

    The genes are those of the merge, then those of the path. Genes of the merge act on what runs of it alone.

    Attributes:
        merge: what is merged.
        plan: of the paths; its sources are given and hold `merged`.
    """

    merge: MergeSpace
    plan: PathPlan

    @cached_property
    def paths(self) -> Paths:
        """The genes of the path."""
        return Paths(self.plan, self.plan.sources_of(self.merge.models, True), self.merge.n_layers)

    @property
    def starts(self) -> tuple[float, ...]:
        """See `CandidateSpace.starts`; those of the merge."""
        return self.merge.starts

    @cached_property
    def space(self) -> SearchSpace:
        """See `CandidateSpace.space`."""
        return SearchSpace((*self.merge.space.dimensions, *(g.dimension for g in self.paths.genes)))

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """See `CandidateSpace.genes`."""
        return (*self.merge.genes, *(g.gene for g in self.paths.genes))

    @cached_property
    def digest(self) -> Digest:
        """See `CandidateSpace.digest`."""
        own = {"kind": "both", "merge": self.merge.digest, "space": self.space.digest}
        return digest_json({**own, "path": self.paths.describe()})

    @property
    def runs_paths(self) -> bool:
        """See `CandidateSpace.runs_paths`."""
        return True

    @cached_property
    def hop_parents(self) -> tuple[str, ...]:
        """See `CandidateSpace.hop_parents`; hops through a merge that is one parent alone name that parent."""
        names = [s for s in self.paths.sources if s != MERGED]
        for name in (self.merge.base, *self.merge.models):
            if name is not None and self._merge_may_be(name):
                names.append(name)
        return tuple(dict.fromkeys(names))

    def _merge_may_be(self, parent: str) -> bool:
        alone = parent_recipe(ParentRef(parent, parent))
        return self.merge.encode_recipe(alone, seed=0) is not None

    def build(
        self, values: Mapping[str, Value], *, parents: tuple[ParentRef, ...], base: str | None, seed: int
    ) -> Recipe:
        """See `CandidateSpace.build`."""
        self.space.encode(values)
        runs = self.paths.runs(values)
        weights = {name: values[name] for name in self.merge.space.names}
        unused = self._unused({r.layer for r in runs if r.source == MERGED})
        merged = self.merge.build_used(weights, parents=parents, base=base, seed=seed, unused=unused)
        refs = refs_of(parents, self.merge.models, base, self.paths.sources)
        return Composer(refs, self.paths.ground.first, merged, self.merge.n_layers).recipe(runs)

    def _unused(self, layers: set[int]) -> frozenset[DepthPlace]:
        """What does not run of the merge when these layers of it do."""
        outside = frozenset[DepthPlace]() if self.paths.ground.first == MERGED else OUTSIDE
        return outside | (frozenset(range(self.merge.n_layers)) - layers)

    def encode_recipe(self, recipe: Recipe, *, seed: int) -> Vector | None:
        """See `CandidateSpace.encode_recipe`: merges, paths around a merge, paths of parents, and parents.

        Hops of a parent that the whole merge amounts to may stand for merged ones.
        """
        for merged, hops in self._readings(recipe):
            vector = self._encode(merged, hops, seed)
            if vector is not None:
                return vector
        return None

    def _readings(self, recipe: Recipe) -> Iterator[tuple[Recipe | None, tuple[tuple[tuple[str, ...], Hop], ...]]]:
        """Ways to see a recipe: the merge (None: any), and every hop with the sources that it may come from."""
        first = self.paths.ground.first
        hops = hops_of(recipe, self.merge.n_layers)
        only = the_only_parent(recipe)
        plain = without_path(recipe)
        if only is None:
            if first == MERGED or gives_outside(recipe.rules, first):
                yield plain, tuple(((h.parent or MERGED,), h) for h in hops)
            return
        ref = next(p for p in recipe.parents if p.name == only)
        if first == only:
            yield None, tuple(((h.parent or only,), h) for h in hops)
        if first in (MERGED, only):
            named = tuple((h.parent or only, h) for h in hops)
            yield parent_recipe(ref), tuple(((MERGED, n) if n == only else (n,), h) for n, h in named)

    def _encode(self, merged: Recipe | None, hops: Sequence[tuple[tuple[str, ...], Hop]], seed: int) -> Vector | None:
        wanted = tuple(w for sources, hop in hops for w in wanted_of([hop], {hop.parent: sources}))
        path = self.paths.encode(wanted, [hop.gain for _, hop in hops])
        if path is None:
            return None
        if merged is None:
            weights = self.merge.space.start
        else:
            used = {r.layer for r in self.paths.runs(path) if r.source == MERGED}
            found = self.merge.encode_used(merged, seed=seed, unused=self._unused(used))
            if found is None:
                return None
            weights = found
        return self.space.encode({**self.merge.space.decode(weights), **path})
