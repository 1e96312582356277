"""What the terminal shows of a run: the front beside the baselines, progress, failures, and what to do next."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evomerge.report.summary import Entry, RunSummary, Scores
from evomerge.report.svg import number
from evomerge.report.words import asked_share, duration, what_next, worker_losses
from evomerge.types import SET_NAMES, SetName

_FRONT_ROWS = 12


def show_status(summary: RunSummary, folder: Path, console: Console) -> None:
    """State, progress, front and what to do next."""
    _show_head(summary, console)
    _show_front(summary, console)
    _show_next(summary, folder, console)


def show_result(summary: RunSummary, folder: Path, verdicts: tuple[str, ...], console: Console) -> None:
    """A finished run: the front beside the baselines, what the intervals say, and where the report lies."""
    _show_head(summary, console)
    _show_front(summary, console)
    for verdict in verdicts:
        console.print(verdict, highlight=False, markup=False)
    if summary.chosen is None:
        console.print("No merge satisfies every constraint: nothing is recommended.", style="yellow")
    console.print(f"\nReport: {folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
    _show_next(summary, folder, console)


def _show_head(summary: RunSummary, console: Console) -> None:
    c, t = summary.counts, summary.timing
    of = f" of {summary.budget}" if summary.budget else ""
    parts = [
        f"{c.evaluated + c.failed}{of} evaluations",
        f"{c.failed} failed" if c.failed else "",
        f"{c.reused} reused" if c.reused else "",
        f"{c.questions:,} questions",
        duration(t.wall_s) + (f" in {t.lives} lives" if t.lives > 1 else ""),
        f"{t.evaluations_per_min:g} per minute",
    ]
    console.print(Text.assemble((summary.name, "bold"), f"  {summary.state}"))
    console.print(", ".join(p for p in parts if p), highlight=False, markup=False)
    for line in (worker_losses(summary.losses), asked_share(c)):
        if line:
            console.print(line, highlight=False, markup=False)
    for constraint in summary.constraints:
        bound = f" (= {constraint.bound:.4g})" if constraint.bound is not None else " (not known yet)"
        console.print(f"constraint: {constraint.rule}{bound}", highlight=False, markup=False)


def _show_front(summary: RunSummary, console: Console) -> None:
    entries = _ordered(summary)
    if not entries:
        console.print("Nothing has been scored yet.")
        return
    sets: list[SetName] = [s for s in SET_NAMES if s == "search" or any(e.scores(s) for e in entries)]
    for objective in summary.objectives:
        title = Text(f"{objective.name} ({objective.direction}), with standard errors", "bold")
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("merge", overflow="fold")
        for set_name in sets:
            table.add_column(f"{set_name} set", justify="right", no_wrap=True)
        for e in entries[:_FRONT_ROWS]:
            table.add_row(Text(_name(e)), *(_cell(e.scores(s), objective.name) for s in sets), style=_style(summary, e))
        console.print(table)
    if len(entries) > _FRONT_ROWS:
        console.print(f"and {len(entries) - _FRONT_ROWS} more; the report shows all of them.", style="dim")


def _name(entry: Entry) -> str:
    return entry.id if entry.feasible else f"{entry.id} (infeasible)"


def _style(summary: RunSummary, entry: Entry) -> str:
    if summary.chosen is not None and entry.id == summary.chosen.id:
        return "bold green"
    return "" if entry.kind == "candidate" else "cyan"


def _ordered(summary: RunSummary) -> list[Entry]:
    """The choice, then the baselines, then the rest of the front."""
    first = [summary.chosen.id] if summary.chosen else []
    entries = summary.entries()
    return [entries[i] for i in dict.fromkeys([*first, *entries])]


def _cell(scores: Scores | None, objective: str) -> str:
    if scores is None:
        return "-"
    score = scores.objectives[objective]
    if score.low == score.value == score.high:
        return number(score.value)
    small = 0 < abs(score.value) < 1e-2
    return f"{score.value:.3g} ±{score.se:.2g}" if small else f"{score.value:.3f} ±{score.se:.3f}"


def _show_next(summary: RunSummary, folder: Path, console: Console) -> None:
    first = what_next(summary, str(folder)).splitlines()[0]
    console.print(f"Next: {first}", highlight=False, markup=False, soft_wrap=True)
