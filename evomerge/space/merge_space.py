"""The space of merges: genes over parents, depth and modules, and the recipes they stand for.

The method is one for all, or itself a gene for each group of layers and modules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

from evomerge.digest import digest_json
from evomerge.errors import SpaceError
from evomerge.layout import Layout
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.equivalence import the_only_parent
from evomerge.recipe.method_spec import MethodSpec
from evomerge.recipe.methods import BUILTIN
from evomerge.recipe.recipe import Number, ParentRef, Recipe
from evomerge.recipe.rules import Assignment, Kind, kinds_of, rules_of
from evomerge.space.base import CandidateSpace, Gene
from evomerge.space.depth import DepthPlace, Share, Site, group_label, site_of, sites_of
from evomerge.space.dimension import Dimension, Value, decode
from evomerge.space.inject import encode_recipe
from evomerge.space.plan import METHOD_SLOT, ParameterPlan, Slot, as_number, gene_name
from evomerge.space.space import SearchSpace
from evomerge.types import Digest, Vector


@final
@dataclass(frozen=True)
class MergeSpace(CandidateSpace):
    """Merges of fixed parents, with one method or several to choose among.

    Attributes:
        method: what the method asks for; of a space that chooses among methods what they ask for together.
        models: names of the merged parents, in order.
        base: name of the parent that deltas are taken from; None for methods without one.
        layout: of the architecture; only layers and roles matter.
        plans: one per parameter of the method, in the method's order.
        strengths: of the task-arithmetic recipes in generation 0.
        choices: the methods that a gene named `method` chooses among; empty for one method.
    """

    method: MethodSpec
    models: tuple[str, ...]
    base: str | None
    layout: Layout
    plans: tuple[ParameterPlan, ...]
    strengths: tuple[float, ...] = ()
    choices: tuple[MethodSpec, ...] = ()

    @property
    def n_layers(self) -> int:
        """Of the architecture."""
        return self.layout.n_layers

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The kinds of tensors that the architecture has."""
        return sites_of(self.layout)

    @cached_property
    def kinds(self) -> dict[Kind, Site]:
        """What rules can tell apart, and the site of each, in the order of `kinds_of`."""
        sites = {Kind(t.layer, t.role): site_of(t) for t in self.layout.tensors}
        return {kind: sites[kind] for kind in kinds_of(self.layout)}

    @cached_property
    def _plans_of(self) -> dict[str, dict[str, ParameterPlan]]:
        """Method -> parameter -> its plan; what a space of several methods does not say has the method's default."""
        said = {plan.name: plan for plan in self.plans}
        return {
            m.name: {n: said.get(n) or ParameterPlan(n, p.per_parent, fixed=p.default) for n, p in m.parameters.items()}
            for m in self.choices or (self.method,)
        }

    @property
    def starts(self) -> tuple[float, ...]:
        """See `CandidateSpace.starts`."""
        return self.strengths

    @cached_property
    def space(self) -> SearchSpace:
        """See `CandidateSpace.space`."""
        searched = {p.name: p.searched for p in self.plans if p.searched is not None}
        return SearchSpace(tuple(replace(searched[gene.parameter], name=gene.name) for gene in self.genes))

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """See `CandidateSpace.genes`; ordered by parameter, depth, module, parent."""
        found: dict[str, Gene] = {}
        for plan in self.plans:
            if plan.searched is None:
                continue
            for site in self.sites:
                module = group_label(plan.groups, site.module)
                for share in plan.depth.shares(site.place, self.n_layers):
                    for slot in self._slots(plan):
                        name = gene_name(slot, share.control, module)
                        gene = Gene(name, slot.parameter, slot.parent, share.control, module)
                        found.setdefault(name, gene)
        return tuple(found.values())

    def _slots(self, plan: ParameterPlan) -> tuple[Slot, ...]:
        return tuple(Slot(plan.name, m) for m in self.models) if plan.per_parent else (Slot(plan.name, None),)

    def controls(self, site: Site) -> Iterator[tuple[Slot, tuple[Share, ...]]]:
        """For every searched number of a site, the genes (by name) that make it, with their parts."""
        for plan in self.plans:
            if plan.searched is not None:
                module = group_label(plan.groups, site.module)
                shares = plan.depth.shares(site.place, self.n_layers)
                for slot in self._slots(plan):
                    yield slot, tuple(Share(gene_name(slot, s.control, module), s.part) for s in shares)

    @cached_property
    def digest(self) -> Digest:
        """See `CandidateSpace.digest`."""
        plans = [
            {"parameter": p.name, "fixed": p.fixed, "depth": p.depth.describe(), "groups": p.groups} for p in self.plans
        ]
        who: dict[str, object] = {
            "method": self.method.name,
            "models": self.models,
            "base": self.base,
            "n_layers": self.n_layers,
        }
        return digest_json({**who, "sites": [list(s) for s in self.sites], "plans": plans, "space": self.space.digest})

    def assignments(self, values: Mapping[str, Value]) -> dict[Site, Assignment]:
        """The method's parameters at every site.

        Raises:
            SpaceError: when the values are not those of this space.
        """
        genes = dict(zip(self.space.names, map(float, self.space.encode(values)), strict=True))
        dimensions = {d.name: d for d in self.space.dimensions}
        known: dict[tuple[Share, ...], Value] = {}
        result = {}
        for site in self.sites:
            numbers: dict[Slot, Number] = {}
            method = self.method
            for slot, shares in self.controls(site):
                if shares not in known:
                    known[shares] = self._mix(shares, genes, dimensions, values)
                if slot == METHOD_SLOT:
                    method = next(m for m in self.choices if m.name == known[shares])
                else:
                    numbers[slot] = as_number(known[shares])
            result[site] = self._assignment(method, numbers)
        return result

    @staticmethod
    def _mix(
        shares: tuple[Share, ...],
        genes: Mapping[str, float],
        dimensions: Mapping[str, Dimension],
        values: Mapping[str, Value],
    ) -> Value:
        if len(shares) == 1:
            return values[shares[0].control]
        gene = sum(s.part * genes[s.control] for s in shares)
        return decode(dimensions[shares[0].control], min(1.0, gene))

    def _assignment(self, method: MethodSpec, numbers: Mapping[Slot, Number]) -> Assignment:
        """Searched numbers and fixed ones together, complete; of several methods each with its own defaults."""
        shared: dict[str, Number] = {}
        per_parent: dict[str, dict[str, Number]] = {m: {} for m in self.models}
        for name in method.parameters:
            plan = self._plans_of[method.name][name]
            for slot in self._slots(plan):
                target = shared if slot.parent is None else per_parent[slot.parent]
                target[name] = numbers[slot] if plan.fixed is None else plan.fixed
        if method.name in BUILTIN:
            self._forget_what_does_not_matter(method, per_parent)
        if method.name == "linear" and shared["normalize"]:
            self._avoid_zero_sum(per_parent)
        if method.name in ("della", "della_linear"):
            self._keep_probabilities_possible(per_parent)
        return Assignment.of(shared, per_parent, method.name if self.choices else "")

    @staticmethod
    def _forget_what_does_not_matter(method: MethodSpec, per_parent: Mapping[str, dict[str, Number]]) -> None:
        """A model without weight changes nothing, whatever its density: such merges are one recipe."""
        for values in per_parent.values():
            if values.get("weight") == 0.0:
                values |= {n: d for n in values if (d := method.parameters[n].default) is not None}

    @staticmethod
    def _keep_probabilities_possible(per_parent: Mapping[str, dict[str, Number]]) -> None:
        """Probabilities spread around the density must stay between 0 and 1; a wider spread means the widest."""
        for values in per_parent.values():
            density = float(values["density"])
            if density < 1.0:
                widest = math.floor(990 * min(density, 1.0 - density)) / 1000
                values["epsilon"] = min(float(values["epsilon"]), widest)

    @staticmethod
    def _avoid_zero_sum(per_parent: Mapping[str, dict[str, Number]]) -> None:
        """Weights that cancel cannot be normalised; they mean the uniform average, so that every vector is legal."""
        if abs(sum(float(v["weight"]) for v in per_parent.values())) < 1e-8:
            for values in per_parent.values():
                values["weight"] = 1.0

    def build(
        self, values: Mapping[str, Value], *, parents: tuple[ParentRef, ...], base: str | None, seed: int
    ) -> Recipe:
        """See `CandidateSpace.build`.

        The recipe names the base first, then the models in the space's order. Values that amount to one parent make
        that parent's own recipe, so that it is scored once.
        """
        return self.build_used(values, parents=parents, base=base, seed=seed)

    def build_used(
        self,
        values: Mapping[str, Value],
        *,
        parents: tuple[ParentRef, ...],
        base: str | None,
        seed: int,
        unused: frozenset[DepthPlace] = frozenset(),
    ) -> Recipe:
        """As `build`, for a model that runs only some of the merge; the genes of the rest do not matter.

        Args:
            values: as in `build`.
            parents: as in `build`.
            base: as in `build`.
            seed: as in `build`.
            unused: places that do not run; they are merged as the nearest place that does (of two, the earlier).
        """
        refs = self._refs(parents, base)
        assigned = self.assignments(values)
        stands_in = self._stand_ins(unused)
        rules = rules_of(self.method.name, {k: assigned[stands_in[site]] for k, site in self.kinds.items()})
        drawn = {m.name for m in self.choices or (self.method,) if m.random}
        recipe = Recipe(
            parents=tuple(refs.values()),
            base=self.base,
            rules=rules,
            seed=seed if any(rule.method in drawn for rule in rules) else 0,
        )
        only = the_only_parent(recipe)
        return recipe if only is None else parent_recipe(refs[only])

    def _stand_ins(self, unused: frozenset[DepthPlace]) -> dict[Site, Site]:
        """Every site -> the one whose numbers it takes: itself when it runs."""
        used = [site for site in self.sites if site.place not in unused]
        if not unused or not used:
            return {site: site for site in self.sites}
        depth = {"embedding": -1, "head": self.n_layers}

        def far(site: Site, other: Site) -> tuple[int, bool, int]:
            a, b = (s.place if isinstance(s.place, int) else depth[s.place] for s in (site, other))
            return abs(a - b), site.module != other.module, b

        return {s: s if s.place not in unused else min(used, key=lambda other: far(s, other)) for s in self.sites}

    def _refs(self, parents: tuple[ParentRef, ...], base: str | None) -> dict[str, ParentRef]:
        """The recipe's parents by name: base first, models in order."""
        given = {p.name: p for p in parents}
        wanted = ([self.base] if self.base is not None else []) + list(self.models)
        missing = [name for name in wanted if name not in given]
        if missing or (self.base is not None and base != self.base):
            raise SpaceError(
                "The parents are not those the search space was made for.",
                got=f"parents {', '.join(given)}; base {base}",
                allowed=f"parents {', '.join(wanted)}; base {self.base}",
                fix="parse the space again with these parents.",
            )
        return {name: given[name] for name in wanted}

    def encode_recipe(self, recipe: Recipe, *, seed: int) -> Vector | None:
        """See `CandidateSpace.encode_recipe`."""
        return encode_recipe(self, recipe, seed=seed)

    def encode_used(self, recipe: Recipe, *, seed: int, unused: frozenset[DepthPlace]) -> Vector | None:
        """The vector whose recipe makes the same merge wherever it runs; see `build_used`."""
        return encode_recipe(self, recipe, seed=seed, unused=unused)
