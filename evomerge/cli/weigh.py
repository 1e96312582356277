"""The command that finds weights to start a search from."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from evomerge.cli.console import say
from evomerge.errors import ConfigError

if TYPE_CHECKING:
    from evomerge.config.weighing import Weights


class By(StrEnum):
    """How weights are found."""

    adamerging = "adamerging"
    lm_cocktail = "lm_cocktail"
    metagpt = "metagpt"


_MOST_ROWS: Final = 12
_BOOLEANS: Final = {"true": True, "false": False}


def weigh(
    job: Annotated[Path, typer.Argument(help="The job file.")],
    by: Annotated[By, typer.Option(help="adamerging and lm_cocktail run the models; metagpt reads weights alone.")],
    to: Annotated[Path, typer.Option(help="A new file, for the recipe.")],
    prompts: Annotated[int | None, typer.Option(help="How many of the search set's questions are shown.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="steps=100: a setting of the method (docs/virtual-parents.md).")
    ] = None,
) -> None:
    """Find weights for a job's parents, and write them as a recipe for its `inject`."""
    from evomerge.cli.working import counting, working
    from evomerge.config.load import load_job
    from evomerge.config.weighing import Weighing, weigh

    asked = Weighing(by.value, prompts, dict(_setting(text) for text in set_ or []))
    with working(f"Weighing by {by.value}") as making, counting("Weighing") as report:
        found = weigh(load_job(job), asked, to, making=making, report=report, cost=partial(say, err=True))
    _show(found, by.value)
    for line in _told(found, job, to):
        say(line)


def _setting(text: str) -> tuple[str, float | bool]:
    name, _, value = text.partition("=")
    try:
        return name, _BOOLEANS[value] if value in _BOOLEANS else float(value)
    except ValueError as error:
        raise ConfigError(
            "A setting is not understood.",
            got=f"--set {text}",
            allowed="name=number, name=true or name=false",
            fix="write it like --set steps=100.",
        ) from error


def _show(found: Weights, by: str) -> None:
    """One row per place; of deep models the first and the last."""
    from rich.table import Table

    from evomerge.cli.console import make_console

    table = Table(title=f"Weights by {by}", title_justify="left")
    table.add_column("")
    for name in found.models:
        table.add_column(name, justify="right")
    rows = list(found.rows.items())
    left_out = len(rows) - _MOST_ROWS
    if left_out > 1:
        rows = rows[: _MOST_ROWS // 2] + rows[-(_MOST_ROWS // 2) :]
    for i, (place, values) in enumerate(rows):
        if left_out > 1 and i == _MOST_ROWS // 2:
            table.add_row(f"{left_out} more", *("..." for _ in values))
        table.add_row(place, *(f"{v:.4f}" for v in values))
    make_console().print(table)


def _told(found: Weights, job: Path, to: Path) -> list[str]:
    held = "The job's space holds it: the search starts with it."
    if found.step is not None:
        held = f"Rounded to steps of {found.step:g}, the job's space holds it: the search starts with it."
    if not found.held:
        held = (
            "The job's space does not hold it, not even rounded: it is scored beside the baselines, and the "
            "optimizer is not told of it."
        )
    return [
        f"Wrote {to}. {held}",
        f"Next: `inject: [{to.resolve()}]` in {job}, then `evomerge search {job}`.",
        f"Or merge with it alone: evomerge merge {to} --to DIR",
    ]
