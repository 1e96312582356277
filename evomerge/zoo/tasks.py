"""The zoo's lm-eval tasks: items that no training batch contained, written as JSON lines and YAML."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import yaml

from evomerge.seeds import generator
from evomerge.zoo import steps
from evomerge.zoo.problems import Problem, draw_distinct
from evomerge.zoo.variants import SKILLS, VARIANTS

ITEM_SEED = 0
GENERATIVE = ("add", "rev", "srt", "addx")
N_CHOICES = 4


class ChoiceItem(NamedTuple):
    """A problem with four different choices; `label` is the position of the right one."""

    prompt: str
    choices: tuple[str, ...]
    label: int


def _wrong_sums(problem: Problem) -> list[str]:
    """Sums missed by a slip in one digit or by a carry."""
    total = int(problem.answer)
    slips = (-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20)
    return [f"{total + slip:03d}" for slip in slips if 0 <= total + slip <= 198]


def _wrong_orders(problem: Problem) -> list[str]:
    """The sorted letters with two of them swapped; empty or short when few letters differ."""
    swapped = []
    for i in range(len(problem.answer)):
        for j in range(i + 1, len(problem.answer)):
            letters = list(problem.answer)
            letters[i], letters[j] = letters[j], letters[i]
            swapped.append("".join(letters))
    return sorted(set(swapped) - {problem.answer})


CHOICE_TASKS: Mapping[str, tuple[str, Callable[[Problem], list[str]]]] = MappingProxyType(
    {"add_mc": ("add", _wrong_sums), "srt_mc": ("srt", _wrong_orders)}
)
"""Name -> its skill, and the wrong answers that somebody who half knows the skill might give."""

TASKS = VARIANTS[SKILLS].tasks


def task_items(task: str, n: int) -> tuple[Problem, ...]:
    """The `n` items of a generative task, the same for every zoo; fewer items are a prefix of more.

    Raises:
        KeyError: for an unknown task.
        ValueError: when the held-out part has fewer than `n`.
    """
    rng = generator(ITEM_SEED, "zoo", "items", task)
    if task in steps.SKILLS:
        return steps.draw_distinct(task, "items", n, rng)
    return draw_distinct(task, "items", n, rng)


def choice_items(task: str, n: int) -> tuple[ChoiceItem, ...]:
    """The `n` items of a multiple-choice task; every position holds the right answer equally often.

    Raises:
        KeyError: for an unknown task.
        ValueError: when the held-out part has fewer than `n`.
    """
    skill, wrong_answers = CHOICE_TASKS[task]
    rng = generator(ITEM_SEED, "zoo", "items", task)
    # a word of one letter has no wrong order: draw some more and leave those out
    drawn = draw_distinct(skill, "items", n + n // 100 + 1, rng)
    usable = [p for p in drawn if len(wrong_answers(p)) >= N_CHOICES - 1][:n]
    labels = rng.permutation(np.arange(n) % N_CHOICES)
    return tuple(_with_choices(p, wrong_answers(p), int(label), rng) for p, label in zip(usable, labels, strict=True))


def _with_choices(problem: Problem, wrong: list[str], label: int, rng: np.random.Generator) -> ChoiceItem:
    picked = [wrong[i] for i in rng.permutation(len(wrong))[: N_CHOICES - 1]]
    return ChoiceItem(problem.prompt, (*picked[:label], problem.answer, *picked[label:]), label)


def _config(task: str, data_file: Path) -> dict[str, Any]:
    """The lm-eval configuration of one task. lm-eval reads `data_files` from the working directory: say it in full."""
    shared = {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data_file)}},
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "{{prompt}}",
        "target_delimiter": "",
        "fewshot_delimiter": "\n",
        "metadata": {"version": 1.0},
    }
    if task in CHOICE_TASKS:
        metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
        kind = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{label}}"}
        return {**shared, **kind, "metric_list": [metric]}
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    stop = {"until": ["\n"], "do_sample": False, "max_gen_toks": 8}
    kind = {"output_type": "generate_until", "doc_to_target": "{{answer}}"}
    return {**shared, **kind, "generation_kwargs": stop, "metric_list": [metric]}


def write_tasks(folder: Path, n: int, home: Path, tasks: Sequence[str] = TASKS) -> None:
    """Write `TASK.jsonl` and `TASK.yaml` of every task into `folder`, which exists.

    Args:
        folder: where to write.
        n: items per task.
        home: the folder where the files will lie in the end; the YAML names the data by its absolute path there.
        tasks: their names.
    """
    for task in tasks:
        items = choice_items(task, n) if task in CHOICE_TASKS else task_items(task, n)
        lines = "".join(json.dumps(item._asdict()) + "\n" for item in items)
        (folder / f"{task}.jsonl").write_text(lines, encoding="utf-8")
    write_task_configs(folder, home, tasks)


def write_task_configs(folder: Path, home: Path, tasks: Sequence[str] = TASKS) -> None:
    """Write `TASK.yaml` of every task into `folder`; the data is looked for in `home`."""
    for task in tasks:
        text = yaml.safe_dump(_config(task, home.resolve() / f"{task}.jsonl"), sort_keys=False)
        (folder / f"{task}.yaml").write_text(text, encoding="utf-8")
