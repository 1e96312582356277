"""Patterns of module paths from files that nobody vouches for: a part of Python's regular expressions, in linear time.

Backtracking takes forever on some patterns, with alternations or `?` alone too. Here a part of a pattern gives, for a
set of places in a text, the set of places where it may end (Thompson 1968), so that no place is visited twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple, final

ALLOWED: Final = (
    "module names with `.`, `\\.`, `\\d`, `\\w`, classes such as [0-9], `^`, `$`, groups, alternations, and `*`, `+`, "
    "`?`, `{m,n}` that do not nest"
)
MAX_PATTERN: Final = 256
"""Characters of one pattern."""
_PLAIN: Final = r"[\w\-/: ]"
_ESCAPED: Final = r"\\[.\-_/]"
_QUANTIFIER: Final = r"(?:[*+?]|\{\d{1,2}(?:,\d{0,2})?\})\??"
_TOKEN: Final = re.compile(
    rf"{_PLAIN}|{_ESCAPED}|\\[dDwWsS]|\[\^?(?:[\w.\-]|\\[dws.\-])+\]|\(\?:|[()|^$.]|{_QUANTIFIER}"
)
_FIXED: Final = re.compile(rf"(?:{_PLAIN}|{_ESCAPED}|\.)+")
_STEP: Final = 20
_ENDLESS: Final = 15
_COUNTS: Final[Mapping[str, tuple[int, int | None]]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


class _One(NamedTuple):
    """One character."""

    test: re.Pattern[str]


class _Edge(NamedTuple):
    """The start or the end of the path."""

    end: bool


class _Branch(NamedTuple):
    """One of several sequences."""

    options: tuple[tuple[_Node, ...], ...]


class _Repeat(NamedTuple):
    """A node several times; `high` None without limit."""

    of: _Node
    low: int
    high: int | None


_Node = _One | _Edge | _Branch | _Repeat


@final
class _Parser:
    """One pattern, read from left to right."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_PATTERN:
            raise ValueError(f"{len(text)} characters, more than {MAX_PATTERN}")
        self._tokens, at = list[str](), 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise ValueError(f"{text[at : at + 8]!r} at character {at}")
            self._tokens.append(found.group())
            at = found.end()
        self._tokens.reverse()

    def whole(self) -> _Branch:
        """The pattern."""
        found = self._branch()
        if self._tokens:
            raise ValueError("a parenthesis too many")
        return found

    def _branch(self) -> _Branch:
        options: list[list[_Node]] = [[]]
        while self._tokens and self._tokens[-1] != ")":
            token = self._tokens.pop()
            if token == "|":
                options.append([])
            elif re.fullmatch(_QUANTIFIER, token):
                if not options[-1]:
                    raise ValueError(f"{token!r} with nothing before it")
                options[-1].append(_repeat(options[-1].pop(), token))
            else:
                options[-1].append(self._group() if token in {"(", "(?:"} else _single(token))
        return _Branch(tuple(map(tuple, options)))

    def _group(self) -> _Branch:
        found = self._branch()
        if not self._tokens:
            raise ValueError("a parenthesis that is not closed")
        self._tokens.pop()
        return found


def _single(token: str) -> _Node:
    if token in {"^", "$"}:
        return _Edge(token == "$")
    try:
        return _One(re.compile(token))
    except re.error as error:
        raise ValueError(f"{token!r}, {error}") from error


def _repeat(node: _Node, token: str) -> _Repeat:
    if len(token) > 1 and token.endswith("?"):
        token = token[:-1]  # greedy or not: the same paths match
    if token in _COUNTS:
        low, high = _COUNTS[token]
    else:
        first, comma, last = token[1:-1].partition(",")
        low, high = int(first), int(last) if last else None if comma else int(first)
    if isinstance(node, _Edge) or (high is not None and high < low):
        raise ValueError(f"{token!r}, which repeats nothing")
    if isinstance(node, _Repeat) or (high != 1 and _has_repeat(node)):
        raise ValueError(f"{token!r} around another quantifier")
    return _Repeat(node, low, high)


