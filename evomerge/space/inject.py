"""From a recipe back to the vector that makes the same model, so that good recipes are told to the optimizer exactly.

A recipe of the space's own method is read number by number. Any other is compared by what it amounts to: where the
method at hand can express the same weighted sum of parents, its weights are solved for. What the grid does not hold is
refused, never rounded, and every result is checked against the recipe at each kind of tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from evomerge.recipe.equivalence import Coefficients, linear_coefficients, number
from evomerge.recipe.method_spec import MethodSpec
from evomerge.recipe.methods import BUILTIN
from evomerge.recipe.recipe import Recipe, Rule
from evomerge.space.depth import DepthPlace, Share, Site, site_of
from evomerge.space.dimension import Dimension, Value, holds
from evomerge.space.dimensions import DECIMALS
from evomerge.space.knots import Between, solve_knots
from evomerge.space.plan import METHOD_SLOT, Slot
from evomerge.types import Vector

if TYPE_CHECKING:
    from evomerge.space.merge_space import MergeSpace

TOLERANCE: Final = 1e-9

Numbers = dict[Slot, Value]

_PLAIN_SUMS: Final = ("task_arithmetic", "linear")
"""Methods by which any weighted sum can be said; of a space that chooses, the first of them is used."""


class Origin(NamedTuple):
    """Whose rule it is: what names in it refer to.

    Attributes:
        base: the recipe's base.
        parents: names of its parents, in order.
    """

    base: str | None
    parents: tuple[str, ...]


Reader = Callable[["MergeSpace", Rule, Origin], "Numbers | None"]


def encode_recipe(
    space: MergeSpace, recipe: Recipe, *, seed: int, unused: frozenset[DepthPlace] = frozenset()
) -> Vector | None:
    """See `CandidateSpace.encode_recipe`.

    Args:
        space: of merges.
        recipe: without a path.
        seed: as in `build`.
        unused: places whose tensors do not matter.
    """
    if recipe.compat != "off" or recipe.dtype != "parent" or recipe.path is not None or recipe.chat_template:
        return None
    rules = _rules_by_site(space, recipe, unused)
    if rules is None:
        return None
    scales: tuple[Ratio, ...] = ("one", "equal", "largest")
    readers: list[Reader] = [_own_numbers, *(_Sum(n, s).read for n in (True, False) for s in scales)]
    origin = Origin(recipe.base, tuple(p.name for p in recipe.parents))
    drawn = {m.name for m in space.choices or (space.method,) if m.random}
    same_masks = seed == recipe.seed or not any(rule.method in drawn for rule in recipe.rules)
    for reader in readers:
        vector = _try(space, rules, origin, reader)
        if vector is not None and _is_same(space, rules, origin, vector, same_masks):
            return vector
    return None


def _rules_by_site(space: MergeSpace, recipe: Recipe, unused: frozenset[DepthPlace]) -> dict[Site, Rule] | None:
    """The rule that decides each site that matters; None when several rules decide tensors of one, or none does."""
    found: dict[Site, Rule] = {}
    for tensor in space.layout.tensors:
        site = site_of(tensor)
        if site.place in unused:
            continue
        selected = next((rule for rule in recipe.rules if rule.selects(tensor)), None)
        if selected is None or found.setdefault(site, selected) is not selected:
            return None
    return found


def _try(space: MergeSpace, rules: Mapping[Site, Rule], origin: Origin, reader: Reader) -> Vector | None:
    """The vector of the numbers that are read; None when the grid does not hold one."""
    read: dict[Site, Numbers] = {}
    for site, rule in rules.items():
        numbers = reader(space, rule, origin)
        if numbers is None:
            return None
        read[site] = numbers
    values: dict[str, Value] = {}
    for chain in _chains(space, read):
        found = _chain_values(chain)
        if found is None:
            return None
        values |= found
    return space.space.encode(values)


def _harmless(dimension: Dimension) -> Value:
    """A value for a number that does not matter (the density of a parent without weight)."""
    return 1.0 if holds(dimension, 1.0) else dimension.start_value


class _Said(NamedTuple):
    """A number that a rule says.

    Attributes:
        shares: the genes that make it, one or two neighbours.
        value: the number.
    """

    shares: tuple[Share, ...]
    value: Value


@dataclass(frozen=True)
class _Chain:
    """Genes that are control points of one curve over depth, in order; or one gene alone.

    Attributes:
        dimensions: of the genes.
        said: the numbers that they make, in the order of depth.
    """

    dimensions: tuple[Dimension, ...]
    said: tuple[_Said, ...]


def _chains(space: MergeSpace, read: Mapping[Site, Numbers]) -> list[_Chain]:
    """Every gene of the space in one chain, with what the rules say about it."""
    dimensions = {d.name: d for d in space.space.dimensions}
    said: dict[str, list[_Said]] = {name: [] for name in dimensions}
    next_of: dict[str, str] = {}
    for site in space.sites:
        for slot, shares in space.controls(site):
            if len(shares) == 2:
                next_of[shares[0].control] = shares[1].control
            if slot in read.get(site, {}):
                said[shares[0].control].append(_Said(shares, read[site][slot]))
    found = []
    for name in dimensions.keys() - next_of.values():
        names = [name]
        while names[-1] in next_of:
            names.append(next_of[names[-1]])
        found.append(_Chain(tuple(dimensions[n] for n in names), tuple(s for n in names for s in said[n])))
    return found


def _chain_values(chain: _Chain) -> dict[str, Value] | None:
    """The genes' values; None when the grid does not hold what is said."""
    first = chain.dimensions[0]
    if not all(holds(first, said.value) for said in chain.said):
        return None
    if len(chain.dimensions) == 1:
        return {first.name: chain.said[0].value if chain.said else _harmless(first)}
    order = {d.name: k for k, d in enumerate(chain.dimensions)}
    fixed: dict[int, int] = {}
    between: dict[int, list[Between]] = {}
    guesses: dict[int, tuple[float, int]] = {}
    for shares, value in chain.said:
        index = first.index_of(value)
        for name, part in shares:
            guesses[order[name]] = max(guesses.get(order[name], (0.0, 0)), (part, index))
        k = order[shares[0].control]
        if len(shares) == 1:
            fixed[k] = index
        else:
            between.setdefault(k, []).append(Between(shares[0].part, shares[1].part, index))
    harmless = first.index_of(_harmless(first))
    wished = [guesses.get(k, (0.0, harmless))[1] for k in order.values()]
    solved = solve_knots(first, wished, fixed, between) or wished
    return {d.name: d.value_at(i) for d, i in zip(chain.dimensions, solved, strict=True)}


