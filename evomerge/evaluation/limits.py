"""A limit on the time that something may take which a stranger wrote: a template, a regular expression."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from evomerge.errors import EvaluationError


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Ends the block with an error when it takes longer.

    It rests on a signal, which Python gives to its main thread only; elsewhere nothing is limited here, and the time
    limit of a candidate has to do. A timer that ran before goes on behind the block, as if the block had taken none.

    Args:
        seconds: of the process's own time, so that a machine that stands still ends nothing.
        what: the subject of the message's first sentence.

    Raises:
        EvaluationError: when the time is over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise EvaluationError(
            f"{what} takes too long.",
            got=f"no result after {seconds:g} s",
            allowed=f"at most {seconds:g} s for one text",
            fix="simplify the template or the regular expression of the task.",
        )

    handler = signal.signal(signal.SIGVTALRM, over)
    before = signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
        signal.setitimer(signal.ITIMER_VIRTUAL, *before)
