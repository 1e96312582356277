"""What lm-eval task files of a suite's folders may say, looked at before lm-eval reads them.

Two questions. Is it safe to read: files of a sane size and depth, which cannot grow as they are read? And, unless the
suite says `trust_task_code: true`: is it data, or does it bring code, other people's loaders, or files from elsewhere?
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import yaml

from evomerge.errors import ConfigError, EvaluationError
from evomerge.evaluation.data_files import names_files, odd_data_files, relative_files
from evomerge.strict_yaml import MAX_BYTES, check_bounds

LOCAL_BUILDERS: Final = ("json", "csv", "parquet", "arrow", "text")
"""Loaders of datasets that read plain data files."""
MOST_ENTRIES: Final = 100_000
MOST_MEMBERS: Final = 5_000

_SETTINGS: Final = (
    *("data_files", "field", "encoding", "delimiter", "sep", "column_names", "names", "header", "quotechar"),
    *("revision", "trust_remote_code"),
)
"""Keys of `dataset_kwargs` that say what data there are; others say where to store, how to connect, what to run."""
_HUB_ID: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)?")
_TEXTS: Final = (
    *("dataset_path", "dataset_name", "training_split", "validation_split", "test_split", "fewshot_split"),
    *("description", "target_delimiter", "fewshot_delimiter", "output_type", "gen_prefix", "task_alias"),
)
_MOST_NUMBER: Final = 1e9
_KINDS: Final[Mapping[str, type]] = {
    "metric_list": list,
    "filter_list": list,
    "dataset_kwargs": Mapping,
    "generation_kwargs": Mapping,
}
_NUMBERS: Final[Mapping[str, int]] = {"repeats": 64, "num_fewshot": 10_000}


def _refuse(what: str, got: str, allowed: str, fix: str) -> EvaluationError:
    return EvaluationError(what, got=got, allowed=allowed, fix=fix)


def task_files(folder: Path) -> list[Path]:
    """The task files below a folder, as lm-eval would find them, sorted.

    Raises:
        EvaluationError: when there is no end of files, or a task file is no regular file (a pipe would block).
    """
    found = []
    entries = ((Path(top) / name) for top, _, names in os.walk(folder) for name in names)
    for number, path in enumerate(islice(entries, MOST_ENTRIES + 1)):
        if number == MOST_ENTRIES:
            raise _refuse(
                "A folder of tasks holds too many files.",
                f"more than {MOST_ENTRIES} below {folder}",
                "folders that hold task files and their data",
                "name the folder of the tasks itself in `include`.",
            )
        if path.suffix == ".yaml":
            _check_regular(path, MAX_BYTES)
            found.append(path)
    return sorted(found)


def _check_regular(path: Path, most: int) -> None:
    try:
        found = path.stat()
    except OSError as error:
        raise _refuse(
            "A file of a task cannot be read.", f"{path}: {error.strerror}", "a file", "restore or remove it."
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise _refuse("A file of a task is no regular file.", str(path), "regular files", "remove it.")
    if found.st_size > most:
        raise _refuse(
            "A file of a task is too long.", f"{path}: {found.st_size} bytes", f"at most {most} bytes", "shorten it."
        )


def read_root(path: Path) -> yaml.Node | None:
    """The root node of a task file, none of whose objects is constructed.

    Raises:
        EvaluationError: when it cannot be read or decoded, is no YAML, or is larger or deeper than a task file is.
    """
    _check_regular(path, MAX_BYTES)
    try:
        return check_bounds(path.read_text(encoding="utf-8"), str(path))
    except ConfigError as error:
        mark = getattr(error.__cause__, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        what = "A task file cannot be read." if mark is not None else "A task file cannot be used."
        raise _refuse(what, f"{place}: {error.got}", error.allowed, error.fix) from error
    except UnicodeDecodeError as error:
        raise _refuse("A task file cannot be used.", f"{path}: not UTF-8", "UTF-8 text", "save it as UTF-8.") from error


def check_readable(folders: Sequence[Path]) -> None:
    """Refuse folders with files that would not let go of whoever reads them, those that they include as well.

    lm-eval passes over files that it cannot read in silence; here they are errors, because its reader and ours could
    disagree about where such a file breaks.

    Raises:
        EvaluationError: see `task_files` and `read_root`.
    """
    seen: set[Path] = set()
    for folder in folders:
        for path in task_files(folder):
            _check_file(path, seen)


def _check_file(path: Path, seen: set[Path]) -> None:
    waiting = [path]
    while waiting:
        here = waiting.pop().resolve()
        if here not in seen:
            seen.add(here)
            root = read_root(here)
            if alien := [t for t in tags_of(root) if t.partition(" ")[0] != "!function"]:
                raise _refuse(
                    "A task file has a tag.", f"{here}: {alien[0]}", "plain YAML, and !function", "remove it."
                )
            waiting += [p for p in included(root, here) if p.exists()]


def included(root: yaml.Node | None, path: Path) -> Iterator[Path]:
    """The files that a task file's `include` names."""
    for key, value in root.value if isinstance(root, yaml.MappingNode) else []:
        if key.value == "include":
            nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
            yield from (path.parent / n.value for n in nodes if isinstance(n, yaml.ScalarNode) and "\0" not in n.value)


