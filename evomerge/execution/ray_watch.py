"""A look at the cluster every few seconds, from a thread of its own: the driver never waits for a head that is gone.

Ray's calls to its head block for minutes once it is dead. This thread alone makes them, after a knock at the head's
port; the driver reads what was seen last, and when that was.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple, final

from evomerge.execution.ray_cluster import NodeDescription

LOOK_S: Final = 2.0
GRACE_S: Final = 18.0
"""A head that is silent for so long is gone; one that restarts with its state in a store of its own has to be back."""
_KNOCK_S: Final = 5.0
_JOIN_S: Final = 5.0


class View(NamedTuple):
    """The cluster at one moment.

    Attributes:
        nodes: as Ray tells them.
        free: resource -> amount that nobody has reserved, over all nodes; Ray tells it with a delay.
        at: when, in monotonic seconds.
    """

    nodes: tuple[NodeDescription, ...]
    free: dict[str, float]
    at: float


@final
class ClusterWatch:
    """Keeps a view of the cluster fresh until it is closed.

    Args:
        look: asks the head; may block and may raise anything that Ray raises.
        errors: what `look` may raise when the head is in trouble.
        head: host and port of the head, None to do without knocking.
        every_s: seconds between two looks.
        grace_s: how long the head may be silent.
    """

    def __init__(
        self,
        look: Callable[[], View],
        errors: tuple[type[BaseException], ...],
        head: tuple[str, int] | None,
        every_s: float = LOOK_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._look = look
        self._errors: tuple[type[BaseException], ...] = (OSError, *errors)
        self._head = head
        self._every_s = every_s
        self._grace_s = grace_s
        self._view = look()
        self._has_failed = False
        self._changed = threading.Condition()
        self._wanted = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="evomerge-cluster-watch", daemon=True)
        self._thread.start()

    @property
    def view(self) -> View:
        """What was seen last."""
        return self._view

    @property
    def is_lost(self) -> bool:
        """Whether the head has been silent for longer than it may."""
        return time.monotonic() - self._view.at > self._grace_s + self._every_s

    @property
    def is_silent(self) -> bool:
        """Whether the head did not answer the last time, or takes long: better not to touch Ray until it does."""
        return self._has_failed or self.silent_s > self._every_s + _KNOCK_S

    @property
    def silent_s(self) -> float:
        """Seconds since the head answered."""
        return time.monotonic() - self._view.at

    def fresh(self, timeout_s: float) -> View:
        """A view that is younger than this call, or the last one when none comes in time."""
        asked = time.monotonic()
        with self._changed:
            self._wanted.set()
            self._changed.wait_for(lambda: self._view.at >= asked, timeout_s)
        return self._view

    def close(self) -> None:
        """End the thread; one that waits for a dead head is left behind."""
        self._stop.set()
        self._wanted.set()
        self._thread.join(0.1 if self.is_lost else _JOIN_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wanted.wait(self._every_s)
            self._wanted.clear()
            try:
                if self._head is not None:
                    socket.create_connection(self._head, timeout=_KNOCK_S).close()
                view = self._look()
            except self._errors:
                self._has_failed = True
                continue  # how long it lasts, the age of the last view tells
            self._has_failed = False
            with self._changed:
                self._view = view
                self._changed.notify_all()
