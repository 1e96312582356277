"""From a job file to a checked job: presets inlined, paths made absolute, every problem told at once with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import ValidationError

from evomerge.config.schema import TAGS, Job, OptimizerChoice, Strict, Suite
from evomerge.config.strict_yaml import Document, parse_yaml
from evomerge.config.strict_yaml import Path as YamlPath
from evomerge.digest import digest_text
from evomerge.errors import ConfigError, suggest
from evomerge.registry import GROUP_SPACES, Registry
from evomerge.resources import Kind, preset_names, preset_path
from evomerge.types import Digest

T = TypeVar("T", bound=Strict)
SPACES: Final = Registry(GROUP_SPACES, "search space", {})
JOB_FILE: Final = "job.yaml"
_EXPONENT: Final = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")


@dataclass(frozen=True)
class Origin:
    """Where an inlined part of the job came from, so that a later change of it is noticed.

    Attributes:
        name: the preset's name, the file's path, or `inline`.
        text: the file's text; empty for `inline`.
    """

    name: str
    text: str

    @property
    def digest(self) -> Digest:
        """sha256 of the text."""
        return digest_text(self.text)


@dataclass(frozen=True)
class ResolvedJob:
    """A job that depends on no other file but its parents, its tasks and its injected recipes.

    Attributes:
        job: with absolute paths, the suite inlined and the optimizer as a mapping.
        space: the mapping that describes the search space.
        space_document: the same, with the lines for messages.
        origins: `space` and `suite` -> where they came from.
    """

    job: Job
    space: Mapping[str, Any]
    space_document: Document
    origins: Mapping[str, Origin]

    @property
    def suite(self) -> Suite:
        """The inlined suite."""
        if not isinstance(self.job.suite, Suite):
            raise TypeError("a resolved job holds its suite inline")
        return self.job.suite

    @property
    def optimizer(self) -> OptimizerChoice:
        """The optimizer as a mapping."""
        if not isinstance(self.job.optimizer, OptimizerChoice):
            raise TypeError("a resolved job holds its optimizer as a mapping")
        return self.job.optimizer

    def to_mapping(self) -> dict[str, Any]:
        """The resolved job as plain JSON-able values."""
        return self.job.model_dump(mode="json", exclude_none=True)

    def to_yaml(self) -> str:
        """The resolved job as a job file that can be run again."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False, allow_unicode=True, width=110)


def load_run_job(run: Path, overrides: Sequence[str] = ()) -> ResolvedJob:
    """The resolved job of a run directory.

    Raises:
        ConfigError: when there is no run, and as `load_job`.
    """
    if not (run / JOB_FILE).is_file():
        raise ConfigError(
            "There is no run here.",
            got=str(run),
            allowed=f"a run directory (it holds {JOB_FILE}, manifest.json and journal.jsonl)",
            fix="check the path; `evomerge search JOB` starts a run.",
        )
    return load_job(run / JOB_FILE, overrides)


