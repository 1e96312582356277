"""The parents of a job: opened, compared, named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from evomerge.checkpoints.compatible import check_compatible
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.config.load import ResolvedJob
from evomerge.recipe.recipe import ParentRef

BASE: Final = "base"


@dataclass(frozen=True)
class Parents:
    """The job's parents, opened and found compatible.

    Attributes:
        checkpoints: name -> checkpoint, the base first under `base`, then the models in the job's order.
        base: `base`, or None.
    """

    checkpoints: Mapping[str, OpenParent]
    base: str | None

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the parents other than the base."""
        return tuple(name for name in self.checkpoints if name != self.base)

    @property
    def template_name(self) -> str:
        """Whose config, tokenizer and dtypes a merge takes: the base's, else the first model's."""
        return next(iter(self.checkpoints))

    @property
    def template(self) -> OpenParent:
        """The checkpoint of `template_name`."""
        return self.checkpoints[self.template_name]

    @property
    def n_parameters(self) -> int:
        """Of one parent."""
        return sum(math.prod(t.shape) for t in self.template.layout.tensors)

    def refs(self) -> tuple[ParentRef, ...]:
        """The parents as recipes name them; reads every weight once for the content digests."""
        return tuple(ParentRef(n, c.source, c.revision, c.content) for n, c in self.checkpoints.items())


def open_parents(resolved: ResolvedJob) -> Parents:
    """Open the job's parents and compare their headers.

    Raises:
        ModelError: for the first that cannot be opened, then listing every difference between them.
    """
    job = resolved.job.parents
    sources = ({BASE: job.base} if job.base is not None else {}) | dict(job.models)
    checkpoints = {}
    for name, source in sources.items():
        with resolved.document.placing("parents", *([BASE] if name == BASE else ["models", name])):
            checkpoints[name] = open_checkpoint(source)
    check_compatible(checkpoints, BASE if job.base is not None else None)
    return Parents(checkpoints, BASE if job.base is not None else None)
