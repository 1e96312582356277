"""The command that says how a run is doing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from evomerge.cli.console import say

_EVERY_S: Final = 2.0


def status(
    run: Annotated[Path, typer.Argument(help="The run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, schema version 1.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until the run has ended.")] = False,
) -> None:
    """Show progress, front, throughput and failures of a run."""
    from evomerge.cli.console import make_console
    from evomerge.cli.render import show_status
    from evomerge.report.collect import summarise

    console = make_console()
    while True:
        summary = summarise(run)
        if as_json:
            say(json.dumps(summary.to_json()))
        else:
            if watch and console.is_terminal:
                console.clear()
            show_status(summary, run, console)
        if not watch or summary.state != "running":
            return
        time.sleep(_EVERY_S)
