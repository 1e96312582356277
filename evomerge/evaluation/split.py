"""Items into disjoint search, select and report sets, by a salted hash, duplicates together and counted once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from evomerge.digest import digest_text
from evomerge.errors import EvaluationError
from evomerge.evaluation.suite import Split
from evomerge.types import SET_NAMES, Digest, SetName


class Question(NamedTuple):
    """What decides where an item goes.

    Attributes:
        document: hash of the whole document (`document_hash`).
        prompt: the question's text without examples; items with equal prompts are kept together. Empty: unknown.
        full: prompt, choices and target: items with an equal one are the same question and counted once.
    """

    document: Digest
    prompt: str
    full: str


def document_hash(document: Mapping[str, Any]) -> Digest:
    """sha256 of a document's canonical JSON; what JSON cannot express enters as its text."""
    return digest_text(json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str))


def _groups(questions: Sequence[Question]) -> list[list[int]]:
    """Indices of items that must stay together: equal documents or equal prompts, transitively (union-find)."""
    parent = list(range(len(questions)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[tuple[str, str], int] = {}
    for i, question in enumerate(questions):
        for key in (("document", question.document), ("prompt", question.prompt)):
            if key[1]:
                parent[root(i)] = root(seen.setdefault(key, i))
    groups: dict[int, list[int]] = {}
    for i in range(len(questions)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def _once(group: list[int], questions: Sequence[Question]) -> list[int]:
    """The group's items without repeated documents or repeated questions; the first of equals stays."""
    kept: list[int] = []
    documents: set[str] = set()
    fulls: set[str] = set()
    for i in group:
        q = questions[i]
        if q.document not in documents and q.full not in fulls:
            kept.append(i)
        documents.add(q.document)
        fulls.add(q.full)
    return kept


def _place(group: list[int], questions: Sequence[Question], salt: str) -> str:
    """Where a group stands in the order: a hash of the salt and of its prompt, or of its documents without one."""
    key = min(questions[i].prompt or questions[i].document for i in group)
    return hashlib.sha256(f"evomerge.split/{salt}/{key}".encode()).hexdigest()


def split_items(questions: Sequence[Question], split: Split, *, salt: str, task: str) -> dict[SetName, tuple[int, ...]]:
    """Indices of the items of each set.

    Groups of items that belong together stand in the order of a salted hash of their prompt. The search set is
    filled from the front, the report set from the back, the select set in the middle, so that asking for more
    search items leaves the report set as it was. A group that does not fit gives the items that fit; its others
    belong to no set.

    Args:
        questions: one per item, in the order of the data.
        split: sizes.
        salt: changes the order.
        task: for messages.

    Returns:
        Set -> ascending indices; exactly as many as asked where a count was given. A fraction is of all different
        items, and may come out smaller by the items of groups that did not fit.

    Raises:
        EvaluationError: when there are fewer different items than asked, with both numbers.
    """
    groups = [_once(g, questions) for g in _groups(questions)]
    n = sum(map(len, groups))
    counts = split.counts(n)
    ordered = sorted(groups, key=lambda g: _place(g, questions, salt))
    front, back = 0, len(ordered)
    taken: dict[SetName, list[int]] = {name: [] for name in SET_NAMES}
    while front < back and len(taken["search"]) < counts["search"]:
        taken["search"] += ordered[front][: counts["search"] - len(taken["search"])]
        front += 1
    for name in ("report", "select"):
        while front < back and len(taken[name]) < counts[name]:
            back -= 1
            taken[name] += ordered[back][: counts[name] - len(taken[name])]
    short = [n for n in SET_NAMES if len(taken[n]) < (counts[n] if isinstance(getattr(split, n), int) else 1)]
    if short:
        asked = ", ".join(f"{name} {counts[name]}" for name in SET_NAMES)
        raise EvaluationError(
            f"Task {task!r} has fewer items than the split asks for.",
            got=f"{asked}: {sum(counts.values())} in all",
            allowed=f"at most {n}: the task has {len(questions)} items, {n} of them different"
            + (f", {len(groups)} with different prompts, which stay together" if len(groups) < n else ""),
            fix="ask for fewer, or give fractions such as {search: 0.25, select: 0.25, report: 0.5}.",
        )
    return {name: tuple(sorted(taken[name])) for name in SET_NAMES}
