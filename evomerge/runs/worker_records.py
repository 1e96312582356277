"""What the journal says of workers that came and went; nothing that is computed depends on it.

A record has 0.1 to 0.4 KB, and there is one per start, loss or refusal: none per candidate in a calm run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from evomerge.runs.records import Record

_DETAIL_CHARS: Final = 200


@dataclass(frozen=True)
class WorkerNews(Record):
    """A worker joined, was lost, or was turned away.

    Attributes:
        kind: which of these.
        worker: its name.
        host: the machine, empty where there is only one.
        device: its device class, where it is known.
        detail: why it was lost or refused, where the log of one that joined is; cut.
        candidate: what a lost one was scoring, empty when nothing.
        versions: of the packages that decide numbers, of one that joined.
    """

    tag: ClassVar[str] = "worker"
    kind: Literal["joined", "lost", "refused"]
    worker: str
    host: str = ""
    device: str = ""
    detail: str = ""
    candidate: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", self.detail[:_DETAIL_CHARS])