def read_text(path: Path, what: str) -> str:
    """The file's text.

    Raises:
        ConfigError: when it does not exist, is a folder, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The {what} cannot be read.",
            got=f"{path}: {error.strerror if isinstance(error, OSError) else 'not UTF-8 text'}",
            allowed="a readable YAML file",
            fix="check the path (`evomerge init job.yaml` writes a commented example).",
        ) from error


def load_job(path: Path, overrides: Sequence[str] = ()) -> ResolvedJob:
    """Read, check and resolve a job file.

    Args:
        path: the job file; relative paths in it start at its folder.
        overrides: `a.b=value` from the command line, values in YAML.

    Raises:
        ConfigError: unreadable or malformed YAML; then every problem of the schema at once; then unknown presets
            and suites.
    """
    document = parse_yaml(read_text(path, "job file"), path.name)
    return resolve_job(apply_overrides(document, overrides), path.resolve().parent)


def resolve_job(document: Document, folder: Path) -> ResolvedJob:
    """Check a parsed job and inline what it names; relative paths start at `folder`."""
    job = validate(Job, document)
    space_document, space_origin = _space(job, document, folder)
    suite, suite_origin = _suite(job, folder)
    optimizer = OptimizerChoice(name=job.optimizer) if isinstance(job.optimizer, str) else job.optimizer
    parents = job.parents.model_copy(
        update={
            "base": None if job.parents.base is None else _model_source(job.parents.base, folder),
            "models": {name: _model_source(source, folder) for name, source in job.parents.models.items()},
        }
    )
    resolved = job.model_copy(
        update={
            "parents": parents,
            "space": space_document.value,
            "suite": suite,
            "optimizer": optimizer,
            "inject": [str(_absolute(p, folder)) for p in job.inject],
        }
    )
    origins = {"space": space_origin, "suite": suite_origin}
    return ResolvedJob(resolved, space_document.value, space_document, origins)


def _absolute(text: str, folder: Path) -> Path:
    path = Path(text).expanduser()
    return path if path.is_absolute() else (folder / path).resolve()


def _model_source(source: str, folder: Path) -> str:
    """An absolute folder where there is one or where only a folder can be meant; else the hub id as written."""
    path = _absolute(source, folder)
    looks_like_hub = re.match(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$", source) and not source.startswith((".", "/", "~"))
    return source if looks_like_hub and not path.exists() else str(path)


def _looks_like_path(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml"))


def _named(kind: Kind, name: str, folder: Path, subfolder: str = "") -> tuple[Document, Origin, Path]:
    """The document of a preset or of a file, with where it came from and the folder its paths start at."""
    path = _absolute(name, folder) if _looks_like_path(name) else preset_path(kind, name, subfolder)
    text = read_text(path, kind.replace("_", " ").rstrip("s"))
    return parse_yaml(text, path.name), Origin(str(path) if _looks_like_path(name) else name, text), path.parent


def _space(job: Job, document: Document, folder: Path) -> tuple[Document, Origin]:
    if isinstance(job.space, str):
        if not _looks_like_path(job.space) and job.space not in preset_names("search_spaces"):
            return _plugin_space(job.space)
        named, origin, _ = _named("search_spaces", job.space, folder)
        if not isinstance(named.value, dict):
            raise _not_a_mapping(named)
        return named, origin
    lines = {p[1:]: line for p, line in document.lines.items() if p[:1] == ("space",)}
    return Document(document.name, job.space, lines), Origin("inline", "")


def _plugin_space(name: str) -> tuple[Document, Origin]:
    """The mapping that a plug-in's entry point is, or returns when called."""
    if name not in SPACES.names():
        known = [*preset_names("search_spaces"), *SPACES.names()]
        raise ConfigError(
            f"There is no search space {name!r}.",
            got=repr(name),
            allowed=suggest(name, known),
            fix="use one of these names, the path of a YAML file, or write the space into the job.",
        )
    loaded = SPACES.load(name)
    value = dict(loaded() if callable(loaded) else loaded)
    return Document(f"space {name}", value, {}), Origin(name, yaml.safe_dump(value, sort_keys=False))


def _suite(job: Job, folder: Path) -> tuple[Suite, Origin]:
    if isinstance(job.suite, str):
        document, origin, home = _named("evaluators", job.suite, folder, subfolder="suites")
        suite = validate(Suite, document)
    else:
        suite, origin, home = job.suite, Origin("inline", ""), folder
    return suite.model_copy(update={"include": [str(_absolute(p, home)) for p in suite.include]}), origin


def _not_a_mapping(document: Document) -> ConfigError:
    return ConfigError(
        f"{document.name} does not hold a mapping.",
        got=type(document.value).__name__ if document.value is not None else "an empty file",
        allowed="`key: value` lines",
        fix="`evomerge init job.yaml` writes a commented example.",
    )


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """The document with `a.b=value` settings laid over it; values are YAML, list entries are named by index.

    Raises:
        ConfigError: for text without `=`, or a path through something that is not a mapping or list.
    """
    value, lines = document.value, dict(document.lines)
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals or not key:
            raise ConfigError(
                "A --set option is not of the form a.b=value.",
                got=repr(text),
                allowed="for instance budget.evaluations=300",
                fix="write the path, an equals sign, and a YAML value.",
            )
        path: YamlPath = tuple(int(p) if p.isdigit() else p for p in key.split("."))
        value = _with_value(value, path, parse_yaml(raw, f"--set {key}").value, text)
        lines = {p: line for p, line in lines.items() if p[: len(path)] != path}
    return Document(document.name, value, lines)


