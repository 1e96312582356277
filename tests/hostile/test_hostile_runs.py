"""Run directories of strangers: right checksums, absurd values; typed errors, and pages that run nothing."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.calibration.run_answers import read_run
from evomerge.errors import EvomergeError, StoreError
from evomerge.report.collect import summarise
from evomerge.report.write import write_report
from evomerge.runs.journal import frame, scan
from evomerge.runs.store import RunStore
from evomerge.testing.hostile_texts import ESCAPE, HOSTILE_NAMES, SCRIPT, TWISTS
from evomerge.testing.sample_journal import write_sample_run

PARTS = r"(?s).+\n  Got: .+\n  Allowed: .+\n  Fix: .+"
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**30, -0.0, 1e308, "", "x", [], {}, [[]], {"a": []}, "9" * 300),
    *("../../canary", "/etc/passwd", "..", "a/b", ESCAPE, TWISTS, SCRIPT, "search"),
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_run(tmp_path_factory.mktemp("sample") / "run")


@pytest.fixture
def run(tmp_path: Path, sample: Path) -> Path:
    shutil.copytree(sample, tmp_path / "run")
    (tmp_path / "run" / ".sha256").unlink(missing_ok=True)  # whoever alters a run alters its sums, too
    return tmp_path / "run"


def look(run: Path) -> list[str]:
    """Everything that only looks at a run; what was said about it."""
    said = []
    for deed in (summarise, write_report, read_run):
        try:
            deed(run)
        except EvomergeError as error:
            said.append(str(error))
    return said


def rewrite(run: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the journal's payloads, and seal every line anew."""
    payloads = [dict(p) for p in scan((run / "journal.jsonl").read_bytes()).payloads]
    change(payloads)
    (run / "journal.jsonl").write_bytes(b"".join(frame(n, p) for n, p in enumerate(payloads)))


def leaves(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside."""
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, k) for k, _ in pairs] + [leaf for _, v in pairs for leaf in leaves(v)]


@pytest.mark.parametrize("seed", range(60))
def test_sealed_journals_with_absurd_values(run, guarded, seed):
    rng = random.Random(seed)

    def change(payloads: list[dict[str, Any]]) -> None:
        for _ in range(rng.choice((1, 1, 3))):
            container, key = rng.choice(leaves(payloads))
            container[key] = rng.choice(VALUES)
            payloads[:] = [p for p in payloads if isinstance(p, dict)]

    rewrite(run, change)
    with guarded.only(run):
        for message in look(run):
            assert "\x1b" not in message


@pytest.mark.parametrize("seed", range(40))
def test_manifests_with_absurd_values(run, guarded, seed):
    rng = random.Random(seed)
    manifest = json.loads((run / "manifest.json").read_text())
    container, key = rng.choice(leaves(manifest))
    container[key] = rng.choice(VALUES)
    (run / "manifest.json").write_text(json.dumps(manifest))
    with guarded.only(run):
        look(run)


NO_MANIFESTS = (
    *("", "[]", "null", "{", "[" * 100_000, '{"format": NaN}', '{"format": "evomerge.run"}'),
    '{"format": "evomerge.run", "version": 1e999}',
    '{"format": "evomerge.run", "version": "1"}',
)


@pytest.mark.parametrize("text", NO_MANIFESTS, ids=range(len(NO_MANIFESTS)))
def test_manifests_that_are_none(run, text):
    (run / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=PARTS):
        summarise(run)


def content(path: Path) -> object:
    return sorted(path.iterdir()) if path.is_dir() else path.read_bytes()


@pytest.mark.parametrize("name", ["responses", "logs", "banks", "journal.jsonl", ".lock", ".writer.json", "optuna.db"])
def test_links_that_lead_out_are_not_written_through(run, tmp_path, guarded, name):
    outside = tmp_path / "outside"
    old = run / name
    if old.is_dir() or name == "banks":
        if old.exists():
            shutil.move(old, outside)
        else:
            outside.mkdir()
    elif old.exists():
        shutil.move(old, outside)
    else:
        outside.write_text("")
    old.symlink_to(outside)
    before = content(outside)
    with guarded.only(run), pytest.raises(StoreError, match="link that leads out"):
        RunStore.open(run, write=True)
    assert before == content(outside)


def test_a_log_that_is_a_link(run, tmp_path):
    (run / "logs").mkdir(exist_ok=True)
    (run / "logs" / "worker-0.log").symlink_to(tmp_path / "canary")
    with pytest.raises(StoreError, match=r"worker-0\.log"):
        RunStore.open(run, write=True)


def test_a_journal_without_end_is_not_read(run):
    with (run / "journal.jsonl").open("r+b") as f:
        f.truncate(1 << 32)  # sparse: takes no disk
    with pytest.raises(StoreError, match="too long"):
        summarise(run)


@pytest.mark.parametrize(
    "line", [b"[" * 200_000, b'{"a":' * 100_000, b'{"n":0,"t":NaN}', b"\xff\xfe", b"0" * 1_000_000]
)
def test_lines_that_are_no_records(run, line):
    from zlib import crc32

    sealed = b'%s,"crc":"%08x"}\n' % (line, crc32(line))
    (run / "journal.jsonl").write_bytes(sealed + (run / "journal.jsonl").read_bytes())
    with pytest.raises(StoreError, match=PARTS):
        summarise(run)


def test_pages_run_nothing(run, tmp_path, guarded):
    """The page of a run with scripts for names, in a browser where there is one."""
    guarded.allow_processes()
    guarded.allow_network()
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["name"] = f"run{SCRIPT}"
    manifest["optimizer"] = {"name": SCRIPT, "options": {}, "why": SCRIPT}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "job.yaml").write_text(f"# {SCRIPT}\nname: x\n")

    def change(payloads: list[dict[str, Any]]) -> None:
        for payload in payloads:
            payload |= {k: SCRIPT for k in ("name", "why", "worker", "text") if isinstance(payload.get(k), str)}

    rewrite(run, change)
    page = write_report(run).read_text()
    assert SCRIPT not in page
    assert "<script" not in page
    assert "<img" not in page
    assert "default-src 'none'" in page
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser here; the page has no script in it")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", f"file://{run / 'report.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "<title>canary" not in done.stdout
    assert "evomerge</title>" in done.stdout, done.stderr[-500:]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_status_prints_names_as_they_are_spelt(run, capsys, name):
    from evomerge.cli.main import run as command

    manifest = json.loads((run / "manifest.json").read_text())
    manifest["name"] = HOSTILE_NAMES[name]
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert command(["status", str(run)]) == 0
    assert command(["status", str(run), "--json"]) == 0
    shown = capsys.readouterr()
    assert all(c in "\n " or c.isprintable() for c in shown.out + shown.err)
    assert json.loads(shown.out.strip().splitlines()[-1])["name"] == HOSTILE_NAMES[name]
