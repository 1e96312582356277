"""The manifest: what a run was made of, written once, read by everything that looks at the run later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from evomerge.errors import StoreError

MANIFEST_FILE: Final = "manifest.json"
FORMAT: Final = "evomerge.run"
VERSION: Final = 1


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run directory.

    Raises:
        StoreError: when it is missing, damaged, or of a newer version.
    """
    try:
        found = json.loads((run / MANIFEST_FILE).read_text(encoding="utf-8"))
        known = found.get("format") == FORMAT and found.get("version", VERSION + 1) <= VERSION
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise _damaged(run, f"{type(error).__name__}: {error}") from error
    if not known:
        raise _damaged(run, f"format {found.get('format')!r}, version {found.get('version')!r}")
    return dict(found)


def _damaged(run: Path, got: str) -> StoreError:
    return StoreError(
        "The manifest of the run cannot be used.",
        got=f"{run / MANIFEST_FILE}: {got}",
        allowed=f"{FORMAT}, version up to {VERSION}",
        fix="restore the file from a copy, or open the run with the version of evomerge that wrote it.",
    )
