"""The one folder outside runs and exports that evomerge writes to: compiled kernels, shared by a user's runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CACHE_VARIABLE: Final = "EVOMERGE_CACHE"


def kernel_folder() -> Path:
    """Where compiled kernels are kept: under `$EVOMERGE_CACHE`, else under evomerge in the user's cache folder."""
    stated = os.environ.get(CACHE_VARIABLE)
    cache = Path(stated) if stated else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evomerge"
    return cache / "kernels"
