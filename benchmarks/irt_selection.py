"""Selection of the best among siblings from few answers: fixed subsets by several rules, and races.

Imported by `benchmarks/irt.py`. In each draw some test models are siblings; the truth is their mean over the pool. All
rules know the calibration models' bank and nothing else: where information is used, everybody first answers `OPENING`
questions that are informative at the calibration models' mean ability (they count), and the rest is ordered by what
these answers said; races order the rest anew after every rung, for those who are left. Candidates are compared by
p-IRT (MAP), in `random_mean` by the mean of their answers. `elimination` stops at its last look at the latest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from irt_matrix import Bools, Floats, Indices, Matrix, Parts, split_models
from scipy.stats import kendalltau

from evomerge.irt.ability import abilities
from evomerge.irt.bank import ItemBank
from evomerge.irt.design import Design
from evomerge.irt.elimination import EliminationRule, eliminated
from evomerge.irt.fit import FitSettings, fit
from evomerge.irt.race import Rung, halving_schedule, mean_cost, survivors
from evomerge.irt.responses import Responses
from evomerge.irt.select import continued_design, mixed_design, stratified_order

SIZES = (10, 20, 50, 100)
MEAN_QUESTIONS = (26, 52)
OPENING = 5
FINALISTS = 2
LOOKS = (10, 20, 40, 80, 160)
ALPHA = 0.1

Table = dict[str, dict[str, dict[str, float]]]


class Picked(NamedTuple):
    """What a rule found out.

    Attributes:
        worth: shape `(c,)`, higher is better; those who left a race early stand below all who stayed.
        questions: per candidate on average.
    """

    worth: Floats
    questions: float


@dataclass(frozen=True)
class Siblings:
    """One draw.

    Attributes:
        scores: shape `(c, n)`, complete.
        bank: the n items, fitted to other models.
        seed: of everything random about this draw.
    """

    scores: Floats
    bank: ItemBank
    seed: int

    @property
    def rng(self) -> np.random.Generator:
        """A fresh stream; rules do not disturb one another."""
        return np.random.default_rng(self.seed)

    def answers(self, alive: Indices, asked: Indices) -> Floats:
        """Shape `(alive, n)`, NaN where not asked."""
        some = np.full((alive.size, self.scores.shape[1]), np.nan)
        some[:, asked] = self.scores[np.ix_(alive, asked)]
        return some

    def theta(self, alive: Indices, asked: Indices) -> Floats:
        """Abilities after some answers, MAP."""
        return abilities(self.bank, self.answers(alive, asked)).theta

    def p_irt(self, alive: Indices, asked: Indices) -> Floats:
        """Estimated mean over the pool: what was asked as it is, the rest as expected."""
        some = self.answers(alive, asked)
        expected = self.bank.predict(abilities(self.bank, some).theta)
        value: Floats = np.where(np.isnan(some), expected, some).mean(axis=1)
        return value

    def mean(self, alive: Indices, asked: Indices) -> Floats:
        """The plain mean of what was asked."""
        value: Floats = self.scores[np.ix_(alive, asked)].mean(axis=1)
        return value

    @property
    def all(self) -> Indices:
        """Everybody."""
        return np.arange(len(self.scores))


Value = Callable[[Siblings, Indices, Indices], Floats]


def random_design(siblings: Siblings) -> Design:
    """Simple random order."""
    return mixed_design(siblings.bank, siblings.bank.mean, siblings.rng, share=0.0, strata=1)


def opened_design(siblings: Siblings, share: float) -> Design:
    """`OPENING` questions at the calibration models' mean ability, then by the siblings' abilities."""
    opening = mixed_design(siblings.bank, siblings.bank.mean, siblings.rng, share=1.0)
    theta = siblings.theta(siblings.all, opening.order[:OPENING])
    return continued_design(opening, OPENING, siblings.bank, theta, share=share)


def fixed(siblings: Siblings, order: Indices, n: int, value: Value = Siblings.p_irt) -> Picked:
    """Everybody answers the first n questions."""
    return Picked(value(siblings, siblings.all, order[:n]), float(n))


def halving(siblings: Siblings, design: Design, rungs: tuple[Rung, ...], share: float | None) -> Picked:
    """Successive halving; with a share, what follows a rung is ordered by the abilities of those who go on."""
    worth = np.full(len(siblings.scores), -np.inf)
    alive = siblings.all
    for step, rung in enumerate(rungs):
        if step:
            alive = alive[survivors(-worth[alive], rung.keep)]
        if step and share is not None:
            done = rungs[step - 1].questions
            theta = siblings.theta(alive, design.order[:done])
            design = continued_design(design, done, siblings.bank, theta, share=share)
        worth[alive] = siblings.p_irt(alive, design.order[: rung.questions]) + 10.0 * step
    return Picked(worth, mean_cost(rungs))


def elimination(siblings: Siblings, order: Indices) -> Picked:
    """Paired elimination on a stratified random order until one is left or the looks are used up."""
    c, n = siblings.scores.shape
    looks = sorted({min(k, n) for k in LOOKS})
    rule = EliminationRule(c, len(looks), ALPHA, pool=n)
    worth, alive, asked = np.full(c, -np.inf), siblings.all, 0
    for step, k in enumerate(looks):
        asked += (k - (looks[step - 1] if step else 0)) * alive.size
        worth[alive] = siblings.p_irt(alive, order[:k]) + 10.0 * step
        alive = alive[~eliminated(siblings.scores[np.ix_(alive, order[:k])], rule)]
        worth[alive] += 5.0
        if alive.size == 1:
            break
    return Picked(worth, asked / c)


def rules(siblings: Siblings) -> Iterator[tuple[str, str, Picked]]:
    """Every rule at every size: (rule, size, what it found)."""
    c, pool = siblings.scores.shape
    random = random_design(siblings)
    stratified = stratified_order(siblings.bank.predict(siblings.bank.mean), siblings.rng)
    informed, mixed = opened_design(siblings, 1.0), opened_design(siblings, 0.5)
    orders = {"random": random.order, "stratified": stratified, "information": informed.order, "mixed": mixed.order}
    for n in (size for size in SIZES if size <= pool):
        yield "random_mean", str(n), fixed(siblings, random.order, n, Siblings.mean)
        for name, order in orders.items():
            yield name, str(n), fixed(siblings, order, n)
    for mean in MEAN_QUESTIONS:
        rungs = halving_schedule(c, pool, mean_questions=mean, final=FINALISTS)
        yield "halving_random", str(mean), halving(siblings, random, rungs, None)
        yield "halving_mixed", str(mean), halving(siblings, mixed, rungs, 0.5)
        yield "halving_information", str(mean), halving(siblings, informed, rungs, 1.0)
    yield "elimination", str(min(LOOKS[-1], pool)), elimination(siblings, stratified)


def judged(picked: Picked, truth: Floats) -> dict[str, float]:
    """Kendall's tau-b with the truth, how much worse than the best the pick is (first of equals), and the cost."""
    order = np.unique(picked.worth).size > 1 and np.unique(truth).size > 1
    tau = float(kendalltau(picked.worth, truth).statistic) if order else 0.0
    regret = float(truth.max() - truth[int(np.argmax(picked.worth))])
    return {"tau": tau, "regret": regret, "questions": picked.questions}


