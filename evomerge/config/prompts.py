"""The prompts that a job's made parents are shown, drawn when the first of them is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import final

from evomerge.config.load import ResolvedJob
from evomerge.config.suites import build_suite
from evomerge.types import Digest
from evomerge.virtual.maker import Prompts
from evomerge.virtual.prompts import DEFAULT_PROMPTS, prompts_digest, prompts_of


@final
class PromptBook:
    """Draws prompts from the search set of a job's suite; compiles the suite only when there is need.

    Args:
        resolved: the job.
        tokenizer_folder: gives the folder of the parent that gives the tokenizer.
    """

    def __init__(self, resolved: ResolvedJob, tokenizer_folder: Callable[[], Path]) -> None:
        self._resolved = resolved
        self._folder = tokenizer_folder
        self.drawn: dict[Digest, Prompts] = {}

    def draw(self, number: int | None) -> Digest:
        """The digest of so many prompts, which are then in `drawn`.

        Raises:
            EvaluationError: for a suite that cannot be compiled.
        """
        from evomerge.evaluation.lm_eval import compile_plan

        plan = compile_plan(build_suite(self._resolved), self._folder())
        prompts = prompts_of(plan, DEFAULT_PROMPTS if number is None else number)
        digest = prompts_digest(prompts)
        self.drawn[digest] = prompts
        return digest
