"""From a job file to a checked job: presets inlined, paths made absolute, every problem told at once with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from evomerge.config.overrides import apply_overrides
from evomerge.config.problems import not_a_mapping, validate
from evomerge.config.schema import Job, OptimizerChoice, Questions, Suite
from evomerge.config.spaces import plain, plugin_space, space_plugins
from evomerge.config.strict_yaml import Document, dump_yaml, parse_yaml
from evomerge.digest import digest_text
from evomerge.errors import ConfigError, suggest
from evomerge.resources import preset_names, preset_path
from evomerge.types import Digest

JOB_FILE: Final = "job.yaml"
_MAX_BYTES: Final = 16_000_000
_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")


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
        document: the job as it was written, for the lines of messages.
    """

    job: Job
    space: Mapping[str, Any]
    space_document: Document
    origins: Mapping[str, Origin]
    document: Document

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
        return dump_yaml(self.to_mapping())


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
    """The file's text, without a byte order mark.

    Raises:
        ConfigError: when it does not exist, is a folder, is not UTF-8, or is far too long for a text.
    """
    try:
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


def job_document(job: Mapping[str, Any]) -> Document:
    """A job that Python code wrote, as if it had been read; paths and tuples become text and lists.

    Raises:
        ConfigError: for values that a job file cannot say.
    """
    try:
        return Document("job", plain(job), {})
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "The job holds a value that no job file could.",
            got=str(error),
            allowed="mappings with text keys, lists, text, finite numbers, true and false, None, paths",
            fix="convert the value.",
        ) from error


def resolve_job(document: Document, folder: Path) -> ResolvedJob:
    """Check a parsed job and inline what it names; relative paths start at `folder`.

    Raises:
        ConfigError: every problem of the schema at once; then unknown presets and suites and paths that cannot be any.
    """
    job = validate(Job, document)
    space_document, space_origin = _space(job, document, folder)
    suite, suite_origin = _suite(job, document, folder)
    optimizer = OptimizerChoice(name=job.optimizer) if isinstance(job.optimizer, str) else job.optimizer
    resolved = job.model_copy(
        update={
            "parents": job.parents.model_copy(update=_parents(job, document, folder)),
            "space": space_document.value,
            "suite": suite,
            "optimizer": optimizer,
            "inject": [_placed_path(p, document, ("inject", i), folder) for i, p in enumerate(job.inject)],
        }
    )
    origins = {"space": space_origin, "suite": suite_origin}
    return ResolvedJob(resolved, space_document.value, space_document, origins, document)


def _parents(job: Job, document: Document, folder: Path) -> dict[str, Any]:
    """The sources of `base` and `models`, absolute."""
    models = {}
    for name, source in job.parents.models.items():
        with document.placing("parents", "models", name):
            models[name] = _model_source(source, folder)
    base = job.parents.base
    with document.placing("parents", "base"):
        return {"models": models, "base": None if base is None else _model_source(base, folder)}


def _absolute(text: str, folder: Path) -> Path:
    """An absolute path.

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


def _placed_path(text: str, document: Document, at: tuple[str | int, ...], folder: Path) -> str:
    with document.placing(*at):
        return str(_absolute(text, folder))


def _model_source(source: str, folder: Path) -> str:
    """An absolute folder where there is one or where only a folder can be meant; else the hub id as written."""
    path = _absolute(source, folder)
    return source if _HUB_ID.fullmatch(source) and not path.exists() else str(path)


def _looks_like_path(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml"))


def _space(job: Job, document: Document, folder: Path) -> tuple[Document, Origin]:
    if not isinstance(job.space, str):
        cut = frozenset(p[1:] for p in document.laid_over if p[:1] == ("space",))
        lines = {p[1:]: line for p, line in document.lines.items() if p[:1] == ("space",)}
        return Document(document.name, job.space, lines, cut), Origin("inline", "")
    with document.placing("space"):
        if _looks_like_path(job.space):
            path = _absolute(job.space, folder)
            text = read_text(path, "search space")
            name = str(path)
        elif job.space in preset_names("search_spaces"):
            path, name = preset_path("search_spaces", job.space), job.space
            text = read_text(path, "search space")
        else:
            value = plugin_space(job.space)
            text = dump_yaml(value)
            return Document(f"space {job.space}", value, {}), Origin(job.space, text)
    found = parse_yaml(text, path.name)
    if not isinstance(found.value, dict):
        raise not_a_mapping(found)
    return found, Origin(name, text)


def _suite(job: Job, document: Document, folder: Path) -> tuple[Suite, Origin]:
    home, at = folder, list[str]()
    if isinstance(job.suite, str):
        with document.placing("suite"):
            path = _suite_path(job.suite, folder)
            text = read_text(path, "suite")
        origin = Origin(str(path) if _looks_like_path(job.suite) else job.suite, text)
        home, document = path.parent, parse_yaml(text, path.name)
        suite = validate(Suite, document)
    else:
        suite, origin, at = job.suite, Origin("inline", ""), ["suite"]
    include = [_placed_path(p, document, (*at, "include", i), home) for i, p in enumerate(suite.include)]
    update: dict[str, Any] = {"include": include}
    if isinstance(suite.questions, Questions):
        banks = [
            _placed_path(p, document, (*at, "questions", "banks", i), home) for i, p in enumerate(suite.questions.banks)
        ]
        update["questions"] = suite.questions.model_copy(update={"banks": banks})
    return suite.model_copy(update=update), origin


def _suite_path(name: str, folder: Path) -> Path:
    if _looks_like_path(name):
        return _absolute(name, folder)
    known = preset_names("evaluators", "suites")
    if name not in known:
        raise ConfigError(
            f"There is no suite {name!r}.",
            got=repr(name),
            allowed=suggest(name, known),
            fix="use one of these names, the path of a YAML file, or write the suite into the job.",
        )
    return preset_path("evaluators", name, "suites")


def present_text(part: str, origin: Origin) -> str | None:
    """What the file, preset or plug-in behind an inlined part says now; None when it is gone or never was.

    Args:
        part: `space` or `suite`.
        origin: as recorded when the run began.

    Raises:
        ConfigError: when a file that is still there cannot be read.
        PluginError: when the plug-in does not load.
    """
    if not origin.text:
        return None
    if _looks_like_path(origin.name):
        path = Path(origin.name)
        return read_text(path, part) if path.is_file() else None
    if part == "suite":
        found = origin.name in preset_names("evaluators", "suites")
        return read_text(preset_path("evaluators", origin.name, "suites"), part) if found else None
    if origin.name in preset_names("search_spaces"):
        return read_text(preset_path("search_spaces", origin.name), part)
    if origin.name in space_plugins().names():
        return dump_yaml(plugin_space(origin.name))
    return None
