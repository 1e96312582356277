"""What a `tokenizer.json` may not hold: patterns that backtrack without end, texts that grow, padding without end.

The tokenizers library runs regular expressions of the file (Oniguruma, which backtracks) over every text, and pads and
replaces as the file says. Nobody needs the constructions that are refused here: the patterns of all known families
repeat single characters and classes, and groups only where their content is fixed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from evomerge.checkpoints.strict_json import damaged, quoted

_MAX_PATTERN: Final = 8192
_MAX_ENDLESS: Final = 6
"""`*` and `+` in one alternative: the power of the text's length that a search may take."""
_MAX_CHOICES: Final = 16
"""Quantifiers of any kind, and groups of alternatives, in one alternative."""
_MAX_GROWTH: Final = 64
_MAX_TEXT: Final = 4096
_MAX_FIXED: Final = 1 << 20
_MAX_MULTIPLE: Final = 1 << 16
_PARTS: Final = ("normalizer", "pre_tokenizer", "decoder", "post_processor")
_TOKEN: Final = re.compile(
    r"(?P<back>\\[1-9]|\\[kg][<'{])|\\[pPxu]\{[^}]*\}|\\.|(?P<open>\((?:\?(?:[:=!>]|<[=!]|<\w+>|[ims\-]+[:)])|(?!\?)))"
    r"|(?P<odd>\(\?)"
    r"|(?P<close>\))|(?P<alt>\|)|(?P<set>\[)|(?P<unset>\])|(?P<many>[*+]|\{\d*(?:,\d*)?\}|\?)[?+]?|.",
    re.DOTALL,
)


