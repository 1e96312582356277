"""The command that takes a merge out of a run, as what its user needs. Never scores anything."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.console import say


class As(StrEnum):
    """What to write."""

    checkpoint = "checkpoint"
    adapter = "adapter"
    recipe = "recipe"
    mergekit = "mergekit"


def export(
    run: Annotated[Path, typer.Argument(help="The run directory.")],
    to: Annotated[Path, typer.Option(help="A new or empty folder, or a new file for recipe and mergekit.")],
    pick: Annotated[str, typer.Option(help="knee (of the select scores), best:OBJECTIVE, or id:ID.")] = "knee",
    as_: Annotated[As, typer.Option("--as", help="What to write.")] = As.checkpoint,
) -> None:
    """Write one merge of a run as a checkpoint, an adapter, a recipe, or a mergekit file."""
    from evomerge.cli.working import working
    from evomerge.config.export import export_merge

    with working(f"Writing {to}") as making:
        lines = export_merge(run, to, pick=pick, form=As(as_).value, making=making)
    for line in lines:
        say(line)
