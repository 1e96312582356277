"""What candidates are asked: a suite as a plain value, and its strict reading from a mapping or a YAML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from evomerge.errors import ConfigError, EvaluationError, suggest
from evomerge.strict_yaml import parse_yaml
from evomerge.types import SET_NAMES, SetName

DTYPES: Final = ("auto", "float32", "bfloat16", "float16")
ENGINES: Final = ("transformers", "vllm")


@dataclass(frozen=True)
class Split:
    """Sizes of the three disjoint item sets of every task.

    Attributes:
        search: items the search sees: a count (int) or a fraction of the task's items (float below 1).
        select: items that choose among the finalists.
        report: items scored once, for what is reported.
    """

    search: int | float = 100
    select: int | float = 200
    report: int | float = 400

    def __post_init__(self) -> None:
        for name in SET_NAMES:
            size = getattr(self, name)
            counts = isinstance(size, int) and not isinstance(size, bool) and size >= 1
            if not counts and not (isinstance(size, float) and 0 < size < 1):
                raise EvaluationError(
                    f"The size of the {name} set is not usable.",
                    got=f"split.{name}: {size!r}",
                    allowed="a count of at least 1 (such as 100) or a fraction below 1 (such as 0.25)",
                    fix=f"correct split.{name}.",
                )
        shares = [s for s in (self.search, self.select, self.report) if isinstance(s, float)]
        if math.fsum(shares) > 1 + 1e-9:
            raise EvaluationError(
                "The three item sets are larger than the task.",
                got=f"split: fractions that sum to {math.fsum(shares):g}",
                allowed="fractions that sum to at most 1",
                fix="make one of them smaller.",
            )

    def counts(self, n_items: int) -> dict[SetName, int]:
        """How many of `n_items` each set holds; fractions are rounded down, to one at least."""
        sizes = {name: getattr(self, name) for name in SET_NAMES}
        return {name: s if isinstance(s, int) else max(1, int(s * n_items + 1e-9)) for name, s in sizes.items()}


@dataclass(frozen=True)
class TaskSpec:
    """One lm-eval task (or group, whose tasks are pooled) with settings of its own.

    Attributes:
        task: the task's name; it is also its name in the plan.
        num_fewshot: examples before each question; None leaves it to the suite and the task.
        metric: the metric that is the task's score; None takes the task's first one.
        filter: the lm-eval filter whose metric counts; None takes the task's first one.
        gen_kwargs: generation arguments that override the suite's and the task's.
    """

    task: str
    num_fewshot: int | None = None
    metric: str | None = None
    filter: str | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the plan and the objectives call it."""
        return self.task


@dataclass(frozen=True)
class PluginSpec:
    """An evaluator brought by a plug-in (see `evaluation.plugin.ItemTask`).

    Attributes:
        evaluator: its entry-point name, which is also its name in the plan.
        options: keyword arguments of its factory; plain JSON values.
    """

    evaluator: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the plan and the objectives call it."""
        return self.evaluator


@dataclass(frozen=True)
class SuiteSpec:
    """A suite: tasks, prompts and item sets.

    Attributes:
        tasks: in the order of reports; names are unique.
        include: folders of lm-eval task YAML files.
        split: sizes of the item sets, for every task.
        salt: changes which items fall into which set.
        num_fewshot: for tasks that do not fix it themselves.
        chat_template: wrap prompts in the tokenizer's chat template.
        fewshot_as_multiturn: give examples as earlier turns of the chat.
        system_instruction: system message before every prompt.
        gen_kwargs: generation arguments of every generate-until task.
        dtype: dtype of the scored model; `auto` keeps the checkpoint's.
        engine: what generates answers; log-likelihoods are transformers' always.
        trust_task_code: let Python code of the included folders run.
        description: what the suite measures, for people.
        cost: what it costs, for people.
        public_test_split: the suite searches on a public test split, which report and card then say.
    """

    tasks: tuple[TaskSpec | PluginSpec, ...]
    include: tuple[Path, ...] = ()
    split: Split = Split()
    salt: str = ""
    num_fewshot: int | None = None
    chat_template: bool = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    engine: str = "transformers"
    trust_task_code: bool = False
    description: str = ""
    cost: str = ""
    public_test_split: bool = False

    def __post_init__(self) -> None:
        names = self.names
        if not names:
            raise _refuse("A suite needs a task.", "tasks: []", "at least one task", "name one.")
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise _refuse(
                "A task stands twice in the suite.", f"tasks: {twice[0]!r}", "each task once", "remove one of the two."
            )
        if self.dtype not in DTYPES:
            raise _refuse("There is no such dtype.", f"dtype: {self.dtype!r}", suggest(self.dtype, DTYPES), "use one.")
        if self.engine not in ENGINES:
            raise _refuse(
                "There is no such engine.", f"engine: {self.engine!r}", suggest(self.engine, ENGINES), "use one."
            )
        if self.fewshot_as_multiturn and not self.chat_template:
            raise _refuse(
                "Examples cannot be turns of a chat without a chat template.",
                "fewshot_as_multiturn: true with chat_template: false",
                "fewshot_as_multiturn only with chat_template: true",
                "set chat_template: true or remove fewshot_as_multiturn.",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks' names, in order."""
        return tuple(t.name for t in self.tasks)


