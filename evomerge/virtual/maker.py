"""The contract of makers: what turns checkpoints, adapters and prompts into one more parent of a merge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.opened import OpenParent
from evomerge.layout import TensorInfo
from evomerge.recipe.method_spec import ParameterSpec
from evomerge.recipe.recipe import Number, ParentRef

if TYPE_CHECKING:
    import torch

Prompts = tuple[tuple[int, ...], ...]
"""Token ids of the unlabelled prompts that a maker is shown, one tuple each."""

Report = Callable[[int, int], None]
"""Told how many of how many steps are done."""


def silent(done: int, total: int) -> None:
    """A report that nobody reads."""
    del done, total


ParentReport = Callable[[str, int, int], None]
"""Told which parent is being made, and how many of how many steps are done."""


def quiet(parent: str, done: int, total: int) -> None:
    """A report of parents that nobody reads."""
    del parent, done, total


@dataclass(frozen=True)
class MakerSpec:
    """What a recipe has to say to have a parent made.

    Attributes:
        name: as recipes and jobs write it.
        needs_base: deltas are taken from a base, or an adapter sits on it.
        min_models: fewest models that it is made from.
        max_models: most; None when there is no limit.
        parameters: settings by name; all are shared.
        needs_files: `ParentRef.source` names files of its own (an adapter).
        needs_prompts: it looks at how the models answer unlabelled prompts.
        version: raised whenever the maker gives other tensors than before; part of a made parent's content.
        source: paper and equation, in a few words.
    """

    name: str
    needs_base: bool
    min_models: int
    max_models: int | None
    parameters: Mapping[str, ParameterSpec] = field(default_factory=dict)
    needs_files: bool = False
    needs_prompts: bool = False
    version: int = 1
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))


@dataclass(frozen=True)
class Ingredients:
    """What a parent is made from, opened.

    Attributes:
        ref: the parent as recipes name it.
        of: the models, in order.
        base: origin of the deltas, or what an adapter sits on; None where the maker needs none.
        settings: complete, within the bounds of the maker's spec.
        prompts: empty for makers that need none.
    """

    ref: ParentRef
    of: tuple[OpenParent, ...]
    base: OpenParent | None
    settings: Mapping[str, Number]
    prompts: Prompts = ()

    @property
    def origin(self) -> OpenParent:
        """The base of a maker that needs one."""
        if self.base is None:
            raise ValueError("a maker without a base has no origin")
        return self.base


@dataclass(frozen=True)
class MadePlan:
    """What a made parent will consist of, known from headers alone.

    Attributes:
        under: the parent whose tensors stay where nothing else is said.
        changed: tensors that are made, with shapes and dtypes (fp32 unless there is a reason); replaced or added.
        aliases: name in `under` -> tensor that has its values.
        config: keys of config.json that replace those of `under`.
        tokenizer: the tokenizer's files where they are not those of `under`: their folder, or name -> content of
            files that are written when the parent is planned, since comparing parents reads them.
    """

    under: OpenParent
    changed: tuple[TensorInfo, ...] = ()
    aliases: Mapping[str, TensorInfo] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Path | Mapping[str, bytes] | None = None


class Maker(ABC):
    """A way to make a parent.

    Contract: both methods are pure; equal ingredients give equal plans, and on one machine with one version of its
    libraries equal tensors. No argument is changed, no global random state used. Tensors are made one after the other,
    so that memory is bounded by a few tensors and not by the model.
    """

    spec: MakerSpec

    @abstractmethod
    def plan(self, ingredients: Ingredients) -> MadePlan:
        """What will be made, from headers and configs; no tensor is read.

        Raises:
            ModelError: when the ingredients do not fit each other, or cannot be used.
        """

    @abstractmethod
    def tensors(
        self, ingredients: Ingredients, plan: MadePlan, report: Report = silent
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of `plan.changed`, each once, in any order, in its planned shape and dtype.

        Raises:
            NonFinite: when one holds NaN or infinity.
        """

    def extra_content(self, ingredients: Ingredients) -> Any:
        """JSON values that name what else the tensors depend on, such as an adapter's files; None for nothing."""
        del ingredients

    def revision(self, ingredients: Ingredients) -> str | None:
        """The hub's commit of the files that `ref.source` names; None where there are none, or in a folder."""
        del ingredients
        return None

    def cost(self, ingredients: Ingredients) -> str:
        """What making it takes, in a few words for people; empty where that is next to nothing."""
        del ingredients
        return ""
