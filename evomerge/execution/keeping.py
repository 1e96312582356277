"""What a long search keeps of thousands of models, in little memory; equal to what it was made from."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, final

from evomerge.runs.partial import Items
from evomerge.types import Evaluation, TaskAnswers


@final
class PackedRecipe(Mapping[str, Any]):
    """A recipe's JSON object as a few hundred bytes; unpacked whenever it is looked into.

    Args:
        recipe: the JSON object.
    """

    __slots__ = ("_packed",)

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        self._packed = zlib.compress(json.dumps(dict(recipe), separators=(",", ":")).encode())

    def unpacked(self) -> dict[str, Any]:
        """The JSON object, fresh."""
        found: dict[str, Any] = json.loads(zlib.decompress(self._packed))
        return found

    def __getitem__(self, key: str) -> Any:
        return self.unpacked()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.unpacked())

    def __len__(self) -> int:
        return len(self.unpacked())


def shared(evaluation: Evaluation, order: Items) -> Evaluation:
    """The same answers, which share their items' names with the plan and right and wrong with each other.

    Answers come from other processes, each with names and numbers of its own: a hundred bytes an item.

    Args:
        evaluation: what came.
        order: task -> item hashes in plan order, as far as known.
    """
    return replace(
        evaluation, answers={name: _shared(a, order.get(name, ())) for name, a in evaluation.answers.items()}
    )


def _shared(answers: TaskAnswers, order: tuple[str, ...]) -> TaskAnswers:
    items = order if order == answers.items else answers.items
    return replace(answers, items=items, scores=tuple(map(_plain, answers.scores)))


def _plain(score: float) -> float:
    """The one 0.0 or 1.0 of this module for an equal score."""
    if score == 1.0:
        return 1.0
    return 0.0 if score == 0.0 and math.copysign(1.0, score) > 0 else score
