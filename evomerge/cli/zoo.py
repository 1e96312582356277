"""`evomerge zoo`: build the toy zoo in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


def zoo(
    directory: Annotated[Path, typer.Argument(help="New or empty folder for the zoo.", metavar="DIR")],
    seed: Annotated[int, typer.Option(help="Seed of weights and batches; equal seeds give equal bits.", min=0)] = 0,
    small: Annotated[bool, typer.Option("--small", help="A smaller cut for tests.")] = False,
) -> None:
    """Train a base and three experts (arithmetic, strings, a second notation) and write lm-eval tasks for them."""
    from evomerge.zoo.build import build_zoo
    from evomerge.zoo.lanes import MODELS
    from evomerge.zoo.lanes import Progress as Step
    from evomerge.zoo.spec import full_spec, small_spec

    spec = small_spec(seed) if small else full_spec(seed)
    columns = (TextColumn("{task.description:<7}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as bars:
        rows = {name: bars.add_task(name, total=None, start=False) for name in MODELS}

        def show(event: Step) -> None:
            bars.start_task(rows[event.model])
            bars.update(rows[event.model], completed=event.step, total=event.most_steps)

        built = build_zoo(directory, spec, show)
    if built.reused:
        print(f"The zoo of seed {seed} is already in {directory}: reused.")
    else:
        print(f"Zoo of seed {seed} in {directory}: {', '.join(MODELS)} and tasks.")
