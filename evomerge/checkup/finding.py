"""One line of a check-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Finding:
    """Something that was looked at.

    Attributes:
        topic: the group of lines that it stands in.
        name: what was looked at.
        state: `missing` only for what a search cannot do without.
        text: what was found.
        fix: what to do next; empty when all is well.

    Raises:
        ValueError: when something is wrong and no next step is named.
    """

    topic: str
    name: str
    state: State
    text: str
    fix: str = ""

    def __post_init__(self) -> None:
        if self.state != "ok" and not self.fix:
            raise ValueError(f"{self.name}: a finding that is not ok says what to do next")

    def to_json(self) -> dict[str, str]:
        """As one JSON object."""
        return {"topic": self.topic, "name": self.name, "state": self.state, "found": self.text, "next": self.fix}


def in_gib(n_bytes: float) -> str:
    """Bytes for a reader."""
    gib = n_bytes / 2**30
    return f"{gib:.1f} GiB" if gib < 100 else f"{gib:.0f} GiB"