def _own_numbers(space: MergeSpace, rule: Rule, origin: Origin) -> Numbers | None:
    """The numbers of a rule of the space's own method; those that do not matter are left out.

    None for another method, another base, other slerp ends, or a say of a parent that the space does not merge.
    """
    method = next((m for m in space.choices or (space.method,) if m.name == rule.method), None)
    if method is None or (method.base_of(space.base) is not None and origin.base != space.base):
        return None
    if rule.method not in BUILTIN:
        return _plugin_numbers(space, rule)
    if rule.method == "slerp" and origin.parents != space.models:
        return None
    numbers: Numbers = {METHOD_SLOT: method.name} if space.choices else {}
    numbers |= {Slot(name, None): number(rule, name) for name in method.shared()}
    for parent in {*rule.per_parent, *space.models}:
        weight = number(rule, "weight", parent) if "weight" in method.parameters else 0.0
        if weight != 0.0 and parent not in space.models:
            return None
        for name in method.per_parent():
            if parent in space.models and (name == "weight" or weight != 0.0):
                numbers[Slot(name, parent)] = number(rule, name, parent)
    return numbers


def _plugin_numbers(space: MergeSpace, rule: Rule) -> Numbers | None:
    """A plug-in's numbers, as they stand; every parent must be named."""
    if set(rule.per_parent) != set(space.models if space.method.per_parent() else ()):
        return None
    numbers: Numbers = {Slot(name, None): value for name, value in rule.shared.items()}
    return numbers | {Slot(k, p): v for p, values in rule.per_parent.items() for k, v in values.items()}


