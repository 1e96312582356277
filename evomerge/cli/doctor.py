"""The command that says what this machine and a cluster offer, and what is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from evomerge.cli.console import make_console, say

if TYPE_CHECKING:
    from evomerge.checkup.finding import Finding

EXIT_MISSING: Final = 2
_STYLES: Final = {"ok": "green", "warning": "yellow", "missing": "bold red"}


def doctor(
    address: Annotated[str | None, typer.Option(help="A running Ray cluster: HOST:PORT, or auto.")] = None,
    run_dir: Annotated[Path, typer.Option(help="Where runs will go.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, schema version 1.")] = False,
    online: Annotated[bool, typer.Option("--online", help="See whether the hub can be reached, too.")] = False,
) -> int:
    """Say what this machine and a cluster offer, and what is missing."""
    findings = list(_look(address, run_dir, online=online))
    is_able = all(finding.state != "missing" for finding in findings)
    if as_json:
        say(json.dumps({"version": 1, "able": is_able, "findings": [f.to_json() for f in findings]}))
    else:
        _show(findings)
    return 0 if is_able else EXIT_MISSING


def _look(address: str | None, run_dir: Path, *, online: bool) -> Iterator[Finding]:
    from evomerge.checkup.folders import run_folder
    from evomerge.checkup.gpus import gpus
    from evomerge.checkup.machine import disk, this_machine
    from evomerge.checkup.packages import optional_packages, python_and_packages
    from evomerge.config.cache import kernel_folder

    yield from python_and_packages()
    yield from this_machine()
    yield from gpus()
    yield disk("working folder", Path.cwd())
    yield disk("cache", kernel_folder().parent)
    yield from run_folder(run_dir)
    yield token()
    if address is not None:
        from evomerge.checkup.cluster import cluster_at

        yield from cluster_at(address)
    if online:
        from evomerge.checkup.online import hub

        yield hub()
    yield from optional_packages()


def token() -> Finding:
    """Whether there is a token that a cluster would know its friends by."""
    from evomerge.checkup.finding import Finding
    from evomerge.checkup.packages import version_of

    ray = f"Ray {version_of('ray') or 'is not installed'}"
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        fix = "unset RAY_AUTH_MODE: without a token anybody who reaches the cluster runs anything on it"
        return Finding("cluster", "token", "warning", f"{ray}; RAY_AUTH_MODE=disabled", fix)
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("cluster", "token", "ok", f"{ray}; in RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if not path.is_file():
        return Finding("cluster", "token", "ok", f"{ray}; no token: one is made for local searches")
    if path.stat().st_mode & 0o077:
        return Finding("cluster", "token", "warning", f"{ray}; others can read {path}", f"chmod 600 {path}")
    return Finding("cluster", "token", "ok", f"{ray}; in {path}")


def _show(findings: list[Finding]) -> None:
    """A table, and what to do next."""
    from rich.table import Table
    from rich.text import Text

    console = make_console()
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in range(4):
        table.add_column(overflow="fold", ratio=1 if column == 3 else None, no_wrap=column < 3)
    topic = ""
    for finding in findings:
        shown = "" if finding.topic == topic else finding.topic
        topic = finding.topic
        words = Text(finding.text)
        if finding.fix:
            words.append(f"\nNext: {finding.fix}", style="bold")
        table.add_row(Text(shown, style="bold"), finding.name, Text(finding.state, style=_STYLES[finding.state]), words)
    console.print(table)
    missing = [f.name for f in findings if f.state == "missing"]
    n_warnings = sum(f.state == "warning" for f in findings)
    if missing:
        console.print(f"\nA search cannot run here: {', '.join(missing)}.")
    else:
        console.print(f"\nA search can run here; {n_warnings or 'no'} warning{'' if n_warnings == 1 else 's'}.")
