"""A merge with a path, exported, loaded by stock transformers and asked by lm-eval's own command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.calibration.logs import log_file, read_log
from evomerge.recipe.baselines import task_arithmetic_recipe
from evomerge.recipe.path import Hop
from evomerge.recipe.recipe import ParentRef
from evomerge.recipe.serialize import recipe_to_text

pytestmark = [pytest.mark.zoo, pytest.mark.parity]

TASKS = ("add", "rev")
N = 40


def lm_eval_logs(model: Path, tasks: Path, to: Path) -> list[Path]:
    """What `lm_eval` logs of the first `N` documents of each task, in a process of its own."""
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "8"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--include_path", str(tasks)]
    command += ["--tasks", ",".join(TASKS), "--limit", str(N), "--log_samples", "--output_path", str(to)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return sorted(to.rglob("samples_*.jsonl"))


def test_lm_eval_gives_an_exported_hybrid_the_same_scores_item_by_item(home, command):
    names = ("base", "math", "string", "lang")
    base, *models = (ParentRef(name, str(home.zoo / name)) for name in names)
    path = (Hop(0), Hop(1), Hop(0, "string", 0.25), Hop(1, None, 0.5), Hop(1, "math", -0.1))
    recipe = replace(task_arithmetic_recipe(models, base, 0.5), path=path)
    file, out = home.write("hybrid.json", recipe_to_text(recipe)), home.folder / "hybrid"
    done = command("merge", file, "--to", out)
    assert done.code == 0, done.err
    job = home.job_with("asked.yaml", ("[add, rev, srt, {task: addx, num_fewshot: 0}]", "[add, rev]"))
    job.write_text(job.read_text().partition("objectives:")[0] + "objectives: [{name: both, tasks: [add, rev]}]\n")

    asked = {}
    for set_name in ("search", "select", "report"):
        done = command("evaluate", file, "--job", job, "--set-name", set_name, "--json")
        assert done.code == 0, done.err
        for task, found in json.loads(done.out)["tasks"].items():
            asked.setdefault(task, {}).update(found["items"])

    compared = right = 0
    for log in lm_eval_logs(out, home.zoo / "tasks", home.folder / "logs"):
        logged = log_file(log, "hybrid")
        sheet = read_log(logged, logged.task)
        theirs = dict(zip(sheet.items, map(float, sheet.scores[0]), strict=True))
        for item in theirs.keys() & asked[logged.task].keys():
            assert asked[logged.task][item] == theirs[item]
            compared += 1
            right += theirs[item]
    assert compared >= N
    assert 0 < right < compared  # a model that fails everywhere would agree with anything
