"""What candidates have answered so far, as a matrix per task: the search's own calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np

from evomerge.evaluation.measures import Channel
from evomerge.irt.responses import Bools, Floats, Responses
from evomerge.types import Digest, Evaluation


@final
class AnswerTable:
    """Answers to one task's search set by recipe; only ever grows.

    Args:
        task: whose answers.
        items: item hashes of its search set, in plan order.
        channel: scores, or margins.
    """

    def __init__(self, task: str, items: Sequence[str], channel: Channel = "score") -> None:
        self.task = task
        self.items = tuple(items)
        self.channel = channel
        self._index = {item: i for i, item in enumerate(self.items)}
        self._rows: dict[Digest, Floats] = {}

    def learn(self, recipe: Digest, evaluation: Evaluation) -> None:
        """Enter all answers of an evaluation; a task without answers or margins leaves a row of holes."""
        row = self._rows.setdefault(recipe, np.full(len(self.items), np.nan))
        answers = evaluation.answers.get(self.task)
        values = () if answers is None else answers.scores if self.channel == "score" else answers.margins
        if answers is None or not values:  # whoever values the margins says that there are none
            return
        row[[self._index[item] for item in answers.items]] = values

    def rows(self, recipes: Sequence[Digest]) -> Floats:
        """Shape `(m, n)`: a fresh matrix, NaN where not asked."""
        return np.array([self._rows[recipe] for recipe in recipes]).reshape(len(recipes), len(self.items))

    @property
    def recipes(self) -> tuple[Digest, ...]:
        """Every model with a row, in the order of learning."""
        return tuple(self._rows)

    @property
    def complete(self) -> tuple[Digest, ...]:
        """Models that answered everything."""
        return tuple(recipe for recipe, row in self._rows.items() if not np.isnan(row).any())

    def responses(self, recipes: Sequence[Digest]) -> Responses:
        """Some models' answers as a response matrix."""
        return Responses(self.rows(recipes), tuple(recipes), self.items)

    def item_means(self) -> Floats:
        """Shape `(n,)`: mean answer to each item over those who were asked, drawn a little to the overall mean."""
        matrix = self.rows(self.recipes)
        seen = ~np.isnan(matrix)
        total = float(np.nanmean(matrix)) if seen.any() else 0.0
        means: Floats = (np.where(seen, matrix, 0.0).sum(axis=0) + total) / (seen.sum(axis=0) + 1)
        return means

    def asked(self, recipe: Digest) -> Bools:
        """Shape `(n,)`: what a model has answered."""
        return ~np.isnan(self._rows[recipe])
