"""The guard sees what it is there to see."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.testing.audit_guard import watched


def written(path: Path) -> None:
    path.write_text("x")


def removed(path: Path) -> None:
    path.unlink(missing_ok=True)


def renamed(path: Path) -> None:
    (path.parent / "inside").rename(path)


def linked(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("deed", [written, removed, renamed, linked], ids=lambda d: d.__name__)
def test_files_outside_the_allowed_folders(tmp_path, deed):
    inner = tmp_path / "allowed"
    inner.mkdir()
    (tmp_path / "inside").write_text("x")
    with watched(inner) as guard:
        deed(tmp_path / "outside")
    assert any("outside" in v for v in guard.violations), guard.violations
    with watched(inner) as guard:
        written(inner / "inside")
        deed(inner / "fine") if deed is not linked else None
    assert guard.violations == []


def test_reading_is_free(tmp_path):
    (tmp_path / "a").write_text("x")
    with watched(tmp_path / "nowhere") as guard:
        assert (tmp_path / "a").read_text() == "x"
    assert guard.violations == []


def test_a_path_that_leads_out_through_a_link(tmp_path):
    inner = tmp_path / "allowed"
    inner.mkdir()
    (tmp_path / "outside").mkdir()
    (inner / "link").symlink_to(tmp_path / "outside")
    with watched(inner) as guard:
        written(inner / "link" / "file")
    assert guard.violations == [f"open: {tmp_path}/outside/file"]


def test_processes_sockets_code_and_pickles(tmp_path, guarded):
    guarded.allow_processes()
    guarded.allow_network()
    (tmp_path / "canary.py").write_text("x = 1\n")
    with watched(tmp_path) as guard:
        subprocess.run([sys.executable, "-c", ""], check=True)
        with socket.socket() as s:
            s.settimeout(0.1)
            s.connect_ex(("127.0.0.1", 9))
        exec(compile("x = 1", str(tmp_path / "canary.py"), "exec"), {})
        pickle.loads(pickle.dumps(Path("x")))
    seen = " ".join(guard.violations)
    for event in ("subprocess.Popen", "socket.connect", "exec"):
        assert event in seen, seen
    assert any("pathlib" in name for name in guard.unpickled)
    guarded.violations.clear()
    guarded.unpickled.clear()
    assert os.getpid()
