"""How a parameter varies over depth and over modules: which controls govern which tensors, and by how much.

Tensors are sorted into *sites*: a place in depth (the embedding, a layer, the head) and a module. What stands outside
the layers is the embedding or, together with the final norm, the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from evomerge.layout import ROLES, Layout, Role, TensorInfo

DepthPlace = int | Literal["embedding", "head"]
Module = Role

MODULES: Final[tuple[Module, ...]] = ROLES


class Site(NamedTuple):
    """All tensors of one module at one place.

    Attributes:
        place: a layer's index, or `embedding` or `head` outside the layers.
        module: the role of the tensors; outside the layers `embedding` or `head`.
    """

    place: DepthPlace
    module: Module


def site_of(tensor: TensorInfo) -> Site:
    """Where a tensor belongs."""
    if tensor.layer is not None:
        return Site(tensor.layer, tensor.role)
    return Site("embedding", "embedding") if tensor.role == "embedding" else Site("head", "head")


def sites_of(layout: Layout) -> tuple[Site, ...]:
    """The sites of an architecture: embedding, layers from the first to the last (modules in `ROLES` order), head."""
    rank = {"embedding": -1, "head": layout.n_layers}

    def order(site: Site) -> tuple[int, int]:
        place = site.place if isinstance(site.place, int) else rank[site.place]
        return place, MODULES.index(site.module)

    return tuple(sorted({site_of(t) for t in layout.tensors}, key=order))


class Share(NamedTuple):
    """A control's part in a value.

    Attributes:
        control: the control's name.
        part: between 0 (excluded) and 1; the parts of one value sum to 1.
    """

    control: str
    part: float


DepthKind = Literal["model", "each", "knots", "blocks"]


@dataclass(frozen=True)
class Depth:
    """How many controls there are over depth, and what each governs.

    Attributes:
        kind: `model` one control for everything; `each` one per layer, one for the embedding, one for the head;
            `knots` control points from the first layer to the last, linear between them; `blocks` layers in equal runs.
            With knots and blocks, the embedding takes the first control and the head the last.
        count: how many knots or blocks; never more are made than there are layers.
    """

    kind: DepthKind
    count: int = 1

    def shares(self, place: DepthPlace, n_layers: int) -> tuple[Share, ...]:
        """Which controls make the value at `place`, in a model of `n_layers` layers."""
        if self.kind == "model":
            return (Share("model", 1.0),)
        if self.kind == "each":
            return (Share(f"layer{place}" if isinstance(place, int) else place, 1.0),)
        count = max(1, min(self.count, n_layers))
        if self.kind == "blocks":
            block = place * count // n_layers if isinstance(place, int) else 0 if place == "embedding" else count - 1
            return (Share(f"block{block}", 1.0),)
        return _between_knots(place, n_layers, count)

    def describe(self) -> str:
        """For digests and messages."""
        return f"{self.kind} {self.count}" if self.kind in ("knots", "blocks") else self.kind


EVERYWHERE: Final = Depth("model")


def _between_knots(place: DepthPlace, n_layers: int, count: int) -> tuple[Share, ...]:
    """Linear interpolation; knot j stands at depth j / (count - 1), layer i at i / (n_layers - 1)."""
    if count == 1 or place == "embedding":
        return (Share("knot0", 1.0),)
    if isinstance(place, str):  # the head
        return (Share(f"knot{count - 1}", 1.0),)
    left, rest = divmod(place * (count - 1), n_layers - 1)
    part = rest / (n_layers - 1)
    if rest == 0:
        return (Share(f"knot{left}", 1.0),)
    return (Share(f"knot{left}", 1.0 - part), Share(f"knot{left + 1}", part))


Groups = tuple[tuple[Module, ...], ...]
"""Modules that share their genes; empty means that all of them do."""


def group_label(groups: Groups, module: Module) -> str:
    """The name of the group of a module; empty when all modules are together."""
    for group in groups:
        if module in group:
            return "+".join(group)
    return ""