def _refuse(what: str, got: str, allowed: str, fix: str) -> EvaluationError:
    return EvaluationError(what, got=got, allowed=allowed, fix=fix)


_KEYS: Final = tuple(f.name for f in fields(SuiteSpec))
_TASK_KEYS: Final = ("task", "num_fewshot", "metric", "filter", "gen_kwargs", "evaluator", "options")
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "include": (list, tuple),
    "tasks": (list, tuple),
    "split": (Mapping,),
    "salt": (str,),
    "num_fewshot": (int, type(None)),
    "chat_template": (bool,),
    "fewshot_as_multiturn": (bool,),
    "system_instruction": (str, type(None)),
    "gen_kwargs": (Mapping, type(None)),
    "dtype": (str,),
    "engine": (str,),
    "trust_task_code": (bool,),
    "description": (str, type(None)),
    "cost": (str, type(None)),
    "public_test_split": (bool,),
    "task": (str,),
    "metric": (str, type(None)),
    "filter": (str, type(None)),
    "evaluator": (str,),
    "options": (Mapping, type(None)),
}


def _checked(mapping: Mapping[str, Any], keys: Sequence[str], where: str) -> dict[str, Any]:
    """`mapping` without its nulls, after every key and type was checked."""
    for key, value in mapping.items():
        if key not in keys:
            raise _refuse(
                f"{where} does not know this key.", repr(key), suggest(str(key), keys), "correct or remove it."
            )
        kinds = _TYPES[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join("null" if k is type(None) else k.__name__.lower() for k in kinds)
            raise _refuse(
                f"{where} has a value of the wrong type.", f"{key}: {value!r}", wanted, f"correct {where}.{key}."
            )
    return {k: v for k, v in mapping.items() if v is not None}


def _fewshot(values: Mapping[str, Any], where: str) -> None:
    if values.get("num_fewshot", 0) < 0:
        raise _refuse(
            "The number of examples is negative.",
            f"{where}.num_fewshot: {values['num_fewshot']}",
            "0 or more",
            "correct it.",
        )


def load_task(entry: str | Mapping[str, Any], where: str = "suite.tasks") -> TaskSpec | PluginSpec:
    """One entry of a suite's task list: a name, or a mapping with `task` or `evaluator`.

    Raises:
        EvaluationError: for an unknown key, a wrong type, or both or none of `task` and `evaluator`.
    """
    if isinstance(entry, str):
        return TaskSpec(entry)
    if not isinstance(entry, Mapping):
        raise _refuse(f"{where} is not a task.", repr(entry), "a task's name or a mapping with `task`", "correct it.")
    values = _checked(entry, _TASK_KEYS, where)
    if ("task" in values) == ("evaluator" in values):
        raise _refuse(
            f"{where} is not one task.", repr(dict(entry)), "either `task` or `evaluator`", "name exactly one of them."
        )
    if "evaluator" in values:
        alien = sorted(set(values) - {"evaluator", "options"})
        if alien:
            raise _refuse(
                f"{where} mixes settings.", alien[0], "evaluator, options", f"remove {alien[0]}: it belongs to tasks."
            )
        return PluginSpec(**values)
    if "options" in values:
        raise _refuse(
            f"{where} mixes settings.", "options", "settings of tasks", "remove it: it belongs to `evaluator`."
        )
    _fewshot(values, where)
    return TaskSpec(**values)


def load_suite(mapping: Mapping[str, Any], folder: Path | None = None, where: str = "suite") -> SuiteSpec:
    """A suite from the mapping of a job file or a suite file.

    Args:
        mapping: the YAML document; unknown keys are errors.
        folder: what relative `include` paths start from; the working directory if None.
        where: how messages call the mapping.

    Raises:
        EvaluationError: unknown keys and wrong types, in the order of the mapping; then malformed tasks, split and
            the rules of `SuiteSpec`.
    """
    if not isinstance(mapping, Mapping):
        raise _refuse(f"{where} is not a mapping.", type(mapping).__name__, "a mapping with `tasks`", "correct it.")
    values = _checked(mapping, _KEYS, where)
    _fewshot(values, where)
    home = folder or Path()
    sizes = values.get("split", {})
    for key in sizes:
        if key not in SET_NAMES:
            raise _refuse(
                f"{where}.split does not know this set.", repr(key), suggest(str(key), SET_NAMES), "correct it."
            )
    values["split"] = Split(**sizes)
    values["include"] = tuple((home / Path(str(p)).expanduser()).resolve() for p in values.get("include", ()))
    entries = values.get("tasks", ())
    values["tasks"] = tuple(load_task(t, f"{where}.tasks[{i}]") for i, t in enumerate(entries))
    return SuiteSpec(**values)


def read_suite(path: Path) -> SuiteSpec:
    """A suite from a YAML file; relative paths start at the file's folder.

    Raises:
        EvaluationError: when the file cannot be read or parsed, or its content is not a suite.
    """
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"), path.name).value
    except (OSError, UnicodeDecodeError) as error:
        raise _refuse(
            "The suite file cannot be read.", f"{path}: {error}", "a YAML file", "correct the path or the file."
        ) from error
    except ConfigError as error:
        raise _refuse("The suite file cannot be read.", f"{path}: {error.got}", error.allowed, error.fix) from error
    return load_suite(document, path.parent, str(path))
