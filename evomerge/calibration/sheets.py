"""Answers of one source to one task, and several of them joined to the matrix that a bank is fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evomerge.errors import ConfigError
from evomerge.irt.responses import Bools, Floats, Responses

Kind = Literal["matrix", "log", "run"]


@dataclass(frozen=True)
class Sheet:
    """What one source knows about one task.

    Attributes:
        source: the source's name for people and for the bank's provenance: a base name, never a path.
        kind: what the source is.
        task: the task's name.
        metric: of the scores, `NAME` or `NAME,FILTER`; empty where the source does not say.
        keys: one per row; equal keys in two sheets are the same model.
        names: one per row, for people; need not be unique.
        items: item hashes, one per column, unique.
        scores: shape `(models, items)`; NaN where a model was not asked.
    """

    source: str
    kind: Kind
    task: str
    metric: str
    keys: tuple[str, ...]
    names: tuple[str, ...]
    items: tuple[str, ...]
    scores: Floats


@dataclass(frozen=True)
class SourceFacts:
    """What one source gave: its name, kind, number of models and number of answers."""

    name: str
    kind: Kind
    models: int
    answers: int


@dataclass(frozen=True)
class Pool:
    """All answers to one task.

    Attributes:
        task: the task's name.
        metric: of the scores, empty where no source says.
        responses: the joined matrix.
        sources: in the order in which they were named.
        notes: what a reader of the result must know, one sentence each.
    """

    task: str
    metric: str
    responses: Responses
    sources: tuple[SourceFacts, ...]
    notes: tuple[str, ...] = ()


def counted(n: int, what: str) -> str:
    """`1 model`, `1,319 items`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def pool_sheets(task: str, sheets: Sequence[Sheet]) -> Pool:
    """Join sheets of one task: models and items in order of appearance; of two answers the first counts.

    Raises:
        ConfigError: the sheets hold scores of different metrics; there are fewer than two models; some models share
            neither an item nor a chain of items with the others; or no item was answered differently by two models.
    """
    metric = _one_metric(task, sheets)
    rows = {key: i for i, key in enumerate(dict.fromkeys(k for s in sheets for k in s.keys))}
    columns = {item: i for i, item in enumerate(dict.fromkeys(i for s in sheets for i in s.items))}
    scores = np.full((len(rows), len(columns)), np.nan)
    conflicts = 0
    for sheet in sheets:
        where = np.ix_([rows[k] for k in sheet.keys], [columns[i] for i in sheet.items])
        known = scores[where]
        both = ~np.isnan(known) & ~np.isnan(sheet.scores)
        conflicts += int(np.sum(known[both] != sheet.scores[both]))
        scores[where] = np.where(np.isnan(known), sheet.scores, known)
    names = _unique_names(sheets)
    answered = ~np.isnan(scores).all(axis=1)
    asked = ~np.isnan(scores).all(axis=0)
    silent = int(np.sum(~answered))
    models = tuple(name for name, there in zip(names, answered, strict=True) if there)
    items = tuple(item for item, there in zip(columns, asked, strict=True) if there)
    responses = Responses(scores[answered][:, asked], models, items)
    _check(task, responses)
    notes = (*_conflict_notes(conflicts, silent), *_constant_notes(responses))
    return Pool(task, metric, responses, _facts(sheets), notes)


def _facts(sheets: Sequence[Sheet]) -> tuple[SourceFacts, ...]:
    """Sheets of one source (a folder of logs has many) are told as one."""
    found: dict[tuple[str, Kind], tuple[set[str], int]] = {}
    for sheet in sheets:
        models, answers = found.setdefault((sheet.source, sheet.kind), (set(), 0))
        seen = int(np.sum(~np.isnan(sheet.scores)))
        found[sheet.source, sheet.kind] = (models | set(sheet.keys), answers + seen)
    return tuple(SourceFacts(name, kind, len(models), n) for (name, kind), (models, n) in found.items())