def tags_of(root: yaml.Node | None) -> Iterator[str]:
    """`!tag value` of everything in a file that is not plain data."""
    waiting = [root] if root is not None else []
    while waiting:
        node = waiting.pop()
        if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
            yield f"{node.tag} {node.value if isinstance(node, yaml.ScalarNode) else ''}".rstrip()
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def members(config: Mapping[str, Any]) -> Iterator[str | Mapping[str, Any]]:
    """What a group's file lists: names, or mappings with settings of their own."""
    entries = config.get("task")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, str | Mapping):
            yield entry


def check_size(name: str, children: Callable[[str], Collection[str]]) -> None:
    """Refuse a group that contains itself, or that is built more than `MOST_MEMBERS` times over.

    Args:
        name: of a task, group or tag.
        children: name -> the names that it leads to, each as often as it is listed.

    Raises:
        EvaluationError: see above.
    """
    sizes: dict[str, int] = {}
    waiting: list[tuple[str, bool]] = [(name, False)]
    open_: set[str] = set()
    while waiting:
        here, done = waiting.pop()
        if done:
            open_.discard(here)
            sizes[here] = 1 + sum(sizes.get(c, 1) for c in children(here))
        elif here in open_:
            raise _refuse(
                "A group of tasks contains itself.", repr(here), "groups of other tasks", "correct the group."
            )
        elif here not in sizes:
            open_.add(here)
            waiting.append((here, True))
            waiting += [(c, False) for c in children(here) if c not in sizes]
        if sizes.get(here, 0) > MOST_MEMBERS:
            raise _refuse(
                "A group leads to too many tasks.", f"{here!r}: {sizes[here]}", f"at most {MOST_MEMBERS}", "name fewer."
            )


def unsafe_settings(
    config: Mapping[str, Any], at: Path, folders: Sequence[Path], metrics: Collection[str]
) -> list[str]:
    """`key: value` of settings through which a plain task file would load code, or data from elsewhere.

    Args:
        config: of a task or a group.
        at: its file.
        folders: of the suite; data files must lie in one of them.
        metrics: names that lm-eval itself scores.
    """
    found = [f"{key}: {config[key]}" for key in ("use_prompt", "class", "custom_dataset") if config.get(key)]
    found += _metrics(config.get("metric_list"), metrics)
    found += _dataset(config.get("dataset_path"))
    found += _dataset_settings(config.get("dataset_kwargs"), at, folders)
    if config.get("dataset_path") in LOCAL_BUILDERS and not names_files(config):
        found.append(f"dataset_path: {config['dataset_path']}, without data_files")
    for member in members(config):
        if isinstance(member, Mapping):
            found += [f"data_files: {f!r} of a member of a group has no whole path" for f in relative_files(member)]
            found += unsafe_settings(member, at, folders, metrics)
    return found


