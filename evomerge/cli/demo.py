"""The command that shows everything at once: toy zoo, search, export, report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Final

import typer

JOB: Final = """\
# The job of `evomerge demo`: merge three toy experts so that one model adds, reverses, sorts, and adds in a second
# notation that no expert was taught. Run it again with another seed or space: `evomerge search demo/job.yaml`.
name: demo
parents:
  base: zoo/base
  models: {math: zoo/math, string: zoo/string, lang: zoo/lang}
space: layer-wise-task-arithmetic
suite:
  include: [zoo/tasks]
  tasks: [add, rev, srt, addx]
  split: {search: 100, select: 200, report: 400}
objectives:
  - {name: skills, tasks: [add, rev, srt], aggregate: mean}
  - {name: cross, task: addx}
constraints:
  - {objective: skills, at_least: {of: best_parent, minus: 0.0}}
optimizer: {name: nsga2, population: 20}
budget: {evaluations: 200}
cluster: {backend: ray, workers: 2}
seed: 7
"""


def demo(
    directory: Annotated[Path, typer.Argument(help="Where everything goes; the zoo in it is reused.")] = Path("demo"),
) -> None:
    """Build a small model zoo, search it, export the winner: minutes on two cores."""
    from evomerge.cli.export import As, export
    from evomerge.cli.running import run_with_progress
    from evomerge.cli.zoo import zoo
    from evomerge.config.export import RECIPE_FILE
    from evomerge.config.load import load_job
    from evomerge.runs.store import JOURNAL

    typer.echo("1/3  A zoo of small real models: a base and three experts")
    directory.mkdir(parents=True, exist_ok=True)
    zoo(directory / "zoo")
    job, run, winner = directory / "job.yaml", directory / "run", directory / "winner"
    if not job.exists():
        job.write_text(JOB, encoding="utf-8")
    for old, mark in ((run, JOURNAL), (winner, RECIPE_FILE)):
        if (old / mark).is_file():  # an earlier demo's; anything else is refused below, not removed
            shutil.rmtree(old)
    typer.echo(f"2/3  A search as {job} says: two objectives, one constraint, 200 evaluations on Ray")
    run_with_progress(load_job(job), run, resume="never")
    typer.echo("3/3  The winner as a checkpoint")
    export(run, to=winner, pick="knee", as_=As.checkpoint)
    typer.echo(f"\nOpen {run / 'report.html'} in a browser. The job is {job}: `evomerge search` runs a changed copy.")
