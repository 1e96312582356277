"""lm-eval's tasks, found and built: what is trusted, what is refused, and with which settings a task is made."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import datasets
import lm_eval
import lm_eval.utils
from lm_eval.api.registry import metric_registry
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from evomerge.errors import EvaluationError
from evomerge.evaluation.lm_eval_guard import quiet, templates, translated, without_waiting
from evomerge.evaluation.suite import SuiteSpec, TaskSpec
from evomerge.evaluation.task_files import (
    LOCAL_BUILDERS,
    check_readable,
    check_size,
    included,
    malformed_settings,
    members,
    read_root,
    tags_of,
    unsafe_settings,
)

OUTPUT_TYPES: Final = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
FEWSHOT_SEED: Final = 1234
"""lm-eval's own default, so that its command line draws the same examples."""

_INSTALLED: Final = Path(lm_eval.__file__).resolve().parent / "tasks"


class BuiltTask(NamedTuple):
    """One lm-eval task, ready to build requests.

    Attributes:
        name: lm-eval's name.
        task: the task object.
        num_fewshot: examples in every prompt.
        installed: shipped with lm-eval, hence trusted.
    """

    name: str
    task: ConfigurableTask
    num_fewshot: int
    installed: bool


def _is_installed(path: Path | None) -> bool:
    return path is None or path.resolve().is_relative_to(_INSTALLED)


def _code_tags(path: Path) -> list[str]:
    """`file: !tag` for everything in a task file, or in a file that it includes, that is not plain data."""
    found, seen, waiting = list[str](), set[Path](), [path]
    while waiting:
        here = waiting.pop(0).resolve()
        if here in seen or _is_installed(here):
            continue
        seen.add(here)
        root = read_root(here)
        found += [f"{here}: {tag}" for tag in tags_of(root)]
        waiting += included(root, here)
    return found


def _members(config: Mapping[str, Any]) -> list[str]:
    """Names a group's file refers to, each as often as it does."""
    names: list[str] = []
    for entry in members(config):
        name = entry if isinstance(entry, str) else entry.get("group", entry.get("task"))
        names += [name] if isinstance(name, str) else []
        names += _members(entry) if isinstance(entry, Mapping) else []
    return names


def _children(name: str, index: Mapping[str, Any]) -> list[str]:
    """Names that an entry of the index leads to: members of a group, tasks of a tag."""
    entry = index.get(name)
    if entry is None:
        return []
    listed = _members(entry.cfg or {}) if "group" in (entry.cfg or {}) else []
    return [*listed, *(sorted(entry.tags) if entry.yaml_path is None else [])]


def _reached(names: list[str], index: Mapping[str, Any]) -> dict[str, Any]:
    """Every index entry that `names` lead to through groups and tags; None for names that the index lacks."""
    reached: dict[str, Any] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached[name] = index.get(name)
            waiting += _children(name, index)
    return reached


def _unknown(name: str, manager: TaskManager, own: int) -> EvaluationError:
    near = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
    hint = f" Did you mean {', '.join(repr(n) for n in near)}?" if near else ""
    return EvaluationError(
        f"There is no task {name!r}.",
        got=repr(name),
        allowed=f"the {own} tasks of the suite's folders and the {len(manager.all_tasks) - own} of lm-eval.{hint}",
        fix="correct the name, or add the folder that holds the task to `include`.",
    )


def shipped_task_names() -> list[str]:
    """Names of all tasks and groups of the installed lm-eval, sorted; reading its index takes seconds."""
    return sorted(TaskManager(include_defaults=True).all_tasks)


