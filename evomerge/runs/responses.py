"""Per-item answers, kept beside the journal: one small JSON file per scored (recipe, set), named by its content.

Item hashes stand once in an `items-*.json` that all files of the same item set share. Both kinds are written
atomically before the record that names them, never change, and are checked by digest on reading.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from evomerge.digest import canonical_json, digest_text
from evomerge.errors import StoreError
from evomerge.files import write_atomic
from evomerge.runs.records import Evaluated
from evomerge.types import Digest, Evaluation, TaskAnswers

_SHORT: Final = 16


def _items_path(folder: Path, digest: str) -> Path:
    return folder / f"items-{digest[:_SHORT]}.json"


def response_path(folder: Path, recipe: Digest, set_name: str, responses: str) -> Path:
    """Where the answers with digest `responses` of a recipe on a set lie."""
    return folder / f"{recipe[:_SHORT]}-{set_name}-{responses[:_SHORT]}.json"


def save_responses(folder: Path, recipe: Digest, evaluation: Evaluation) -> str:
    """Write the answers unless they are there already, and return their digest.

    Raises:
        DiskFull: when there is no space.
    """
    items = canonical_json({name: a.items for name, a in evaluation.answers.items()})
    items_digest = digest_text(items)
    text = canonical_json(
        {
            "format": "evomerge.responses",
            "version": 1,
            "recipe": recipe,
            "set": evaluation.set_name,
            "items": items_digest,
            "tasks": list(evaluation.answers),
            "scores": {name: a.scores for name, a in evaluation.answers.items()},
        }
    )
    digest = digest_text(text)
    for path, content in (
        (_items_path(folder, items_digest), items),
        (response_path(folder, recipe, evaluation.set_name, digest), text),
    ):
        if not path.exists():
            write_atomic(path, content)
    return digest


def _read_checked(path: Path, digest: str) -> Any:
    try:
        text = path.read_text()
    except FileNotFoundError:
        text = ""
    if digest_text(text) != digest:
        raise StoreError(
            "A file of per-item answers is lost." if not text else "A file of per-item answers was altered.",
            got=str(path),
            allowed=f"the file whose sha256 is {digest}",
            fix="restore it from a copy of the run directory; scores and resume do not need it, the report does.",
        )
    return json.loads(text)


def load_responses(folder: Path, record: Evaluated) -> Evaluation:
    """The evaluation behind a record, with every item's score.

    Raises:
        StoreError: when a file is lost or was altered.
    """
    found = _read_checked(response_path(folder, record.recipe, record.set_name, record.responses), record.responses)
    items = _read_checked(_items_path(folder, found["items"]), found["items"])
    scores = found["scores"]
    answers = {
        name: TaskAnswers(name, tuple(items[name]), tuple(float(s) for s in scores[name])) for name in found["tasks"]
    }
    return Evaluation(record.set_name, answers, dict(record.timing_s))
