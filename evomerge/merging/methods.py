"""What a merge method is: the contract for built-ins and plug-ins, and their names.

A plug-in is a `@final` class that derives `MergeMethod`, announced as an instance under the entry-point group
`evomerge.merge_methods`. `evomerge.testing.merge_suite` holds the tests that every method has to pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.errors import PluginError
from evomerge.merging.gram import gram_matrix
from evomerge.merging.kernels import Kernels
from evomerge.merging.measures import Deltas, Measurement
from evomerge.merging.settings import Cut, Setting
from evomerge.merging.thresholds import Magnitudes
from evomerge.recipe.method_spec import MethodSpec
from evomerge.recipe.recipe import Number
from evomerge.registry import GROUP_METHODS, Registry

_T = TypeVar("_T")


@dataclass(frozen=True)
class Parameters:
    """The numbers of one merge of one tensor, complete: defaults are filled in.

    Attributes:
        tensor: the tensor's name; with `seed` and `parents` it determines random masks and ties.
        parents: names of the merged models, in order, without the base.
        shared: parameter name -> value common to all.
        per_parent: aligned with `parents`: parameter name -> value.
        seed: the recipe's.
    """

    tensor: str
    parents: tuple[str, ...]
    shared: Mapping[str, Number]
    per_parent: tuple[Mapping[str, Number], ...]
    seed: int = 0

    def column(self, name: str) -> tuple[float, ...]:
        """A per-parent parameter, aligned with `parents`."""
        return tuple(float(values[name]) for values in self.per_parent)

    def key(self) -> tuple[object, ...]:
        """A hashable value that is equal exactly when the parameters are."""
        columns = tuple(tuple(sorted(v.items())) for v in self.per_parent)
        return (self.tensor, self.parents, tuple(sorted(self.shared.items())), columns, self.seed)


class Facts(ABC):
    """What a kernel method may ask about the tensors it merges; answers are cached by whoever implements it."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""

    @abstractmethod
    def gram(self) -> npt.NDArray[np.float64]:
        """Inner products of the inputs themselves, shape `(n, n)`, accumulated in fp64."""

    @abstractmethod
    def cut(self, index: int, count: int) -> Cut:
        """The threshold above which exactly `count` entries of input `index`'s delta lie; 0 < count <= numel."""

    @abstractmethod
    def measure(self, measurement: Measurement[_T]) -> _T:
        """A measurement of the inputs' deltas, taken once."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


class MergeMethod(ABC):
    """A way to merge one tensor of several models.

    Contract: `merge` is a pure function; it changes none of its arguments, uses no global random state, gives a new
    fp32 tensor of the same shape, and the same bits for the same arguments. Parameters have been checked against
    `spec` before it is called. One instance serves all tensors of all candidates.
    """

    spec: MethodSpec

    @abstractmethod
    def merge(self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], parameters: Parameters) -> torch.Tensor:
        """Merge one tensor.

        Args:
            base: fp32, or None when the method needs no base.
            parents: fp32, the shape of `base`, aligned with `parameters.parents`.
            parameters: complete, within the bounds of `spec`.

        Returns:
            fp32, the same shape. It is rounded once, afterwards, to the stored dtype.
        """


class KernelMethod(MergeMethod):
    """A method that is data: it compiles its parameters to a kernel's setting and inherits the rest."""

    @abstractmethod
    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """The kernel's numbers for one tensor; equal arguments give equal settings.

        Args:
            parameters: complete, within the bounds of `spec`.
            facts: about the same tensor.
        """

    @final
    def merge(self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], parameters: Parameters) -> torch.Tensor:
        """See `MergeMethod.merge`: the setting for these tensors, run by the eager kernels."""
        kernels = Kernels()
        flat = [p.detach().contiguous().view(-1) for p in parents]
        origin = base.detach().contiguous().view(-1) if base is not None else None
        facts = TensorFacts(parameters, origin, flat, tuple(parents[0].shape), kernels)
        out = torch.empty(flat[0].shape, dtype=torch.float32)
        kernels.merge(self.compile(parameters, facts), origin, flat, out)
        return out.view(parents[0].shape)


@final
class TensorFacts(Facts):
    """Facts measured on tensors at hand, nothing cached."""

    def __init__(
        self,
        parameters: Parameters,
        base: torch.Tensor | None,
        inputs: Sequence[torch.Tensor],
        shape: tuple[int, ...],
        kernels: Kernels,
    ) -> None:
        self._parameters = parameters
        self._base = base
        self._inputs = inputs
        self._shape = shape
        self._kernels = kernels

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Facts.shape`."""
        return self._shape

    def gram(self) -> npt.NDArray[np.float64]:
        """See `Facts.gram`."""
        return gram_matrix(self._inputs)

    def cut(self, index: int, count: int) -> Cut:
        """See `Facts.cut`."""
        if self._base is None:
            raise ValueError("a threshold needs a base")
        x = self._inputs[index]
        magnitudes = Magnitudes.measure(self._base, x, self._kernels)
        return magnitudes.cut(count, self._base, x, (self._parameters.tensor, self._parameters.parents[index]))

    def measure(self, measurement: Measurement[_T]) -> _T:
        """See `Facts.measure`; the tensor at hand is the whole model."""
        if self._base is None:
            raise ValueError("a measurement needs a base")
        return measurement.take([Deltas(self._parameters.tensor, self._shape, self._base, tuple(self._inputs))])


METHODS: Final = Registry(
    group=GROUP_METHODS,
    noun="merge method",
    builtin={
        "linear": "evomerge.merging.linear_methods:LINEAR_METHOD",
        "slerp": "evomerge.merging.linear_methods:SLERP_METHOD",
        "task_arithmetic": "evomerge.merging.linear_methods:TASK_ARITHMETIC_METHOD",
        "ties": "evomerge.merging.gta_methods:TIES_METHOD",
        "dare_linear": "evomerge.merging.gta_methods:DARE_LINEAR_METHOD",
        "dare_ties": "evomerge.merging.gta_methods:DARE_TIES_METHOD",
    },
)


def load_method(name: str) -> MergeMethod:
    """The merge method `name`, built in or from a plug-in.

    Raises:
        ConfigError: for an unknown name, with the nearest match.
        PluginError: when a plug-in does not load or is not a merge method.
    """
    loaded: Any = METHODS.load(name)
    method = loaded() if isinstance(loaded, type) and issubclass(loaded, MergeMethod) else loaded
    if not isinstance(method, MergeMethod) or not isinstance(getattr(method, "spec", None), MethodSpec):
        raise PluginError(
            f"The plug-in for the merge method {name!r} is not a merge method.",
            got=type(method).__name__,
            allowed="a class, or an instance of one, that derives evomerge.merging.methods.MergeMethod and has a spec",
            fix="ask the plug-in's authors for a version made for this evomerge.",
        )
    return method
