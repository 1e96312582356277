"""Repeat windows among the paths of a search: which layers ran again, or not at all, and what that scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from evomerge.report.path_values import DrawnPath

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
        source: whose layers run.
        n_layers: of the architecture.
        reference: the score of the source without a window; None where it was not scored.
        scores: (start, end, times) -> best score.
        n_others: paths that are no single window of this source.
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
    """The one window that makes a path out of a plain stack; None for the stack itself and for any other path."""
    layers, n = [h.layer for h in path.hops], path.n_layers
    extra = len(layers) - n
    source = path.lanes[path.hops[0].lane]
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


def window_map(
    objective: str, *, maximize: bool, models: Iterable[tuple[DrawnPath, float]], references: Mapping[str, float]
) -> WindowMap | None:
    """The windows among a search's models; None where windows are not what it searched.

    Args:
        objective: name of what the values are of.
        maximize: whether more is better.
        models: paths with their values on the search set; plain stacks among them are passed over.
        references: source -> value of its plain stack.
    """
    found = [(window_of(path), path, value) for path, value in models if not _is_plain(path)]
    windows = [(w, path, value) for w, path, value in found if w is not None]
    if len({w for w, _, _ in windows}) < _FEWEST or 2 * len(windows) < len(found):
        return None
    source = Counter(w.source for w, _, _ in windows).most_common(1)[0][0]
    scores: dict[tuple[int, int, int], WindowScore] = {}
    for w, path, value in windows:
        key = (w.start, w.end, w.times)
        better = key not in scores or (value > scores[key].value if maximize else value < scores[key].value)
        if w.source == source and better:
            scores[key] = WindowScore(value, path.entry_id)
    n_others = len(found) - sum(w.source == source for w, _, _ in windows)
    n_layers = windows[0][1].n_layers
    return WindowMap(objective, maximize, source, n_layers, references.get(source), scores, n_others)


def _is_plain(path: DrawnPath) -> bool:
    return [h.layer for h in path.hops] == list(range(path.n_layers)) and len({h.lane for h in path.hops}) == 1
