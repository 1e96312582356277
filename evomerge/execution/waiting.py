"""Telling whoever watches that no worker can begin, as soon as it is known and not only when patience ends."""

from __future__ import annotations

from typing import Protocol, final, runtime_checkable

from evomerge.execution.pool import EvaluationPool


@runtime_checkable
class WaitingWatcher(Protocol):
    """What a watcher may have besides: it is then also told when nothing can go on before a larger node comes."""

    def waiting(self, why: str) -> None:
        """No worker has room, because of `why`; empty when one has found room after all. Must not raise."""


@final
class Waiting:
    """Asks a pool what it waits for, and tells a watcher when the answer changes.

    Args:
        watcher: told if it is a `WaitingWatcher`.
    """

    def __init__(self, watcher: object) -> None:
        self._watcher = watcher if isinstance(watcher, WaitingWatcher) else None
        self._told = ""

    def ask(self, pool: EvaluationPool) -> None:
        """To be called often: it costs a look at what the pool has seen already."""
        if self._watcher is not None and (why := pool.waits_for()) != self._told:
            self._told = why
            self._watcher.waiting(why)
