"""A path for people: its hops in runs of neighbouring layers, in a table or a few words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from evomerge.recipe.path import Hop

_MAX_ROWS: Final = 48


class Stretch(NamedTuple):
    """Hops [start, start + length) that run neighbouring layers of one parent with one gain.

    Attributes:
        start: the first hop.
        length: how many hops.
        layer: the first hop's layer.
        parent: whose layers; None for merged ones.
        gain: of each of them.
    """

    start: int
    length: int
    layer: int
    parent: str | None
    gain: float


def stretches(hops: Sequence[Hop]) -> tuple[Stretch, ...]:
    """The path in as few stretches as hold it, in order."""
    found: list[Stretch] = []
    for k, hop in enumerate(hops):
        last = found[-1] if found else None
        if last is not None and (last.parent, last.gain, last.layer + last.length) == (hop.parent, hop.gain, hop.layer):
            found[-1] = last._replace(length=last.length + 1)
        else:
            found.append(Stretch(k, 1, hop.layer, hop.parent, hop.gain))
    return tuple(found)


def path_table(hops: Sequence[Hop]) -> list[str]:
    """The path as rows of a Markdown table, one per stretch; long paths are cut, and it is said how much is left."""
    found = stretches(hops)
    rows = [
        f"| {_span(s.start, s.length)} | {_span(s.layer, s.length)} | {_source(s.parent)} | {s.gain:g} |"
        for s in found[:_MAX_ROWS]
    ]
    left = sum(s.length for s in found[_MAX_ROWS:])
    more = [f"| {left} hops more | in the recipe | | |"] if left else []
    return ["| hops | layers | of | gain |", "|---|---|---|---|", *rows, *more]


def path_summary(hops: Sequence[Hop]) -> str:
    """How long the path is and how much of it is repeated, such as `7 hops through 4 layers, 3 repeats`."""
    distinct = len({(hop.parent, hop.layer) for hop in hops})
    repeats = len(hops) - distinct
    again = f", {repeats} {'repeat' if repeats == 1 else 'repeats'}" if repeats else ""
    return f"{_count(len(hops), 'hop')} through {_count(distinct, 'layer')}{again}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _span(first: int, length: int) -> str:
    return str(first) if length == 1 else f"{first} to {first + length - 1}"


def _source(parent: str | None) -> str:
    return "the merge" if parent is None else "`" + " ".join(parent.split()).replace("|", "\\|") + "`"
