"""What is shown while something takes longer than two seconds: a spinner, or a bar where steps can be counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evomerge.virtual.maker import ParentReport


@contextmanager
def working(text: str) -> Iterator[ParentReport]:
    """Show that something is under way; on a terminal that is no terminal, say it once.

    The value may be told of parents that are made on the way.
    """
    from rich.markup import escape

    from evomerge.cli.console import make_console

    console = make_console(stderr=True)
    known: set[str] = set()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    if not console.is_terminal:
        say(f"{text} ...")

        def told(parent: str, done: int, total: int) -> None:
            del done, total
            if parent not in known:
                say(f"Making {parent} ...")
                known.add(parent)

        yield told
        return
    with console.status(escape(text)) as status:
        yield lambda parent, done, total: status.update(escape(f"{text}: making {parent}, {done} of {total}"))


@contextmanager
def counting(text: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar; the value is to be told how many of how many steps are done."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from evomerge.cli.console import make_console

    console = make_console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield report
