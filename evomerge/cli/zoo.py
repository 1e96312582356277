"""`evomerge zoo`: build a toy zoo in a folder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evomerge.cli.console import say

if TYPE_CHECKING:
    from evomerge.zoo.build import Built
    from evomerge.zoo.spec import ZooSpec


class VariantName(StrEnum):
    """The zoos of `evomerge.zoo.variants`."""

    SKILLS = "skills"
    STEPS = "steps"


def zoo(
    directory: Annotated[Path, typer.Argument(help="New or empty folder for the zoo.", metavar="DIR")],
    seed: Annotated[int, typer.Option(help="Seed of weights and batches; equal seeds give equal bits.", min=0)] = 0,
    small: Annotated[bool, typer.Option("--small", help="A smaller cut for tests.")] = False,
    variant: Annotated[
        VariantName,
        typer.Option(
            help="skills: arithmetic, strings, a second notation. "
            "steps: operations on words; two of them need a block of layers to run twice."
        ),
    ] = VariantName.SKILLS,
) -> None:
    """Train a base and three experts and write lm-eval tasks for them."""
    from evomerge.zoo.spec import full_spec, small_spec

    spec = (small_spec if small else full_spec)(seed, variant.value)
    built = _build(directory, spec)
    if built.reused:
        say(f"The zoo of seed {seed} is already in {directory}: reused.")
    else:
        say(f"Zoo of seed {seed} in {directory}: {', '.join(spec.kind.models)} and tasks.")


def _build(directory: Path, spec: ZooSpec) -> Built:
    """Build with a bar per model; on a terminal that is no terminal, say when each model is done."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from evomerge.cli.console import make_console
    from evomerge.zoo.build import build_zoo
    from evomerge.zoo.lanes import Progress as Step

    console = make_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        rows = {"base": bars.add_task("training base", total=None)}

        def show(event: Step) -> None:
            if event.model not in rows:
                rows[event.model] = bars.add_task(f"training {event.model}")
            bars.update(rows[event.model], completed=event.step, total=event.most_steps)
            if event.step == event.most_steps and not console.is_terminal:
                console.print(f"trained {event.model}", highlight=False)

        return build_zoo(directory, spec, show)
