"""Single edits of discrete genes, in their own terms: another value, a neighbour's, a shift of a whole stretch.

Notation: a *code* is a vector with the numbers of their values in place of discrete genes, shape `(d,)`. Choices with
labels in common stand in a sequence (the steps of a path): what stands at one may move to the next. A path that lacks
a layer at step 2 and has the right ones behind it, each a step early, is one shift from right, and six other edits.
"""

from __future__ import annotations

from typing import Final, final

import numpy as np

from evomerge.optimizers.base import Problem
from evomerge.optimizers.genes import Genes, Indices
from evomerge.types import Vector

SHIFTS: Final = 0.45
"""Share of the edits of a sequence that move a stretch of it by one.

On planted paths a search soon has the right layers in the right order but for one, and stands a step aside: with 0.15
half of the seeds ended there, with 0.4 to 0.5 one in eight.
"""

TO_THE_END: Final = 0.75
"""Share of the shifts that move everything behind a place: a layer too many or too few is made good by one of them."""

EXCHANGES: Final = 0.2
"""Share of the edits that exchange two genes: neighbours of a sequence, or two gates."""

NEIGHBOURS: Final = 0.5
"""Share of an integer's new values that lie next to the old one."""

_NOWHERE: Final = -1


@final
class Editor:
    """Draws edits of codes.

    Args:
        problem: whose genes.
    """

    def __init__(self, problem: Problem) -> None:
        self._genes = Genes.of(problem)
        kinds = problem.kinds
        self._forth: dict[int, Indices] = {}
        self._back: dict[int, Indices] = {}
        for i in range(len(kinds) - 1):
            here, there = kinds[i].labels, kinds[i + 1].labels
            if set(here) & set(there):
                self._forth[i], self._back[i] = _carried(here, there), _carried(there, here)
        self._pairs = sorted(self._forth)
        unlabelled = [int(i) for i in self._genes.choice if not kinds[i].labels]
        self._gates = [i for i in unlabelled if self._genes.n_values[i] == 2]

    def edited(self, code: Vector, rng: np.random.Generator) -> Vector:
        """A copy of `code` with one edit of its discrete genes."""
        draw = rng.random()
        if self._pairs and draw < SHIFTS:
            return self._shifted(code, rng)
        if self._pairs and draw < SHIFTS + EXCHANGES:
            return self._neighbours_exchanged(code, rng)
        if len(self._gates) > 1 and draw < EXCHANGES:
            return self._gates_exchanged(code, rng)
        return self._redrawn(code, int(rng.choice(self._genes.discrete)), rng)

    def _redrawn(self, code: Vector, gene: int, rng: np.random.Generator) -> Vector:
        """One gene gets another value; an integer likely a neighbouring one."""
        n = int(self._genes.n_values[gene])
        code = code.copy()
        if self._genes.ordered[gene] and rng.random() < NEIGHBOURS:
            step = 1 if rng.random() < 0.5 else -1
            moved = code[gene] + step
            code[gene] = moved if 0 <= moved < n else code[gene] - step
        elif n > 1:
            code[gene] = (code[gene] + 1 + rng.integers(n - 1)) % n
        return code

    def _gates_exchanged(self, code: Vector, rng: np.random.Generator) -> Vector:
        """A gate that is on and one that is off change places; where all are alike, one changes."""
        gates = np.array(self._gates)
        on, off = gates[code[gates] == 1], gates[code[gates] == 0]
        if not len(on) or not len(off):
            return self._redrawn(code, int(rng.choice(gates)), rng)
        code = code.copy()
        code[rng.choice(on)], code[rng.choice(off)] = 0, 1
        return code

    def _neighbours_exchanged(self, code: Vector, rng: np.random.Generator) -> Vector:
        i = int(rng.choice(self._pairs))
        forth, back = self._forth[i][int(code[i])], self._back[i][int(code[i + 1])]
        if _NOWHERE in (forth, back):
            return self._redrawn(code, i, rng)
        code = code.copy()
        code[i], code[i + 1] = back, forth
        return code

    def _end(self, first: int) -> int:
        """The last gene of the sequence that `first` stands in."""
        last = first + 1
        while last in self._forth:
            last += 1
        return last

    def _shifted(self, code: Vector, rng: np.random.Generator) -> Vector:
        """A stretch of a sequence moves by one; what leaves it at one end is drawn afresh or put in at the other."""
        first = int(rng.choice(self._pairs))
        last = self._end(first)
        if rng.random() >= TO_THE_END:
            last = int(rng.integers(first + 1, last + 1))
        left = rng.random() < 0.5
        moved = code.copy()
        for gene in range(first, last):
            here, there = (gene, gene + 1) if left else (gene + 1, gene)
            table = self._back[gene] if left else self._forth[gene]
            value = table[int(code[there])]
            moved[here] = value if value != _NOWHERE else rng.integers(self._genes.n_values[here])
        end = last if left else first
        moved[end] = rng.integers(self._genes.n_values[end])
        return moved


def _carried(source: tuple[str, ...], target: tuple[str, ...]) -> Indices:
    """Number in `target` of every label of `source`, `_NOWHERE` for those it lacks."""
    numbers = {label: k for k, label in enumerate(target)}
    return np.array([numbers.get(label, _NOWHERE) for label in source])
