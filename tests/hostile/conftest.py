"""Every test here runs under a guard: nothing written elsewhere, started, connected to, executed or unpickled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.testing.audit_guard import Guard, watched


@pytest.fixture(autouse=True)
def guarded(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    """Watches the whole test; files may be written in its `tmp_path`, pytest's own folders and the declared caches.

    `guarded.only(folder)` is narrower for a block, `guarded.allow_processes()` and `.allow_network()` are wider.
    """
    with watched(tmp_path, tmp_path_factory.getbasetemp()) as guard:
        yield guard
    assert not guard.violations, guard.violations
    assert not guard.unpickled, f"something was unpickled: {guard.unpickled}"
