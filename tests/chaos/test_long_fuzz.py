"""The readers of text under random input for minutes: success or one of our errors, nothing else."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import suppress
from typing import Any

import pytest
import yaml

from evomerge.calibration.run_answers import read_run
from evomerge.config.load import load_job
from evomerge.errors import EvomergeError
from evomerge.evaluation.suite import read_suite
from evomerge.recipe.mergekit_text import read_mergekit
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_from_text, recipe_to_text
from evomerge.report.write import write_report
from evomerge.runs.journal import frame, scan
from evomerge.testing.hostile_texts import HOSTILE_NAMES
from evomerge.testing.sample_journal import write_sample_run

pytestmark = pytest.mark.chaos
ROUNDS = 3000
VALUES = (*HOSTILE_NAMES.values(), None, True, -1, 0, 10**30, -0.0, 1e308, [], {}, [[]], {"a": []}, "9" * 300)
JOB = """\
name: first
parents: {base: base, models: {math: math, string: string}}
space: {kind: merge, method: linear, depth: each}
suite: {include: [tasks], tasks: [add, {task: rev, num_fewshot: 1}], split: {search: 4, select: 4, report: 4}}
objectives: [{name: skills, task: add}]
budget: {evaluations: 8}
merge_method: linear
models: [{model: a, parameters: {weight: [1, 0.5]}}]
"""


def mutated(text: str, rng: random.Random) -> str:
    """Some bytes, or some lines, of a text somewhere else or something else."""
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data))
        piece = rng.choice(
            (b"", bytes([rng.randrange(256)]), data[at : at + rng.randint(1, 40)], b"*a", b"&a ", b"{[", b"!!")
        )
        data[at : at + rng.randint(0, 3)] = piece
    return data.decode("utf-8", "replace")


def leaves(value: Any) -> list[tuple[Any, Any]]:
    pairs = list(value.items()) if isinstance(value, dict) else []
    pairs += enumerate(value) if isinstance(value, list) else []
    return [(value, k) for k, _ in pairs] + [leaf for _, v in pairs for leaf in leaves(v)]


def test_texts(tmp_path):
    rng = random.Random(0)
    recipe = recipe_to_text(Recipe((ParentRef("a", "a"), ParentRef("b", "b")), None, (Rule("linear"),)))
    path = tmp_path / "job.yaml"
    for _ in range(ROUNDS):
        path.write_text(mutated(JOB, rng))
        for read in (load_job, read_suite):
            with suppress(EvomergeError):
                read(path)
        with suppress(EvomergeError):
            read_mergekit(mutated(JOB, rng))
        with suppress(EvomergeError):
            recipe_from_text(mutated(recipe, rng))


def test_jobs_with_values_exchanged(tmp_path):
    rng = random.Random(1)
    path = tmp_path / "job.yaml"
    for _ in range(ROUNDS):
        value = yaml.safe_load(JOB)
        container, key = rng.choice(leaves(value))
        container[key] = rng.choice(VALUES)
        path.write_text(yaml.safe_dump(value))
        for read in (load_job, read_suite):
            with suppress(EvomergeError):
                read(path)


def test_run_directories(tmp_path):
    rng = random.Random(2)
    sample = write_sample_run(tmp_path / "sample")
    (sample / ".sha256").unlink(missing_ok=True)
    good = scan((sample / "journal.jsonl").read_bytes()).payloads
    for number in range(ROUNDS // 10):
        run = tmp_path / f"run{number}"
        shutil.copytree(sample, run)
        payloads, manifest = json.loads(json.dumps(good)), json.loads((run / "manifest.json").read_text())
        for place in [payloads] * rng.randint(0, 3) + [manifest] * rng.randint(0, 1):
            container, key = rng.choice(leaves(place))
            container[key] = rng.choice(VALUES)
        lines = [frame(n, p) for n, p in enumerate(p for p in payloads if isinstance(p, dict))]
        (run / "journal.jsonl").write_bytes(b"".join(lines))
        (run / "manifest.json").write_text(json.dumps(manifest))
        for look in (write_report, read_run):
            with suppress(EvomergeError):
                look(run)
        shutil.rmtree(run)
