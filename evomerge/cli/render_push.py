"""What a push would send, for people."""

from __future__ import annotations

from rich.table import Table

from evomerge.cli.console import make_console
from evomerge.publishing.push import Plan


def show_push(plan: Plan, *, public: bool) -> None:
    """Print what is sent, under which licence, and what the publisher should know."""
    console = make_console()
    table = Table("file", "size", title=f"To {plan.repo} ({'public' if public else 'private'} if new)")
    table.columns[1].justify = "right"
    sizes = {name: path.stat().st_size for name, path in plan.bundle.files.items()}
    sizes |= {name: len(text.encode()) for name, text in plan.bundle.texts.items()}
    for name, size in sorted(sizes.items()):
        table.add_row(name, f"{size:,}")
    console.print(table)
    stated = ", ".join(f"{name}: {licence}" for name, licence in plan.verdict.parents.items())
    console.print(f"Licence: {plan.verdict.licence} (parents: {stated})")
    for warning in plan.warnings:
        console.print(warning, style="yellow")