def malformed_settings(config: Mapping[str, Any]) -> list[str]:
    """`key: value` of settings that are of a kind, or a size, with which nothing could go on."""
    found = [f"{k}: {config[k]!r}"[:200] for k in _TEXTS if not isinstance(config.get(k), str | None)]
    for key, most in _NUMBERS.items():
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most):
            found.append(f"{key}: {value!r}"[:200])
    for key, kind in _KINDS.items():
        value = config.get(key)
        if value is not None and not isinstance(value, kind):
            found.append(f"{key}: {value!r}"[:200])
    for entry in config.get("metric_list") or [] if isinstance(config.get("metric_list"), list) else []:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("metric"), str):
            found.append(f"metric_list: {entry!r}"[:200])
    found += _filters(config.get("filter_list"))
    for member in members(config):
        if isinstance(member, Mapping):
            found += malformed_settings({k: v for k, v in member.items() if k != "task" or isinstance(v, list)})
    return found


def odd_generation(arguments: Mapping[str, Any]) -> str | None:
    """`key: value` of the first generation argument that is neither text, a finite number, a truth value nor stops."""
    for key, value in arguments.items():
        texts = key == "until" and isinstance(value, list) and all(isinstance(v, str) for v in value)
        number = isinstance(value, int | float) and abs(value) <= _MOST_NUMBER
        text = key == "until" and isinstance(value, str)
        if not isinstance(key, str) or not (value is None or text or texts or (number and key != "until")):
            return f"{key}: {value!r}"[:200]
    return None


def _filters(chains: Any) -> list[str]:
    found = []
    for chain in chains if isinstance(chains, list) else []:
        steps = chain.get("filter") if isinstance(chain, Mapping) else None
        if not isinstance(steps, list) or not isinstance(chain.get("name"), str):
            found.append(f"filter_list: {chain!r}"[:200])
            continue
        for step in steps:
            pattern = step.get("regex_pattern", "") if isinstance(step, Mapping) else None
            if (
                not isinstance(step, Mapping)
                or not isinstance(step.get("function"), str)
                or not isinstance(pattern, str)
            ):
                found.append(f"filter: {step!r}"[:200])
            elif len(pattern) > 10_000:
                found.append(f"regex_pattern: {len(pattern)} characters")
            elif pattern is not None and not _compiles(pattern):
                found.append(f"regex_pattern: {pattern!r}"[:200])
    return found


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _metrics(entries: Any, known: Collection[str]) -> list[str]:
    plain = [e for e in entries if isinstance(e, Mapping)] if isinstance(entries, list) else []
    alien = [e for e in plain if e.get("hf_evaluate") or str(e.get("metric")) not in known]
    return [f"metric: {e.get('metric')} (from the evaluate package)" for e in alien]


def _dataset(path: Any) -> list[str]:
    if path is None or path in LOCAL_BUILDERS:
        return []
    is_hub = isinstance(path, str) and _HUB_ID.fullmatch(path) is not None and not Path(path).exists()
    # without an owner a name is one of datasets' own loaders first, and some of these connect, run or unpickle
    return [] if is_hub and ("/" in path or not _is_loader(path)) else [f"dataset_path: {path}"]


def _is_loader(name: str) -> bool:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return name in _PACKAGED_DATASETS_MODULES


def _dataset_settings(settings: Any, at: Path, folders: Sequence[Path]) -> list[str]:
    if not isinstance(settings, Mapping):
        return []
    found = [f"dataset_kwargs: {k}" for k in settings if k not in _SETTINGS]
    found += ["dataset_kwargs: trust_remote_code"] if settings.get("trust_remote_code") else []
    return found + [f"data_files: {why}" for why in odd_data_files(settings.get("data_files"), at, folders)]
