"""Chat templates of models that nobody vouches for, rendered by transformers within the limits of task templates.

transformers compiles a chat template for Jinja's sandbox, which keeps it from Python's insides and nothing else:
loops in loops, texts of gigabytes and numbers without end are its own affair there. Here the same text is compiled
for the environment of `task_templates`, with everything that transformers adds to its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, final

import jinja2
from jinja2.exceptions import SecurityError

from evomerge.errors import EvaluationError
from evomerge.evaluation.task_templates import LimitedTemplate, TaskEnvironment

_MOST_INDENT: Final = 64
_WIDE: Final = re.compile(r"\d{3}")


def _narrow(function: Callable[..., Any]) -> Callable[..., Any]:
    """A helper of transformers whose options cannot make its result many times longer than its argument."""

    def limited(value: Any, *arguments: Any, **named: Any) -> Any:
        for option in (*arguments, *named.values()):
            for one in option if isinstance(option, list | tuple) else [option]:
                if (isinstance(one, int) and one > _MOST_INDENT) or (isinstance(one, str) and len(one) > _MOST_INDENT):
                    raise SecurityError(f"a chat template indents by more than {_MOST_INDENT}")
        if isinstance(value, str) and function.__name__ == "strftime_now" and (len(value) > 256 or _WIDE.search(value)):
            raise SecurityError("a chat template writes the time with a width that is too large")
        return function(value, *arguments, **named)

    return limited


@final
class _Compiled:
    """What transformers asks of a compiled template."""

    def __init__(self, environment: TaskEnvironment, source: str) -> None:
        self.environment = environment
        self._template = LimitedTemplate(environment, source)

    def render(self, **values: Any) -> str:
        """See `LimitedTemplate.render`."""
        return self._template.render(**values)


@final
class _ChatEnvironment:
    """What transformers asks of Jinja's environment.

    Args:
        trim_blocks: as for Jinja's environment.
        lstrip_blocks: as for Jinja's environment.
        extensions: as for Jinja's environment.
    """

    def __init__(self, *, trim_blocks: bool, lstrip_blocks: bool, extensions: Sequence[type]) -> None:
        self._inner = TaskEnvironment({})
        self._inner.undefined = jinja2.Undefined
        self._inner.keep_trailing_newline = False
        self._inner.trim_blocks = trim_blocks
        self._inner.lstrip_blocks = lstrip_blocks
        for extension in extensions:
            self._inner.add_extension(extension)
        self.globals: dict[str, Any] = {}
        self.filters: dict[str, Any] = {}

    def from_string(self, source: str) -> _Compiled:
        """The template of a text."""
        self._inner.filters.update({name: _narrow(f) for name, f in self.filters.items()})
        self._inner.globals.update(_with_narrow_time(self.globals))
        return _Compiled(self._inner, source)


def _with_narrow_time(known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _narrow(f) if name == "strftime_now" else f for name, f in known.items()}


TEMPLATE_ERRORS: Final = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    AttributeError,
    KeyError,
    IndexError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
)
"""What a template may raise while it is compiled and rendered."""


def unrendered(error: Exception) -> EvaluationError:
    """What to say of a chat template that gives no text."""
    return EvaluationError(
        "The chat template of the model is not rendered.",
        got=f"{type(error).__name__}: {str(error)[:300]}",
        allowed="a template that writes a prompt, without code and within limits",
        fix="set chat_template: false, or replace the template beside the tokenizer of the base.",
    )


@contextmanager
def limited_chat() -> Iterator[None]:
    """Inside the block transformers compiles chat templates within limits; what a sound one writes is the same.

    Its name for Jinja's environment is exchanged, and its cache of compiled templates emptied before and after.
    """
    from transformers.utils import chat_template_utils as theirs

    before = theirs.ImmutableSandboxedEnvironment
    theirs._compile_jinja_template.cache_clear()
    theirs.ImmutableSandboxedEnvironment = _ChatEnvironment
    try:
        yield
    finally:
        theirs.ImmutableSandboxedEnvironment = before
        theirs._compile_jinja_template.cache_clear()