def selection_table(
    matrix: Matrix,
    rng: np.random.Generator,
    *,
    parts: Parts | None = None,
    draws: int = 200,
    siblings: int = 20,
    dimensions: int = 2,
    splits: int = 4,
) -> Table:
    """Rule -> size -> mean of {tau, regret, questions} over draws of siblings among the test models.

    Args:
        matrix: answers; a draw's pool is what all its siblings answered.
        rng: of splits, siblings and orders.
        parts: calibration and test models; None splits them anew `splits` times, evenly over the draws.
        draws: how often siblings are drawn.
        siblings: candidates per draw (all test models when they are fewer).
        dimensions: of the bank.
        splits: number of splits.
    """
    found: dict[str, dict[str, list[Mapping[str, float]]]] = {}
    for some in np.array_split(np.arange(draws), 1 if parts is not None else min(splits, draws)):
        chosen = parts if parts is not None else split_models(matrix, rng)
        bank = _bank(matrix, chosen.calibration, dimensions)
        for _ in some:
            rows = rng.choice(chosen.test, size=min(siblings, chosen.test.size), replace=False)
            scores, seen = matrix.scores[rows], ~np.isnan(matrix.scores[rows]).any(axis=0)
            draw = Siblings(scores[:, seen], _restricted(bank, seen), int(rng.integers(2**32)))
            truth = draw.scores.mean(axis=1)
            for rule, size, picked in rules(draw):
                found.setdefault(rule, {}).setdefault(size, []).append(judged(picked, truth))
    return {rule: {size: _means(rows) for size, rows in sizes.items()} for rule, sizes in found.items()}


def _means(rows: list[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _bank(matrix: Matrix, rows: Indices, dimensions: int) -> ItemBank:
    models = tuple(matrix.models[i] for i in rows)
    return fit(Responses(matrix.scores[rows], models, matrix.items), FitSettings(dimensions=dimensions)).bank


def _restricted(bank: ItemBank, keep: Bools) -> ItemBank:
    if keep.all():
        return bank
    return ItemBank(
        tuple(item for item, kept in zip(bank.items, keep, strict=True) if kept),
        bank.slopes[keep],
        bank.intercepts[keep],
        bank.noise[keep],
        bank.constants[keep],
        bank.mean,
        bank.covariance,
        bank.link,
        bank.n_models,
    )
