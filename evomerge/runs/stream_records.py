"""What the journal says of an asynchronous search: in which order results were told and candidates were asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from evomerge.runs.records import Candidate, Record


@dataclass(frozen=True)
class Turn(Record):
    """The optimizer was told some results, in this order, and then asked for one candidate.

    The order of results is that in which they were told, which is the order in which they came in. All turns together
    are everything that an optimizer has heard, so that another one can be brought to the same state.

    Attributes:
        told: numbers of the asks whose results were told since the turn before, in order.
        batch: the block that the candidate is counted to, from 0: blocks are as long as a batch would be, for reports.
        number: of the ask, from 0 over all stages; -1 in the last turn of a stage, which asks for nothing.
        candidate: what was asked; None in the last turn of a stage.
    """

    tag: ClassVar[str] = "turn"
    told: tuple[int, ...]
    batch: int
    number: int = -1
    candidate: Candidate | None = None

    def to_json(self) -> dict[str, Any]:
        """The candidate as a row, as in a batch."""
        found: dict[str, Any] = {"told": list(self.told), "batch": self.batch}
        c = self.candidate
        return found if c is None else found | {"number": self.number, "row": [c.id, c.kind, c.recipe, list(c.genes)]}

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Turn:
        """See `to_json`."""
        fields = {**payload, "told": tuple(payload["told"])}
        row = fields.pop("row", None)
        if row is None:
            return cls(**fields)
        id_, kind, recipe, genes = row
        return cls(**fields, candidate=Candidate(id_, kind, recipe, tuple(genes)))
