"""The Python examples of the documentation run as they stand, beside a toy zoo."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

JOB = """\
name: readme
parents:
  base: zoo/base
  models: {math: zoo/math, string: zoo/string, lang: zoo/lang}
space: model-wise-linear
suite: {include: [zoo/tasks], tasks: [add], split: {search: 8, select: 8, report: 8}}
objectives: [{name: sums, task: add}]
optimizer: random
budget: {evaluations: 8}
cluster: {backend: local, workers: 1}
"""


def python_blocks(path: Path) -> list[str]:
    return _BLOCK.findall(path.read_text(encoding="utf-8"))


def run(code: str, folder: Path) -> str:
    """Runs code in a process of its own and returns what it printed."""
    (folder / "example.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "example.py"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory, small_zoo: Path) -> tuple[Path, str]:
    """The folder in which the examples of the page, then of the README, have run; and what they printed."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "zoo").symlink_to(small_zoo)
    (folder / "job.yaml").write_text(JOB, encoding="utf-8")
    blocks = python_blocks(ROOT / "docs" / "python-api.md")
    # the README merges into the same folder name; its recipe.json is the one that the page has just written
    readme = [block.replace('"merged"', '"merged-again"') for block in python_blocks(ROOT / "README.md")]
    method = [block for block in blocks if "MergeMethodSuite" in block]
    assert (len(blocks), len(readme), len(method)) == (4, 1, 1)
    checks = f"""
import pathlib, pytest
pathlib.Path("method.py").write_text({method[0]!r})
code = pytest.main(["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "method.py"])
assert code == 0, code
"""
    return folder, run("\n".join([*blocks[:-1], *readme, checks]), folder)


@pytest.mark.zoo
def test_examples_run_and_say_what_they_promise(example: tuple[Path, str]) -> None:
    folder, printed = example
    for said in ("search: 20 evaluations", "select:", "report:", "generation 1 is done", "passed"):
        assert said in printed
    assert "failed" not in printed
    for merged in ("merged", "merged-again"):
        assert (folder / merged / "model.safetensors").is_file()
    weights = [(folder / merged / "model.safetensors").read_bytes()[-4096:] for merged in ("merged", "merged-again")]
    assert weights[0] == weights[1]


@pytest.mark.zoo
def test_values_of_the_function_are_in_the_journal_and_in_status(example: tuple[Path, str]) -> None:
    run_dir = example[0] / "runs" / "from-python"
    records = [json.loads(line) for line in (run_dir / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluated = [r for r in records if r["t"] == "evaluated"]
    assert len(evaluated) >= 20
    for record in evaluated:
        lowest = min(mean for mean, *_ in record["tasks"].values())
        value, se = record["values"]["weakest"]
        assert value == pytest.approx(lowest)
        assert se >= 0
    assert sum(r["t"] == "opened" for r in records) == 2  # the second life, with resume="auto", scored nothing
    assert [r["t"] for r in records[-2:]] == ["finished", "opened"]


@pytest.mark.zoo
def test_commands_need_no_function_but_resume_does(example: tuple[Path, str]) -> None:
    run_dir = example[0] / "runs" / "from-python"

    def evomerge(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "evomerge", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)

    status = evomerge("status", str(run_dir), "--json")
    assert status.returncode == 0, status.stderr
    found = json.loads(status.stdout)
    assert [o["name"] for o in found["objectives"]] == ["weakest", "skills"]
    entries = [*found["front"], *found["baselines"]]
    for entry in entries:
        lowest = min(task["value"] for task in entry["search"]["tasks"].values())
        assert entry["search"]["objectives"]["weakest"]["value"] == pytest.approx(lowest)
    assert found["chosen"]["report"]["objectives"]["weakest"]["se"] >= 0
    resumed = evomerge("resume", str(run_dir))
    assert resumed.returncode == 2
    assert "The objective 'weakest' does not say what it is about" in resumed.stderr
    assert "evomerge.search(objectives=...)" in " ".join(resumed.stderr.split())
