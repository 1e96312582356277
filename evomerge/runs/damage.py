"""What a run directory says may not fit together: then it is damaged or was altered, and that is what is told."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from evomerge.errors import StoreError

_SIGNS: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What code raises that relies on one file of a run for what another one says."""


@contextmanager
def damage_is_told(folder: Path) -> Iterator[None]:
    """Around what only reads a run: values that contradict each other become a `StoreError`.

    Every file of a run is checked by itself when it is read. That the journal speaks of a task which the manifest does
    not have, or chose a model that nobody asked for, shows only where the two meet.
    """
    try:
        yield
    except _SIGNS as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = (str(error).splitlines() or [""])[0][:300]
        place = f"{Path(last.filename).name}:{last.lineno}"
        raise StoreError(
            "The files of the run do not fit together.",
            got=f"{folder}: {type(error).__name__}: {said} ({place})",
            allowed="the files of one run, as evomerge wrote them",
            fix="restore the run directory from a copy; if nobody has touched it, report this as a bug.",
        ) from error
