"""A spinner for what takes longer than two seconds and cannot be counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show that something is under way; on a terminal that is no terminal, say it once."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{text} ...", highlight=False, markup=False, soft_wrap=True)
        yield
        return
    with console.status(escape(text)):
        yield
