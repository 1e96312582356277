"""Paths as the report shows them: lanes, hops, repeats and jumps, read off recipes. Pure values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Final, NamedTuple

from evomerge.digest import digest_json
from evomerge.layout import Role, TensorInfo
from evomerge.recipe.equivalence import the_only_parent
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.serialize import recipe_to_json
from evomerge.space.path_recipes import hops_of
from evomerge.space.steps import MERGED

_OUTSIDE: Final[tuple[Role, ...]] = ("embedding", "norm", "head")


class Outside(NamedTuple):
    """Where what stands outside the layers comes from: parents' names or `merged`."""

    embeddings: str
    norm: str
    head: str


class DrawnHop(NamedTuple):
    """One hop.

    Attributes:
        lane: index into the path's lanes.
        layer: 0-based.
        gain: of what it adds to the residual stream.
        again: how often the same layer of the same lane ran before.
    """

    lane: int
    layer: int
    gain: float
    again: int


@dataclass(frozen=True)
class DrawnPath:
    """A model's path.

    Attributes:
        entry_id: whose path it is.
        lanes: sources of layers: parents in the recipe's order, then `merged`; those alone that the path runs.
        hops: in order.
        n_layers: of the architecture.
        outside: where embeddings, final norm and head come from.
        merge: tells merges apart, where something that runs is merged; else empty.
    """

    entry_id: str
    lanes: tuple[str, ...]
    hops: tuple[DrawnHop, ...]
    n_layers: int
    outside: Outside
    merge: str = ""

    @property
    def has_gains(self) -> bool:
        """Whether some hop's gain is not 1."""
        return any(h.gain != 1.0 for h in self.hops)

    @property
    def skipped(self) -> tuple[int, ...]:
        """Layers that run from no lane."""
        return tuple(sorted(set(range(self.n_layers)) - {h.layer for h in self.hops}))

    @property
    def switches(self) -> int:
        """How often the path changes its lane."""
        return sum(a.lane != b.lane for a, b in pairwise(self.hops))


def _merged_name(recipe: Recipe) -> str:
    """What the merged layers are: a parent's where the rules copy one parent."""
    return the_only_parent(recipe) or MERGED


def drawn_path(entry_id: str, recipe: Recipe, n_layers: int) -> DrawnPath:
    """The path of a recipe; the plain stack where it has none.

    Args:
        entry_id: whose recipe it is.
        recipe: of the model.
        n_layers: of the architecture.
    """
    merged = _merged_name(recipe)
    named = [(hop, hop.parent or merged) for hop in hops_of(recipe, n_layers)]
    used = {lane for _, lane in named}
    lanes = tuple(name for name in dict.fromkeys((*(p.name for p in recipe.parents), MERGED)) if name in used)
    before: Counter[tuple[str, int]] = Counter()
    hops = []
    for hop, lane in named:
        hops.append(DrawnHop(lanes.index(lane), hop.layer, hop.gain, before[(lane, hop.layer)]))
        before[(lane, hop.layer)] += 1
    outside = _outside(recipe)
    merge = _merge_digest(recipe) if MERGED in (*lanes, *outside) else ""
    return DrawnPath(entry_id, lanes, tuple(hops), n_layers, outside, merge)


def _merge_digest(recipe: Recipe) -> str:
    """Of all that decides what is merged: not the path, nor the parents, of which paths may bring their own."""
    known = recipe_to_json(replace(recipe, path=None))
    return digest_json({key: value for key, value in known.items() if key != "parents"})


def _outside(recipe: Recipe) -> Outside:
    return Outside(*(_source_of(recipe, role) for role in _OUTSIDE))


def _source_of(recipe: Recipe, role: Role) -> str:
    """The one parent that gives a role outside the layers, or `merged`."""
    tensor = TensorInfo(role, (), "F32", None, role)
    rule = next((rule for rule in recipe.rules if rule.selects(tensor)), None)
    only = None if rule is None else the_only_parent(Recipe(recipe.parents, recipe.base, (rule,), recipe.dtype))
    return only or MERGED


def _outside_sentence(outside: Outside) -> str:
    named = zip(("embeddings", "final norm", "head"), outside, strict=True)
    parts = []
    for source, group in groupby(named, key=lambda pair: pair[1]):
        names = [name for name, _ in group]
        parts.append(f"{' and '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)}: {source}")
    told = "; ".join(parts)
    return f"{told[0].upper()}{told[1:]}."


def ranges(layers: tuple[int, ...]) -> str:
    """Layer numbers for people: `3, 5 to 7`."""
    found = []
    for _, group in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0]):
        run = [layer for _, layer in group]
        found.append(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}")
    return ", ".join(found)


def path_sentence(path: DrawnPath) -> str:
    """A path in words: length, repeats, what never runs, changes of parent, and what stands outside the layers."""
    told = [f"{len(path.hops)} hops for {path.n_layers} layers"]
    for lane, name in enumerate(path.lanes):
        again = Counter(h.layer for h in path.hops if h.lane == lane and h.again)
        for more in sorted(set(again.values())):
            layers = tuple(sorted(layer for layer, n in again.items() if n == more))
            times = "twice" if more == 1 else f"{more + 1} times"
            several = len(layers) > 1
            whose = "the merge" if name == MERGED else name
            told.append(f"{whose}'s layer{'s' if several else ''} {ranges(layers)} run{'' if several else 's'} {times}")
    if path.skipped:
        several = len(path.skipped) > 1
        told.append(f"layer{'s' if several else ''} {ranges(path.skipped)} never run{'' if several else 's'}")
    if path.switches:
        told.append(f"{path.switches} change{'s' if path.switches > 1 else ''} of parent")
    return f"{'; '.join(told)}. {_outside_sentence(path.outside)}"
