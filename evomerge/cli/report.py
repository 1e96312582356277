"""The command that writes the HTML report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.console import say


def report(run: Annotated[Path, typer.Argument(help="The run directory.")]) -> None:
    """Write RUN/report.html, also while the run goes on."""
    from evomerge.config.recipes_of import run_recipes
    from evomerge.report.write import write_report

    path = write_report(run, run_recipes(run))
    say(f"Wrote {path}. Open it in a browser; it needs no network.")
