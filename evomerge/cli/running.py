"""A search at the terminal: progress while it runs, signals that stop it gently, the front at its end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from evomerge.cli.render import show_result
from evomerge.config.load import ResolvedJob
from evomerge.execution.ledger import Request
from evomerge.types import Failure, Outcome, SetName

_PHASES = {"prepare": "Preparing", "search": "Searching", "select": "Choosing", "report": "Reporting"}


class Signals:
    """Whether to stop: set by the first SIGINT or SIGTERM; a second SIGINT ends the process at once with 130.

    A context manager: inside it both signals of this process are its own.
    """

    def __init__(self) -> None:
        self._stopped = False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """True from the first signal on."""
        return self._stopped

    def __enter__(self) -> Signals:
        self._before = {n: signal.signal(n, self._on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stopped and number == signal.SIGINT:
            os._exit(130)
        self._stopped = True


class Bars:
    """Progress bars of a run; on a terminal that is no terminal, a line per phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=False,
        )
        self._task = self._progress.add_task("Preparing", total=None, note="")
        self._failed = 0
        self._batches = 0

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def phase(self, name: str, total: int, done: int) -> None:
        """A phase begins: the last bar is finished, a new one starts."""
        current = self._progress.tasks[-1]
        if current.total is None:
            self._progress.update(self._task, total=1, completed=1)
        self._progress.stop_task(self._task)
        self._task = self._progress.add_task(_PHASES.get(name, name), total=total, completed=done, note="")
        if not self._console.is_terminal:
            self._console.print(f"{_PHASES.get(name, name)}: {total} evaluations")

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        """One more model is scored."""
        self._failed += isinstance(outcome, Failure)
        self._progress.update(self._task, advance=1, note=self._note())

    def batch(self, number: int) -> None:
        """One more generation is told."""
        self._batches = number + 1
        self._progress.update(self._task, note=self._note())

    def _note(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        return f"generation {self._batches}{failed}"


def run_with_progress(
    resolved: ResolvedJob,
    folder: Path,
    *,
    resume: Literal["never", "auto", "must"],
    accept_history: bool = False,
) -> None:
    """Run a search in `folder` and print what came out."""
    from evomerge.api import run_search
    from evomerge.report.details import run_details
    from evomerge.report.words import separability

    console = Console(stderr=not sys.stdout.isatty())
    with Signals() as signals, Bars(console) as bars:
        summary = run_search(resolved, folder, resume=resume, accept_history=accept_history, watcher=bars, stop=signals)
    show_result(summary, folder, separability(run_details(folder)), Console())
