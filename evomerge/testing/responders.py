"""Simulated models that answer questions: every one independently, by its ability and the item's slope and difficulty.

A model of ability t answers an item with slope a and difficulty b rightly with probability `1 / (1 + exp(-a (t - b)))`
(two-parameter logistic; Birnbaum 1968). Difficulties are normal, slopes log-normal. Whether it does depends
on the seed, the model and the item alone: not on what else was asked, nor on the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Final, NamedTuple, final

import numpy as np
import numpy.typing as npt

from evomerge.seeds import generator
from evomerge.types import SET_NAMES, Evaluation, SetName, TaskAnswers

SLOPE_SD: Final = 0.3
"""Of the logarithm of the slopes."""

DIFFICULTY_SD: Final = 2.0
"""So spread, the mean variance of a model's answer to an item is 0.15 at a score of 0.6, which is what real models have
on the noisier of the usual benchmarks: 0.14 (GSM8K), 0.09 (ARC)."""

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]


class _Curve(NamedTuple):
    """Abilities on a fine grid, and the expected share of right answers at each, shape `(k,)`."""

    abilities: Floats
    scores: Floats


def _chances(slopes: Floats | float, difficulties: Floats, abilities: Floats | float) -> Floats:
    return 1 / (1 + np.exp(-slopes * (abilities - difficulties)))


@cache
def _curve() -> _Curve:
    """By summation over a grid of difficulties, and Gauss-Hermite quadrature over the logarithms of the slopes."""
    log_a, wa = np.polynomial.hermite_e.hermegauss(9)
    b = np.linspace(-6.0, 6.0, 241)
    weights = np.outer(wa, np.exp(-(b**2) / 2))
    weights /= weights.sum()
    abilities = np.linspace(-12.0, 12.0, 961)
    scores = np.zeros_like(abilities)
    for i, slope in enumerate(np.exp(SLOPE_SD * log_a)):
        scores += weights[i] @ _chances(slope, DIFFICULTY_SD * b[:, None], abilities)
    return _Curve(abilities, scores)


def expected_score(ability: float) -> float:
    """The expected score of a model over the population of items, in (0, 1)."""
    return float(np.interp(ability, *_curve()))


def ability_for(score: float) -> float:
    """The ability with that expected score.

    Raises:
        ValueError: for a score that no ability between -12 and 12 has.
    """
    abilities, scores = _curve()
    if not scores[0] <= score <= scores[-1]:
        raise ValueError(f"no simulated model has an expected score of {score}")
    return float(np.interp(score, scores, abilities))


def _word(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _uniform(words: Words) -> Floats:
    """Words to numbers in [0, 1), by the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    z = words.copy()
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


class _Items(NamedTuple):
    """The items of one task and set: hashes, their words, slopes and difficulties, each of shape `(n,)`."""

    hashes: tuple[str, ...]
    words: Words
    slopes: Floats
    difficulties: Floats

    def chances(self, ability: float) -> Floats:
        """Of right answers, shape `(n,)`."""
        return _chances(self.slopes, self.difficulties, ability)


def _draw(seed: int, task: str, set_name: SetName, n: int) -> _Items:
    rng = generator(seed, "items", task, set_name)
    hashes = tuple(f"{task}-{set_name}-{i:04d}" for i in range(n))
    words = np.array([_word(f"{seed}/{h}") for h in hashes], dtype=np.uint64)
    return _Items(hashes, words, np.exp(SLOPE_SD * rng.standard_normal(n)), DIFFICULTY_SD * rng.standard_normal(n))


@final
class Responders:
    """Tasks with random items, and whatever simulated models answer to them.

    Args:
        seed: of the items and of the answers.
        tasks: their names.
        sizes: items per task in each set.
    """

    def __init__(self, seed: int, tasks: tuple[str, ...], sizes: Mapping[SetName, int]) -> None:
        self._seed = seed
        self.tasks = tasks
        self._items = {(s, t): _draw(seed, t, s, sizes[s]) for s in SET_NAMES for t in tasks}
        self._at = {key: {h: i for i, h in enumerate(items.hashes)} for key, items in self._items.items()}

    def items(self, set_name: SetName) -> dict[str, tuple[str, ...]]:
        """Item hashes of a set, by task."""
        return {task: self._items[(set_name, task)].hashes for task in self.tasks}

    def expected_on(self, ability: float, set_name: SetName) -> float:
        """The expected score on the items of a set, the mean over the tasks."""
        return float(np.mean([self._items[(set_name, t)].chances(ability).mean() for t in self.tasks]))

    def answer(
        self, model: str, ability: float, set_name: SetName, items: Mapping[str, tuple[str, ...]] | None = None
    ) -> Evaluation:
        """What a model answers.

        Args:
            model: its name; another name is another, independent model.
            ability: on the scale of the difficulties.
            set_name: what is asked.
            items: task -> item hashes; None asks the whole set.

        Raises:
            KeyError: for an item that does not exist.
        """
        word = np.uint64(_word(f"{self._seed}/model/{model}"))
        answers = {}
        for task, hashes in (self.items(set_name) if items is None else items).items():
            known, at = self._items[(set_name, task)], self._at[(set_name, task)]
            rows = np.array([at[h] for h in hashes])
            right = _uniform(known.words[rows] + word) < known.chances(ability)[rows]
            answers[task] = TaskAnswers(task, tuple(hashes), tuple(map(float, right)))
        return Evaluation(set_name, answers)
