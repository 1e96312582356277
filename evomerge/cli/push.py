"""The command that publishes an exported merge on the Hugging Face hub, behind a licence gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[Path, typer.Argument(help="What `evomerge export` wrote: a checkpoint or an adapter.")],
    *,
    to: Annotated[str, typer.Option(help="The repository: OWNER/NAME.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody read a new repository.")] = False,
    accept_licence: Annotated[
        list[str] | None,
        typer.Option(
            "--accept-licence", "--accept-license", help="A parent's licence that you have read and may publish under."
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Allow a repository that holds files already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
) -> None:
    """Publish an exported merge on the hub, with its card and results, where its parents' licences allow it."""
    from evomerge.cli.render_push import show_push
    from evomerge.cli.working import working
    from evomerge.publishing.push import plan_push, send

    plan = plan_push(folder, to, accept_licence or [])
    show_push(plan, public=public)
    if dry_run:
        typer.echo("Nothing was sent.")
        return
    with working(f"Sending to {to}"):
        address = send(plan, public=public, replace=replace)
    typer.echo(f"Published: {address}")
