"""What the journal says of a search in stages: where each began, from which merges, and what it won."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from evomerge.runs.records import Record
from evomerge.types import CandidateId, Digest


@dataclass(frozen=True)
class StageBegun(Record):
    """A stage of the search begins; a search that has no stages writes none.

    Attributes:
        number: from 0.
        name: as the job calls it.
        first_batch: number of its first batch.
        elites: recipes (JSON objects) of the best merges so far, the best first; empty for the first stage.
    """

    tag: ClassVar[str] = "stage"
    number: int
    name: str
    first_batch: int
    elites: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> StageBegun:
        """Recipes stay the JSON objects that they are: whoever reads one expects lists."""
        return cls(**{**payload, "elites": tuple(payload.get("elites", ()))})


@dataclass(frozen=True)
class StageWon(Record):
    """The best, on the select set, of what a stage and earlier ones found; scored on the report set, too.

    Attributes:
        number: of the stage.
        id: the model.
        recipe: digest of its recipe.
    """

    tag: ClassVar[str] = "stage-won"
    number: int
    id: CandidateId
    recipe: Digest
