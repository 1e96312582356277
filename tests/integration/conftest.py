"""The `evomerge` command inside this process, a folder to work in, and one finished run that many tests look at."""

from __future__ import annotations

import io
import signal
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

JOB = """\
name: first
parents:
  base: zoo/base                       # folder, or hub id with @revision
  models: {math: zoo/math, string: zoo/string, lang: zoo/lang}
space: layer-wise-task-arithmetic      # preset, path, or inline mapping
suite:
  include: [zoo/tasks]                 # folders of lm-eval task YAML; their Python code only with trust_task_code: true
  tasks: [add, rev, srt, {task: addx, num_fewshot: 0}]
  split: {search: 100, select: 200, report: 400}    # items per task (counts or fractions), by item hash
  # chat_template, system_instruction, gen_kwargs, num_fewshot, dtype: passed on to lm-eval's task building
objectives:
  - {name: skills, tasks: [add, rev, srt], aggregate: mean}      # mean | min | weighted (with weights)
  - {name: cross, task: addx}                                     # direction: maximize is the default
constraints:
  - {task: rev, at_least: 0.8}
  - {objective: skills, at_least: {of: best_parent, minus: 0.01}} # best_parent | base | a parent's name; minus | plus
optimizer: {name: nsga2, population: 16}    # auto | cma | sep-cma | lra-cma | nsga2 | nsga3 | tpe | gp | random
inject: []                             # recipe files for generation 0, beside the built-in ones
budget: {evaluations: 160}             # candidates scored on the search set
cluster: {backend: ray, workers: 2}    # ray | local
seed: 7
"""

SMALL = ("--set", "budget.evaluations=40", "--set", "suite.split={search: 16, select: 16, report: 24}")
INLINE = ("--set", "cluster={backend: local, workers: 1}")


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


class Home(NamedTuple):
    """A folder with `zoo` in it and the job file of the contracts."""

    folder: Path
    job: Path
    zoo: Path

    def write(self, name: str, text: str) -> Path:
        """Another file in the folder."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def job_with(self, name: str, *changes: tuple[str, str]) -> Path:
        """The job with pieces of its text replaced, in a file of its own."""
        text = JOB
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        return self.write(name, text)


def run_command(*arguments: object) -> Done:
    """The command line inside this process; other people's warnings are theirs, as on a terminal."""
    from evomerge.cli.main import run

    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
        warnings.simplefilter("ignore")
        code = run([str(a) for a in arguments])
    assert {s: signal.getsignal(s) for s in handlers} == handlers, "a command leaves signal handlers behind"
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def command() -> Command:
    """See `run_command`."""
    return run_command


def make_home(folder: Path, zoo: Path) -> Home:
    (folder / "zoo").symlink_to(zoo)
    home = Home(folder, folder / "first.yaml", folder / "zoo")
    home.write("first.yaml", JOB)
    return home


@pytest.fixture
def home(tmp_path: Path, small_zoo: Path) -> Home:
    """A fresh home."""
    return make_home(tmp_path, small_zoo)


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory, small_zoo: Path) -> Home:
    """A home that tests only read."""
    return make_home(tmp_path_factory.mktemp("home"), small_zoo)


@pytest.fixture(scope="session")
def finished(shared_home: Home) -> Path:
    """A finished run of the job, on two Ray workers, scored by fewer items; read only."""
    run = shared_home.folder / "runs" / "ray"
    done = run_command("search", shared_home.job, "--run-dir", run, *SMALL)
    assert done.code == 0, done.err
    (shared_home.folder / "ray.out").write_text(done.out)
    (shared_home.folder / "ray.err").write_text(done.err)
    return run


@pytest.fixture(scope="session")
def refused(command: Command) -> Callable[..., str]:
    """Runs a command that must fail with `code` and a message of four parts; returns the message."""

    def check(code: int, *arguments: object) -> str:
        done = command(*arguments)
        text = done.err[done.err.find("Error: ") :]
        assert done.code == code, done
        assert "Traceback" not in done.err + done.out, done.err
        for part in ("Error: ", "\n  Got: ", "\n  Allowed: ", "\n  Fix: "):
            assert part in text, text
        return text

    return check
