"""From a job file to a checked job: presets inlined, paths made absolute, every problem told at once with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from evomerge.config.overrides import apply_overrides
from evomerge.config.problems import validate
from evomerge.config.schema import Job, Parent, Questions, Suite
from evomerge.config.space_files import Origin
from evomerge.config.spaces import plain, plugin_space, space_plugins
from evomerge.config.stages import ResolvedStage, resolve_stages, resolved_fields
from evomerge.config.texts import absolute, looks_like_path, read_text
from evomerge.errors import ConfigError, suggest
from evomerge.resources import preset_names, preset_path
from evomerge.strict_yaml import Document, dump_yaml, parse_yaml

JOB_FILE: Final = "job.yaml"
_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class ResolvedJob:
    """A job that depends on no other file but its parents, its tasks and its injected recipes.

    Attributes:
        job: with absolute paths, suite and spaces inlined and the optimizer as a mapping.
        stages: what is searched, one after the other; at least one.
        origins: `suite` and `space`, or `stages.NAME` of a job in stages -> where they came from.
        document: the job as it was written, for the lines of messages.
    """

    job: Job
    stages: tuple[ResolvedStage, ...]
    origins: Mapping[str, Origin]
    document: Document

    @property
    def suite(self) -> Suite:
        """The inlined suite."""
        if not isinstance(self.job.suite, Suite):
            raise TypeError("a resolved job holds its suite inline")
        return self.job.suite

    @property
    def in_stages(self) -> bool:
        """Whether the job has stages."""
        return self.job.stages is not None

    @property
    def asynchronous(self) -> bool:
        """Whether a stage of the search has no generations."""
        return any(stage.optimizer.asynchronous for stage in self.stages)

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
    stages = resolve_stages(job, document, folder)
    suite, suite_origin = _suite(job, document, folder)
    resolved = job.model_copy(
        update={
            "parents": job.parents.model_copy(update=_parents(job, document, folder)),
            **resolved_fields(job, stages),
            "suite": suite,
            "inject": [_placed_path(p, document, ("inject", i), folder) for i, p in enumerate(job.inject)],
        }
    )
    origins = {origin_key(stage, resolved): stage.space.origin for stage in stages} | {"suite": suite_origin}
    return ResolvedJob(resolved, stages, origins, document)


def origin_key(stage: ResolvedStage, job: Job) -> str:
    """What the origin of a stage's space is filed under."""
    return "space" if job.stages is None else f"stages.{stage.name}"


def _parents(job: Job, document: Document, folder: Path) -> dict[str, Any]:
    """The sources of `base`, `models` and `ingredients`, absolute."""
    found: dict[str, Any] = {}
    for part in ("models", "ingredients"):
        found[part] = {}
        for name, parent in getattr(job.parents, part).items():
            with document.placing("parents", part, name):
                found[part][name] = _parent_source(parent, folder)
    base = job.parents.base
    with document.placing("parents", "base"):
        return {**found, "base": None if base is None else _model_source(base, folder)}


def _parent_source(parent: str | Parent, folder: Path) -> str | Parent:
    """A parent whose sources are absolute."""
    if isinstance(parent, str):
        return _model_source(parent, folder)
    sources = {key: getattr(parent, key) for key in ("model", "base", "adapter", "on")}
    return parent.model_copy(update={k: _model_source(v, folder) for k, v in sources.items() if v is not None})


def _placed_path(text: str, document: Document, at: tuple[str | int, ...], folder: Path) -> str:
    with document.placing(*at):
        return str(absolute(text, folder))


def _model_source(source: str, folder: Path) -> str:
    """An absolute folder where there is one or where only a folder can be meant; else the hub id as written."""
    path = absolute(source, folder)
    return source if _HUB_ID.fullmatch(source) and not path.exists() else str(path)


def _suite(job: Job, document: Document, folder: Path) -> tuple[Suite, Origin]:
    home, at = folder, list[str]()
    if isinstance(job.suite, str):
        with document.placing("suite"):
            path = _suite_path(job.suite, folder)
            text = read_text(path, "suite")
        origin = Origin(str(path) if looks_like_path(job.suite) else job.suite, text)
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
    if looks_like_path(name):
        return absolute(name, folder)
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
        part: `suite`, or else a search space.
        origin: as recorded when the run began.

    Raises:
        ConfigError: when a file that is still there cannot be read.
        PluginError: when the plug-in does not load.
    """
    if not origin.text:
        return None
    if looks_like_path(origin.name):
        path = Path(origin.name)
        return read_text(path, "suite" if part == "suite" else "search space") if path.is_file() else None
    if part == "suite":
        found = origin.name in preset_names("evaluators", "suites")
        return read_text(preset_path("evaluators", origin.name, "suites"), part) if found else None
    if origin.name in preset_names("search_spaces"):
        return read_text(preset_path("search_spaces", origin.name), "search space")
    if origin.name in space_plugins().names():
        return dump_yaml(plugin_space(origin.name))
    return None
