"""The one folder outside runs and exports that evomerge writes to: compiled kernels, made parents, surveys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CACHE_VARIABLE: Final = "EVOMERGE_CACHE"


def kernel_folder() -> Path:
    """Where compiled kernels are kept: under `$EVOMERGE_CACHE`, else under evomerge in the user's cache folder."""
    return _cache() / "kernels"


def parents_folder() -> Path:
    """Where parents that are made from others are kept, each under its content; shared by runs, and by workers."""
    return _cache() / "parents"


def surveys_folder() -> Path:
    """Where surveys of parents are kept, each under a digest of what it was measured on."""
    return _cache() / "surveys"


def _cache() -> Path:
    stated = os.environ.get(CACHE_VARIABLE)
    return Path(stated) if stated else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evomerge"
