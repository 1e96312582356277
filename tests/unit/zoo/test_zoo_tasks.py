"""The zoo's lm-eval tasks: held-out items, fair choices, and files that lm-eval itself reads."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from evomerge.zoo.problems import part_of
from evomerge.zoo.spec import full_spec, small_spec
from evomerge.zoo.tasks import CHOICE_TASKS, GENERATIVE, TASKS, choice_items, task_items, write_tasks
from evomerge.zoo.train import MIXTURES, training_batches

N = full_spec(0).items


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder, N, folder)
    return folder


def read_items(folder: Path, task: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("seed", [0, 1])
def test_no_training_batch_contains_an_item(tasks: Path, seed: int) -> None:
    """Every prompt of every batch that the base and the experts of a full zoo are ever shown."""
    schedule = full_spec(seed).schedule
    seen: set[str] = set()
    for name in MIXTURES:
        steps = schedule.base_most_steps if name == "base" else schedule.expert_steps
        for batch, _ in zip(training_batches(name, seed), range(steps), strict=False):
            seen.update(problem.prompt for problem in batch)
    assert len(seen) > 20_000
    items = {str(item["prompt"]) for task in TASKS for item in read_items(tasks, task)}
    both_notations = items | {f"#{p}" for p in items} | {p.removeprefix("#") for p in items}
    assert seen.isdisjoint(both_notations)


@pytest.mark.parametrize("task", TASKS)
def test_enough_different_items(tasks: Path, task: str) -> None:
    items = read_items(tasks, task)
    assert len({str(item["prompt"]) for item in items}) == len(items) == N >= 1200
    assert {part_of(str(item["prompt"])) for item in items} == {"items"}


def test_the_smaller_cut_is_a_prefix() -> None:
    few = small_spec(0).items
    assert few >= 1200
    assert all(task_items(task, few) == task_items(task, N)[:few] for task in GENERATIVE)


@pytest.mark.parametrize("task", CHOICE_TASKS)
def test_choices_are_fair(task: str) -> None:
    items = choice_items(task, N)
    assert items == choice_items(task, N)
    positions = Counter(item.label for item in items)
    assert set(positions) == {0, 1, 2, 3}
    assert max(positions.values()) - min(positions.values()) <= 1
    for prompt, choices, label in items:
        assert len(set(choices)) == 4
        assert {len(c) for c in choices} == {len(choices[label])}
        if task == "add_mc":
            a, b = prompt.rstrip("=").split("+")
            assert choices[label] == f"{int(a) + int(b):03d}"
            assert all(0 < abs(int(c) - int(a) - int(b)) <= 20 for c in choices if c != choices[label])
        else:
            assert choices[label] == "".join(sorted(prompt[:-1]))
            assert all(sorted(c) == sorted(prompt[:-1]) for c in choices)


def test_unknown_tasks() -> None:
    with pytest.raises(KeyError, match="mul"):
        task_items("mul", 10)
    with pytest.raises(KeyError, match="mul_mc"):
        choice_items("mul_mc", 10)


def test_files_are_plain_yaml_with_an_absolute_path(tasks: Path) -> None:
    for task in TASKS:
        config = yaml.safe_load((tasks / f"{task}.yaml").read_text())
        assert config["task"] == task
        assert config["dataset_kwargs"] == {"data_files": {"test": str(tasks / f"{task}.jsonl")}}


@pytest.mark.parity
def test_lm_eval_reads_the_tasks_from_anywhere(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    home = tmp_path / "home"
    shutil.copytree(tasks, home)
    write_tasks(home, 20, home)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    manager = TaskManager(include_path=str(home), include_defaults=False)
    loaded = manager.load(list(TASKS))["tasks"]
    for task in TASKS:
        docs = list(loaded[task].test_docs())
        assert docs == read_items(home, task)
        text, target = loaded[task].doc_to_text(docs[0]), loaded[task].doc_to_target(docs[0])
        assert text == docs[0]["prompt"]
        if task in CHOICE_TASKS:
            assert loaded[task].doc_to_choice(docs[0]) == docs[0]["choices"]
            assert target == docs[0]["label"]
        else:
            assert target == docs[0]["answer"]
