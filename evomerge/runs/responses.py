"""Per-item answers, kept beside the journal: one small JSON file per scored (recipe, set), named by its content.

Item hashes stand once in an `items-*.json` that all files of the same item set share, and so do the items' subjects
in a `subjects-*.json` where a task has any. All are written atomically before the record that names them, never change,
and are checked by digest on reading. Margins and subjects are left out where there are none, as in older files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from evomerge.digest import canonical_json, digest_text
from evomerge.errors import StoreError
from evomerge.files import write_atomic
from evomerge.runs.records import Evaluated
from evomerge.types import Digest, Evaluation, TaskAnswers

_SHORT: Final = 16
_MOST_BYTES: Final = 1 << 30
_HEX: Final = re.compile("[0-9a-f]{64}")


def _shared_path(folder: Path, kind: str, digest: str) -> Path:
    if _HEX.fullmatch(digest) is None:
        raise ValueError(f"{kind} = {digest!r}"[:100])
    return folder / f"{kind}-{digest[:_SHORT]}.json"


def response_path(folder: Path, recipe: Digest, set_name: str, responses: str) -> Path:
    """Where the answers with digest `responses` of a recipe on a set lie."""
    return folder / f"{recipe[:_SHORT]}-{set_name}-{responses[:_SHORT]}.json"


def save_responses(folder: Path, recipe: Digest, evaluation: Evaluation) -> str:
    """Write the answers unless they are there already, undamaged, and return their digest.

    Raises:
        DiskFull: when there is no space.
    """
    shared = {"items": canonical_json({name: a.items for name, a in evaluation.answers.items()})}
    subjects = {name: a.subjects for name, a in evaluation.answers.items() if a.subjects}
    if subjects:
        shared["subjects"] = canonical_json(subjects)
    margins = {name: a.margins for name, a in evaluation.answers.items() if a.margins}
    text = canonical_json(
        {
            "format": "evomerge.responses",
            "version": 1,
            "recipe": recipe,
            "set": evaluation.set_name,
            "tasks": list(evaluation.answers),
            "scores": {name: a.scores for name, a in evaluation.answers.items()},
            **{kind: digest_text(content) for kind, content in shared.items()},
            **({"margins": margins} if margins else {}),
        }
    )
    digest = digest_text(text)
    files = {_shared_path(folder, kind, digest_text(content)): content for kind, content in shared.items()}
    for path, content in (files | {response_path(folder, recipe, evaluation.set_name, digest): text}).items():
        if not _holds(path, content):
            write_atomic(path, content)
    return digest


def _holds(path: Path, content: str) -> bool:
    """Whether a file is there and undamaged."""
    try:
        return path.read_bytes() == content.encode()
    except OSError:
        return False


def _read_checked(path: Path, digest: str) -> Any:
    try:
        text = path.read_bytes().decode(errors="replace") if path.stat().st_size <= _MOST_BYTES else "too long"
    except OSError:  # not there, or not to be read: both mean that the answers must be asked again
        text = ""
    if digest_text(text) != digest:
        raise StoreError(
            "A file of per-item answers is lost." if not text else "A file of per-item answers was altered.",
            got=str(path),
            allowed=f"the file whose sha256 is {digest}",
            fix="`evomerge resume RUN` asks those questions again; or restore the file from a copy of the run.",
        )
    return json.loads(text)


def load_responses(folder: Path, record: Evaluated) -> Evaluation:
    """The evaluation behind a record, with every item's score; its costs are the record's own.

    Raises:
        StoreError: when a file is lost or was altered.
    """
    path = response_path(folder, record.recipe, record.set_name, record.responses)
    found = _read_checked(path, record.responses)
    try:
        return _evaluation(folder, record, found)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise StoreError(
            "A file of per-item answers holds something else.",
            got=f"{path}: {type(error).__name__}: {error}"[:500],
            allowed="items, finite scores and margins, one per item and task",
            fix="restore it from a copy of the run directory; nothing that evomerge wrote looks like this.",
        ) from error


def _evaluation(folder: Path, record: Evaluated, found: Mapping[str, Any]) -> Evaluation:
    items = _read_checked(_shared_path(folder, "items", found["items"]), found["items"])
    subjects: Mapping[str, Any] = {}
    if "subjects" in found:
        subjects = _read_checked(_shared_path(folder, "subjects", found["subjects"]), found["subjects"])
    margins = found.get("margins", {})
    answers = {
        name: TaskAnswers(
            name,
            tuple(map(_text, items[name])),
            tuple(float(s) for s in found["scores"][name]),
            tuple(float(m) for m in margins.get(name, ())),
            tuple(map(_text, subjects.get(name, ()))),
        )
        for name in found["tasks"]
    }
    return Evaluation(record.set_name, answers, dict(record.timing_s), dict(record.costs))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text"[:100])
    return value
