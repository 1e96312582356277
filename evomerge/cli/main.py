"""The `evomerge` command: its subcommands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

import typer

from evomerge import __version__
from evomerge.cli.calibrate import calibrate
from evomerge.cli.console import say
from evomerge.cli.demo import demo
from evomerge.cli.doctor import doctor
from evomerge.cli.evaluate import evaluate
from evomerge.cli.export import export
from evomerge.cli.inspect import inspect
from evomerge.cli.job import init, schema, validate
from evomerge.cli.launch import launch
from evomerge.cli.ls import ls
from evomerge.cli.merge import merge
from evomerge.cli.push import push
from evomerge.cli.report import report
from evomerge.cli.search import resume, search
from evomerge.cli.status import status
from evomerge.cli.weigh import weigh
from evomerge.cli.zoo import zoo
from evomerge.errors import ConfigError, DiskFull, EvomergeError
from evomerge.files import disk_full_is_told

EXIT_UNEXPECTED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

# every error of usage; where the class lives depends on whether this typer brings its own click
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)

COMMANDS: Final = (
    demo,
    init,
    validate,
    inspect,
    weigh,
    search,
    resume,
    status,
    report,
    export,
    push,
    merge,
    evaluate,
    calibrate,
    ls,
    schema,
    doctor,
    zoo,
)


def _version(asked: bool) -> None:
    if asked:
        say(f"evomerge {__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """The command line with all its subcommands."""
    app = typer.Typer(
        name="evomerge",
        help="Search how to merge fine-tuned language models, and export the best merge.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def common(
        version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    ) -> None:
        """Search how to merge fine-tuned language models, and export the best merge."""

    for command in COMMANDS:
        app.command(name=command.__name__)(command)
    app.add_typer(launch, name="launch")
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        result = build_app()(args=list(arguments), prog_name="evomerge", standalone_mode=False)
    except EvomergeError as error:
        say(f"Error: {error}", err=True)
        return error.exit_code
    except _UsageError as error:
        error.show()
        return EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort):
        say("Stopped.", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_UNEXPECTED
    except Exception as error:  # the last line of defence: an unexpected error shows its traceback
        told = _system_error(error) if isinstance(error, OSError) else None
        if told is not None:
            say(f"Error: {told}", err=True)
            return told.exit_code
        traceback.print_exc()
        say("This is a bug in evomerge. Please report it with the traceback above.", err=True)
        return EXIT_UNEXPECTED
    return result if isinstance(result, int) else 0


def _system_error(error: OSError) -> EvomergeError | None:
    """A full disk, or a place that cannot be read or written, in four parts; None when no place is named."""
    try:
        with disk_full_is_told(Path(str(error.filename or "a file"))):
            raise error
    except DiskFull as full:
        return full
    except OSError:
        if error.filename is None:
            return None
    return ConfigError(
        "A file or folder cannot be used.",
        got=f"{error.filename}: {error.strerror}",
        allowed="places that exist and that this user may read and write",
        fix="check the path, its owner and its permissions.",
    )


def main() -> None:
    """Entry point of the `evomerge` script."""
    sys.exit(run(sys.argv[1:]))