class _Branch(NamedTuple):
    """What a part of a pattern holds so far.

    Attributes:
        endless: its quantifiers without limit.
        choices: its quantifiers that may match more or less, and its groups of alternatives.
        alternatives: whether it has a `|`.
    """

    endless: int = 0
    choices: int = 0
    alternatives: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether there is one way to match it, as far as this can see."""
        return not (self.endless or self.choices or self.alternatives)


def _bounds(quantifier: str) -> tuple[int, int | None]:
    """How often at least and at most; None without limit."""
    known = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if quantifier in known:
        return known[quantifier]
    low, comma, high = quantifier[1:-1].partition(",")
    least = int(low[:6] or 0)
    return least, (int(high[:6]) if high else None if comma else least)


class _Fault(Exception):
    """Why a pattern may take for ever."""


@final
class _Scan:
    """One pass over a pattern: what its open groups hold so far."""

    def __init__(self) -> None:
        self._groups = [[_Branch()]]
        self._last = _Branch()
        self._sets = 0

    def see(self, match: re.Match[str]) -> None:
        """The next token."""
        kind = match.lastgroup
        if self._sets or kind == "set":
            self._sets += (kind == "set") - (kind == "unset")
            self._last = _Branch()
        elif kind in {"open", "close"}:
            self._group(match.group())
        elif kind == "many":
            self._repeat(match.group("many"))
        elif kind == "alt":
            _check(self._groups[-1][-1])
            self._groups[-1].append(_Branch())
        elif kind == "back":
            raise _Fault("a reference back")
        elif kind == "odd":  # comments and free spacing would hide the rest from this scan
            raise _Fault("a construction of `(?` that no tokenizer needs")
        else:
            self._last = _Branch()

    def _group(self, token: str) -> None:
        if token == ")":
            if len(self._groups) == 1:
                raise _Fault("a parenthesis too many")
            self._last = _either(self._groups.pop())
            self._add(self._last)
        elif not token.endswith(")"):  # `(?i)` holds nothing
            self._groups.append([_Branch()])

    def _repeat(self, quantifier: str) -> None:
        low, high = _bounds(quantifier)
        if high != 1 and not self._last.is_fixed:
            raise _Fault("a repeated group of variable content")
        self._last = _Branch(int(high is None), int(low != high))
        self._add(self._last)

    def _add(self, part: _Branch) -> None:
        self._groups[-1][-1] = _joined(self._groups[-1][-1], part)

    def end(self) -> None:
        """Nothing is left open."""
        if self._sets or len(self._groups) != 1:
            raise _Fault("a bracket that is not closed")
        _check(self._groups[-1][-1])


def pattern_fault(pattern: str) -> str | None:
    """Why a regular expression may take for ever; None for one that does not, as far as can be seen."""
    if len(pattern) > _MAX_PATTERN:
        return f"{len(pattern)} characters"
    scan = _Scan()
    try:
        for match in _TOKEN.finditer(pattern):
            scan.see(match)
        scan.end()
    except _Fault as fault:
        return str(fault)
    return None


def _joined(left: _Branch, right: _Branch) -> _Branch:
    endless, choices = left.endless + right.endless, left.choices + right.choices
    return _Branch(endless, choices, left.alternatives or right.alternatives)


def _either(branches: Sequence[_Branch]) -> _Branch:
    """A group: the worst of its alternatives, and one choice more where there is more than one."""
    several = len(branches) > 1
    endless, choices = max(b.endless for b in branches), max(b.choices for b in branches)
    return _Branch(endless, choices + several, several or branches[0].alternatives)


def _check(branch: _Branch) -> None:
    if branch.endless > _MAX_ENDLESS or branch.choices > _MAX_CHOICES:
        raise _Fault(f"{branch.choices} quantifiers and choices in a row")


def _steps(content: Mapping[str, Any], part: str) -> Iterator[Mapping[str, Any]]:
    """Every mapping below a part of the file."""
    waiting: list[Any] = [content.get(part)]
    while waiting:
        step = waiting.pop()
        if isinstance(step, Mapping):
            yield step
            waiting.extend(step.values())
        elif isinstance(step, list):
            waiting.extend(s for s in step if isinstance(s, Mapping | list))


def _growth(path: Path, step: Mapping[str, Any]) -> int:
    """How many times longer a step may make a text."""
    pattern, written = step.get("pattern"), step.get("content")
    prepended = step.get("prepend")
    if isinstance(prepended, str) and len(prepended) > _MAX_TEXT:
        raise damaged(path, f"prepend of {len(prepended)} characters", f"at most {_MAX_TEXT}")
    if step.get("type") != "Replace" or not isinstance(pattern, Mapping) or not isinstance(written, str):
        return 1
    replaced = pattern.get("String")
    width = len(replaced) if isinstance(replaced, str) else 1
    return max(1, -(-len(written) // width) if width else len(written) + 1)


def _check_part(path: Path, content: Mapping[str, Any], part: str) -> None:
    growth = 1
    for step in _steps(content, part):
        text = step.get("Regex")
        fault = pattern_fault(text) if isinstance(text, str) else None
        if fault is not None:
            raise damaged(
                path, f"the pattern {quoted(text)} of the {part}: {fault}", "patterns that need no backtracking"
            )
        growth *= _growth(path, step)
        if growth > _MAX_GROWTH:
            raise damaged(path, f"a {part} that makes texts {growth} times longer", f"at most {_MAX_GROWTH} times")


def _check_wrapping(path: Path, content: Mapping[str, Any]) -> None:
    """What is put around every text, token by token."""
    for step in _steps(content, "post_processor"):
        longest = max((len(v) for v in step.values() if isinstance(v, list | str)), default=0)
        if longest > _MAX_TEXT:
            raise damaged(path, f"a post_processor with {longest} entries", f"at most {_MAX_TEXT} around a text")


def _check_padding(path: Path, padding: Any) -> None:
    if padding is None:
        return
    strategy = padding.get("strategy") if isinstance(padding, Mapping) else None
    fixed = strategy.get("Fixed") if isinstance(strategy, Mapping) else 0
    multiple = padding.get("pad_to_multiple_of") if isinstance(padding, Mapping) else None
    for value, most in ((fixed, _MAX_FIXED), (multiple or 0, _MAX_MULTIPLE)):
        if not isinstance(value, int) or not 0 <= value <= most:
            raise damaged(path, f"padding = {quoted(padding)}", f"padding to at most {_MAX_FIXED} tokens")


def _check_model(path: Path, content: Mapping[str, Any]) -> None:
    model = content.get("model")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(vocab, Mapping | list):
        raise damaged(path, "a model without a vocabulary", "a vocabulary of token strings and ids")
    unknown = model.get("unk_id")
    if isinstance(vocab, list) and unknown is not None and not (_is_id(unknown) and unknown < len(vocab)):
        raise damaged(path, f"unk_id = {quoted(unknown)}", f"an id below {len(vocab)}")
    word = model.get("unk_token")
    listed = content.get("added_tokens")
    added = listed if isinstance(listed, list) else []  # what else it may be is refused with the ids
    known = {t.get("content") for t in added if isinstance(t, Mapping) and isinstance(t.get("content"), str)}
    if (
        isinstance(vocab, Mapping)
        and word is not None
        and not (isinstance(word, str) and (word in vocab or word in known))
    ):
        raise damaged(path, f"unk_token = {quoted(word)}, which is no token", "a token of the vocabulary")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_tokenizer(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a tokenizer that could take for ever, or all memory, when it is used.

    Args:
        path: of tokenizer.json, for messages.
        content: its content.

    Raises:
        ModelError: for a model without a vocabulary or with an unknown token that is none, patterns that may backtrack
            without end, replacements that make texts many times longer, thousands of tokens
            around every text, and padding beyond reason.
    """
    _check_model(path, content)
    for part in _PARTS:
        _check_part(path, content, part)
    _check_wrapping(path, content)
    _check_padding(path, content.get("padding"))
