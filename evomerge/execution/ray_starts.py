"""Workers that come to a node and do not start: when to stop trying there, and when there is nowhere left to try."""

from __future__ import annotations

import time
from typing import Final, final

from evomerge.errors import EvomergeError
from evomerge.execution.ray_watch import View

CHANCES: Final = 3
"""So many failures of a node end in its refusal: a file server that was busy once must not cost a node."""

APART_S: Final = 5.0
"""Failures of a node that follow each other faster have one cause: all its workers start together."""


@final
class FailedStarts:
    """Counts the failures of every node since a worker last started there."""

    def __init__(self) -> None:
        self._counted: dict[str, tuple[int, float]] = {}
        self._last: dict[str, EvomergeError] = {}

    def add(self, node: str, error: EvomergeError) -> bool:
        """Note that a worker did not start; True when the node has had its chances."""
        now = time.monotonic()
        n, at = self._counted.get(node, (0, float("-inf")))
        if now - at >= APART_S:
            n, at = n + 1, now
        self._counted[node], self._last[node] = (n, at), error
        return n >= CHANCES

    def forgive(self, node: str) -> None:
        """A worker has started on the node: what failed before was passing."""
        self._counted.pop(node, None)
        self._last.pop(node, None)

    def nowhere_left(self, view: View, refused: frozenset[str], needs: tuple[float, float]) -> EvomergeError | None:
        """The error of the latest node that was given up, when every node with room for a worker is refused.

        Args:
            view: the cluster.
            refused: nodes where no worker is started any more, for whatever reason.
            needs: CPUs and GPUs that a worker reserves.

        Returns:
            None while there is a node to try, and where no present node was refused because of its starts: nodes of
            another class are no trouble of the job, and one of the right class may come.
        """
        able = [node.node for node in view.nodes if node.seats(*needs) > 0]
        given_up = [node for node in able if self._counted.get(node, (0, 0.0))[0] >= CHANCES]
        if not given_up or any(node not in refused for node in able):
            return None
        return self._last[max(given_up, key=lambda node: self._counted[node][1])]
