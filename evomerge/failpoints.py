"""Named places in the driver where a test can kill it; in production a call that finds nothing to do.

`EVOMERGE_FAILPOINT=NAME` or `NAME:K` in the environment makes the K-th pass (from 1) through the place NAME end the
process as `kill -9` would. The variable is read once, at the first pass. It can do nothing else: whoever sets the
environment of a process could have killed it anyway, no code is loaded, and no other process is touched. Workers
never pass a place that is named after a record.

`EVOMERGE_FAILPOINT=list:FILE` appends every name that is passed to FILE instead, which is how tests know them all.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Final

VARIABLE: Final = "EVOMERGE_FAILPOINT"


def reach(name: str) -> None:
    """Pass the place `name`: a lower-case word with dashes, `before-` or `after-` what it stands beside."""
    act = _plan()
    if act is not None:
        act(name)


def read_again() -> None:
    """Read the variable again at the next pass: for a test's process that was forked from one that passed places."""
    _plan.cache_clear()


@cache
def _plan() -> Callable[[str], None] | None:
    """What to do at a place; None, as always outside tests, for nothing."""
    wanted, _, detail = os.environ.get(VARIABLE, "").partition(":")
    if not wanted:
        return None
    return _lister(Path(detail)) if wanted == "list" else _killer(wanted, int(detail or 1))


def _killer(wanted: str, at: int) -> Callable[[str], None]:
    passes = count(1)

    def act(name: str) -> None:
        if name == wanted and next(passes) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def _lister(file: Path) -> Callable[[str], None]:
    def act(name: str) -> None:
        with file.open("a", encoding="utf-8") as out:
            out.write(name + "\n")

    return act