Ratio = Literal["one", "equal", "largest"]


@dataclass(frozen=True)
class _Sum:
    """Solves for the weights of a weighted sum.

    Attributes:
        normalised: with `normalize` on.
        scale: normalised weights count by their ratios only, so there are several to try: the coefficients themselves,
            multiplied so that equal ones become 1, or so that the largest becomes 1.
    """

    normalised: bool
    scale: Ratio

    def read(self, space: MergeSpace, rule: Rule, origin: Origin) -> Numbers | None:
        """The numbers of the space's method that may make the same sum; None when none do."""
        sums = linear_coefficients(rule, origin.base, origin.parents)
        method = next((m for m in space.choices if m.name in _PLAIN_SUMS), space.method)
        if sums is None or method.name not in BUILTIN:
            return None
        if method.name == "slerp":
            ends = [i for i, model in enumerate(space.models) if dict(sums) == {model: 1.0}]
            return {Slot("t", None): float(ends[0])} if ends else None
        read = self._weights(space, method, {p: c for p, c in sums.items() if p != space.base or p in space.models})
        return {**read, METHOD_SLOT: method.name} if space.choices else read

    def _weights(self, space: MergeSpace, method: MethodSpec, sums: Coefficients) -> Numbers:
        parameters = method.parameters
        strength = _strength(space)
        numbers: Numbers = {Slot("normalize", None): self.normalised, Slot("lambda", None): strength}
        factor = self._factor(sums) / strength
        if method.name == "universal":  # a weighted sum is its neutral corner, not whatever the grid holds
            numbers |= {Slot(n, None): 0.0 for n in ("election", "sharpness", "norm")}
            numbers |= {Slot(n, m): 0.0 for n in ("dropout", "epsilon") for m in space.models}
        for model in space.models:
            weight = round(sums.get(model, 0.0) * factor, DECIMALS) + 0.0
            numbers[Slot("weight", model)] = weight
            if weight != 0.0:
                numbers[Slot("density", model)] = 1.0
        return {slot: value for slot, value in numbers.items() if slot.parameter in parameters}

    def _factor(self, sums: Coefficients) -> float:
        if not self.normalised or not sums or self.scale == "one":
            return 1.0
        return len(sums) if self.scale == "equal" else 1.0 / max(abs(c) for c in sums.values())


def _strength(space: MergeSpace) -> float:
    """What lambda is fixed to; 1 where it is searched or unknown."""
    fixed = [p.fixed for p in space.plans if p.name == "lambda"]
    return float(fixed[0]) if fixed and fixed[0] else 1.0


def _is_same(space: MergeSpace, rules: Mapping[Site, Rule], origin: Origin, vector: Vector, same_masks: bool) -> bool:
    """Whether the vector makes the recipe's model: at every site the same weighted sum, or the same numbers."""
    own = Origin(space.base, space.models)
    assigned = space.assignments(space.space.decode(vector))
    for site in rules:
        rule = assigned[site].rule(space.method.name)
        mine = linear_coefficients(rule, own.base, own.parents)
        theirs = linear_coefficients(rules[site], origin.base, origin.parents)
        if mine is not None and theirs is not None:
            if not all(abs(mine.get(p, 0.0) - theirs.get(p, 0.0)) <= TOLERANCE for p in {*mine, *theirs}):
                return False
        elif not same_masks or _own_numbers(space, rule, own) != (_own_numbers(space, rules[site], origin) or {}):
            return False
    return True
