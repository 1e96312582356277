"""Find the data that ships with evomerge: presets of search spaces, suites and tasks."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal

from evomerge.errors import ConfigError, suggest

Kind = Literal["search_spaces", "evaluators"]


def data_folder(kind: Kind) -> Path:
    """The folder of shipped data: inside the installed package, or beside it in a checkout.

    Raises:
        ConfigError: when neither exists (a broken installation).
    """
    beside = Path(__file__).resolve().parent.parent / kind
    if beside.is_dir() and (beside / "__init__.py").is_file():
        return beside
    try:
        return Path(str(files(f"evomerge.{kind}")))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The shipped folder {kind} is missing.",
            got=f"no evomerge.{kind} in this installation",
            allowed="a complete installation",
            fix="install evomerge again with pip.",
        ) from error


def preset_names(kind: Kind, subfolder: str = "") -> list[str]:
    """Sorted names of the shipped YAML presets, without suffix."""
    return sorted(p.stem for p in (data_folder(kind) / subfolder).glob("*.yaml"))


def bank_files() -> list[Path]:
    """The item banks that ship with this installation, sorted by name."""
    return sorted(p for p in (data_folder("evaluators") / "banks").glob("*") if p.suffix in (".json", ".npz"))


def preset_path(kind: Kind, name: str, subfolder: str = "") -> Path:
    """The file of a shipped preset.

    Raises:
        ConfigError: for an unknown name, with the nearest match.
    """
    path = data_folder(kind) / subfolder / f"{name}.yaml"
    names = preset_names(kind, subfolder)
    if name not in names:
        raise ConfigError(
            f"There is no preset {name!r} in {kind}.",
            got=repr(name),
            allowed=suggest(name, names),
            fix="use one of these names, or the path of a YAML file of your own.",
        )
    return path
