"""A run directory is written inside itself: links that a copy of it brought along lead nowhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from evomerge.errors import StoreError

_INNER: Final = ("responses", "logs", "banks")


def check_contained(folder: Path) -> None:
    """Refuse to write to a run directory in which a name leads out of it.

    What lies in `exports` is not looked at: nothing is written there but new folders.

    Raises:
        StoreError: naming the link.
    """
    home = os.path.realpath(folder)
    for entry in _links(folder):
        target = os.path.realpath(entry.path)
        if target != home and not target.startswith(home + os.sep):
            raise StoreError(
                "The run directory holds a link that leads out of it.",
                got=f"{entry.path} -> {target}",
                allowed="files and folders of the run itself",
                fix="replace the link by what it points at, or remove it.",
            )


def _links(folder: Path) -> Iterator[os.DirEntry[str]]:
    for place in (folder, *(folder / name for name in _INNER)):
        if place.is_dir():
            with os.scandir(place) as entries:
                yield from [e for e in entries if e.is_symlink()]
