"""From the answers to one task to its bank, with how well it fits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np

from evomerge.calibration.quality import Quality, measure, n_folds
from evomerge.calibration.sheets import Pool
from evomerge.digest import canonical_json
from evomerge.irt.dimensions import choose_dimensions
from evomerge.irt.fit import Fit, FitSettings, fit
from evomerge.irt.responses import Responses

CANDIDATES: Final = (1, 2, 3)
"""Dimensions that `auto` tries."""

MIN_MODELS_TO_CHOOSE: Final = 20
"""With fewer models `auto` takes one dimension."""

Dimensions = int | Literal["auto"]


@dataclass(frozen=True)
class Calibrated:
    """One task's bank and all that is told of it.

    Attributes:
        pool: the answers.
        fit: the bank, and the abilities of the models behind it.
        quality: on what was held out.
        chosen_by: dimensions -> log-likelihood per held-out answer, where they were chosen; empty otherwise.
    """

    pool: Pool
    fit: Fit
    quality: Quality
    chosen_by: Mapping[int, float]


class Watcher(Protocol):
    """Told what is under way: `total` steps begin, one more is done."""

    def begins(self, what: str, total: int) -> None:
        """A stage of `total` steps begins."""

    def step(self) -> None:
        """One of them is done."""


def calibrate(pool: Pool, watcher: Watcher, *, dimensions: Dimensions = "auto", seed: int = 0) -> Calibrated:
    """Choose the number of dimensions, measure on held-out models and answers, and fit the bank to all answers.

    Equal answers, dimensions and seed give an equal bank, provenance included.

    Args:
        pool: the answers.
        watcher: told of progress.
        dimensions: 1 to 5, or `auto`.
        seed: of what is held out.

    Raises:
        EvomergeError: when the answers cannot be fitted.
    """
    responses = pool.responses
    scores: Mapping[int, float] = {}
    if dimensions == "auto":
        dimensions = 1
        if len(responses.models) >= MIN_MODELS_TO_CHOOSE and len(responses.items) > max(CANDIDATES):
            watcher.begins(f"{pool.task}: dimensions", 1)
            dimensions, scores = _chosen(responses, seed)
            watcher.step()
    settings = FitSettings(dimensions=dimensions)
    watcher.begins(f"{pool.task}: held-out models", n_folds(responses))
    quality = measure(responses, settings, seed=seed, step=watcher.step)
    watcher.begins(f"{pool.task}: fitting", 1)
    fitted = fit(responses, settings, provenance=provenance(pool))
    watcher.step()
    return Calibrated(pool, fitted, quality, scores)


def _chosen(responses: Responses, seed: int) -> tuple[int, Mapping[int, float]]:
    choice = choose_dimensions(responses, CANDIDATES, seed=seed)
    return choice.dimensions, choice.scores


def provenance(pool: Pool) -> dict[str, Any]:
    """Where the answers came from: no paths, no dates, so that equal answers give equal banks."""
    responses = pool.responses
    return {
        "task": pool.task,
        "metric": pool.metric,
        "sources": [asdict(source) for source in pool.sources],
        "models": len(responses.models),
        "answers": int(responses.seen.sum()),
        "digest": answers_digest(responses),
    }


def answers_digest(responses: Responses) -> str:
    """sha256 over models, items and scores, holes included."""
    names = canonical_json([list(responses.models), list(responses.items)])
    cells = np.where(responses.seen, responses.scores, np.inf).astype("<f8")
    return hashlib.sha256(names.encode() + cells.tobytes()).hexdigest()
