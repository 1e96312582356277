"""What an exported folder says of its merge for programs: scores on the report set, and its parents' licences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Final

from evomerge.checkpoints.folder import own_file
from evomerge.config.card import stated_licence
from evomerge.config.parents import Parents
from evomerge.digest import digest_json
from evomerge.errors import ConfigError
from evomerge.evaluation.statistics import task_interval
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.recipe.serialize import recipe_digest
from evomerge.report.book import Book
from evomerge.report.collect import summary_of
from evomerge.types import Digest

RESULTS_FILE: Final = "evomerge_results.json"
RESULTS_FORMAT: Final = "evomerge.results"
RESULTS_VERSION: Final = 2
_MAX_CHARACTERS: Final = 1_000_000
_MAX_LICENCE_BYTES: Final = 200_000
_LICENCE_TEXT: Final = re.compile(r"(LICENSE|LICENCE|NOTICE|USE_POLICY)(\.(txt|md))?")


def results_of(run: Path, recipe: Recipe, parents: Parents, id_: str) -> dict[str, Any]:
    """The results of a merge as JSON values, without the digests that `results_text` adds.

    Args:
        run: the run directory.
        recipe: the merge.
        parents: of the run, opened.
        id_: the merge's id in the run.
    """
    book = Book(run)
    summary = summary_of(book)
    entry = summary.entries().get(id_)
    suite = book.manifest["suite"]
    return {
        "format": RESULTS_FORMAT,
        "version": RESULTS_VERSION,
        "run": summary.name,
        "id": id_,
        "recipe": recipe_digest(recipe),
        "tried": summary.counts.evaluated + summary.counts.failed,
        "tasks": [] if entry is None else _tasks(book, entry.recipe_digest, suite),
        "public_test_tasks": list(suite["public_test_tasks"]),
        "licences": {name: stated_licence(folder) for name, folder in licence_folders(recipe, parents)},
    }


def results_text(results: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """The file of the results.

    Args:
        results: of `results_of`.
        files: name -> digest of every other file of the folder (see `checkpoints.seal`).

    Returns:
        JSON with the digests under `files`, and under `digest` the one of everything else in it.
    """
    whole = {**results, "files": dict(files)}
    sealed = {**whole, "digest": digest_json(whole)}
    return json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _tasks(book: Book, digest: Digest, suite: Mapping[str, Any]) -> list[dict[str, Any]]:
    record = book.record(digest, "report")
    if record is None:
        return []
    found = []
    for name, answers in book.answers(record).answers.items():
        low, high = task_interval(answers)
        facts = {"metric": suite["metrics"].get(name, ""), "dataset": suite.get("datasets", {}).get(name, "")}
        scores = {"value": answers.mean, "se": answers.se, "low": low, "high": high, "n": len(answers.items)}
        found.append({"task": name, **facts, **scores})
    return found


def licence_folders(recipe: Recipe, parents: Parents) -> Iterator[tuple[str, Path]]:
    """Name and folder of every checkpoint and adapter that a merge is made of, ingredients included, each once."""
    seen: set[str] = set()
    for ref in recipe.parents:
        for part in _parts(ref):
            folder = Path(part.source) if part.made is not None else parents.opener.open(part).folder
            if str(folder) not in seen:
                seen.add(str(folder))
                yield part.name, folder


def licence_texts(recipe: Recipe, parents: Parents) -> dict[str, bytes]:
    """File name -> content of the parents' licences and notices, which travel with the weights.

    A text that several parents have is written once, under its own name; others carry their parent's name.
    """
    found: dict[tuple[str, bytes], str] = {}
    for name, folder in licence_folders(recipe, parents):
        texts = [own_file(folder, file.name) for file in sorted(folder.iterdir()) if _LICENCE_TEXT.fullmatch(file.name)]
        for file in texts:  # in the hub's cache they are links into its blobs
            if file is not None and file.stat().st_size <= _MAX_LICENCE_BYTES:
                found.setdefault((file.name, file.read_bytes()), name)
    names = [name for name, _ in found]
    return {
        name if names.count(name) == 1 else f"{name}.{parent}": text for (name, text), parent in found.items() if text
    }


def _parts(ref: ParentRef) -> Iterator[ParentRef]:
    """The checkpoints and adapters behind a parent."""
    made = ref.made
    if made is None:
        yield ref
        return
    if Path(ref.source).is_dir():  # an adapter's own folder
        yield ref
    for part in (*made.of, *(() if made.base is None else (made.base,))):
        yield from _parts(part)


def read_results(folder: Path) -> dict[str, Any]:
    """The results of an exported folder.

    Raises:
        ConfigError: when they are missing, damaged, were edited after the export, or are from before there were
            digests.
    """
    try:
        text = (folder / RESULTS_FILE).read_text(encoding="utf-8")[:_MAX_CHARACTERS]
        found = json.loads(text)
        sound = found["format"] == RESULTS_FORMAT and found["version"] == RESULTS_VERSION and _is_sound(found)
        as_written = sound and digest_json({k: v for k, v in found.items() if k != "digest"}) == found["digest"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _unusable(folder, f"{type(error).__name__}: {error}".partition("\n")[0][:200]) from error
    if not sound:
        raise _unusable(folder, f"format {found.get('format')!r}, version {found.get('version')!r}")
    if not as_written:
        raise ConfigError(
            "The results in this folder were edited after the export.",
            got=f"{folder / RESULTS_FILE}: its digest is not that of its content",
            allowed="the file as `evomerge export` wrote it",
            fix="export the merge again: evomerge export RUN --to DIR.",
        )
    return dict(found)


def _is_sound(found: Mapping[str, Any]) -> bool:
    licences = found["licences"]
    texts = all(isinstance(found[key], str) for key in ("run", "id", "recipe"))
    stated = all(value is None or isinstance(value, str) for value in licences.values())
    public = found.get("public_test_tasks", [])
    measured = isinstance(found["tasks"], list) and isinstance(public, list) and all(map(_is_task, found["tasks"]))
    digests = all(isinstance(value, str) for value in (found["digest"], *found["files"].values()))
    return texts and digests and bool(licences) and stated and measured and isinstance(found["tried"], int)


def _is_task(task: Any) -> bool:
    texts = all(isinstance(task[key], str) for key in ("task", "metric", "dataset"))
    numbers = all(isinstance(task[key], int | float) and isfinite(task[key]) for key in ("value", "low", "high", "n"))
    return texts and numbers


def _unusable(folder: Path, got: str) -> ConfigError:
    return ConfigError(
        "This folder does not say what was measured of its model.",
        got=f"{folder / RESULTS_FILE}: {got}",
        allowed=f"a checkpoint or adapter that `evomerge export` wrote, with its {RESULTS_FILE}",
        fix="export the merge again: evomerge export RUN --to DIR.",
    )
