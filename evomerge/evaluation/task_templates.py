"""Jinja templates of task files that nobody vouches for: no code, no files, and no more time and memory than a prompt.

Jinja's own sandbox keeps a template from Python's insides. It does not keep it from `'x' * 10 ** 10`, from loops in
loops, or from a regular expression without end; that is what this module adds. What a sound template renders, it
renders letter for letter as lm-eval's environment does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, final

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evomerge.evaluation.limits import time_limit

MOST_CHARACTERS: Final = 2_000_000
"""Of one rendered text, and of every text on the way to it."""
MOST_STEPS: Final = 200_000
"""Rounds of loops and calls in one rendering."""
MOST_SOURCE: Final = 200_000
MOST_NUMBER: Final = 100_000
"""Of a number that may become a length."""
SECONDS: Final = 1.0
_MOST_BITS: Final = 4096
_WIDTH: Final = re.compile(r"[0-9]{5,}|\*")
_COUNTED: Final = "evomerge_counted"
_BOUNDED: Final = "evomerge_bounded"


class _Budget:
    """What one rendering has used."""

    def __init__(self) -> None:
        self.steps = 0
        self.characters = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise SecurityError(f"a template takes more than {MOST_STEPS} steps")

    def write(self, value: Any) -> Any:
        self.characters += len(value) if isinstance(value, str) else 20
        if self.characters > MOST_CHARACTERS:
            raise SecurityError(f"a template writes more than {MOST_CHARACTERS} characters")
        return value


def _checked(value: Any) -> Any:
    """A value that is not too large to go on with."""
    if isinstance(value, str | bytes | list | tuple) and len(value) > MOST_CHARACTERS:
        raise SecurityError(f"a template makes a value of more than {MOST_CHARACTERS} characters")
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise SecurityError(f"a template makes a number of more than {_MOST_BITS} bits")
    return value


def _check_arguments(arguments: Iterable[Any]) -> None:
    """Numbers that may become a width, a count or an indent."""
    for value in arguments:
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST_NUMBER:
            raise SecurityError(f"a template calls something with a number above {MOST_NUMBER}")
        _checked(value)


def _product(left: Any, right: Any) -> Any:
    for a, b in ((left, right), (right, left)):
        if isinstance(a, str | bytes | list | tuple) and isinstance(b, int) and len(a) * b > MOST_CHARACTERS:
            raise SecurityError(f"a template makes a value of more than {MOST_CHARACTERS} characters")
    return left * right


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MOST_BITS:
        raise SecurityError(f"a template makes a number of more than {_MOST_BITS} bits")
    return left**right


def _formatted(left: Any, right: Any) -> Any:
    if isinstance(left, str | bytes) and _WIDTH.search(left if isinstance(left, str) else left.decode("latin-1")):
        raise SecurityError("a template formats with a width that is too large")
    return left % right


_OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "*": _product,
    "**": _power,
    "%": _formatted,
    "+": lambda left, right: left + right,
}


@final
class TaskEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, with a budget for every rendering.

    Args:
        filters: of lm-eval's environment.
    """

    intercepted_binops = frozenset(_OPERATORS)

    def __init__(self, filters: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=self._write)
        self._budget = _Budget()
        self.filters.update(filters)
        self.filters = {name: self._limited(f) for name, f in self.filters.items()}
        self.filters[_COUNTED] = self._count
        self.filters[_BOUNDED] = _checked
        self.globals.pop("lipsum", None)

    def begin(self) -> None:
        """A rendering begins."""
        self._budget = _Budget()

    def _write(self, value: Any) -> Any:
        return self._budget.write(value)

    def _count(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._budget.step()
            yield value

    def _limited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose numbers and result are bounded; Jinja's marks on it (`pass_context`) are kept."""

        def limited(*arguments: Any, **named: Any) -> Any:
            self._budget.step()
            _check_arguments(a for a in (*arguments[1:], *named.values()))
            return _checked(function(*arguments, **named))

        limited.__dict__.update(getattr(function, "__dict__", {}))
        return limited

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator whose result could be far larger than its operands."""
        return _checked(_OPERATORS[operator](left, right))

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call of a method, a macro or a global."""
        self._budget.step()
        _check_arguments((*args, *kwargs.values()))
        return _checked(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's own `format` in place of the method, for texts without enormous widths."""
        owner = getattr(value, "__self__", None)
        if (
            isinstance(owner, str)
            and getattr(value, "__name__", "") in ("format", "format_map")
            and _WIDTH.search(owner)
        ):
            raise SecurityError("a template formats with a width that is too large")
        return super().wrap_str_format(value)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MOST_SOURCE:
            raise SecurityError(f"a template has more than {MOST_SOURCE} characters")
        template = super()._parse(source, name, filename)
        for loop in template.find_all(nodes.For):
            if loop.recursive:
                raise SecurityError("a template has a recursive loop")
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
        for parent in template.find_all(nodes.Node):
            _bound_joins(parent)
        return template


def _bound_joins(parent: nodes.Node) -> None:
    """Every `a ~ b` below a node passes a filter that looks at its size."""

    def bounded(child: Any) -> Any:
        if not isinstance(child, nodes.Concat):
            return child
        return nodes.Filter(child, _BOUNDED, [], [], None, None, lineno=child.lineno)

    for field, value in list(parent.iter_fields()):
        if isinstance(parent, nodes.Filter) and parent.name == _BOUNDED:
            return
        setattr(parent, field, [bounded(v) for v in value] if isinstance(value, list) else bounded(value))


@final
class LimitedTemplate:
    """A compiled template that is rendered under the limits.

    Args:
        environment: whose template it is.
        source: its text.
    """

    def __init__(self, environment: TaskEnvironment, source: str) -> None:
        self._environment = environment
        environment.begin()
        with time_limit(SECONDS, "A template of the task"):  # constants are folded as it is compiled
            self._template = environment.from_string(source)

    def render(self, **values: Any) -> str:
        """The text for one document.

        Raises:
            SecurityError: when it reaches for Python's insides, or takes too many steps or characters.
            EvaluationError: when it takes too long.
        """
        self._environment.begin()
        with time_limit(SECONDS, "A template of the task"):
            return self._template.render(**values)
