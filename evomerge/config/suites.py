"""The suite of a job as a plain value."""

from __future__ import annotations

from evomerge.config.load import ResolvedJob
from evomerge.evaluation.suite import SuiteSpec, load_suite


def build_suite(resolved: ResolvedJob) -> SuiteSpec:
    """The suite as a plain value.

    Raises:
        EvaluationError: for what its schema cannot say: tasks that stand twice, impossible splits.
    """
    with resolved.document.placing("suite"):
        return load_suite(resolved.suite.model_dump(mode="json", exclude_none=True, exclude={"questions"}))