def _with_value(value: Any, path: YamlPath, new: Any, text: str) -> Any:
    """A copy of `value` with `new` at `path`."""
    if not path:
        return new
    head, rest = path[0], path[1:]
    if isinstance(value, list) and isinstance(head, int) and head < len(value):
        return [_with_value(v, rest, new, text) if i == head else v for i, v in enumerate(value)]
    if value is None or isinstance(value, dict):
        old = dict(value or {})
        return old | {str(head): _with_value(old.get(str(head)), rest, new, text)}
    raise ConfigError(
        "A --set option leads through something that is not a mapping.",
        got=f"{text!r}: {head!r} inside {value!r}",
        allowed="paths through mappings and list indices",
        fix="set the whole value instead.",
    )


def validate(schema: type[T], document: Document) -> T:
    """The document as a value of the schema.

    Raises:
        ConfigError: naming every problem with its line.
    """
    if not isinstance(document.value, dict):
        raise _not_a_mapping(document)
    try:
        return schema.model_validate(document.value)
    except ValidationError as error:
        problems = [_problem(dict(e), document, schema) for e in error.errors()]
    first = problems[0]
    if len(problems) == 1:
        raise ConfigError(f"{document.name} has an error.", got=first.got, allowed=first.allowed, fix=first.fix)
    raise ConfigError(
        f"{document.name} has {len(problems)} errors.",
        got="\n    " + "\n    ".join(p.got for p in problems),
        allowed="\n    " + "\n    ".join(dict.fromkeys(p.allowed for p in problems)),
        fix="\n    " + "\n    ".join(dict.fromkeys(p.fix for p in problems)),
    )


@dataclass(frozen=True)
class _Problem:
    got: str
    allowed: str
    fix: str


def _problem(error: Mapping[str, Any], document: Document, schema: type[Strict]) -> _Problem:
    path: YamlPath = tuple(p for p in error["loc"] if p not in TAGS)
    where, value, kind = document.where(path), error["input"], error["type"]
    if kind == "extra_forbidden":
        known = sorted(_fields(schema, path[:-1]))
        return _Problem(
            f"{where}: unknown key {path[-1]!r}", f"keys here: {suggest(str(path[-1]), known)}", "correct the key."
        )
    if kind == "missing":
        return _Problem(f"{where}: it is missing", f"{path[-1]} is required", f"add {path[-1]!r}.")
    shown = repr(value) if len(repr(value)) < 80 else f"{type(value).__name__} of {len(repr(value))} characters"
    if isinstance(value, str) and _EXPONENT.match(value):
        mantissa, exponent = re.split("[eE]", value)
        better = (
            f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent if exponent[0] in '+-' else '+' + exponent}"
        )
        return _Problem(
            f"{where}: {value!r} is text to YAML, not a number", "a number", f"write {better} (with point and sign)."
        )
    return _Problem(f"{where}: {shown}", str(error["msg"]), "correct the value.")


def _fields(schema: type[Strict], path: YamlPath) -> list[str]:
    """The keys that a mapping at `path` may have."""
    current: type[Strict] = schema
    for step in path:
        if isinstance(step, int):
            continue
        field = current.model_fields.get(step)
        nested = _nested(field.annotation) if field is not None else None
        if nested is None:
            return []
        current = nested
    return list(current.model_fields)


def _nested(annotation: Any) -> type[Strict] | None:
    """The schema class inside an annotation such as `list[Objective]`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _nested(argument)
        if found is not None:
            return found
    return None
