"""Answers of many models to many items, with holes: what banks are fitted to and candidates are estimated from.

Notation used in the whole package: `m` models, `n` items, `D` latent dimensions; an answer that was not asked is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

Link = Literal["logistic", "normal"]
"""How ability becomes an expected answer: `logistic` for scores in [0, 1], `normal` for all other numbers."""


def link_of(scores: Floats) -> Link:
    """`logistic` when every observed score lies in [0, 1], else `normal`."""
    seen = scores[~np.isnan(scores)]
    return "logistic" if bool(np.all((seen >= 0) & (seen <= 1))) else "normal"


@dataclass(frozen=True)
class Responses:
    """A response matrix.

    Attributes:
        scores: shape `(m, n)`, NaN where a model was not asked an item; kept read-only.
        models: names of the rows, unique.
        items: names of the columns (item hashes), unique.
    """

    scores: Floats
    models: tuple[str, ...]
    items: tuple[str, ...]

    def __post_init__(self) -> None:
        scores = np.array(self.scores, dtype=np.float64)
        if scores.shape != (len(self.models), len(self.items)):
            raise ValueError(f"scores of shape {scores.shape} for {len(self.models)} models, {len(self.items)} items")
        if len(set(self.models)) != len(self.models) or len(set(self.items)) != len(self.items):
            raise ValueError("a model or an item occurs twice in the response matrix")
        if np.any(np.isinf(scores)):
            raise ValueError("a response is infinite; what was not asked is NaN")
        scores.setflags(write=False)
        object.__setattr__(self, "scores", scores)

    @property
    def seen(self) -> Bools:
        """Shape `(m, n)`: which answers there are."""
        return ~np.isnan(self.scores)

    @property
    def link(self) -> Link:
        """See `link_of`."""
        return link_of(self.scores)

    def rows(self, chosen: Sequence[int] | Indices) -> Self:
        """The same items, some of the models."""
        index = np.asarray(chosen, dtype=np.intp)
        return type(self)(self.scores[index], tuple(self.models[i] for i in index), self.items)

    def columns(self, chosen: Sequence[int] | Indices) -> Self:
        """The same models, some of the items."""
        index = np.asarray(chosen, dtype=np.intp)
        return type(self)(self.scores[:, index], self.models, tuple(self.items[i] for i in index))
