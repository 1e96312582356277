"""The skills of the zoo: what they ask, what is right, and which prompts no training batch may contain."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

Part = Literal["train", "validation", "items"]
_SALT = "evomerge.zoo.1"
_VALIDATION = range(80, 85)
_ITEMS = range(85, 100)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SORTABLE = LETTERS[:12]
SECOND_NOTATION = "ABCDEFGHIJ"


class Problem(NamedTuple):
    """One question and its only right answer; neither contains white space."""

    prompt: str
    answer: str


def part_of(prompt: str) -> Part:
    """Where a prompt belongs: 80 % training, 5 % validation (stopping rule), 15 % task items.

    The rule is a hash of the prompt without the mark of the second notation, so that an addition is held out in
    both notations or in none. It does not depend on the zoo's seed: every zoo is tested on the same items.
    """
    key = f"{_SALT}/{prompt.removeprefix('#')}".encode()
    bucket = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") % 100
    if bucket in _VALIDATION:
        return "validation"
    return "items" if bucket in _ITEMS else "train"


def second_notation(digits: str) -> str:
    """Digits written as the letters A to J."""
    return "".join(SECOND_NOTATION[int(d)] for d in digits)


def _word(rng: np.random.Generator, alphabet: str, length: int) -> str:
    return "".join(alphabet[i] for i in rng.integers(len(alphabet), size=length))


def _add(rng: np.random.Generator) -> Problem:
    a, b = rng.integers(100, size=2)
    return Problem(f"{a:02d}+{b:02d}=", f"{a + b:03d}")


def _reverse(rng: np.random.Generator) -> Problem:
    word = _word(rng, LETTERS, 6)
    return Problem(f"{word}>", word[::-1])


def _sort(rng: np.random.Generator) -> Problem:
    word = _word(rng, SORTABLE, 4)
    return Problem(f"{word}<", "".join(sorted(word)))


def _copy(rng: np.random.Generator) -> Problem:
    digits = _word(rng, "0123456789", 3)
    return Problem(f"{digits}:", digits)


def _add_one_digit(rng: np.random.Generator) -> Problem:
    a, b = rng.integers(10, size=2)
    return Problem(f"{a:02d}+{b:02d}=", f"{a + b:03d}")


def _add_without_carry(rng: np.random.Generator) -> Problem:
    tens, units = rng.integers(10, size=2)
    b = rng.integers(10 - units)
    return Problem(f"{tens}{units}+{b:02d}=", f"0{tens}{units + b}")


def _in_second_notation(draw: Callable[[np.random.Generator], Problem]) -> Callable[[np.random.Generator], Problem]:
    def marked(rng: np.random.Generator) -> Problem:
        prompt, answer = draw(rng)
        return Problem(f"#{prompt}", second_notation(answer))

    return marked


SKILLS: Mapping[str, Callable[[np.random.Generator], Problem]] = MappingProxyType(
    {
        "add": _add,
        "rev": _reverse,
        "srt": _sort,
        "cpd": _copy,
        "cpdx": _in_second_notation(_copy),
        "add1x": _in_second_notation(_add_one_digit),
        "addex": _in_second_notation(_add_without_carry),
        "addx": _in_second_notation(_add),
    }
)
"""Name -> a draw of one problem from all of the skill's problems. A name that ends in x is in the second notation."""


def draw(skill: str, part: Part, rng: np.random.Generator) -> Problem:
    """One problem of `skill` whose prompt lies in `part`, uniform over that part.

    Raises:
        KeyError: for an unknown skill.
    """
    make = SKILLS[skill]
    while True:
        problem = make(rng)
        if part_of(problem.prompt) == part:
            return problem


def draw_distinct(skill: str, part: Part, n: int, rng: np.random.Generator) -> tuple[Problem, ...]:
    """`n` different problems of `skill` from `part`, in the order in which they were first drawn.

    Raises:
        KeyError: for an unknown skill.
        ValueError: when the part does not hold `n` different problems (or all but so few that drawing is hopeless).
    """
    return distinct(lambda: draw(skill, part, rng), n, f"skill {skill!r} has", part)


def distinct(draw_one: Callable[[], Problem], n: int, who: str, part: Part) -> tuple[Problem, ...]:
    """`n` different problems, in the order in which they were first drawn; `who` and `part` are for the message.

    Raises:
        ValueError: when there are not so many (or all but so few that drawing is hopeless).
    """
    found: dict[Problem, None] = {}
    for _ in range(100 * n + 1000):
        found[draw_one()] = None
        if len(found) == n:
            return tuple(found)
    raise ValueError(f"{who} fewer than {n} problems in part {part!r}")


def draw_batch(mixture: Mapping[str, float], size: int, rng: np.random.Generator) -> tuple[Problem, ...]:
    """`size` training problems, each of a skill drawn by the mixture's weights (which sum to 1)."""
    names = sorted(mixture)
    skills = rng.choice(len(names), size=size, p=[mixture[name] for name in names])
    return tuple(draw(names[i], "train", rng) for i in skills)
