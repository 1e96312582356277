"""Jinja templates of task files that nobody vouches for: no code, no files, and no more time and memory than a prompt.

Jinja's own sandbox keeps a template from Python's insides. It does not keep it from `'x' * 10 ** 10`, from loops in
loops, or from a regular expression without end; that is what this module adds. What a sound template renders, it
renders letter for letter as lm-eval's environment does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, final

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evomerge.evaluation.limits import time_limit
from evomerge.evaluation.template_bounds import (
    MOST_CHARACTERS,
    check_arguments,
    check_format,
    check_growth,
    checked,
    formatted,
    held,
    power,
    product,
    weight,
)

MOST_STEPS: Final = 200_000
"""Rounds of loops and calls in one rendering."""
MOST_SOURCE: Final = 200_000
SECONDS: Final = 2.0
_MOST_MADE: Final = 100_000_000
"""Characters of all values that one rendering makes: what it keeps is no more."""
_COUNTED: Final = "evomerge_counted"
_BOUNDED: Final = "evomerge_bounded"


class _Budget:
    """What one rendering has used."""

    def __init__(self) -> None:
        self.steps = 0
        self.characters = 0
        self.made = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise SecurityError(f"a template takes more than {MOST_STEPS} steps")

    def write(self, value: Any) -> Any:
        self.characters += len(value) if isinstance(value, str) else max(20, weight(value))
        if self.characters > MOST_CHARACTERS:
            raise SecurityError(f"a template writes more than {MOST_CHARACTERS} characters")
        return value

    def make(self, value: Any) -> Any:
        self.made += weight(checked(value))
        if self.made > _MOST_MADE:
            raise SecurityError(f"a template makes values of more than {_MOST_MADE} characters together")
        return value


_OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "*": product,
    "**": power,
    "%": formatted,
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
        self.filters = {name: self._limited(name, f) for name, f in self.filters.items()}
        self.filters[_COUNTED] = self._count
        self.filters[_BOUNDED] = self._make
        self.globals.pop("lipsum", None)

    def begin(self) -> None:
        """A rendering begins."""
        self._budget = _Budget()

    def _write(self, value: Any) -> Any:
        return self._budget.write(value)

    def _make(self, value: Any) -> Any:
        return self._budget.make(value)

    def _count(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._budget.step()
            yield value

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose numbers and result are bounded; Jinja's marks on it (`pass_context`) are kept."""

        def limited(*arguments: Any, **named: Any) -> Any:
            self._budget.step()
            check_arguments((*arguments[1:], *named.values()))
            known = [held(a) for a in arguments]
            check_growth(name, (*known, *named.values()))
            if name == "format":
                check_format(str(known[0]))
            return self._make(function(*known, **named))

        limited.__dict__.update(getattr(function, "__dict__", {}))
        return limited

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator whose result could be far larger than its operands."""
        return self._make(_OPERATORS[operator](left, right))

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call of a method, a macro or a global."""
        self._budget.step()
        known = [held(a) for a in args]
        check_arguments((*known, *kwargs.values()))
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | bytes):
            check_growth(__obj.__name__, (owner, *known, *kwargs.values()))
        return self._make(super().call(__context, __obj, *known, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's own `format` in place of the method, for texts without enormous widths."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = value.__self__
        check_format(text)

        def bounded(*arguments: Any, **named: Any) -> str:
            check_growth("format", (text, *arguments, *named.values()))
            return wrapped(*arguments, **named)

        return bounded

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MOST_SOURCE:
            raise SecurityError(f"a template has more than {MOST_SOURCE} characters")
        template = super()._parse(source, name, filename)
        for loop in template.find_all(nodes.For):
            if loop.recursive:
                raise SecurityError("a template has a recursive loop")
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
        for parent in template.find_all(nodes.Node):
            _bound_made(parent)
        return template


def _bound_made(parent: nodes.Node) -> None:
    """Every `a ~ b`, list, tuple and mapping below a node passes a filter that looks at its size."""

    def bounded(child: Any) -> Any:
        if not isinstance(child, nodes.Concat | nodes.List | nodes.Tuple | nodes.Dict):
            return child
        if getattr(child, "ctx", "load") != "load":  # names that are assigned to
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
