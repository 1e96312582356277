"""The contract of a place where a run's progress is shown besides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told before anything else.

    Attributes:
        name: of the run.
        folder: the run directory; whatever a tracker writes on this machine stands in `folder / "tracking"`.
        identity: the same for every life of the run, and different between runs: 16 hexadecimal digits.
        settings: name -> value of what people filter runs by.
    """

    name: str
    folder: Path
    identity: str
    settings: Mapping[str, str | float]

    @property
    def local_folder(self) -> Path:
        """Where a tracker may write."""
        return self.folder / "tracking"


class Tracker(ABC):
    """Shows numbers that it is given; made once per life of a run.

    A life continues what an earlier one showed: steps go on where the journal stands, under the same identity. What a
    tracker raises never reaches the search (see `tracking.watcher`): it is then left out for the rest of the life.
    """

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show finite numbers.

        Args:
            step: models scored on the search set so far; never decreases within a life.
            values: name -> number; names have one slash (`search/skills`).
        """

    @abstractmethod
    def finish(self, notes: Mapping[str, str]) -> None:
        """The run has come to an end; `notes` say what was chosen. Called at most once, before `close`."""

    @abstractmethod
    def close(self) -> None:
        """Write out what is pending. Called once, also for a life that was interrupted."""
