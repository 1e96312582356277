"""Estimators and selection rules on a real response matrix: errors, interval coverage, ranks.

    python benchmarks/irt.py MATRIX.npz [--seed S] [--json] [--draws 200]

What the file holds is told in `irt_matrix.py`. Some models calibrate (the bank, the held-out checks), the others are
tested: in each draw all are asked the same N random items, and every estimator says what their mean over the whole pool
is, for up to `TESTED_PER_DRAW` of them. The truth is that mean; where the file has `lb_score`, the error against it is
a second column. A merge's own estimators need its parents and are `null` without them; with them, each draw judges them
on the children of `PAIRS_PER_DRAW` pairs. `anchors_asked` repeats some estimators on the items that k-means chooses
instead of random ones. Tested are only models that answered everything; others calibrate all the same.

One block of 400 tested models and some hundred items takes about 3 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from irt_matrix import Bools, Floats, Indices, Matrix, Parts, read_matrix, split_models
from irt_selection import selection_table

from evomerge.irt.dimensions import choose_dimensions
from evomerge.irt.estimators.anchors import anchor_items
from evomerge.irt.estimators.base import Calibration, Estimated, Estimator
from evomerge.irt.estimators.registry import ESTIMATORS, NEED_PARENTS, make_estimator
from evomerge.irt.fit import FitSettings, fit
from evomerge.irt.responses import Responses
from evomerge.seeds import generator

SIZES: Final = (10, 20, 50, 100)
SPLITS: Final = 4
PAIRS_PER_DRAW: Final = 2
TESTED_PER_DRAW: Final = 150
CALIBRATION_MODELS: Final = 400
ANCHOR_DRAWS: Final = 40
ON_ANCHORS: Final = ("anchors", "p-irt", "ridge", "auto")
FEWEST: Final = 10
Z90: Final = 1.6448536269514722

Figures = dict[str, float]
Table = dict[str, dict[str, Figures] | None]


@dataclass
class Errors:
    """Collects what one estimator said at one size.

    Attributes:
        error: estimate minus truth, one array per draw.
        covered: whether the 90 % interval holds the truth.
        lb_error: estimate minus the score on the full benchmark, where that is known.
    """

    error: list[Floats] = field(default_factory=list)
    covered: list[Bools] = field(default_factory=list)
    lb_error: list[Floats] = field(default_factory=list)

    def add(self, said: Estimated, truth: Floats, lb_score: Floats | None) -> None:
        """One draw."""
        self.error.append(said.value - truth)
        self.covered.append(np.abs(said.value - truth) <= Z90 * said.se + 1e-12)
        if lb_score is not None:
            self.lb_error.append((said.value - lb_score)[~np.isnan(lb_score)])

    def figures(self) -> Figures:
        """Mean absolute error, bias, share of intervals that hold the truth."""
        error = np.concatenate(self.error)
        told = {
            "mae": float(np.abs(error).mean()),
            "bias": float(error.mean()),
            "coverage90": float(np.concatenate(self.covered).mean()),
        }
        lb_error = np.concatenate(self.lb_error) if self.lb_error else np.zeros(0)
        if lb_error.size:
            told |= {"mae_lb": float(np.abs(lb_error).mean()), "bias_lb": float(lb_error.mean())}
        return told


@dataclass(frozen=True)
class Tested:
    """The models that are estimated.

    Attributes:
        scores: shape `(m, n)`, complete.
        rows: shape `(m,)`, their rows in the matrix.
        lb_score: shape `(m,)`, or None.
    """

    scores: Floats
    rows: Indices
    lb_score: Floats | None

    @property
    def truth(self) -> Floats:
        """Shape `(m,)`."""
        mean: Floats = self.scores.mean(axis=1)
        return mean

    def some(self, places: Indices) -> Tested:
        """Some of them."""
        return Tested(self.scores[places], self.rows[places], None if self.lb_score is None else self.lb_score[places])


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the matrix, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    matrix = read_matrix(options.file)
    check_size(matrix)
    found: dict[str, Any] = measured(matrix, options.seed, options.draws)
    found["selection"] = selection_table(matrix, generator(options.seed, "selection"), draws=options.draws)
    print(json.dumps(found) if options.json else readable(found))
    return 0


def check_size(matrix: Matrix) -> None:
    """Refuses what is too small to measure anything on.

    Raises:
        SystemExit: it is.
    """
    m, n = matrix.scores.shape
    if m < FEWEST or n <= SIZES[0]:
        sys.exit(f"{m} models and {n} items; at least {FEWEST} models and more than {SIZES[0]} items are needed")


def tested(matrix: Matrix, rows: Indices) -> Tested:
    """The complete ones among some models.

    Raises:
        SystemExit: there is none.
    """
    complete = rows[~np.isnan(matrix.scores[rows]).any(axis=1)]
    if complete.size == 0:
        sys.exit("no tested model has answered all items: there is no truth to compare with")
    return Tested(matrix.scores[complete], complete, None if matrix.lb_score is None else matrix.lb_score[complete])


def calibration_of(matrix: Matrix, parts: Parts, seed: int) -> Calibration:
    """The calibration models, their bank in the dimension that held-out answers choose."""
    responses = responses_of(matrix, parts.calibration)
    dimensions = choose_dimensions(responses, seed=seed).dimensions
    return Calibration(responses, fit(responses, FitSettings(dimensions=dimensions)).bank, seed=seed)


def responses_of(matrix: Matrix, rows: Indices) -> Responses:
    """Some models' rows."""
    return Responses(matrix.scores[rows], tuple(matrix.models[i] for i in rows), matrix.items)


