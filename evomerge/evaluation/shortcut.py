"""Exact match of a fixed answer from one teacher-forced pass instead of a generation.

If the greedy token is right at every position of the answer and the text then stops, generation gives exactly that
answer; at the first position where it is not right, generation writes what the pass predicted, because everything
before is the same. Whether the *text* then differs is certain only where every text has one spelling
(`tokens.characters`) and the predicted token is an ordinary character. What stays open is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evomerge.evaluation.plan import GenerationArgs, MetricPlan, pack

Ids = npt.NDArray[np.integer[Any]]
OPEN: Final = -1.0
"""The verdict of an item that must be generated."""


def cut(text: str, until: Sequence[str]) -> str:
    """A generated text up to the first stop string, stop strings in lm-eval's order."""
    for stop in until:
        if stop:
            text = text.split(stop, maxsplit=1)[0]
    return text


def answer(
    table: Sequence[str] | None, metric: MetricPlan, generation: GenerationArgs, targets: Sequence[str]
) -> bytes | None:
    """Packed ids of the only target, where a teacher-forced pass can decide its exact match; None elsewhere.

    Args:
        table: token id -> its character, `""` for specials; None when texts may have several spellings.
        metric: the task's metric.
        generation: how the task is generated.
        targets: accepted texts.
    """
    plain = metric.fast and not metric.options and [name for name, _ in metric.filters] == ["take_first"]
    if table is None or not plain or generation.repetition_penalty != 1.0 or len(targets) != 1:
        return None
    (text,) = targets
    ids = {c: i for i, c in enumerate(table) if c}
    spelled = bool(text) and set(text) <= set(ids) and "\0" not in text
    if not spelled or len(text) > generation.max_gen_toks or cut(text, generation.until) != text:
        return None
    return pack(ids[c] for c in text)


class Judge:
    """Decides items of one task from what the teacher-forced pass predicted.

    Args:
        table: token id -> its character, `""` for specials.
        generation: how the task is generated.
        eos: ids that end a generation.
    """

    def __init__(self, table: Sequence[str], generation: GenerationArgs, eos: Sequence[int]) -> None:
        self._table = table
        self._until = generation.until
        self._limit = generation.max_gen_toks
        self._ends = frozenset(i for i in eos if not table[i])
        self._ordinary = np.array([bool(c) for c in table])
        self._decisive = self._ordinary.copy()
        self._decisive[list(self._ends)] = True

    def verdicts(self, answers: Sequence[Ids], predicted: Sequence[Ids]) -> npt.NDArray[np.float64]:
        """1 right, 0 wrong, `OPEN` undecided; shape `(n,)`.

        Args:
            answers: per item the answer's ids, shape `(m,)`.
            predicted: per item the greedy token at each of its positions and behind it, shape `(m + 1,)`.
        """
        return np.array([self._verdict(a, p) for a, p in zip(answers, predicted, strict=True)])

    def _verdict(self, ids: Ids, predicted: Ids) -> float:
        # plain lists: for the few tokens of an answer they are several times as fast as arrays
        *written, last = predicted.tolist()
        wrong = next((w for w, right in zip(written, ids.tolist(), strict=True) if w != right), None)
        if wrong is not None:
            # an ordinary character or an end in the wrong place: the texts differ there, whatever follows
            return 0.0 if self._decisive[wrong] else OPEN
        if len(ids) == self._limit or last in self._ends:
            return 1.0
        if not self._ordinary[last]:
            return OPEN
        return self._continued("".join(self._table[i] for i in ids), self._table[last])

    def _continued(self, text: str, character: str) -> float:
        """The verdict when generation writes the whole answer and then one more character."""
        kept = cut(text + character, self._until)
        if kept == text:
            return 1.0
        if len(kept) < len(text):
            return 0.0
        # a longer stop string may begin here and cut the text exactly behind the answer
        return OPEN if any(stop.startswith(character) for stop in self._until) else 0.0
