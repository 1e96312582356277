"""Every shipped suite is well formed and names tasks, metrics and filters of the installed lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.evaluation.lm_eval import compile_plan
from evomerge.evaluation.lm_eval_guard import quiet
from evomerge.evaluation.lm_eval_tasks import OUTPUT_TYPES
from evomerge.evaluation.suite import SuiteSpec, TaskSpec, read_suite
from evomerge.resources import data_folder, preset_names, preset_path
from evomerge.testing import eval_tasks
from evomerge.zoo.tasks import choice_items, task_items

NAMES = preset_names("evaluators", "suites")


def suite_of(name: str) -> SuiteSpec:
    return read_suite(preset_path("evaluators", name, "suites"))


def test_the_promised_suites_are_there() -> None:
    assert NAMES == [
        "code-without-execution",
        "japanese-mathematics",
        "knowledge",
        "multilingual-arc",
        "multilingual-gsm8k",
        "reasoning",
        "safety",
        "toy-zoo",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_says_what_it_is(name: str) -> None:
    suite = suite_of(name)
    assert suite.description.endswith(".")
    assert "per candidate" in suite.cost
    text = preset_path("evaluators", name, "suites").read_text()
    assert text.startswith(f"# suite: {name}\n")
    assert all(f"# {word}" in text for word in ("Items", "Prompts", "Cost"))


@pytest.fixture(scope="module")
def index() -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    with quiet():
        manager = TaskManager(include_defaults=True)
    return dict(manager.task_index)


def leaves(name: str, index: dict[str, Any]) -> list[dict[str, Any]]:
    """Configurations of the tasks behind a name, through groups and tags."""
    entry = index[name]
    config = entry.cfg or {}
    if entry.yaml_path is None:
        return [leaf for tag in sorted(entry.tags) for leaf in leaves(tag, index)]
    if "group" in config:
        return [leaf for member in config["task"] for leaf in leaves(member, index)]
    return [config]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "toy-zoo"])
def test_a_suite_names_tasks_of_the_installed_lm_eval(name: str, index: dict[str, Any]) -> None:
    suite = suite_of(name)
    splits = []
    for spec in suite.tasks:
        assert isinstance(spec, TaskSpec)
        configs = leaves(spec.task, index)
        assert configs
        for config in configs:
            assert config.get("output_type", "generate_until") in OUTPUT_TYPES
            assert not config.get("unsafe_code")
            assert spec.metric in [m["metric"] for m in config["metric_list"]]
            assert spec.filter in [None, *[f["name"] for f in config.get("filter_list") or []]]
            splits.append(config.get("test_split"))
    assert suite.public_test_split == any(splits)


def test_the_toy_tasks_are_the_zoo_s(tmp_path: Path) -> None:
    folder = data_folder("evaluators") / "tasks" / "toy-zoo"
    for task in ("add", "rev", "srt", "addx", "add_mc", "srt_mc"):
        items = choice_items(task, 1200) if task.endswith("_mc") else task_items(task, 1200)
        lines = (folder / f"{task}.jsonl").read_text().splitlines()
        assert lines == [json.dumps(item._asdict()) for item in items], task
    plan = compile_plan(suite_of("toy-zoo"), eval_tasks.character_checkpoint(tmp_path, max_position_embeddings=64))
    assert plan.n_questions("report") == 1600
    assert all(item.answer is not None for task in plan.tasks for item in task.items)
    assert not plan.public_test_tasks