def measured(matrix: Matrix, seed: int, draws: int) -> dict[str, Table]:
    """The two estimator tables."""
    plain = [name for name in (*ESTIMATORS, "auto") if name not in NEED_PARENTS]
    board = {name: {n: Errors() for n in SIZES} for name in (*ESTIMATORS, "auto")}
    anchored = {name: {n: Errors() for n in SIZES} for name in ON_ANCHORS}
    for split, some in enumerate(np.array_split(np.arange(draws), min(SPLITS, draws))):
        parts = split_models(matrix, generator(seed, "split", split), calibration=CALIBRATION_MODELS)
        known, models = calibration_of(matrix, parts, seed), tested(matrix, parts.test)
        estimators = {name: make_estimator(name, known) for name in plain}
        families = families_of(matrix, models)
        for n in sizes_of(matrix):
            for draw in some:
                rng = generator(seed, "draw", n, int(draw))
                asked = asked_items(rng.choice(len(matrix.items), n, replace=False), matrix)
                judge(board, n, estimators, some_of(models, rng), asked)
                for pair in chosen_families(families, rng):
                    judge(board, n, of_parents(matrix, known, pair), models.some(families[pair]), asked)
            for start in range(ANCHOR_DRAWS // SPLITS):
                asked = asked_items(anchor_items(known, n, generator(seed, "anchors", split, n, start)), matrix)
                rng = generator(seed, "anchored", split, n, start)
                judge(anchored, n, {name: estimators[name] for name in ON_ANCHORS}, some_of(models, rng), asked)
    return {"estimators": figures(board), "anchors_asked": figures(anchored)}


def sizes_of(matrix: Matrix) -> tuple[int, ...]:
    """Numbers of questions that leave something to estimate."""
    return tuple(n for n in SIZES if n < len(matrix.items))


def asked_items(chosen: Indices, matrix: Matrix) -> Bools:
    """Shape `(n,)`."""
    asked = np.zeros(len(matrix.items), dtype=bool)
    asked[chosen] = True
    return asked


def some_of(models: Tested, rng: np.random.Generator) -> Tested:
    """At most `TESTED_PER_DRAW` of the tested models."""
    count = len(models.rows)
    return models.some(np.sort(rng.choice(count, min(count, TESTED_PER_DRAW), replace=False)))


def judge(
    board: Mapping[str, Mapping[int, Errors]],
    n: int,
    estimators: Mapping[str, Estimator],
    models: Tested,
    asked: Bools,
) -> None:
    """Adds what the estimators say of some models to the board."""
    scores = np.where(asked, models.scores, np.nan)
    for name, estimator in estimators.items():
        board[name][n].add(estimator.estimate(scores), models.truth, models.lb_score)


def families_of(matrix: Matrix, models: Tested) -> dict[tuple[int, ...], Indices]:
    """Parents' rows -> places of their children among the tested models; empty where the matrix tells no parents."""
    families: dict[tuple[int, ...], list[int]] = {}
    if matrix.parents is None:
        return {}
    for place, row in enumerate(models.rows):
        pair = tuple(sorted({int(parent) for parent in matrix.parents[row]}))
        if pair and pair[0] >= 0 and int(row) not in pair:
            families.setdefault(pair, []).append(place)
    return {pair: np.array(places) for pair, places in families.items()}


def chosen_families(
    families: Mapping[tuple[int, ...], Indices], rng: np.random.Generator
) -> tuple[tuple[int, ...], ...]:
    """Which families a draw judges."""
    pairs = list(families)
    some = rng.choice(len(pairs), min(PAIRS_PER_DRAW, len(pairs)), replace=False) if pairs else np.zeros(0, dtype=int)
    return tuple(pairs[int(i)] for i in some)


def of_parents(matrix: Matrix, known: Calibration, pair: tuple[int, ...]) -> dict[str, Estimator]:
    """The estimators that know one pair of parents: the calibration models and the two."""
    names = set(known.responses.models)
    missing = [row for row in pair if matrix.models[row] not in names]
    scores = np.concatenate([known.responses.scores, matrix.scores[missing]])
    models = (*known.responses.models, *(matrix.models[row] for row in missing))
    place = {model: i for i, model in enumerate(models)}
    parents = tuple(place[matrix.models[row]] for row in pair)
    family = Calibration(Responses(scores, models, matrix.items), known.bank, parents, known.seed)
    return {name: make_estimator(name, family) for name in ESTIMATORS if name in NEED_PARENTS}


def figures(board: Mapping[str, Mapping[int, Errors]]) -> Table:
    """Name -> size -> figures; None for what was not measured at all, no entry for sizes beyond the pool."""
    told = {
        name: {str(n): errors.figures() for n, errors in sizes.items() if errors.error} for name, sizes in board.items()
    }
    return {name: sizes or None for name, sizes in told.items()}


def readable(found: Mapping[str, Any]) -> str:
    """The three tables as text."""
    blocks = [
        ("Estimators, random items", ("mae", "bias", "coverage90", "mae_lb"), found["estimators"]),
        ("Estimators, items chosen by k-means", ("mae", "bias", "coverage90", "mae_lb"), found["anchors_asked"]),
        ("Selection among siblings", ("tau", "regret", "questions"), found["selection"]),
    ]
    return "\n\n".join(f"{title}\n{_table(keys, rows)}" for title, keys, rows in blocks)


def _table(keys: Sequence[str], rows: Mapping[str, Mapping[str, Mapping[str, float]] | None]) -> str:
    present = {key for sizes in rows.values() if sizes for told in sizes.values() for key in told}
    columns = [key for key in keys if key in present]
    lines = [f"{'':20}{'N':>5}" + "".join(f"{key:>12}" for key in columns)]
    for name, sizes in rows.items():
        if sizes is None:
            lines.append(f"{name:20}    -  (needs the models' parents)")
            continue
        for n, told in sizes.items():
            lines.append(f"{name:20}{n:>5}" + "".join(f"{told[key]:12.4f}" for key in columns))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
