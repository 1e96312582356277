"""From what a user names (files, folders, runs) to one matrix of answers per task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from evomerge.calibration.logs import LogFile, log_file, members, read_log
from evomerge.calibration.matrices import read_csv, read_npz
from evomerge.calibration.run_answers import read_run
from evomerge.calibration.sheets import Pool, Sheet, pool_sheets
from evomerge.errors import ConfigError, suggest
from evomerge.runs.store import JOURNAL

ALLOWED: Final = (
    "response matrices (.npz, .csv), sample logs of lm-eval (samples_*.jsonl), run directories, and folders of logs "
    "and runs"
)


class Gathered(NamedTuple):
    """What the sources hold.

    Attributes:
        pools: one per task, in order of appearance.
        refused: task -> why its answers cannot be calibrated, where other tasks can.
    """

    pools: tuple[Pool, ...]
    refused: Mapping[str, ConfigError]


def gather(
    sources: Sequence[Path],
    *,
    task: str | None = None,
    metric: str = "",
    reading: Callable[[Path], None] = lambda _: None,
) -> Gathered:
    """Read all sources and join them, one pool per task in order of appearance.

    Args:
        sources: files and folders.
        task: only this task; a group of lm-eval pools its members. Matrices do not name their task: they hold this
            one, or the one that their file is named after.
        metric: of lm-eval logs, `NAME` or `NAME,FILTER`.
        reading: told of every file and run before it is read.

    Raises:
        ConfigError: a source does not exist, is nothing that can be read, or is damaged; the task is in none of them;
            or no task's answers fit together (see `pool_sheets`).
        StoreError: a run's journal or answers are damaged.
    """
    files: list[LogFile] = []
    sheets: list[Sheet] = []
    for source in sources:
        for path in _found(source):
            if path.suffix == ".jsonl" and path.name != JOURNAL:
                files.append(log_file(path, source.resolve().name))
                continue
            reading(path)
            sheets += _sheets(path, task)
    sheets += _log_sheets(files, task, metric, reading)
    tasks = dict.fromkeys(s.task for s in sheets)
    wanted = list(tasks) if task is None else [task]
    if not sheets or (task is not None and task not in tasks):
        raise _no_task(sources, task, [*tasks, *(f.task for f in files)])
    pools: list[Pool] = []
    refused: dict[str, ConfigError] = {}
    for name in wanted:
        try:
            pools.append(pool_sheets(name, [s for s in sheets if s.task == name]))
        except ConfigError as error:
            refused[name] = error
    if not pools:
        raise next(iter(refused.values()))
    return Gathered(tuple(pools), refused)


def _found(source: Path) -> Iterator[Path]:
    """Files to read behind one source: the file itself, or the journals and sample logs in a folder, sorted."""
    if source.is_file():
        yield source.parent if source.name == JOURNAL else source
        return
    if not source.is_dir():
        raise _unusable(f"{source} does not exist")
    if (source / JOURNAL).is_file():
        yield source
        return
    inside = [p.parent for p in source.rglob(JOURNAL)] + list(source.rglob("samples_*.jsonl"))
    if not inside:
        raise _unusable(f"the folder {source} holds neither runs nor samples_*.jsonl")
    yield from sorted(inside)


def _sheets(path: Path, task: str | None) -> tuple[Sheet, ...]:
    if path.is_dir():
        return read_run(path)
    if path.suffix == ".npz":
        return (read_npz(path, task or path.stem),)
    if path.suffix == ".csv":
        return (read_csv(path, task or path.stem),)
    raise _unusable(f"the file {path}")


def _log_sheets(
    files: Sequence[LogFile], task: str | None, metric: str, reading: Callable[[Path], None]
) -> Iterator[Sheet]:
    """The newest log of a model first, so that its answers count."""
    chosen = members(task, files) if task is not None else frozenset(f.task for f in files)
    for file in sorted(files, key=lambda f: f.date, reverse=True):
        if file.task in chosen:
            reading(file.path)
            yield read_log(file, task or file.task, metric)


def _unusable(got: str) -> ConfigError:
    return ConfigError(
        "A source of answers cannot be used.", got=got, allowed=ALLOWED, fix="check the path, or name the file itself."
    )


def _no_task(sources: Sequence[Path], task: str | None, known: Sequence[str]) -> ConfigError:
    return ConfigError(
        "The sources hold no answers" + (f" to task {task!r}." if task else "."),
        got=", ".join(map(str, sources)),
        allowed=f"sources with answers to the task; these know {suggest(task or '', known)}",
        fix="name one of these tasks with --task." if known else "name sources in which something was scored.",
    )
