"""What one walk through a run has requested so far of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from evomerge.runs.partial import Items
from evomerge.types import CandidateId, Digest, Failure, SetName

Key = tuple[Digest, SetName]


@dataclass
class Walk:
    """What this walk through the run has requested of one model on one set.

    Attributes:
        owner: who requested it first; everybody else reuses it.
        whole: the whole set was requested.
        items: task -> the items that were requested.
    """

    owner: CandidateId
    whole: bool = False
    items: dict[str, set[str]] = field(default_factory=dict)

    def want(self, items: Items | None) -> None:
        """Add a request."""
        self.whole = self.whole or items is None
        for name, hashes in (items or {}).items():
            self.items.setdefault(name, set()).update(hashes)


@final
class Walks:
    """All models that this walk has requested, and what it was told of them; counted as they come.

    Attributes:
        failures: of those that were told one, in the order of telling.
    """

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self._walks: dict[Key, Walk] = {}
        self._n_begun: dict[SetName, int] = {}
        self._told: set[Key] = set()
        self._failed: set[Key] = set()

    def __contains__(self, key: Key) -> bool:
        return key in self._walks

    def __getitem__(self, key: Key) -> Walk:
        return self._walks[key]

    @property
    def n_told(self) -> int:
        """Of how many something was told."""
        return len(self._told)

    def n_begun(self, set_name: SetName) -> int:
        """How many were requested on a set."""
        return self._n_begun.get(set_name, 0)

    def begin(self, key: Key, owner: CandidateId) -> Walk:
        """The walk of a model, which begins unless it was requested before."""
        if key not in self._walks:
            self._n_begun[key[1]] = self.n_begun(key[1]) + 1
            self._walks[key] = Walk(owner)
        return self._walks[key]

    def tell(self, key: Key, failure: Failure | None) -> None:
        """A request was told answers, or a failure."""
        self._told.add(key)
        if failure is not None and key not in self._failed:
            self._failed.add(key)
            self.failures.append(failure)
