"""Repeat windows among the paths of a search: which layers ran again, or not at all, and what that scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from evomerge.report.path_values import DrawnPath, Outside

_FEWEST: Final = 3
"""Windows that are worth a drawing."""


class Window(NamedTuple):
    """One window in an otherwise plain stack: layers `start .. end` run `times` times, 0 leaves them out."""

    source: str
    start: int
    end: int
    times: int


class WindowScore(NamedTuple):
    """The best score of a window, and whose it is."""

    value: float
    entry_id: str


@dataclass(frozen=True)
class WindowMap:
    """What windows scored on the search set, in one objective.

    Attributes:
        objective: its name.
        maximize: whether more is better.
        source: whose layers run; one parent's, or those of one and the same merge.
        n_layers: of the architecture.
        reference: the best score of the source without a window; None where it was not scored.
        scores: (start, end, times) -> best score.
        n_others: paths that are no single window of this source, other merges' windows among them.
    """

    objective: str
    maximize: bool
    source: str
    n_layers: int
    reference: float | None
    scores: Mapping[tuple[int, int, int], WindowScore]
    n_others: int = 0

    @property
    def best(self) -> tuple[tuple[int, int, int], WindowScore]:
        """The best window and its score; of equals the first."""
        sign = -1 if self.maximize else 1
        return min(self.scores.items(), key=lambda pair: (sign * pair[1].value, pair[0]))


def window_of(path: DrawnPath) -> Window | None:
    """The one window that makes a path out of a plain stack; None for the stack itself and for any other path.

    All hops come from one source, with gains of 1.
    """
    if len(path.lanes) > 1 or path.has_gains:
        return None
    layers, n = [h.layer for h in path.hops], path.n_layers
    extra = len(layers) - n
    (source,) = path.lanes
    if extra < 0:
        start = next((k for k, layer in enumerate(layers) if layer != k), len(layers))
        end = start - extra - 1
        return Window(source, start, end, 0) if layers == [*range(start), *range(end + 1, n)] else None
    end = next((k for k, layer in enumerate(layers[:-1]) if layers[k + 1] != layer + 1), n - 1)
    if extra == 0 or layers[0] != 0 or end + 1 >= len(layers):
        return None
    start = layers[end + 1]
    width = end - start + 1
    if width < 1 or extra % width:
        return None
    again = extra // width
    rebuilt = [*range(end + 1), *list(range(start, end + 1)) * again, *range(end + 1, n)]
    return Window(source, start, end, again + 1) if layers == rebuilt else None


def window_map(objective: str, *, maximize: bool, models: Iterable[tuple[DrawnPath, float]]) -> WindowMap | None:
    """The windows among a search's models; None where windows are not what it searched.

    Args:
        objective: name of what the values are of.
        maximize: whether more is better.
        models: paths with their values on the search set, plain stacks among them.

    The map is that of one source: of the parent, or of the merge, that has the most windows.
    """
    best = max if maximize else min
    plain: dict[_Source, list[float]] = {}
    windows: dict[_Source, list[tuple[Window, WindowScore]]] = {}
    n_paths = 0
    for path, value in models:
        if _is_plain(path):
            plain.setdefault(_source_of(path), []).append(value)
            continue
        n_paths += 1
        window = window_of(path)
        if window is not None:
            windows.setdefault(_source_of(path), []).append((window, WindowScore(value, path.entry_id)))
    if 2 * sum(map(len, windows.values())) < n_paths:
        return None
    source = max(windows, key=lambda s: len({w for w, _ in windows[s]}), default=None)
    if source is None or len({w for w, _ in windows[source]}) < _FEWEST:
        return None
    scores: dict[tuple[int, int, int], WindowScore] = {}
    for w, score in windows[source]:
        key = (w.start, w.end, w.times)
        scores[key] = best(scores.get(key, score), score, key=lambda s: s.value)
    reference = best(plain[source]) if source in plain else None
    n_others = n_paths - len(windows[source])
    return WindowMap(objective, maximize, source.lane, source.n_layers, reference, scores, n_others)


class _Source(NamedTuple):
    """What a cell of a map has in common: whose layers run, where the rest comes from, and which merge it is."""

    lane: str
    outside: Outside
    merge: str
    n_layers: int


def _source_of(path: DrawnPath) -> _Source:
    return _Source(path.lanes[0], path.outside, path.merge, path.n_layers)


def _is_plain(path: DrawnPath) -> bool:
    return len(path.lanes) == 1 and not path.has_gains and [h.layer for h in path.hops] == list(range(path.n_layers))
