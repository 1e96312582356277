"""The parents of a job: opened, compared, named; what is made from others is made when the search begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from evomerge.checkpoints.compatible import check_compatible
from evomerge.checkpoints.opened import OpenParent
from evomerge.config.cache import parents_folder
from evomerge.config.load import ResolvedJob
from evomerge.config.parent_refs import BASE, ParentRefs, source_ref
from evomerge.config.prompts import PromptBook
from evomerge.errors import ConfigError
from evomerge.recipe.recipe import ParentRef
from evomerge.virtual.fitting import fit_parents
from evomerge.virtual.maker import ParentReport
from evomerge.virtual.opening import ParentOpener


@dataclass(frozen=True)
class Parents:
    """The job's parents, opened and found compatible.

    Attributes:
        checkpoints: name -> parent, the base first under `base`, then the models in the job's order.
        base: `base`, or None.
        given: name -> the parent as the job describes it.
        named: name -> the parent as it is merged: given a head or the reference's tokens where it has others.
        opener: opened them, and makes what is made from others.
    """

    checkpoints: Mapping[str, OpenParent]
    base: str | None
    given: Mapping[str, ParentRef]
    named: Mapping[str, ParentRef]
    opener: ParentOpener

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

    @cached_property
    def _refs(self) -> tuple[ParentRef, ...]:
        return tuple(self.opener.known(ref) for ref in self.named.values())

    def refs(self) -> tuple[ParentRef, ...]:
        """The parents as recipes name them; reads every weight once for the content digests."""
        return self._refs

    def made_files(self) -> dict[str, str]:
        """Name -> digest of the tensors of every parent that is made and holds tensors of its own.

        Made anew on another machine they may have other last bits, which no digest of ingredients tells.
        """
        return self.opener.made()

    def make(self, report: ParentReport) -> None:
        """Make what is made from others and is not in the cache yet.

        Raises:
            NonFinite: when a made tensor holds NaN or infinity.
            ConfigError, DiskFull: when the cache folder cannot be written.
        """
        self.opener.make(report)


def _tokenizer_of(resolved: ResolvedJob) -> ParentRef:
    """The parent whose tokenizer a job uses: the base, else the first model.

    Raises:
        ConfigError: when that is itself made of others.
    """
    parents = resolved.job.parents
    first = parents.base if parents.base is not None else next(iter(parents.models.values()))
    if isinstance(first, str):
        return source_ref(BASE, first)
    raise ConfigError(
        "The tokenizer of a job cannot be told before its parents are made.",
        got="no parents.base, and a first model that is made of others",
        allowed="a base, or a first model that is a checkpoint",
        fix="name the base, or a checkpoint first.",
    )


def job_refs(resolved: ResolvedJob, opener: ParentOpener) -> dict[str, ParentRef]:
    """The job's parents as it describes them, the base first; prompts are drawn where a maker needs some.

    Raises:
        ConfigError: for parents that the job describes wrongly.
        EvaluationError: for a suite that prompts cannot be drawn from.
    """
    book = PromptBook(resolved, lambda: opener.open(_tokenizer_of(resolved)).folder)
    refs = ParentRefs(resolved.job.parents, resolved.document, book.draw).all()
    opener.add_prompts(book.drawn)
    return refs


def open_parents(resolved: ResolvedJob) -> Parents:
    """Open the job's parents and compare their headers.

    Raises:
        ConfigError: for parents that the job describes wrongly.
        ModelError: for the first that cannot be opened, then listing every difference between them.
    """
    opener = ParentOpener(parents_folder())
    refs = job_refs(resolved, opener)
    base = BASE if BASE in refs else None
    for name, ref in refs.items():
        with resolved.document.placing("parents", *([BASE] if name == BASE else ["models", name])):
            opener.open(ref)
    with resolved.document.placing("parents", "tokens"):
        fitted = fit_parents(refs, base, opener, tokens=resolved.job.parents.tokens)
    checkpoints = {name: opener.open(ref) for name, ref in fitted.items()}
    check_compatible(checkpoints, base)
    return Parents(checkpoints, base, refs, fitted, opener)