def _unique_names(sheets: Sequence[Sheet]) -> tuple[str, ...]:
    """A different name for every key, in order of appearance: a second `math` becomes `math (2)`."""
    name_of: dict[str, str] = {}
    taken: set[str] = set()
    for sheet in sheets:
        for key, name in zip(sheet.keys, sheet.names, strict=True):
            if key in name_of:
                continue
            unique, number = name, 1
            while unique in taken:
                number += 1
                unique = f"{name} ({number})"
            taken.add(unique)
            name_of[key] = unique
    return tuple(name_of.values())


def _one_metric(task: str, sheets: Sequence[Sheet]) -> str:
    """The metric of all sheets; runs tell it without its filter, which then goes with every filter."""
    told = {s.metric: s.source for s in reversed(sheets) if s.metric}
    names = {metric.partition(",")[0] for metric in told}
    filters = {metric.partition(",")[2] for metric in told} - {""}
    if len(names) > 1 or len(filters) > 1:
        raise ConfigError(
            f"The sources score task {task!r} by different metrics.",
            got=", ".join(f"{metric} in {source}" for metric, source in reversed(told.items())),
            allowed="answers scored by one metric",
            fix="name the metric of lm-eval logs with --metric, or leave one of the sources out.",
        )
    return max(told, key=len, default="")


def _check(task: str, responses: Responses) -> None:
    m, n = responses.scores.shape
    if m < 2:
        raise ConfigError(
            f"There are too few models to calibrate task {task!r}.",
            got=f"answers of {counted(m, 'model')} to {counted(n, 'item')}",
            allowed="at least 2 models; from about 30 on a bank is good",
            fix="add logs, runs or matrices of other models that answered the same items.",
        )
    linked = _linked(responses)
    if not linked.all():
        alien = [name for name, there in zip(responses.models, linked, strict=True) if not there]
        raise ConfigError(
            f"The answers to task {task!r} fall apart into groups of models without common items.",
            got=f"{len(alien)} of {m} models answered no item of the others, the first is {alien[0]!r}",
            allowed="models that are linked by common items, if only through other models",
            fix="check that the sources name items alike (logs and runs: by their documents), or use them one by one.",
        )
    if _constant_items(responses).all():
        raise ConfigError(
            f"Nothing can be learned about the items of task {task!r}.",
            got=f"{counted(n, 'item')}, each answered alike by all models that were asked it",
            allowed="items that some models answer better than others",
            fix="add models that differ more, or a task that is neither too easy nor too hard for them.",
        )


def _linked(responses: Responses) -> Bools:
    """Shape `(m,)`: models that are connected to the first one by common items."""
    seen = responses.seen
    models: Bools = np.zeros(len(responses.models), dtype=bool)
    models[0] = True
    while True:
        items = seen[models].any(axis=0)
        reached = np.any(seen[:, items], axis=1)
        if (reached == models).all():
            return models
        models = reached


def _constant_items(responses: Responses) -> Bools:
    """Shape `(n,)`: items with one value in all answers."""
    out: Bools = np.nanmin(responses.scores, axis=0) == np.nanmax(responses.scores, axis=0)
    return out


def _conflict_notes(conflicts: int, silent: int) -> list[str]:
    notes = []
    if conflicts:
        notes.append(f"Given twice with different scores: {counted(conflicts, 'answer')}; the first ones count.")
    if silent:
        notes.append(f"Left out: {counted(silent, 'model')} without any answer.")
    return notes


def _constant_notes(responses: Responses) -> list[str]:
    low, high = np.nanmin(responses.scores, axis=1), np.nanmax(responses.scores, axis=1)
    n = int(np.sum((low == high) & (responses.seen.sum(axis=1) > 1)))
    if not n:
        return []
    known = "all that is known of their ability is that it is very low or very high"
    return [f"{counted(n, 'model')} answered every item alike: {known}."]
