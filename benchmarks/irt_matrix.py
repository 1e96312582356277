"""A response matrix on disk, as `benchmarks/irt.py` and its parts read it.

The file is an npz without pickles: `Y` (models x items; 1 right, 0 wrong, 255 not seen; a float array is taken as it
is, NaN not seen), `models`, `items`, and optionally `merge_like` (bool per model), `lb_score` (the model's score on the
full benchmark) and `parents` (models x 2 row numbers, -1 where a model has no known parents).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

UNSEEN = 255


@dataclass(frozen=True)
class Matrix:
    """Answers of `m` models to `n` items.

    Attributes:
        scores: shape `(m, n)`, NaN where not seen.
        models: names of the rows.
        items: names of the columns.
        merge_like: shape `(m,)`: models that look like merges; None where the file does not tell.
        lb_score: shape `(m,)`: score on the full benchmark, NaN where unknown; None where the file does not tell.
        parents: shape `(m, 2)`: rows of each model's two parents, -1 where unknown; None where the file does not tell.
    """

    scores: Floats
    models: tuple[str, ...]
    items: tuple[str, ...]
    merge_like: Bools | None = None
    lb_score: Floats | None = None
    parents: Indices | None = None

    def __post_init__(self) -> None:
        m = len(self.models)
        if self.scores.shape != (m, len(self.items)):
            raise ValueError(f"Y has shape {self.scores.shape} for {m} models and {len(self.items)} items")
        for name, shape in (("merge_like", (m,)), ("lb_score", (m,)), ("parents", (m, 2))):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}, expected {shape}")

    @property
    def truth(self) -> Floats:
        """Shape `(m,)`: each model's mean over the pool, as far as it was seen."""
        truth: Floats = np.nanmean(self.scores, axis=1)
        return truth


class Parts(NamedTuple):
    """Rows of a matrix: what estimators learn from, and whom they are tested on; disjoint.

    Attributes:
        calibration: row numbers.
        test: row numbers.
    """

    calibration: Indices
    test: Indices


def read_matrix(path: Path) -> Matrix:
    """Reads a matrix; models with no answer at all are left out, and so are they as parents."""
    with np.load(path, allow_pickle=False) as file:
        scores = file["Y"].astype(np.float64)
        if file["Y"].dtype.kind in "iu":
            scores[file["Y"] == UNSEEN] = np.nan
        models = tuple(str(name) for name in file["models"])
        items = tuple(str(name) for name in file["items"])
        merge_like = file["merge_like"].astype(bool) if "merge_like" in file else None
        lb_score = file["lb_score"].astype(np.float64) if "lb_score" in file else None
        parents = file["parents"].astype(np.intp) if "parents" in file else None
    keep = np.flatnonzero(~np.all(np.isnan(scores), axis=1))
    if parents is not None:
        place = np.full(len(models) + 1, -1, dtype=np.intp)  # the last entry serves -1
        place[keep] = np.arange(keep.size)
        parents = place[parents[keep]]
    return Matrix(
        scores[keep],
        tuple(models[i] for i in keep),
        items,
        merge_like[keep] if merge_like is not None else None,
        lb_score[keep] if lb_score is not None else None,
        parents,
    )


def split_models(matrix: Matrix, rng: np.random.Generator, *, calibration: int = 400, share: float = 0.5) -> Parts:
    """Who calibrates and who is tested.

    Where the matrix tells merges apart: up to `calibration` of the others calibrate, all merges are tested. Else a
    random `share` of the models (at most `calibration` of them) calibrates and the rest is tested.
    """
    m = len(matrix.models)
    if matrix.merge_like is not None and 0 < matrix.merge_like.sum() < m:
        others = np.flatnonzero(~matrix.merge_like)
        chosen = rng.choice(others, size=min(calibration, others.size), replace=False)
        return Parts(np.sort(chosen), np.flatnonzero(matrix.merge_like))
    order = rng.permutation(m)
    cut = min(calibration, max(1, round(share * m)))
    return Parts(np.sort(order[:cut]), np.sort(order[cut:]))
