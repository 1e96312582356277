"""Jobs for the tests of the job file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.config.load import ResolvedJob, load_job

JOB = """\
name: first
parents:
  base: parents/base
  models:
    math: parents/math
    lang: parents/lang
space: model-wise-linear
suite:
  include: [tasks]
  tasks:
    - add
    - {task: rev, num_fewshot: 2}
  split: {search: 10, select: 0.25, report: 20}
objectives:
  - {name: skills, tasks: [add, rev], aggregate: weighted, weights: {add: 2, rev: 0.5}}
  - name: cross
    task: add
    direction: minimize
constraints:
  - {task: rev, at_least: 0.8, z: 1}
  - {objective: skills, at_least: {of: best_parent, minus: 0.01}}
optimizer: {name: nsga2, population: 16, options: {spread: 1.5}}
inject: [recipes/old.json]
budget: {evaluations: 160}
cluster: {backend: local, workers: 2, drain_s: 0}
seed: 7
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes the example job, with one text replaced by another, and returns its path."""

    def writer(old: str = "", new: str = "") -> Path:
        assert old in JOB
        for name in ("base", "math", "lang"):  # without one, `parents/base` would be the id of a hub
            (tmp_path / "parents" / name).mkdir(parents=True, exist_ok=True)
        path = tmp_path / "job.yaml"
        path.write_text(JOB.replace(old, new, 1) if old else JOB + new, encoding="utf-8")
        return path

    return writer


@pytest.fixture
def resolve(write: Callable[[str, str], Path]) -> Callable[..., ResolvedJob]:
    """The example job, with one text replaced by another and `--set` options, loaded."""

    def resolver(old: str = "", new: str = "", *overrides: str) -> ResolvedJob:
        return load_job(write(old, new), overrides)

    return resolver
