"""The skills of the zoo in which depth matters: one or two operations on a word, each worth one pass of a block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from evomerge.zoo.problems import LETTERS, Part, Problem, distinct, part_of

WORD: Final = 4
SHIFT: Final = 3
MOST_PASSES: Final = 2
ENTRY: Final = (0, 1)
BLOCK: Final = (2, 3)

_OPERATIONS: Final[Mapping[str, Callable[[int], int]]] = MappingProxyType(
    {"+": lambda i: (i + SHIFT) % len(LETTERS), "/": lambda i: len(LETTERS) - 1 - i}
)


class Skill(NamedTuple):
    """What a prompt asks for: `operations` in order (`+` shift, `/` mirror), and the word backwards or not."""

    operations: str
    backwards: bool


SKILLS: Final[Mapping[str, Skill]] = MappingProxyType(
    {
        "copy": Skill("", False),
        "back": Skill("", True),
        "shift": Skill("+", False),
        "shiftback": Skill("+", True),
        "mirror": Skill("/", False),
        "mirrorback": Skill("/", True),
        "steps": Skill("+/", False),
        "stepsback": Skill("+/", True),
    }
)


def path(n_layers: int, passes: int) -> tuple[int, ...]:
    """Layers that run, in order, when the block runs `passes` times; once is the stack itself."""
    return (*ENTRY, *BLOCK * passes, *range(BLOCK[-1] + 1, n_layers))


def problem(skill: str, word: str, passes: int = MOST_PASSES) -> Problem:
    """The prompt, and its answer after `passes` passes: a pass does the next operation, and nothing when none is left.

    Raises:
        KeyError: for an unknown skill.
    """
    operations, backwards = SKILLS[skill]
    letters = [LETTERS.index(letter) for letter in word]
    for operation in operations[:passes]:
        letters = [_OPERATIONS[operation](i) for i in letters]
    answer = "".join(LETTERS[i] for i in letters)
    return Problem(f"{word}{operations}{'<' if backwards else '='}", answer[::-1] if backwards else answer)


def draw(skill: str, part: Part, rng: np.random.Generator, passes: int = MOST_PASSES) -> Problem:
    """One problem of `skill` whose word lies in `part`, uniform over that part: a word is held out of all skills.

    Raises:
        KeyError: for an unknown skill.
    """
    while True:
        word = "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=WORD))
        if part_of(word) == part:
            return problem(skill, word, passes)


def draw_distinct(
    skill: str, part: Part, n: int, rng: np.random.Generator, passes: int = MOST_PASSES
) -> tuple[Problem, ...]:
    """`n` different problems of `skill` from `part`, in the order in which they were first drawn.

    Raises:
        KeyError: for an unknown skill.
        ValueError: when the part does not hold `n` different problems.
    """
    return distinct(lambda: draw(skill, part, rng, passes), n, f"skill {skill!r} has", part)


def draw_batch(mixture: Mapping[str, float], size: int, rng: np.random.Generator, passes: int) -> tuple[Problem, ...]:
    """`size` training problems for so many passes, each of a skill drawn by the mixture's weights (which sum to 1)."""
    names = sorted(mixture)
    skills = rng.choice(len(names), size=size, p=[mixture[name] for name in names])
    return tuple(draw(names[i], "train", rng, passes) for i in skills)
