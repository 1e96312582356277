"""What the tokenizers library raises for files of strangers: bare exceptions, and panics of Rust."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import final

from evomerge.errors import EvaluationError

_PANIC = "PanicException"


@final
class tokenizer_faults:  # noqa: N801 - read as a word: `with tokenizer_faults(folder):`
    """A block whose bare `Exception`s and panics are told as faults of the tokenizer; everything else passes.

    The library has no exceptions of its own, so that nothing narrower can be caught; a panic is not even an
    `Exception`, and would end a worker without a word.

    Args:
        folder: of the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        """Nothing is opened."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises EvaluationError for what the library raises."""
        if error is None or not (kind is Exception or type(error).__name__ == _PANIC):
            return
        text = str(error).splitlines()
        raise EvaluationError(
            "The tokenizer does not work.",
            got=f"{self._folder}: {(text[0] if text else type(error).__name__)[:300]}",
            allowed="a tokenizer.json that the tokenizers library reads and runs",
            fix="download the tokenizer's files again, or use the tokenizer of the base.",
        ) from error
