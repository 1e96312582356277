"""The manifest: what a run was made of, written once, read by everything that looks at the run later.

The digests of the files that a run is born with stand in `.sha256`, in the form that `sha256sum --check` reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from evomerge.errors import StoreError

MANIFEST_FILE: Final = "manifest.json"
FORMAT: Final = "evomerge.run"
VERSION: Final = 1
MOST_BYTES: Final = 64_000_000

_Objects = list[Mapping[str, Any]]
_NEEDED: Final = ("name", "seed", "objectives", "constraints")
_KINDS: Final[Mapping[str, Any]] = {
    "name": str,
    "seed": int,
    "job": Mapping[str, Any],
    "versions": Mapping[str, str],
    "parents": _Objects,
    "base": str | None,
    "made": Mapping[str, Any],
    "n_layers": int,
    "space": Mapping[str, Any],
    "stages": _Objects,
    "suite": Mapping[str, Any],
    "banks": Mapping[str, str],
    "objectives": _Objects,
    "constraints": _Objects,
    "survey": Mapping[str, Any] | None,
    "genes": list[str],
    "optimizer": Mapping[str, Any],
}
_SUITE: Final[Mapping[str, Any]] = {
    "name": str,
    "text": str,
    "plan": str,
    "splits": Mapping[str, Mapping[str, int]],
    "metrics": Mapping[str, str],
    "public_test_tasks": list[str],
}
SUMS_FILE: Final = ".sha256"


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run directory.

    Raises:
        StoreError: when it is missing, damaged, or of a newer version.
    """
    try:
        raw = (run / MANIFEST_FILE).read_bytes()
        found = json.loads(raw.decode("utf-8"))
        known = found.get("format") == FORMAT and found.get("version", VERSION + 1) <= VERSION
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise _damaged(run, f"{type(error).__name__}: {error}") from error
    if not known:
        raise _damaged(run, f"format {found.get('format')!r}, version {found.get('version')!r}")
    _check_sum(run, MANIFEST_FILE, raw)
    return dict(found)


def sums_of(files: Mapping[str, bytes]) -> str:
    """The content of `SUMS_FILE` for files by name."""
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())


def check_files(run: Path) -> None:
    """Make sure that the files that the run was born with are as they were; runs of older versions have no digests.

    Raises:
        StoreError: when one is missing or was altered.
    """
    for name in _sums(run):
        try:
            _check_sum(run, name, (run / name).read_bytes())
        except OSError as error:
            raise _altered(run, name, str(error.strerror)) from error


def _sums(run: Path) -> dict[str, str]:
    """File name -> digest; empty for a run of an older version."""
    try:
        lines = (run / SUMS_FILE).read_bytes().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _check_sum(run: Path, name: str, content: bytes) -> None:
    known = _sums(run).get(name)
    found = hashlib.sha256(content).hexdigest()
    if known is not None and known != found:
        raise _altered(run, name, f"its sha256 is {found}")


def _altered(run: Path, name: str, got: str) -> StoreError:
    known = _sums(run).get(name, "")
    return StoreError(
        f"A file of the run was altered: its {'manifest' if name == MANIFEST_FILE else name}.",
        got=f"{run / name}: {got}",
        allowed=f"the file that the run began with, sha256 {known} ({SUMS_FILE})",
        fix="restore the file from a copy of the run directory.",
    )


def _damaged(run: Path, got: str) -> StoreError:
    return StoreError(
        "The manifest of the run cannot be used.",
        got=f"{run / MANIFEST_FILE}: {got}",
        allowed=f"{FORMAT}, version up to {VERSION}",
        fix="restore the file from a copy, or open the run with the version of evomerge that wrote it.",
    )
