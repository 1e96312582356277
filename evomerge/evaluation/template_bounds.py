"""How large the values of a template may become: measured before and after every step that makes one.

Python compares, hashes, joins and formats in one go that no timer interrupts. So nothing may come to be on which such
a step would take long: containers weigh what they would if nothing in them was shared, and whatever could multiply
two sizes is looked at before it begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, Final

from jinja2.exceptions import SecurityError

MOST_CHARACTERS: Final = 2_000_000
"""Of one rendered text, and of every text on the way to it; what a container weighs is bounded alike."""
MOST_NUMBER: Final = 100_000
"""Of a number that may become a length."""
_MOST_PRODUCT: Final = 64_000_000
_MOST_BITS: Final = 4096
_WIDTH: Final = re.compile(r"[0-9]{5,}|\*")
_NUMBER: Final = re.compile(r"[0-9]+")
_MULTIPLY: Final = frozenset(
    {
        *("replace", "join", "indent", "wordwrap", "expandtabs", "translate", "format", "format_map"),
        *("urlize", "regex_replace", "tojson"),
    }
)
"""Methods and filters that may write one argument, or blanks by a number, at every place of another."""


def weight(value: Any) -> int:
    """Characters and values in a value, as if nothing in it was shared; counted little beyond `MOST_CHARACTERS`."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return 1 + value.bit_length() // 3
    total = 1
    waiting: list[Any] = [value]
    while waiting and total <= MOST_CHARACTERS:
        one = waiting.pop()
        if not isinstance(one, dict | list | tuple):
            continue
        total += len(one)
        for part in chain(one, one.values()) if isinstance(one, dict) else one:
            if isinstance(part, str | bytes):
                total += len(part)
            elif isinstance(part, dict | list | tuple):
                waiting.append(part)
            elif isinstance(part, int):
                total += part.bit_length() // 3
    return total


def checked(value: Any) -> Any:
    """A value that is not too large to go on with.

    Raises:
        SecurityError: when it is.
    """
    if isinstance(value, int):
        if value.bit_length() > _MOST_BITS:
            raise SecurityError(f"a template makes a number of more than {_MOST_BITS} bits")
    elif weight(value) > MOST_CHARACTERS:
        raise SecurityError(f"a template makes a value of more than {MOST_CHARACTERS} characters")
    return value


def check_arguments(arguments: Iterable[Any]) -> None:
    """Numbers that may become a width, a count or an indent, and values that are too large.

    Raises:
        SecurityError: for the first.
    """
    for value in arguments:
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST_NUMBER:
            raise SecurityError(f"a template calls something with a number above {MOST_NUMBER}")
        checked(value)


def held(value: Any) -> Any:
    """A value that can be weighed: of an iterator, a list of what it gives."""
    return list(islice(value, MOST_CHARACTERS + 1)) if isinstance(value, Iterator) else value


def check_growth(name: str, arguments: Iterable[Any]) -> None:
    """Look at what a method or filter is about to multiply.

    Args:
        name: of the method or filter.
        arguments: all of them, that whose method it is included.

    Raises:
        SecurityError: when its result could be far larger than what a prompt needs.
    """
    known = list(arguments)
    lists = [a for a in known if isinstance(a, list | tuple)]
    if name == "sum" and len(lists) > 1:
        _check_product(weight(lists[0]), len(lists[0]))  # every sum of two lists is a new one
    elif name in _MULTIPLY:
        sizes = sorted(abs(a) if isinstance(a, int) else weight(a) for a in known)
        _check_product(1, *sizes[-2:])


def _check_product(*sizes: int) -> None:
    product = 1
    for size in sizes:
        product *= max(size, 1)
    if product > _MOST_PRODUCT:
        raise SecurityError(f"a template may make a value of more than {MOST_CHARACTERS} characters")


def check_format(text: str) -> None:
    """Look at a text with places to fill in.

    Raises:
        SecurityError: for a width that is enormous or comes from elsewhere, and for widths that are enormous together.
    """
    if _WIDTH.search(text) or sum(map(int, _NUMBER.findall(text))) > MOST_CHARACTERS:
        raise SecurityError("a template formats with a width that is too large")


def product(left: Any, right: Any) -> Any:
    """`left * right`.

    Raises:
        SecurityError: when it would be too large.
    """
    for a, b in ((left, right), (right, left)):
        if isinstance(a, str | bytes | list | tuple) and isinstance(b, int) and weight(a) * b > MOST_CHARACTERS:
            raise SecurityError(f"a template makes a value of more than {MOST_CHARACTERS} characters")
    return left * right


def power(left: Any, right: Any) -> Any:
    """`left ** right`.

    Raises:
        SecurityError: when it would be too large.
    """
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MOST_BITS:
        raise SecurityError(f"a template makes a number of more than {_MOST_BITS} bits")
    return left**right


def formatted(left: Any, right: Any) -> Any:
    """`left % right`.

    Raises:
        SecurityError: when it would be too large.
    """
    if isinstance(left, str | bytes):
        check_format(left if isinstance(left, str) else left.decode("latin-1"))
        check_growth("format", (left, right))
    return left % right
