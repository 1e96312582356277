"""Commands around the job file: write a commented one, check one, print the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from evomerge.cli.console import say
from evomerge.errors import ConfigError

EXAMPLE: Final = """\
# A search job. Check it with `evomerge validate {name}`, run it with `evomerge search {name}`.
# yaml-language-server: $schema=evomerge-job.schema.json   (write that file with `evomerge schema`)
name: first                            # the run goes to runs/first
parents:                               # `evomerge zoo zoo` builds these toy parents and tasks in about a minute
  base: zoo/base                       # folder, or hub id with @revision; needed by task-vector methods
  models: {{math: zoo/math, string: zoo/string, lang: zoo/lang}}
space: layer-wise-task-arithmetic      # `evomerge ls spaces`, the path of a YAML file, or the space itself;
                                       # `stages` in its place searches several, one after the other
suite:                                 # `evomerge ls suites`, a path, or inline:
  include: [zoo/tasks]                 # folders of lm-eval task YAML; their Python code only with trust_task_code: true
  tasks: [add, rev, srt, addx]         # or {{task: addx, num_fewshot: 0, metric: exact_match}}
  split: {{search: 100, select: 200, report: 400}}   # items per task: the search sees, the finalists, the report
  questions: auto                      # per candidate and task: auto, all, a number, a share (docs/evaluation.md)
objectives:                            # one or more; several give a Pareto front
  - {{name: skills, tasks: [add, rev, srt], aggregate: mean}}   # mean | min | weighted (with weights)
  - {{name: cross, task: addx}}          # direction: maximize is the default
constraints:                           # optional
  - {{objective: skills, at_least: {{of: best_parent, minus: 0.01}}}}
optimizer: auto                        # `evomerge ls optimizers`, or {{name: nsga2, population: 16}}
inject: []                             # recipe files for generation 0, beside the built-in ones
budget: {{evaluations: 160}}             # candidates scored on the search set
cluster: {{backend: ray}}                # ray | local; `workers: 2` for at most two, else one per core or GPU
seed: 7
"""


def init(file: Annotated[Path, typer.Argument(help="Where to write the job file.")] = Path("job.yaml")) -> None:
    """Write a commented job file."""
    if file.exists():
        raise ConfigError(
            "The job file exists already.", got=str(file), allowed="a new file", fix="choose another name."
        )
    file.write_text(EXAMPLE.format(name=file.name), encoding="utf-8")
    say(f"Wrote {file}. Next: edit its parents and tasks, then `evomerge validate {file}`.")


def schema() -> None:
    """Print the JSON schema of job files."""
    from evomerge.config.schema import Job

    say(json.dumps(Job.model_json_schema(), indent=2))


def validate(
    job: Annotated[Path, typer.Argument(help="The job file.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="a.b=value, laid over the job file.")] = None,
) -> None:
    """Check a job: parents, tasks, space, memory and cost, before anything expensive is done."""
    from evomerge.cli.render_plan import check_and_show
    from evomerge.config.load import load_job

    check_and_show(load_job(job, set_ or []))
