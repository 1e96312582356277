"""Who may score: workers of one class in a reproducible search, all of them where the job says so."""

from __future__ import annotations

from typing import Literal, final

from evomerge.execution.devices import Station, WorkerClass

MixedDevices = Literal["refuse", "record"]


@final
class Admission:
    """Judges workers as they come; the first one decides for the others, unless an earlier life of the run has.

    Args:
        policy: `refuse` turns away workers of another class, `record` takes everybody.
        expected: the class of the workers of earlier lives; None for a new run.
    """

    def __init__(self, policy: MixedDevices = "refuse", expected: WorkerClass | None = None) -> None:
        self._policy = policy
        self._expected = expected
        self._refused: dict[str, str] = {}

    @property
    def expected(self) -> WorkerClass | None:
        """The class that all must have; None while nobody has come."""
        return self._expected

    @property
    def refused_nodes(self) -> frozenset[str]:
        """Nodes whose workers were turned away: no more are started there."""
        return frozenset(self._refused)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why workers were turned away, each reason once."""
        return tuple(dict.fromkeys(self._refused.values()))

    def judge(self, station: Station) -> str:
        """Why a worker must not score; empty when it may."""
        if self._expected is None:
            self._expected = station.kind
        return "" if self._policy == "record" else self._expected.difference(station.kind)

    def refuse(self, node: str, why: str) -> bool:
        """Start no more workers on a node; True when this is news."""
        is_news = node not in self._refused
        self._refused.setdefault(node, why)
        return is_news

    def forget(self, present: frozenset[str]) -> None:
        """Drop the nodes that are no longer there."""
        self._refused = {node: why for node, why in self._refused.items() if node in present}
