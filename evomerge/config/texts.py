"""Paths and texts that a job names: made absolute, read with a limit, refused in words for people."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from evomerge.errors import ConfigError

_MAX_BYTES: Final = 16_000_000


def read_text(path: Path, what: str) -> str:
    """The file's text, without a byte order mark.

    Raises:
        ConfigError: when it does not exist, is a folder, is not UTF-8, or is far too long for a text.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise _unreadable(path, what, "not a regular file")  # a pipe would wait for ever
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise _unreadable(path, what, f"more than {_MAX_BYTES} bytes")
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise _unreadable(path, what, error.strerror or str(error)) from error
    except ValueError as error:  # also a path with a zero byte
        raise _unreadable(path, what, "not UTF-8 text") from error


def _unreadable(path: Path, what: str, why: str) -> ConfigError:
    return ConfigError(
        f"The {what} cannot be read.",
        got=f"{path}: {why}",
        allowed="a readable text file",
        fix="check the path (`evomerge init job.yaml` writes a commented example)."
        if what == "job file"
        else "check the path.",
    )


def absolute(text: str, folder: Path) -> Path:
    """An absolute path; a relative one starts at `folder`.

    Raises:
        ConfigError: for an unknown home folder, a zero byte, links in a circle, a name that is far too long.
    """
    try:
        path = Path(text).expanduser()
        path = path if path.is_absolute() else (folder / path).resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            "A path cannot be followed.",
            got=f"{text[:80]!r}: {error}",
            allowed="a path of this file system",
            fix="correct the path.",
        ) from error
    return path


def looks_like_path(name: str) -> bool:
    """Whether a name means a file, not a preset."""
    return "/" in name or name.endswith((".yaml", ".yml"))
