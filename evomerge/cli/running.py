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
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from evomerge.cli.console import make_console
from evomerge.cli.render import show_result
from evomerge.config.load import ResolvedJob
from evomerge.execution.ledger import Request
from evomerge.types import Failure, Outcome, SetName

_PHASES = {"prepare": "Preparing", "search": "Searching", "select": "Choosing", "report": "Reporting"}


class Signals:
    """Whether to stop: set by the first SIGINT or SIGTERM; a second SIGINT ends the process at once with 130.

    A context manager: inside it both signals of this process are its own.

    Args:
        bars: told of the first signal, and asked to leave the terminal in order before the second one's end.
    """

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
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
            self._bars.abandon()
            os._exit(130)
        if not self._stopped:
            self._stopped = True
            self._bars.stopping()


class Bars:
    """Progress bars of a run; where there is no terminal, a line per phase and per generation.

    Args:
        console: where to draw.
        unit: what the optimizer's batches are called.
    """

    def __init__(self, console: Console, unit: str = "generation") -> None:
        self._console = console
        self._unit = unit
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<10}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("Preparing", total=None, count="", note="parents and questions")
        self._phase = "prepare"
        self._is_stopping = False
        self._making = ""
        self._done = self._total = self._failed = self._batches = 0
        self._tell("Preparing: parents and questions")

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def phase(self, name: str, total: int, done: int) -> None:
        """A phase begins: the last bar is finished, a new one starts."""
        if self._phase == "prepare":
            self._progress.update(self._task, total=1, completed=1)
        self._progress.stop_task(self._task)
        self._phase, self._done, self._total = name, done, total
        title = _PHASES.get(name, name)
        waiting = "workers start" if name == "search" and done < total else ""
        self._task = self._progress.add_task(title, total=total, count=self._count(), note=waiting)
        self._progress.update(self._task, completed=done)  # a bar that is born full would never count as finished
        self._tell(f"{title}: {done} of {total} evaluations")

    def making(self, parent: str, done: int, total: int) -> None:
        """A parent is being made."""
        if self._making != parent:
            self._making = parent
            self._tell(f"Making {parent}")
        self._progress.update(self._task, total=total, completed=done, count=f"{done}/{total}", note=f"making {parent}")

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        """One more model is scored."""
        self._failed += isinstance(outcome, Failure)
        self._done = min(self._done + 1, max(self._total, 1))  # answers that were lost are asked again: counted before
        self._progress.update(self._task, completed=self._done, count=self._count(), note=self._note())

    def batch(self, number: int) -> None:
        """One more generation is told."""
        fresh = self._done > 0 and number >= self._batches
        self._batches = number + 1
        self._progress.update(self._task, note=self._note())
        if fresh:
            self._tell(f"  {self._note()}: {self._count()} evaluations")

    def note(self, text: str) -> None:
        """Something that the user should know, above the bars."""
        self._console.print(text, markup=False, highlight=False, style="yellow")

    def waiting(self, why: str) -> None:
        """No worker has room now, because of `why`; empty when one has."""
        if why:
            self.note(f"Waiting for workers: {why}. A larger node may come; Ctrl-C stops.")
        if not self._is_stopping:
            self._progress.update(self._task, note="waits for a larger node" if why else "workers start")

    def stopping(self) -> None:
        """A stop was asked for; called by a signal handler, hence no drawing here."""
        self._is_stopping = True
        self._progress.update(self._task, note=self._note())
        self._tell("Stopping: running candidates are finished first; Ctrl-C again ends at once")

    def abandon(self) -> None:
        """The process ends now: give the cursor back, past all locks."""
        if self._console.is_terminal:
            os.write(self._console.file.fileno(), b"\x1b[?25h\n")

    def _count(self) -> str:
        return f"{self._done}/{self._total}"

    def _note(self) -> str:
        if self._is_stopping:
            return "finishing what runs; Ctrl-C: now"
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._unit} {self._batches}{failed}" if self._phase == "search" else failed.removeprefix(", ")

    def _tell(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line, highlight=False, markup=False)


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

    console = make_console(stderr=not sys.stdout.isatty())
    bars = Bars(console, "block" if resolved.asynchronous else "generation")
    with Signals(bars) as signals, bars:
        summary = run_search(resolved, folder, resume=resume, accept_history=accept_history, watcher=bars, stop=signals)
    show_result(summary, folder, separability(run_details(folder)), make_console())
