"""Repeat windows: runs of one model's layers that are run again, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple, final

from evomerge.space.base import Gene
from evomerge.space.dimension import Value
from evomerge.space.dimensions import Choice, Integer
from evomerge.space.steps import Genotype, Ground, PathGene, Step, StepPlace, Wanted

ANY: Final = "any"


class Window(NamedTuple):
    """One window, in order and cut to what it does.

    Attributes:
        start: its first layer.
        end: its last layer.
        times: how often it runs.
        source: whose layers run from the second time on.
    """

    start: int
    end: int
    times: int
    source: str


@final
@dataclass(frozen=True)
class Windows(Genotype):
    """Windows over A's layers, disjoint by construction.

    A window runs A's layers `start .. end` in order, `times` times: 0 leaves them out, 1 is as it is; the runs behind
    the first may take another source's layers. Windows with times 1 are passed over; the others are taken in the order
    of their starts (equal starts: in the order of the genes), and a window that starts inside an earlier one begins
    behind it, which leaves nothing of it when it ends there too. Runs for which `max_hops` has no room are left out.
    When every layer is left out, A's plain stack runs. Fixed ends lie in no window.

    Attributes:
        ground: sources and limits.
        count: number of windows, >= 1.
        max_times: largest value of times, >= 2.
        source: whose layers the runs behind the first take; `any` searches it.
    """

    ground: Ground
    count: int
    max_times: int
    source: str

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(f"window{w + 1}" for w in range(self.count)) if self.count > 1 else ("window",)

    @property
    def _choosing(self) -> bool:
        return self.source == ANY and len(self.ground.sources) > 1

    @cached_property
    def genes(self) -> tuple[PathGene, ...]:
        """See `Genotype.genes`; windows start side by side, each with times 1."""
        inner = self.ground.inner
        found = []
        for w, name in enumerate(self._names):
            low, high = w * len(inner) // self.count, (w + 1) * len(inner) // self.count
            parts: list[Integer | Choice] = [
                Integer(f"{name}.start", inner[0], inner[-1], inner[low]),
                Integer(f"{name}.end", inner[0], inner[-1], inner[max(low, high - 1)]),
                Integer(f"{name}.times", 0, self.max_times, 1),
            ]
            if self._choosing:
                parts.append(Choice(f"{name}.from", self.ground.sources, self.ground.first))
            for part in parts:
                gene = Gene(part.name, part.name.rsplit(".", 1)[1], None, name, "")
                found.append(PathGene(gene, part))
        return tuple(found)

    @property
    def places(self) -> tuple[StepPlace, ...]:
        """See `Genotype.places`: every layer, and every further run of it."""
        again = range(1, self.max_times)
        ends = self.ground.end_places
        first = [StepPlace(f"layer{i}", self.ground.first, f"layer{i}") for i in self.ground.inner]
        source = None if self._choosing else self._extra_source({}, "")
        more = [StepPlace(f"layer{i}.again{k}", source, f"layer{i}") for k in again for i in self.ground.inner]
        return (*first, *more, *ends)

    def _extra_source(self, values: Mapping[str, Value], name: str) -> str:
        if self._choosing:
            return str(values[f"{name}.from"])
        return self.ground.first if self.source == ANY else self.source

    def _windows(self, values: Mapping[str, Value]) -> list[Window]:
        """The windows that act: in order, disjoint, cut to what they do."""
        wished = []
        for name in self._names:
            i, j = int(values[f"{name}.start"]), int(values[f"{name}.end"])
            times = int(values[f"{name}.times"])
            if times != 1:
                wished.append(Window(min(i, j), max(i, j), times, self._extra_source(values, name)))
        found: list[Window] = []
        free = 0
        for window in sorted(wished, key=lambda w: w.start):
            if window.end >= free:
                found.append(window._replace(start=max(window.start, free)))
                free = window.end + 1
        return found

    def steps(self, values: Mapping[str, Value]) -> tuple[Step, ...]:
        """See `Genotype.steps`."""
        windows = self._windows(values)
        left_out = {i for w in windows if w.times == 0 for i in range(w.start, w.end + 1)}
        room = self.ground.max_hops - self.ground.n_layers + len(left_out)
        found: list[Step] = []
        ends_at = {w.end: w for w in windows if w.times > 1}
        for i in self.ground.inner:
            if i not in left_out:
                found.append(Step(self.ground.first, i, f"layer{i}"))
            window = ends_at.get(i)
            if window is not None:
                layers = range(window.start, window.end + 1)
                runs = min(window.times - 1, room // len(layers))
                room -= runs * len(layers)
                found += [Step(window.source, n, f"layer{n}.again{k + 1}") for k in range(runs) for n in layers]
        return self.ground.with_ends(found)

    def encode(self, wanted: Sequence[Wanted]) -> dict[str, Value] | None:
        """See `Genotype.encode`; of several ways, one with the fewest windows."""
        inside = self.ground.wanted_inside(wanted)
        windows = None if inside is None else self._fewest(inside)
        if windows is None or len(windows) > self.count:
            return None
        values = {g.dimension.name: g.dimension.start_value for g in self.genes}
        for name, window in zip(self._names, windows, strict=False):
            values |= {f"{name}.start": window.start, f"{name}.end": window.end, f"{name}.times": window.times}
            if self._choosing:
                values[f"{name}.from"] = window.source
        return values

    def _fewest(self, inside: Sequence[Wanted]) -> list[Window] | None:
        """The fewest windows that make the path; None when none do.

        Layers are taken in order; `best[p]` are the windows that explain the first p hops by the layers so far.
        """
        inner = self.ground.inner
        at: dict[int, dict[int, list[Window]]] = {inner[0]: {0: []}}
        for i in inner:
            for p, windows in at.pop(i, {}).items():
                for end, hops, window in self._moves(inside, i, p):
                    there = at.setdefault(end, {})
                    longer = windows if window is None else [*windows, window]
                    if p + hops not in there or len(longer) < len(there[p + hops]):
                        there[p + hops] = longer
        return at.get(inner[-1] + 1, {}).get(len(inside))

    def _moves(self, inside: Sequence[Wanted], i: int, p: int) -> list[tuple[int, int, Window | None]]:
        """From layer i and hop p: (the next layer, hops taken, by which window)."""
        first, last = self.ground.first, self.ground.inner[-1]
        moves: list[tuple[int, int, Window | None]] = []
        for j in range(i, last + 1):
            moves.append((j + 1, 0, Window(i, j, 0, first)))
        width = 0
        while i + width <= last and _runs(inside, p + width, i + width, 1, first):
            width += 1
            if width == 1:
                moves.append((i + 1, 1, None))
            for source in self.ground.sources if self._choosing else (self._extra_source({}, ""),):
                times = 1
                while times < self.max_times and _runs(inside, p + times * width, i, width, source):
                    times += 1
                    moves.append((i + width, times * width, Window(i, i + width - 1, times, source)))
        return moves

    def describe(self) -> Mapping[str, Any]:
        """See `Genotype.describe`."""
        return {"genotype": "windows", "windows": self.count, "times": self.max_times, "from": self.source}


def _runs(inside: Sequence[Wanted], p: int, layer: int, width: int, source: str) -> bool:
    """Whether the hops from p on are a source's layers `layer .. layer + width - 1`."""
    hops = inside[p : p + width]
    return len(hops) == width and all(source in h.sources and h.layer == layer + k for k, h in enumerate(hops))
