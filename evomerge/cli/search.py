"""Commands that search: start a run, resume one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from evomerge.errors import ConfigError

Settings = Annotated[
    list[str] | None, typer.Option("--set", help="a.b=value, laid over the job file; may be given several times.")
]


def search(
    job: Annotated[Path, typer.Argument(help="The job file.")],
    run_dir: Annotated[Path | None, typer.Option(help="The run directory; runs/NAME if unset.")] = None,
    set_: Settings = None,
    resume: Annotated[
        Literal["never", "auto", "must"],
        typer.Option(help="never: refuse an existing run. auto: resume it or start. must: only resume."),
    ] = "never",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show the plan; run nothing.")
    ] = False,
) -> None:
    """Search for the best merges of a job; the results go to the run directory."""
    from evomerge.cli.render_plan import check_and_show
    from evomerge.cli.running import run_with_progress
    from evomerge.config.load import load_job

    resolved = load_job(job, set_ or [])
    if dry_run:
        check_and_show(resolved)
        return
    folder = run_dir if run_dir is not None else Path("runs") / resolved.job.name
    run_with_progress(resolved, folder, resume=resume)


def resume(
    run: Annotated[Path, typer.Argument(help="The run directory.")],
    set_: Settings = None,
    accept_history: Annotated[
        bool,
        typer.Option(
            "--accept-history",
            help="Continue although this installation's numeric library would have asked for other candidates.",
        ),
    ] = False,
) -> None:
    """Continue a run that was interrupted, killed, or given a larger budget."""
    from evomerge.cli.running import run_with_progress
    from evomerge.config.run_files import resumed_job

    for setting in set_ or []:
        if not setting.startswith(("budget.", "cluster.", "track=")):
            raise ConfigError(
                "A resumed run keeps its job.",
                got=f"--set {setting}",
                allowed="settings of budget.* and cluster.*, and track",
                fix="start a new run with `evomerge search` to change anything else.",
            )
    run_with_progress(resumed_job(run, set_ or []), run, resume="must", accept_history=accept_history)