def _has_repeat(node: _Node) -> bool:
    if isinstance(node, _Branch):
        return any(_has_repeat(n) for option in node.options for n in option)
    return isinstance(node, _Repeat)


def _work(node: _Node) -> int:
    """What a node takes for one path, by measurement, in looks into a table."""
    if isinstance(node, _Branch):
        return sum(_work(n) for option in node.options for n in option) + _STEP
    if isinstance(node, _Repeat):
        return _work(node.of) * (_ENDLESS if node.high is None else max(1, node.high))
    return _STEP


def _ends(node: _Node, text: str, starts: frozenset[int]) -> frozenset[int]:
    """Where the node may end when it begins at one of `starts`."""
    if isinstance(node, _One):
        return frozenset(i + 1 for i in starts if node.test.fullmatch(text, i, i + 1))
    if isinstance(node, _Edge):
        return starts & {len(text) if node.end else 0}
    if isinstance(node, _Repeat):
        return _repeated(node, text, starts)
    found = frozenset[int]()
    for option in node.options:
        places = starts
        for part in option:
            places = _ends(part, text, places) if places else places
        found |= places
    return found


def _repeated(node: _Repeat, text: str, starts: frozenset[int]) -> frozenset[int]:
    places = starts
    for _ in range(node.low):
        places = _ends(node.of, text, places)
    found, fresh, turns = set(places), places, node.low
    while fresh and (node.high is None or turns < node.high):
        fresh = _ends(node.of, text, fresh) - found
        found |= fresh
        turns += 1
    return frozenset(found)


class _Shape(NamedTuple):
    """Where fixed patterns of one length have characters that are said; a dot may stand for any character."""

    spans: tuple[tuple[int, int], ...]

    def of(self, text: str) -> str:
        return "".join(text[a:b] for a, b in self.spans)


@final
class PathTable:
    """Values under patterns of module paths, as PEFT looks them up: the first that the path's end behind a dot matches.

    Args:
        values: pattern -> value; the order decides.

    Raises:
        ValueError: for a pattern beyond `ALLOWED`, naming it and what is wrong.
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        self.values = tuple(values.values())
        self._fixed: dict[int, dict[_Shape, dict[str, int]]] = {}
        self._free: list[tuple[int, _Branch]] = []
        for order, key in enumerate(values):
            if len(key) <= MAX_PATTERN and _FIXED.fullmatch(key):
                self._add_fixed(key, order)
                continue
            try:
                self._free.append((order, _Parser(key).whole()))
            except ValueError as error:
                raise ValueError(f"{key[:80]!r}: {error}") from error

    def _add_fixed(self, key: str, order: int) -> None:
        tokens = _TOKEN.findall(key)
        shape = _Shape(_runs([i for i, token in enumerate(tokens) if token != "."]))
        text = "".join(token[-1] for token in tokens)
        self._fixed.setdefault(len(tokens), {}).setdefault(shape, {}).setdefault(shape.of(text), order)

    @property
    def work(self) -> int:
        """What looking one path up takes at most, in looks into a table."""
        return sum(len(shapes) for shapes in self._fixed.values()) + sum(_work(pattern) for _, pattern in self._free)

    def get(self, path: str, default: float) -> float:
        """The value of a path; `default` where no pattern matches."""
        starts = [0, *(i + 1 for i, c in enumerate(path) if c == ".")]
        found = len(self.values)
        for start in starts:
            end = path[start:]
            for shape, orders in self._fixed.get(len(end), {}).items():
                found = min(found, orders.get(shape.of(end), found))
        for order, pattern in self._free:
            if order < found and len(path) in _ends(pattern, path, frozenset(starts)):
                found = order
        return self.values[found] if found < len(self.values) else default


def _runs(places: list[int]) -> tuple[tuple[int, int], ...]:
    """Runs of neighbours as (first, behind the last)."""
    runs: list[tuple[int, int]] = []
    for i in places:
        if runs and runs[-1][1] == i:
            runs[-1] = (runs[-1][0], i + 1)
        else:
            runs.append((i, i + 1))
    return tuple(runs)
