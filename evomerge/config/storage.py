"""What a job says about the memory of its workers: where the parents live, and who shares it."""

from __future__ import annotations

from evomerge.config.load import ResolvedJob
from evomerge.config.parents import Parents
from evomerge.errors import ConfigError


def check_task_vectors(resolved: ResolvedJob, parents: Parents) -> None:
    """Refuse packed task vectors where there is nothing to take differences from.

    Raises:
        ConfigError: for `int8` in a job without a base.
    """
    with resolved.document.placing("cluster", "task_vectors"):
        if resolved.job.cluster.task_vectors == "int8" and parents.base is None:
            raise ConfigError(
                "Task vectors need a base.",
                got="cluster.task_vectors: int8, and no parents.base",
                allowed="exact, or a job with parents.base",
                fix="name the model that the parents were trained from as parents.base, or leave task_vectors out.",
            )
