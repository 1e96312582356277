"""The command that looks at parents before anything is merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from evomerge.cli.console import say

if TYPE_CHECKING:
    from evomerge.config.inspection import Inspection


def inspect(
    targets: Annotated[list[str], typer.Argument(help="A job file; or models: folders, hub ids with @revision.")],
    base: Annotated[str | None, typer.Option(help="What the models were made from; a job names its own.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the survey and the hazards as JSON.")] = False,
) -> None:
    """Look at parents: how far each is from the base, how they agree over depth, and what looks wrong."""
    from evomerge.cli.render_survey import show_survey
    from evomerge.cli.working import counting
    from evomerge.config.inspection import inspect_parents

    with counting("Measuring the parents") as report:
        found = inspect_parents(targets, base, report)
    if json:
        say(_json(found))
    else:
        show_survey(found)


def _json(found: Inspection) -> str:
    import json

    hazards = [{"severity": h.severity, "text": h.text} for h in found.hazards]
    return json.dumps({"schema_version": 1, "hazards": hazards, "survey": found.survey.to_json()}, indent=1)
