"""Every answer that was ever given in a run: all models, all three item sets, finished or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.calibration.sheets import Sheet
from evomerge.runs.damage import damage_is_told
from evomerge.runs.manifest import MANIFEST_FILE, read_manifest
from evomerge.runs.records import Evaluated
from evomerge.runs.replay import History, read_history
from evomerge.runs.store import RunStore


def read_run(folder: Path) -> tuple[Sheet, ...]:
    """One sheet per task of a run directory; none while nothing was scored. The run may be going on.

    Raises:
        ConfigError: there is no run.
        StoreError: its journal, manifest or answers are damaged.
    """
    with damage_is_told(folder):
        return _read(folder)


def _read(folder: Path) -> tuple[Sheet, ...]:
    with RunStore.open(folder, write=False) as store:
        entries = tuple(store.entries())
        answers: dict[str, dict[str, dict[str, float]]] = {}
        for record in (e.record for e in entries):
            if not isinstance(record, Evaluated) or not record.responses:
                continue
            for task, told in store.load_responses(record).answers.items():
                row = answers.setdefault(task, {}).setdefault(record.recipe, {})
                for item, score in zip(told.items, told.scores, strict=True):
                    row.setdefault(item, score)
    source, names, metrics = folder.resolve().name, _names(read_history(entries)), _metrics(folder)
    return tuple(_sheet(source, task, metrics.get(task, ""), rows, names) for task, rows in answers.items())


def _metrics(folder: Path) -> Mapping[str, Any]:
    if not (folder / MANIFEST_FILE).is_file():
        return {}
    found = read_manifest(folder).get("suite", {}).get("metrics", {})
    return found if isinstance(found, dict) else {}


def _names(history: History) -> dict[str, str]:
    """Recipe -> the candidate's id, or a baseline's name."""
    names: dict[str, str] = {
        c.recipe: str(c.id) for batch in reversed(history.batches) for c in reversed(batch.candidates)
    }
    return names | {b.recipe: b.name or str(b.id) for b in history.baselines.values()}


def _sheet(
    source: str, task: str, metric: str, rows: Mapping[str, Mapping[str, float]], names: Mapping[str, str]
) -> Sheet:
    items = {item: i for i, item in enumerate(dict.fromkeys(item for row in rows.values() for item in row))}
    scores = np.full((len(rows), len(items)), np.nan)
    for number, row in enumerate(rows.values()):
        scores[number, [items[item] for item in row]] = list(row.values())
    shown = tuple(f"{source} {names.get(recipe, recipe[:12])}" for recipe in rows)
    return Sheet(source, "run", task, metric, tuple(rows), shown, tuple(items), scores)
