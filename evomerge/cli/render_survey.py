"""A survey of parents at the terminal: tables, and heat maps over depth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Final

from rich.table import Table
from rich.text import Text

from evomerge.cli.console import make_console
from evomerge.config.inspection import Inspection
from evomerge.survey.maps import DepthMap, conflict_map, cosine_map, norm_map
from evomerge.survey.values import Survey

_SHADES: Final = "·░▒▓█"
_MOST_COLUMNS: Final = 60


def show_survey(found: Inspection) -> None:
    """Print what was measured and what stands out."""
    console = make_console()
    console.print(_models(found.survey))
    if len(found.survey.models) > 1:
        console.print(_pairs(found.survey))
    for drawn in (norm_map(found.survey), cosine_map(found.survey), conflict_map(found.survey)):
        if drawn.rows:
            console.print(_heat(drawn))
    for hazard in found.hazards:
        mark = Text(
            "warning: " if hazard.severity == "warning" else "note: ", "bold yellow" * (hazard.severity != "note")
        )
        console.print(mark.append(hazard.text, ""))
    if not found.hazards:
        console.print("Nothing stands out.")


def _models(survey: Survey) -> Table:
    whole = survey.whole
    table = Table(title=f"Deltas from {'the base' if survey.base else 'the mean of the models'}", title_justify="left")
    for column in ("model", "norm", "in parts of the origin", "rms of an entry", "entries changed"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for i, name in enumerate(survey.models):
        values = (f"{whole.norm(i):.4g}", f"{whole.relative(i):.4f}", f"{whole.rms(i):.3g}")
        table.add_row(name, *values, f"{100 * whole.share_moved(i):.1f} %")
    return table


def _pairs(survey: Survey) -> Table:
    whole = survey.whole
    table = Table(title="Pairs", title_justify="left")
    for column in ("pair", "cosine", "kinship (correlation)", "sign conflict"):
        table.add_column(column, justify="left" if column == "pair" else "right")
    for i, j in combinations(range(len(survey.models)), 2):
        values = (whole.cosine(i, j), whole.correlation(i, j), whole.conflict(i, j))
        shown = ("-" if v is None else f"{v:.3f}" for v in values)
        table.add_row(f"{survey.models[i]} / {survey.models[j]}", *shown)
    return table


def _heat(drawn: DepthMap) -> Table:
    """One character per column; of deep models several layers share one, by their mean."""
    known = [abs(v) for row in drawn.values for v in row if v is not None]
    full = max(known, default=0.0) or 1.0
    table = Table(
        title=f"{drawn.title} by depth; full shade = {full:.3g}", title_justify="left", box=None, pad_edge=False
    )
    table.add_column("", justify="left")
    table.add_column(drawn.columns[0])
    table.add_column(f"layers 0 to {len(drawn.columns) - 4}")
    for column in drawn.columns[-2:]:
        table.add_column(column)
    table.add_column("least", justify="right")
    table.add_column("most", justify="right")
    for name, row in zip(drawn.rows, drawn.values, strict=True):
        values = [v for v in row if v is not None]
        shaded = [_shades([row[0]], full), _shades(_pooled(row[1:-2]), full), *(_shades([v], full) for v in row[-2:])]
        table.add_row(name, *shaded, f"{min(values):.3g}", f"{max(values):.3g}")
    return table


def _shades(values: Sequence[float | None], full: float) -> Text:
    """One character per value: the darker, the larger; negative ones in red; nothing where there is nothing."""
    text = Text()
    for value in values:
        if value is None:
            text.append(" ")
        else:
            level = min(len(_SHADES) - 1, round(abs(value) / full * (len(_SHADES) - 1)))
            text.append(_SHADES[level], "red" if value < 0 else "cyan")
    return text


def _pooled(values: tuple[float | None, ...]) -> list[float | None]:
    """At most `_MOST_COLUMNS` values: means of neighbours."""
    group = -(-len(values) // _MOST_COLUMNS)
    pooled: list[float | None] = []
    for start in range(0, len(values), group):
        known = [v for v in values[start : start + group] if v is not None]
        pooled.append(sum(known) / len(known) if known else None)
    return pooled
