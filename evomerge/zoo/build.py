"""Build a whole zoo in a folder: all or nothing, and the same bits for the same seed."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.digest import digest_file
from evomerge.errors import ConfigError
from evomerge.files import disk_full_is_told, fsync_folder
from evomerge.zoo.lanes import Told, train_models
from evomerge.zoo.spec import ZooSpec
from evomerge.zoo.tasks import write_task_configs, write_tasks

MANIFEST = "zoo.json"


class Built(NamedTuple):
    """The outcome: where the zoo is, and whether it was already there."""

    folder: Path
    reused: bool


def build_zoo(folder: Path, spec: ZooSpec, progress: Told = lambda _: None) -> Built:
    """Train and write `base/`, a folder per expert and `tasks/`, or say that this very zoo is already there.

    The folder appears in one step when all is done. The calling script must be importable (guarded by
    `if __name__ == "__main__"`), because the training processes are spawned.

    Args:
        folder: a new or empty folder, or one that holds a zoo of an equal spec (its task files are then brought up
            to date with where the folder lies).
        spec: seed, sizes and schedule.
        progress: called in this thread, some times a second.

    Raises:
        ConfigError: when the folder holds anything else, or cannot be created.
        ModelError: when a training process ended early.
        DiskFull: when there is no space; nothing is left behind.
    """
    folder = folder.absolute()
    if not _is_free(folder):
        _check_same(folder, spec)
        write_task_configs(folder / "tasks", folder / "tasks", spec.kind.tasks)
        return Built(folder, reused=True)
    staging = _make_staging(folder)
    with disk_full_is_told(folder), ExitStack() as undo:
        undo.callback(shutil.rmtree, staging, ignore_errors=True)
        _write_all(staging, spec, folder, progress)
        if folder.exists():
            folder.rmdir()
        staging.rename(folder)
        undo.pop_all()
    fsync_folder(folder.parent)
    return Built(folder, reused=False)


def _is_free(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _make_staging(folder: Path) -> Path:
    """A new folder beside `folder`, on the same file system."""
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.building")
    try:
        with disk_full_is_told(folder):
            staging.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            "The zoo cannot be built here.",
            got=f"{folder.parent}: {error.strerror}",
            allowed="a place where folders can be created",
            fix="name another folder.",
        ) from error
    return staging


def _write_all(staging: Path, spec: ZooSpec, home: Path, progress: Told) -> None:
    (staging / "tasks").mkdir()
    write_tasks(staging / "tasks", spec.items, home / "tasks", spec.kind.tasks)
    train_models(staging, spec, progress)
    (staging / "README.md").write_text(spec.kind.readme.format(seed=spec.seed), encoding="utf-8")
    manifest = json.dumps({**spec.to_json(), "files": _digests(staging, spec)}, indent=2)
    (staging / MANIFEST).write_text(manifest + "\n", encoding="utf-8")


def _digests(folder: Path, spec: ZooSpec) -> dict[str, str | None]:
    """sha256 of what scores depend on: weights and items; None for a file that is missing."""
    names = [f"{name}/model.safetensors" for name in spec.kind.models]
    names += sorted(f"tasks/{path.name}" for path in (folder / "tasks").glob("*.jsonl"))
    return {name: digest_file(folder / name) if (folder / name).is_file() else None for name in names}


def _manifest(folder: Path) -> dict[str, Any]:
    """What a zoo says of itself; empty when there is no manifest that can be read."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_same(folder: Path, spec: ZooSpec) -> None:
    """Let only a whole zoo of an equal spec pass.

    Raises:
        ConfigError: for anything else.
    """
    found = _manifest(folder)
    files = found.pop("files", None)
    if found == spec.to_json() and files == _digests(folder, spec):
        return
    if not found:
        got = f"{folder} holds something else"
    elif found != spec.to_json():
        got = f"{folder} holds another zoo: {json.dumps(found)}"
    else:
        got = f"{folder} holds a zoo whose files were changed"
    raise ConfigError(
        "The zoo cannot be built here.",
        got=got,
        allowed=f"a new or empty folder, or the zoo {json.dumps(spec.to_json())}",
        fix="name another folder, or remove this one.",
    )
