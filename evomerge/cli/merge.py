"""The command that makes a checkpoint from a recipe or a mergekit file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.console import say


class Compat(StrEnum):
    """Whose arithmetic."""

    mergekit = "mergekit"
    off = "off"


def merge(
    file: Annotated[Path, typer.Argument(help="A recipe (JSON) or a mergekit YAML file; told apart by content.")],
    to: Annotated[Path, typer.Option(help="A new or empty folder.")],
    compat: Annotated[
        Compat | None,
        typer.Option(help="mergekit: its arithmetic, bit for bit. off: ours. By default the file's own kind decides."),
    ] = None,
) -> None:
    """Merge checkpoints by a recipe."""
    from evomerge.api import merge as merge_file
    from evomerge.cli.working import working
    from evomerge.config.recipe_files import recipe_file_notes

    with working(f"Merging into {to}") as making:
        merge_file(file, to, compat=None if compat is None else compat.value, making=making)
    for note in recipe_file_notes(file):
        say(f"Note: {note}")
    say(f"Wrote {to}. Load it with AutoModelForCausalLM.from_pretrained({str(to)!r}).")
