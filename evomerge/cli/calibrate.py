"""The command that makes an item bank from answers that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, final

import typer

from evomerge.cli.console import say
from evomerge.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from evomerge.calibration.bank import Calibrated, Dimensions

_SUFFIXES: Final = (".json", ".npz")


def calibrate(
    sources: Annotated[list[Path], typer.Argument(help="lm-eval sample logs, run directories, response matrices.")],
    *,
    to: Annotated[Path, typer.Option(help="The bank: FILE.npz or FILE.json; of several tasks FILE-TASK.npz.")],
    task: Annotated[str | None, typer.Option(help="Only this task, or this group of lm-eval tasks as one.")] = None,
    metric: Annotated[str, typer.Option(help="Metric of lm-eval logs: NAME or NAME,FILTER.")] = "",
    dimensions: Annotated[str, typer.Option(help="auto, or 1 to 5.")] = "auto",
    report: Annotated[Path | None, typer.Option(help="Also write a page with curves: PAGE.html.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is held out.", min=0)] = 0,
) -> None:
    """Make an item bank from answers that exist, and say how well it predicts."""
    from evomerge.calibration.bank import calibrate as fit_bank
    from evomerge.calibration.page import render_page
    from evomerge.calibration.sources import gather
    from evomerge.cli.console import make_console
    from evomerge.files import write_atomic
    from evomerge.irt.bank_files import write_bank

    wanted = _dimensions(dimensions)
    _check_target(to, sources)
    with _progress() as bar:
        gathered = gather(sources, task=task, metric=metric, reading=bar.reading)
        banks = [fit_bank(pool, bar, dimensions=wanted, seed=seed) for pool in gathered.pools]
    console = make_console()
    for place in {path.parent for path in (to, report) if path is not None}:
        place.mkdir(parents=True, exist_ok=True)
    for bank in banks:
        path = to if len(banks) == 1 else _named(to, bank.pool.task)
        write_bank(path, bank.fit.bank)
        _show(bank, console)
        console.print(f"Wrote {path}.\n", highlight=False, markup=False, soft_wrap=True)
    for error in gathered.refused.values():
        say(f"Left out: {error}", err=True)
    if report is not None:
        write_atomic(report, render_page(banks))
        console.print(f"Wrote {report}. Open it in a browser; it needs no network.", highlight=False, soft_wrap=True)


def _dimensions(text: str) -> Dimensions:
    if text == "auto":
        return "auto"
    if text in ("1", "2", "3", "4", "5"):
        return int(text)
    raise ConfigError(
        "The number of dimensions is not usable.",
        got=f"--dimensions {text}",
        allowed="auto, or 1 to 5",
        fix="leave --dimensions out: auto chooses by held-out answers.",
    )


def _check_target(to: Path, sources: Sequence[Path]) -> None:
    """Before anything is computed.

    Raises:
        ConfigError: for another suffix, or a file that is there and is no bank.
    """
    from evomerge.irt.bank_files import read_bank

    if to.suffix not in _SUFFIXES:
        raise ConfigError(
            "A bank cannot be written there.",
            got=f"--to {to}",
            allowed="a file name that ends in .npz (small) or .json (readable)",
            fix=f"write --to {to.with_suffix('.npz')}.",
        )
    if not to.exists():
        return
    try:
        read_bank(to)
    except ConfigError as error:
        raise ConfigError(
            "The bank would replace a file that is no bank.",
            got=f"--to {to}" + (", which is one of the sources" if to in sources else ""),
            allowed="a new file, or a bank, which is replaced",
            fix="name another file.",
        ) from error


def _named(to: Path, task: str) -> Path:
    plain = re.sub(r"[^\w.-]", "_", task)
    return to.with_name(f"{to.stem}-{plain}{to.suffix}")


@final
class _Bar:
    """One bar that is told first of the files, then of the fits."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._row = bars.add_task("Reading", total=None)

    def reading(self, path: Path) -> None:
        self._bars.update(self._row, description=f"Reading {path.name}")

    def begins(self, what: str, total: int) -> None:
        self._bars.reset(self._row, description=what, total=max(total, 1))

    def step(self) -> None:
        self._bars.advance(self._row)


@contextmanager
def _progress() -> Iterator[_Bar]:
    """A bar for what is under way; where there is no terminal, one line."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from evomerge.cli.console import make_console

    console = make_console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        if not console.is_terminal:
            console.print("Calibrating ...", highlight=False)
        yield _Bar(bars)


def _show(bank: Calibrated, console: Console) -> None:
    """What the bank is, what it was made from, and how well it predicts."""
    from rich import box
    from rich.table import Table

    from evomerge.calibration.sheets import counted
    from evomerge.calibration.words import KINDS, verdict

    responses, fitted = bank.pool.responses, bank.fit.bank
    constant = int((~fitted.fitted).sum())
    told = [
        f"{bank.pool.task}: {counted(len(responses.models), 'model')}, {counted(len(responses.items), 'item')}"
        + (f" ({constant:,} answered alike by all)" if constant else ""),
        f"{int(responses.seen.sum()):,} answers ({responses.seen.mean():.0%} of the matrix)"
        + (f", metric {bank.pool.metric}" if bank.pool.metric else ""),
        f"{counted(fitted.dimensions, 'dimension')}, {fitted.link}"
        + ("" if bank.fit.converged else "; the fit stopped before it converged"),
        *(
            f"{s.name} ({KINDS[s.kind]}): {counted(s.models, 'model')}, {counted(s.answers, 'answer')}"
            for s in bank.pool.sources
        ),
        *(f"Note: {note}" for note in bank.pool.notes),
    ]
    for line in told:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    quality = bank.quality
    if quality.errors:
        console.print(f"Error of the predicted score over {quality.n_models:,} held-out models:", highlight=False)
        errors = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("questions asked", "bank", "plain mean"):
            errors.add_column(name, justify="right")
        for e in quality.errors:
            errors.add_row(str(e.asked), f"{e.bank:.3f}", f"{e.mean:.3f}")
        console.print(errors)
    for found, who in ((quality.new_models, "held-out models"), (quality.new_answers, "held-out answers")):
        if found is not None:
            line = f"Log-likelihood per answer, {who}: {found.log_likelihood:.3f} (item means {found.baseline:.3f})"
            console.print(line, highlight=False, soft_wrap=True)
    console.print(verdict(quality), highlight=False, markup=False, soft_wrap=True)
