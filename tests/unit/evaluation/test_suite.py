from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import EvaluationError
from evomerge.evaluation.suite import PluginSpec, Split, SuiteSpec, TaskSpec, load_suite, load_task, read_suite


def test_a_suite_with_everything(tmp_path: Path) -> None:
    suite = load_suite(
        {
            "include": ["tasks"],
            "tasks": [
                "add",
                {"task": "rev", "num_fewshot": 2, "metric": "acc"},
                {"evaluator": "mine", "options": {"n": 1}},
            ],
            "split": {"search": 10, "select": 0.2, "report": 0.5},
            "gen_kwargs": {"max_gen_toks": 3},
            "chat_template": True,
            "description": "d",
            "public_test_split": True,
        },
        tmp_path,
    )
    assert suite.include == ((tmp_path / "tasks").resolve(),)
    assert suite.names == ("add", "rev", "mine")
    assert suite.tasks[1] == TaskSpec("rev", num_fewshot=2, metric="acc")
    assert suite.tasks[2] == PluginSpec("mine", {"n": 1})
    assert suite.split.counts(100) == {"search": 10, "select": 20, "report": 50}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"taks": ["add"]}, "Did you mean 'tasks'"),
        ({"tasks": "add"}, "tasks: 'add'"),
        ({"tasks": []}, "needs a task"),
        ({"tasks": ["a", "a"]}, "stands twice"),
        ({"tasks": ["a"], "split": {"serach": 1}}, "Did you mean 'search'"),
        ({"tasks": ["a"], "split": {"search": 0}}, "split.search: 0"),
        ({"tasks": ["a"], "split": {"search": 1.5}}, "split.search: 1.5"),
        ({"tasks": ["a"], "split": {"search": True}}, "split.search: True"),
        ({"tasks": ["a"], "split": {"search": 0.5, "select": 0.4, "report": 0.3}}, "sum to 1.2"),
        ({"tasks": ["a"], "dtype": "bf16"}, "bfloat16"),
        ({"tasks": ["a"], "num_fewshot": True}, "num_fewshot: True"),
        ({"tasks": ["a"], "num_fewshot": -1}, "num_fewshot: -1"),
        ({"tasks": ["a"], "fewshot_as_multiturn": True}, "chat_template: false"),
        ({"tasks": [{"task": "a", "evaluator": "b"}]}, "exactly one"),
        ({"tasks": [{"metric": "acc"}]}, "exactly one"),
        ({"tasks": [{"task": "a", "options": {}}]}, "mixes settings"),
        ({"tasks": [{"evaluator": "a", "metric": "acc"}]}, "remove metric"),
        ({"tasks": [{"task": "a", "num_fewshot": -2}]}, r"tasks\[0\].num_fewshot: -2"),
        ({"tasks": [3]}, r"tasks\[0\] is not a task"),
    ],
)
def test_mistakes_are_told(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        load_suite(mapping)


def test_a_task_by_name_and_nulls() -> None:
    assert load_task("add") == TaskSpec("add")
    assert load_suite({"tasks": ["a"], "system_instruction": None, "num_fewshot": None}) == SuiteSpec((TaskSpec("a"),))
    assert Split().counts(1000) == {"search": 100, "select": 200, "report": 400}


def test_files(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("include: [tasks]\ntasks: [add]\n")
    assert read_suite(tmp_path / "s.yaml").include == (tmp_path / "tasks",)
    with pytest.raises(EvaluationError, match=r"none\.yaml"):
        read_suite(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("tasks: [")
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_suite(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- tasks")
    with pytest.raises(EvaluationError, match="not a mapping"):
        read_suite(tmp_path / "list.yaml")
