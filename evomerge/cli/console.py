"""The terminal: everything that is printed passes here, and nothing that a file says is obeyed by it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, final

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from evomerge.errors import printable

_ODD: Final = re.compile(r"[^\x20-\x7e\n]")


@final
class SafeConsole(Console):
    """A rich console whose texts cannot speak to the terminal: names come from files, and files from strangers.

    Rich's own colours and cursor movements are no text and stay. Rich would read `[red]` in a text as markup, and would
    colour numbers: both are off unless a call asks for them.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed, piece by piece; control characters in it are written as escapes."""
        for segment in super().render(renderable, options):
            if segment.control or not _ODD.search(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text, len(segment.text)), segment.style)


def make_console(**settings: Any) -> SafeConsole:
    """A console on the standard output, or with `stderr=True` on the error output."""
    return SafeConsole(**{"markup": False, "highlight": False, **settings})


def say(line: str, *, err: bool = False) -> None:
    """Print a line; control characters in it are written as escapes."""
    typer.echo(printable(line, len(line)), err=err)
