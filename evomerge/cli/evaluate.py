"""The command that scores one model or recipe on a job's tasks."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.console import say


class Set(StrEnum):
    """Which of the three item sets."""

    search = "search"
    select = "select"
    report = "report"


def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint (folder or hub id) or a recipe file.")],
    job: Annotated[Path, typer.Option(help="The job whose suite is asked.")],
    set_name: Annotated[Set, typer.Option(help="Which item set.")] = Set.search,
    as_json: Annotated[bool, typer.Option("--json", help="Per-task and per-item scores as JSON.")] = False,
) -> None:
    """Score a model or a recipe on a job's tasks."""
    from evomerge.cli.working import working
    from evomerge.config.evaluate import evaluate_model
    from evomerge.config.load import load_job

    with working(f"Scoring {model}"):
        evaluation = evaluate_model(model, load_job(job), set_name.value)
    if as_json:
        tasks = {
            name: {
                "value": answers.mean,
                "se": answers.se,
                "n": len(answers.items),
                "items": dict(zip(answers.items, answers.scores, strict=True)),
            }
            for name, answers in evaluation.answers.items()
        }
        say(json.dumps({"model": model, "set": set_name.value, "tasks": tasks}, indent=1))
        return
    width = max(len(name) for name in evaluation.answers)
    for name, answers in evaluation.answers.items():
        say(f"{name:<{width}}  {answers.mean:.4f} +- {answers.se:.4f}  ({len(answers.items)} items)")
