"""What the terminal shows: `status`, `report`, `ls`, at 80 columns and wide."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from evomerge.cli.main import run as run_cli
from evomerge.cli.render import show_result, show_status
from evomerge.report.collect import summarise
from evomerge.report.summary import Losses, RunDetails, RunSummary
from evomerge.report.tables import timing_table
from evomerge.runs.worker_records import WorkerNews
from evomerge.testing.sample_journal import CHOSEN, write_sample_run
from evomerge.testing.sample_runs import sample_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_run(tmp_path_factory.mktemp("runs") / "sample")


def shown(summary: RunSummary, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    show_status(summary, Path("runs/x"), console)
    text = console.file.getvalue()
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("width", [80, 160])
def test_every_line_fits_and_every_baseline_is_there(width: int) -> None:
    summary = sample_run(n=60, failures=4, feasible_share=0.6)[0]
    text = shown(summary, width)
    assert all(len(line) <= width for line in text.splitlines())
    assert all(b.id in text for b in summary.baselines)
    assert "skills (maximize)" in text
    assert "cross (maximize)" in text
    assert "±" in text
    assert "4 failed" in text
    assert "rev >= 0.8" in text


def test_the_choice_comes_first() -> None:
    summary = sample_run()[0]
    assert summary.chosen is not None
    lines = [line.split() for line in shown(summary, 100).splitlines() if line.strip()]
    names = [words[0] for words in lines]
    assert names.index(summary.chosen.id) < min(names.index(b.id) for b in summary.baselines)


def test_infeasible_models_are_marked() -> None:
    text = shown(sample_run(n=20, feasible_share=0.0)[0], 100)
    assert "math (infeasible)" in text


def test_long_fronts_are_cut_and_counted() -> None:
    summary = sample_run(("a", "b", "c"), n=150)[0]
    hidden = len(summary.entries()) - 12
    assert hidden > 0
    assert f"and {hidden} more; the report shows all of them." in shown(summary, 80)


def test_names_are_not_markup() -> None:
    summary = sample_run(("[red]skills",), n=10, parents=("[bold]math", "x"), name="[/]")[0]
    text = shown(summary, 100)
    assert "[red]skills" in text
    assert "[bold]math" in text
    assert text.startswith("[/]")


def test_nothing_scored_yet_is_said() -> None:
    empty = replace(sample_run(n=10)[0], baselines=(), front=(), chosen=None, state="running")
    text = shown(empty, 80)
    assert "Nothing has been scored yet." in text
    assert "Next: evomerge status runs/x --watch" in text


def test_a_result_names_the_report_and_the_verdicts() -> None:
    console = Console(width=80, file=io.StringIO())
    show_result(sample_run()[0], Path("runs/x"), ("Against math: worse on skills (-0.100).",), console)
    text = console.file.getvalue()
    assert "Against math: worse on skills (-0.100)." in text
    assert "Report: runs/x/report.html" in text


def test_status_json_is_one_object(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["status", str(run), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["schema_version"], found["state"], found["chosen"]["id"]) == (1, "finished", CHOSEN)


def test_workers_that_were_lost_or_refused_are_told_to_people_and_not_in_the_json(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joined = WorkerNews("joined", "worker-0", "gpu-1", "H200")
    news = (joined, replace(joined, kind="lost"), replace(joined, kind="lost"), replace(joined, kind="refused"))
    eventful = write_sample_run(tmp_path / "eventful", *news, done=False)
    assert run_cli(["status", str(eventful)]) == 0
    assert "workers: 2 lost, 1 refused\n" in capsys.readouterr().out
    assert run_cli(["status", str(run)]) == 0
    assert "workers" not in capsys.readouterr().out
    summary = summarise(eventful)
    assert summary.to_json() == replace(summary, losses=Losses()).to_json()
    page = timing_table(summary, RunDetails())
    assert re.search(r"workers lost</td><td[^>]*>2<.*workers refused</td><td[^>]*>1<", page, re.DOTALL)


def test_watch_ends_with_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["status", str(run), "--watch"]) == 0
    assert "finished" in capsys.readouterr().out


def test_status_without_a_run_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["status", str(tmp_path)]) == 2
    assert "There is no run here." in capsys.readouterr().err


def test_a_corrupt_journal_exits_with_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = write_sample_run(tmp_path / "r")
    lines = (broken / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (broken / "journal.jsonl").write_bytes(b"".join([lines[0], lines[1].replace(b"phase", b"phrase", 1), *lines[2:]]))
    assert run_cli(["status", str(broken)]) == 5
    assert "The journal is damaged." in capsys.readouterr().err


def test_status_is_quick_and_light(run: Path) -> None:
    code = (
        "import sys\nfrom evomerge.cli.main import run\n"
        f"code = run(['status', {str(run)!r}, '--json'])\n"
        "heavy = {'torch', 'ray', 'transformers', 'lm_eval', 'optuna', 'cma'} & set(sys.modules)\n"
        "sys.exit(code or (9 if heavy else 0))"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 5.0  # 0.5 s on an idle machine; test machines are not idle


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("methods", ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")),
        ("optimizers", ("auto", "cma", "nsga2", "random")),
        ("spaces", ("layer-wise-task-arithmetic",)),
        ("suites", ("toy-zoo",)),
    ],
)
def test_ls_lists_what_a_job_may_name(kind: str, some: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["ls", kind]) == 0
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert set(some) <= names


def test_ls_of_an_unknown_kind_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["ls", "metods"]) == 2
    assert "metods" in capsys.readouterr().err
