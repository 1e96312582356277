"""What the report shows of a search in stages, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from evomerge.report.summary import Difference, Entry


@dataclass(frozen=True)
class StageResult:
    """The end of one stage.

    Attributes:
        number: from 1.
        name: as the job calls it.
        evaluations: models that it was the first to ask, failed ones included.
        winner: the model that it won with, on every set that it was scored on; None where nothing could win.
        is_new: whether it was not the winner of the stage before.
    """

    number: int
    name: str
    evaluations: int
    winner: Entry | None
    is_new: bool

    @property
    def title(self) -> str:
        """The stage and its winner in a few words."""
        return f"{self.number} {self.name}"


class StageGain(NamedTuple):
    """A paired difference on the report set: a stage's winner minus what was best before it (`difference.against`)."""

    stage: str
    difference: Difference


@dataclass(frozen=True)
class StageReport:
    """All stages, and what each winner gained over the one before (the first: over the best parent).

    Attributes:
        results: in order.
        gained: per objective of answers and stage with a new winner; empty until the report set was scored.
        outside: the same for tasks that no objective is about.
        costs: the same for objectives that are counted costs; exact, and told without a verdict.
    """

    results: tuple[StageResult, ...]
    gained: tuple[StageGain, ...]
    outside: tuple[StageGain, ...]
    costs: tuple[StageGain, ...] = ()

    @property
    def regressions(self) -> tuple[StageGain, ...]:
        """Tasks outside the objectives that a stage made worse, by the report set's intervals."""
        return tuple(g for g in self.outside if g.difference.verdict == "worse")