class TaskLibrary:
    """The tasks that a suite can name: those of its folders, and lm-eval's own when one of these is needed.

    Raises:
        EvaluationError: for a folder that does not exist, or holds files that nobody should read.
    """

    def __init__(self, suite: SuiteSpec) -> None:
        for folder in suite.include:
            if not folder.is_dir():
                raise EvaluationError(
                    "A folder of tasks does not exist.",
                    got=str(folder),
                    allowed="folders with lm-eval task files (*.yaml)",
                    fix="correct `include`.",
                )
        check_readable(suite.include)
        self.suite = suite
        names = [t.task for t in suite.tasks if isinstance(t, TaskSpec)]
        folders = [str(f) for f in suite.include]
        with quiet():
            self.manager = TaskManager(include_path=folders, include_defaults=False)
            self.own = len(self.manager.all_tasks)
            # indexing lm-eval's own 14,000 files takes seconds: only when a name is not the user's
            if None in _reached(names, self.manager.task_index).values():
                self.manager = TaskManager(include_path=folders, include_defaults=True)

    def _check_trust(self, spec: TaskSpec) -> None:
        index = self.manager.task_index
        check_size(spec.task, lambda name: _children(name, index))
        for name, entry in _reached([spec.task], index).items():
            if entry is None or _is_installed(entry.yaml_path):
                continue
            config = entry.cfg or {}
            if wrong := malformed_settings(config):
                raise EvaluationError(
                    f"A setting of task {name!r} is of no use.",
                    got=f"{entry.yaml_path}: {wrong[0]}",
                    allowed="settings as lm-eval's guide to task files describes them, of a sane size",
                    fix="correct the task's file.",
                )
            if self.suite.trust_task_code:
                continue
            if tags := _code_tags(entry.yaml_path):
                raise EvaluationError(
                    f"Task {name!r} would run Python code of its folder.",
                    got=tags[0],
                    allowed="task files without !function, or trust_task_code: true",
                    fix="read that code; if you trust it, set trust_task_code: true in the suite.",
                )
            if reasons := unsafe_settings(config, entry.yaml_path, self.suite.include, metric_registry):
                raise EvaluationError(
                    f"Task {name!r} would load code or data from elsewhere.",
                    got=reasons[0],
                    allowed="lm-eval's own metrics and plain data: json, csv, parquet, text or arrow files beside the "
                    "task, a hub data set",
                    fix="change the task's file; if you trust it, set trust_task_code: true in the suite.",
                )

    def _request(self, name: str) -> str | dict[str, Any]:
        """What lm-eval is asked to load: a plain task of the user's with its data files made absolute, or a name."""
        entry = self.manager.task_index[name]
        config = entry.cfg
        if _is_installed(entry.yaml_path) or config is None or "group" in config or _code_tags(entry.yaml_path):
            return name
        config = copy.deepcopy(config)
        files = (config.get("dataset_kwargs") or {}).get("data_files")
        if files is not None:
            config["dataset_kwargs"]["data_files"] = _absolute(files, entry.yaml_path.parent)
        return dict(config)

    def build(self, spec: TaskSpec) -> list[BuiltTask]:
        """The lm-eval tasks behind one name, with few-shot and generation settings applied as lm-eval does.

        Raises:
            EvaluationError: unknown task; code that is not trusted; a task that cannot be built; then an output type
                or a kind of task that is not supported.
        """
        index = self.manager.task_index
        if spec.task not in index:
            raise _unknown(spec.task, self.manager, self.own)
        self._check_trust(spec)
        reached = [e for e in _reached([spec.task], index).values() if e is not None]
        foreign = any(not _is_installed(e.yaml_path) for e in reached)
        trusted = self.suite.trust_task_code or not foreign
        hub = any((e.cfg or {}).get("dataset_path") not in LOCAL_BUILDERS for e in reached)
        with quiet(), templates(trusted), without_waiting(hub), translated(spec.task):
            loaded = self.manager.load([self._request(spec.task)])["tasks"]
        built = []
        for name, task in loaded.items():
            _check_kind(name, task)
            entry = index.get(name)
            installed = entry is not None and _is_installed(entry.yaml_path)
            built.append(BuiltTask(name, task, self._configure(name, task, spec), installed))
        return built

    def _configure(self, name: str, task: ConfigurableTask, spec: TaskSpec) -> int:
        """Applies few-shot and generation settings; returns the number of examples."""
        fixed = task.get_config("num_fewshot")
        if spec.num_fewshot and fixed == 0:
            raise EvaluationError(
                f"Task {name!r} fixes its number of examples at 0.",
                got=f"num_fewshot: {spec.num_fewshot}",
                allowed="0: lm-eval does not override it, its prompt may hold examples already",
                fix=f"remove num_fewshot of {name!r}.",
            )
        wanted = spec.num_fewshot if spec.num_fewshot is not None else self.suite.num_fewshot
        if fixed is None or (wanted is not None and fixed != 0):
            task.set_config(key="num_fewshot", value=wanted or 0)
        if task.get_config("output_type") == "generate_until":
            arguments = {**self.suite.gen_kwargs, **spec.gen_kwargs}
            if arguments:
                task.set_config(key="generation_kwargs", value=arguments, update=True)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        return int(task.get_config("num_fewshot"))


def _absolute(files: Any, folder: Path) -> Any:
    """Local data files that exist beside the task file, as absolute paths; anything else as it stands."""
    if isinstance(files, Mapping):
        return {k: _absolute(v, folder) for k, v in files.items()}
    if isinstance(files, list):
        return [_absolute(v, folder) for v in files]
    beside = folder / str(files)
    return str(beside.resolve()) if isinstance(files, str) and "://" not in files and beside.exists() else files


def _check_kind(name: str, task: Any) -> None:
    kind = getattr(task, "OUTPUT_TYPE", None)
    if kind not in OUTPUT_TYPES:
        raise EvaluationError(
            f"Task {name!r} has an output type that is not supported.",
            got=f"output_type: {kind}",
            allowed=", ".join(OUTPUT_TYPES),
            fix="choose another task.",
        )
    reason = None
    if not isinstance(task, ConfigurableTask):
        reason = "a task written as a Python class of its own"
    elif getattr(task, "MULTIMODAL", False):
        reason = "images or sound in its questions"
    elif getattr(task, "UNSAFE_CODE", False):
        reason = "unsafe_code: it runs what the model writes"
    if reason:
        raise EvaluationError(
            f"Task {name!r} cannot be scored.",
            got=reason,
            allowed="text tasks that are described by a YAML file and do not run generated code",
            fix="choose another task.",
        )


def versions() -> dict[str, str]:
    """Packages that decide what a task asks."""
    from importlib.metadata import version

    return {"lm_eval": version("lm_eval"), "datasets": datasets.__version__}
