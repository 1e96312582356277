"""What one walk through a run has requested so far of a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from evomerge.runs.partial import Items
from evomerge.types import CandidateId


@dataclass
class Walk:
    """What this walk through the run has requested of one model on one set.

    Attributes:
        owner: who requested it first; everybody else reuses it.
        whole: the whole set was requested.
        items: task -> the items that were requested.
        told: whether a request was told something.
        failed: whether a request was told a failure.
    """

    owner: CandidateId
    whole: bool = False
    items: dict[str, set[str]] = field(default_factory=dict)
    told: bool = False
    failed: bool = False

    def want(self, items: Items | None) -> None:
        """Add a request."""
        self.whole = self.whole or items is None
        for name, hashes in (items or {}).items():
            self.items.setdefault(name, set()).update(hashes)
