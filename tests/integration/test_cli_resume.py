"""Runs that are stopped, killed, refused, starved of disk and continued: nothing is lost, and the end is the same."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_life import Life, begun, journal, recorded, workers_of
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.zoo, pytest.mark.kill]

TINY = ("--set", "budget.evaluations=10", "--set", "suite.split={search: 4, select: 4, report: 4}")
SMALL = ("--set", "budget.evaluations=40", "--set", "suite.split={search: 16, select: 16, report: 24}")
LARGE = ("--set", "budget.evaluations=40", "--set", "suite.split={search: 1000, select: 100, report: 100}")
INLINE = ("--set", "cluster={backend: local, workers: 1}")
TWO = ("--set", "cluster={backend: local, workers: 2}")


def status_of(command: Any, run: Path) -> dict[str, Any]:
    done = command("status", run, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


# -- signals and kills ------------------------------------------------------------------------------------------------


def test_stops_and_kills_lead_to_the_result_of_an_undisturbed_run(home, finished, command):
    """Start-up kill, SIGINT, kill of the driver alone (two workers), kill of the group, then the last life."""
    run, log, rng = home.folder / "run", home.folder / "log", random.Random(5)
    search = ("search", home.job, "--run-dir", run, "--resume", "auto", *SMALL)
    before = b""

    def check_prefix() -> None:
        nonlocal before
        assert journal(run).startswith(before)
        before = journal(run)

    life = Life(*search, *INLINE, log=log)
    time.sleep(rng.uniform(0.05, 0.4))
    life.signal(signal.SIGKILL)
    assert life.end() == -signal.SIGKILL
    assert (run / "manifest.json").exists() == run.exists()  # all of it or nothing

    life = Life(*search, *INLINE, log=log)
    assert life.until(lambda: recorded(run) >= rng.randrange(3, 9)), log.read_text()
    life.signal(signal.SIGINT)
    assert life.end() == 75, log.read_text()
    assert "Stopping: running candidates are finished first" in log.read_text()
    assert f"Fix: evomerge resume {run}" in log.read_text()
    assert begun(run) == recorded(run)  # drained: what had begun is recorded
    assert status_of(command, run)["state"] == "interrupted"
    check_prefix()

    life = Life(*search, *TWO, log=log)
    assert life.until(lambda: recorded(run) >= rng.randrange(14, 18)), log.read_text()
    assert len(workers_of(life.pid)) == 2
    life.signal(signal.SIGKILL)
    assert life.end() == -signal.SIGKILL
    deadline = time.monotonic() + 15
    while workers_of(life.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not workers_of(life.pid)
    assert status_of(command, run)["state"] == "interrupted"
    check_prefix()

    life = Life(*search, *INLINE, log=log)
    assert life.until(lambda: recorded(run) >= rng.randrange(28, 36)), log.read_text()
    life.signal(signal.SIGKILL, group=True)
    assert life.end() == -signal.SIGKILL
    check_prefix()

    life = Life(*search, *INLINE, log=log)
    assert life.until(lambda: b'"t":"chosen"' in journal(run)), log.read_text()
    life.signal(signal.SIGTERM)
    assert life.end() in (75, 0), log.read_text()  # 0: it was at its last question
    check_prefix()

    done = command("resume", run)
    assert done.code == 0, done.err
    check_prefix()
    assert "Traceback" not in log.read_text() + done.err
    assert begun(run) - recorded(run) <= 1 + 2 + 1
    ours, calm = status_of(command, run), status_of(command, finished)
    assert ours["result_digest"] == calm["result_digest"]
    assert ours["chosen"] == calm["chosen"]
    assert ours["counts"] == calm["counts"]
    assert ours["timing"]["lives"] >= 5


@pytest.fixture
def busy(home) -> Iterator[tuple[Life, Path]]:
    """A run whose candidates take long, with some scored."""
    run = home.folder / "run"
    life = Life("search", home.job, "--run-dir", run, *LARGE, *INLINE, log=home.folder / "log")
    assert life.until(lambda: recorded(run) >= 2), life.log.read_text()
    yield life, run
    if life.alive:
        life.signal(signal.SIGKILL, group=True)
        life.end()


def interrupted_twice(life: Life) -> int:
    """The exit code after two quick Ctrl-C: 130, or 75 where the running candidate ended between the two."""
    while life.alive:
        with suppress(ProcessLookupError):
            life.signal(signal.SIGINT)
        time.sleep(0.01)
    code = life.end()
    assert code in (75, 130), life.log.read_text()
    return code


def interrupted_again(home: Any, run: Path) -> int:
    """The same of another life of the run."""
    at = recorded(run)
    life = Life("resume", run, log=home.folder / "log")
    assert life.until(lambda: recorded(run) > at), life.log.read_text()
    return interrupted_twice(life)


def test_a_second_driver_is_refused_and_a_second_ctrl_c_ends_at_once(busy, command, refused, home):
    life, run = busy
    for arguments in (
        ("resume", run),
        ("search", home.job, "--run-dir", run, "--resume", "auto", *LARGE, *INLINE),
        ("search", home.job, "--run-dir", run, "--resume", "must", *LARGE, *INLINE),
    ):
        started = time.monotonic()
        message = refused(5, *arguments)
        assert time.monotonic() - started < 5
        assert str(life.pid) in message
    assert "holds a run" in refused(2, "search", home.job, "--run-dir", run)
    assert status_of(command, run)["state"] == "running"
    caught = interrupted_twice(life) == 130 or any(interrupted_again(home, run) == 130 for _ in range(4))
    assert caught, life.log.read_text()
    found = status_of(command, run)
    assert found["state"] == "interrupted"
    assert found["counts"]["evaluated"] >= 2


# -- changes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, small_zoo, shared_home, command) -> Path:
    """A home with a zoo and a space of its own and a finished run of ten evaluations; copied by each test."""
    folder = tmp_path_factory.mktemp("tiny")
    shutil.copytree(small_zoo, folder / "zoo")
    for task in (folder / "zoo" / "tasks").glob("*.yaml"):
        text = re.sub(r"/\S*/tasks/", f"{folder / 'zoo' / 'tasks'}/", task.read_text())
        assert f"{folder}/zoo/tasks/{task.stem}.jsonl" in text
        task.write_text(text)
    (folder / "space.yaml").write_text(
        "kind: merge\nmethod: task_arithmetic\ndepth: each\n"
        "parameters:\n  weight: {low: 0.0, high: 1.5, step: 0.05, start: 0.5}\n"
    )
    (folder / "job.yaml").write_text(
        shared_home.job.read_text().replace("space: layer-wise-task-arithmetic", "space: space.yaml")
    )
    done = command("search", folder / "job.yaml", "--run-dir", folder / "run", *TINY, *INLINE)
    assert done.code == 0, done.err
    return folder


def change_parent(folder: Path) -> None:
    path = folder / "zoo" / "math" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.nextafter(tensors["model.norm.weight"], torch.tensor(9.0))
    save_file(tensors, path, metadata={"format": "pt"})


def change_questions(folder: Path) -> None:
    path = folder / "zoo" / "tasks" / "rev.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[len(lines) // 2 :]))


def change_task(folder: Path) -> None:
    path = folder / "zoo" / "tasks" / "rev.yaml"
    path.write_text(path.read_text().replace("{{prompt}}", "{{prompt}} "))


def change_space(folder: Path) -> None:
    path = folder / "space.yaml"
    path.write_text(path.read_text().replace("1.5", "1.4"))


def change_seed(folder: Path) -> None:
    path = folder / "run" / "job.yaml"
    path.write_text(path.read_text().replace("seed: 7", "seed: 8"))


def change_objective(folder: Path) -> None:
    path = folder / "run" / "job.yaml"
    path.write_text(path.read_text().replace("aggregate: mean", "aggregate: min", 1))


CHANGES = {
    change_parent: r"\n    -.*math.*\n    \+.*math",
    change_questions: r"\n    -.*questions.*\n    \+.*questions",
    change_task: r"\n    -.*questions.*\n    \+.*questions",
    change_space: r"\n    -.*1\.5.*\n    \+.*1\.4",
    change_seed: r"\n    -.*7,?\n    \+.*8",
    change_objective: r"\n    -.*mean.*\n    \+.*min",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_what_a_run_is_made_of_may_not_change(tiny, refused, tmp_path, change):
    backup = tmp_path / "backup"
    shutil.copytree(tiny, backup)
    before = journal(tiny / "run")
    try:
        change(tiny)
        message = refused(2, "resume", tiny / "run")
        assert journal(tiny / "run") == before
    finally:
        shutil.rmtree(tiny)
        shutil.copytree(backup, tiny)
    assert "has changed" in message
    assert re.search(CHANGES[change], message), message


def test_another_job_file_is_refused_with_a_diff(tiny, refused):
    job = tiny / "other.yaml"
    job.write_text((tiny / "job.yaml").read_text().replace("population: 16", "population: 12"))
    message = refused(2, "search", job, "--run-dir", tiny / "run", "--resume", "auto", *TINY, *INLINE)
    assert re.search(r"\n    -.*16.*\n    \+.*12", message), message
    for setting in ("seed=8", "optimizer.name=tpe", "objectives=[]"):
        assert setting in refused(2, "resume", tiny / "run", "--set", setting)


def test_a_larger_budget_goes_on_and_keeps_what_is_known(tiny, command, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny / "run", run)
    before, evaluated = journal(run), recorded(run)
    done = command("resume", run, "--set", "budget.evaluations=14")
    assert done.code == 0, done.err
    assert "Searching: 10 of 14 evaluations" in done.err
    assert status_of(command, run)["counts"]["evaluated"] == 14
    assert journal(run).startswith(before)
    assert recorded(run) >= evaluated + 4
    assert begun(run) == recorded(run)


def test_a_run_directory_that_holds_something(tiny, refused, tmp_path):
    search = ("search", tiny / "job.yaml", *TINY, *INLINE)
    before = journal(tiny / "run")
    assert "holds a run" in refused(2, *search, "--run-dir", tiny / "run")
    assert journal(tiny / "run") == before
    assert "no run to resume" in refused(2, *search, "--run-dir", tmp_path / "none", "--resume", "must")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for mode in ("never", "auto"):
        assert "not empty" in refused(2, *search, "--run-dir", tmp_path / "mine", "--resume", mode)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("x")
    refused(2, *search, "--run-dir", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


# -- damage -----------------------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_skipped_and_a_damaged_record_is_corrupt(tiny, command, refused, tmp_path):
    whole = status_of(command, tiny / "run")
    run = tmp_path / "run"
    shutil.copytree(tiny / "run", run)
    path = run / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    torn = journal(run)
    assert command("resume", run).code == 0
    assert journal(run).startswith(torn)
    assert status_of(command, run)["result_digest"] == whole["result_digest"]
    damaged = bytearray(journal(run))
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    for arguments in (("resume", run), ("status", run), ("status", run, "--json"), ("report", run)):
        assert "line" in refused(5, *arguments)
    assert journal(run) == bytes(damaged)


def test_a_manifest_that_is_lost_or_damaged_is_corrupt(tiny, refused, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny / "run", run)
    for text in ("{", "{}", "[]", None):
        (run / "manifest.json").unlink()
        if text is not None:
            (run / "manifest.json").write_text(text)
        for name in ("status", "resume", "report"):
            assert "manifest" in refused(5, name, run)
        (run / "manifest.json").touch()


def test_projections_can_be_deleted(tiny, command, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny / "run", run)
    for name in ("optuna.db", "report.html"):
        (run / name).unlink()
    shutil.rmtree(run / "logs")
    shutil.rmtree(run / "exports")
    whole = status_of(command, tiny / "run")
    assert status_of(command, run)["result_digest"] == whole["result_digest"]
    assert command("report", run).code == 0
    assert command("resume", run).code == 0
    assert (run / "optuna.db").exists()


def test_a_finished_run_reports_when_its_parents_are_gone(tiny, command, refused, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny / "run", run)
    (tiny / "zoo").rename(tiny / "moved")
    try:
        assert command("status", run).code == 0
        assert command("report", run).code == 0
        message = refused(3, "export", run, "--pick", "id:soup", "--to", tmp_path / "out")
        assert "zoo/base" in message
        assert not (tmp_path / "out").exists()
        refused(3, "resume", run)
    finally:
        (tiny / "moved").rename(tiny / "zoo")


# -- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_with_75_and_loses_nothing(home, finished, command, small_disk, refused):
    run = small_disk / "run"
    message = refused(75, "search", home.job, "--run-dir", run, *SMALL, *INLINE)
    assert "disk is full" in message
    assert str(run) in message
    held = journal(run)
    assert held.count(b"\n") > 5
    state = status_of(command, run)
    assert state["state"] == "interrupted"
    assert state["counts"]["evaluated"] == recorded(run)
    refused(75, "resume", run)  # still full
    assert journal(run).startswith(held)
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    assert command("resume", run).code == 0
    assert journal(run).startswith(held)
    assert status_of(command, run)["result_digest"] == status_of(command, finished)["result_digest"]


def test_a_disk_without_any_space_leaves_no_run_directory(home, command, refused, small_disk, tiny):
    (small_disk / "ballast").write_bytes(b"x" * (128 * 1024))
    refused(75, "search", home.job, "--run-dir", small_disk / "run", *SMALL, *INLINE)
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]
    for form in ("checkpoint", "recipe"):
        assert "disk is full" in refused(
            75, "export", tiny / "run", "--pick", "id:soup", "--as", form, "--to", small_disk / "out"
        )
        assert [p.name for p in small_disk.iterdir()] == ["ballast"]
    recipe = home.folder / "soup.json"
    assert command("export", tiny / "run", "--pick", "id:soup", "--as", "recipe", "--to", recipe).code == 0
    assert "disk is full" in refused(75, "merge", recipe, "--to", small_disk / "out")
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]


def test_a_journal_that_can_take_no_more_is_told(home, command, refused, monkeypatch):
    """Where nothing can be mounted: the writes themselves fail, in the middle of a line."""
    run, write, left = home.folder / "run", os.write, [9000]

    def starved(fd: int, data: Any) -> int:
        if Path(f"/proc/self/fd/{fd}").readlink().name != "journal.jsonl":
            return write(fd, data)
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n = write(fd, data[: left[0]])
        left[0] -= n
        return n

    monkeypatch.setattr(os, "write", starved)
    assert "disk is full" in refused(75, "search", home.job, "--run-dir", run, *TINY, *INLINE)
    monkeypatch.undo()
    held = journal(run)
    assert held.endswith(b"\n")
    assert command("resume", run).code == 0
    assert journal(run).startswith(held)
    assert begun(run) - recorded(run) <= 1


def test_places_that_cannot_be_written_are_told(home, tiny, refused):
    inside_a_file = home.job / "out"
    for arguments in (
        ("search", home.job, *TINY, *INLINE, "--run-dir", inside_a_file),
        ("export", tiny / "run", "--pick", "id:soup", "--as", "recipe", "--to", inside_a_file),
        ("export", tiny / "run", "--pick", "id:soup", "--to", inside_a_file),
        ("init", inside_a_file),
        ("search", home.job, *TINY, *INLINE, "--run-dir", "/proc/nobody/run"),
    ):
        message = refused(2, *arguments)
        assert str(home.job) in message or "/proc/nobody" in message
