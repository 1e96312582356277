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
from evomerge.merging.gram import gram_matrix, vector_grams, vector_length
from evomerge.merging.kernels import Kernels
from evomerge.merging.measures import Deltas, Measurement
from evomerge.merging.settings import Cut, Setting, ranked_inputs
from evomerge.merging.thresholds import MagnitudePart, Magnitudes, density_count, joint_cut
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
        layer: the layer the tensor belongs to; None outside the layers.
        n_layers: how many layers the model has; 0 when that is not known.
    """

    tensor: str
    parents: tuple[str, ...]
    shared: Mapping[str, Number]
    per_parent: tuple[Mapping[str, Number], ...]
    seed: int = 0
    layer: int | None = None
    n_layers: int = 0

    def column(self, name: str) -> tuple[float, ...]:
        """A per-parent parameter, aligned with `parents`."""
        return tuple(float(values[name]) for values in self.per_parent)

    def key(self) -> tuple[object, ...]:
        """A hashable value that is equal exactly when the parameters are."""
        columns = tuple(tuple(sorted(v.items())) for v in self.per_parent)
        place = (self.seed, self.layer, self.n_layers)
        return (self.tensor, self.parents, tuple(sorted(self.shared.items())), columns, place)


class Facts(ABC):
    """What a kernel method may ask about the tensors it merges; answers are cached by whoever implements it.

    Sums are fp64 in a fixed order, so that every machine gives the same numbers. What is said of deltas needs a base.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""

    @property
    @abstractmethod
    def has_base(self) -> bool:
        """Whether there is a base, so that there are deltas."""

    @abstractmethod
    def gram(self, *, deltas: bool = False) -> npt.NDArray[np.float64]:
        """Inner products of the inputs themselves, or of their deltas, shape `(n, n)`."""

    @abstractmethod
    def vector_grams(self, *, deltas: bool, columns: bool) -> npt.NDArray[np.float64]:
        """The same for every vector apart, shape `(vectors, n, n)`.

        Args:
            deltas: of the deltas instead of the inputs.
            columns: a vector runs along the first axis, else along the last.
        """

    @abstractmethod
    def model_gram(self) -> npt.NDArray[np.float64]:
        """Inner products of the deltas of the whole model, shape `(n, n)`."""

    @abstractmethod
    def cut(self, index: int, count: int) -> Cut:
        """The threshold above which exactly `count` entries of input `index`'s delta lie; 0 < count <= numel."""

    @abstractmethod
    def model_cut(self, index: int, density: float) -> Cut:
        """The threshold above which this share of input `index`'s entries lies, of all tensors with two axes or more.

        Args:
            index: an input.
            density: in (0, 1).
        """

    @abstractmethod
    def norm(self, index: int, count: int) -> float:
        """The sum of the `count` largest magnitudes of input `index`'s delta; 0 < count <= numel."""

    @abstractmethod
    def ranks(self, index: int) -> torch.Tensor:
        """The rank of every magnitude of input `index`'s delta in its row (last axis), flat; see `Kernels.ranks`.

        Not for `KernelMethod.compile`: a kernel asks for them when it runs.
        """

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

    def check(self, shared: Mapping[str, Number], per_parent: Sequence[Mapping[str, Number]]) -> None:
        """Refuse parameters that do not go together; each alone is within the bounds of `spec`.

        Args:
            shared: parameter -> value, complete.
            per_parent: one mapping per merged model, complete.

        Raises:
            RecipeError: naming the parameters.
        """
        del shared, per_parent

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
        setting = self.compile(parameters, facts)
        kernels.merge(setting, origin, flat, out, ranks={i: facts.ranks(i) for i in ranked_inputs(setting)})
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

    @property
    def has_base(self) -> bool:
        """See `Facts.has_base`."""
        return self._base is not None

    def gram(self, *, deltas: bool = False) -> npt.NDArray[np.float64]:
        """See `Facts.gram`."""
        return gram_matrix(self._inputs, self._origin() if deltas else None)

    def vector_grams(self, *, deltas: bool, columns: bool) -> npt.NDArray[np.float64]:
        """See `Facts.vector_grams`."""
        length = vector_length(self._shape, columns=columns)
        return vector_grams(self._inputs, self._origin() if deltas else None, length, columns=columns)

    def model_gram(self) -> npt.NDArray[np.float64]:
        """See `Facts.model_gram`: this tensor is the model."""
        return self.gram(deltas=True)

    def cut(self, index: int, count: int) -> Cut:
        """See `Facts.cut`."""
        return self._magnitudes(index).cut(count, self._origin(), self._inputs[index], self._names(index))

    def model_cut(self, index: int, density: float) -> Cut:
        """See `Facts.model_cut`: this tensor is the model."""
        part = MagnitudePart(self._magnitudes(index), lambda: (self._origin(), self._inputs[index]), self._names(index))
        return joint_cut(density_count(density, self.numel), [part], self._kernels)

    def norm(self, index: int, count: int) -> float:
        """See `Facts.norm`."""
        return self._magnitudes(index).norm(count, self._origin(), self._inputs[index])

    def ranks(self, index: int) -> torch.Tensor:
        """See `Facts.ranks`."""
        return self._kernels.ranks(self._origin(), self._inputs[index], vector_length(self._shape, columns=False))

    def measure(self, measurement: Measurement[_T]) -> _T:
        """See `Facts.measure`; the tensor at hand is the whole model."""
        return measurement.take(
            [Deltas(self._parameters.tensor, self._shape, self._origin(), tuple(self._inputs), self._kernels)]
        )

    def _magnitudes(self, index: int) -> Magnitudes:
        return Magnitudes.measure(self._origin(), self._inputs[index], self._kernels)

    def _names(self, index: int) -> tuple[str, str]:
        return self._parameters.tensor, self._parameters.parents[index]

    def _origin(self) -> torch.Tensor:
        if self._base is None:
            raise ValueError("deltas need a base")
        return self._base


METHODS: Final = Registry(
    group=GROUP_METHODS,
    noun="merge method",
    builtin={
        "ram": "evomerge.merging.fused_methods:RAM_METHOD",
        "ramplus_tl": "evomerge.merging.fused_methods:RAMPLUS_TL_METHOD",
        "sce": "evomerge.merging.fused_methods:SCE_METHOD",
        "nearswap": "evomerge.merging.fused_methods:NEARSWAP_METHOD",
        "arcee_fusion": "evomerge.merging.fused_methods:ARCEE_FUSION_METHOD",
        "magmax": "evomerge.merging.paper_methods:MAGMAX_METHOD",
        "emr": "evomerge.merging.paper_methods:EMR_METHOD",
        "consensus": "evomerge.merging.paper_methods:CONSENSUS_METHOD",
        "pcb": "evomerge.merging.paper_methods:PCB_METHOD",
        "ternary": "evomerge.merging.paper_methods:TERNARY_METHOD",
        "binary": "evomerge.merging.paper_methods:BINARY_METHOD",
        "widen": "evomerge.merging.widen_method:WIDEN_METHOD",
        "universal": "evomerge.merging.universal:UNIVERSAL_METHOD",
        "linear": "evomerge.merging.linear_methods:LINEAR_METHOD",
        "slerp": "evomerge.merging.linear_methods:SLERP_METHOD",
        "task_arithmetic": "evomerge.merging.linear_methods:TASK_ARITHMETIC_METHOD",
        "ties": "evomerge.merging.gta_methods:TIES_METHOD",
        "dare_linear": "evomerge.merging.gta_methods:DARE_LINEAR_METHOD",
        "dare_ties": "evomerge.merging.gta_methods:DARE_TIES_METHOD",
        "nuslerp": "evomerge.merging.sphere_methods:NUSLERP_METHOD",
        "multislerp": "evomerge.merging.sphere_methods:MULTISLERP_METHOD",
        "karcher": "evomerge.merging.sphere_methods:KARCHER_METHOD",
        "passthrough": "evomerge.merging.linear_methods:PASSTHROUGH_METHOD",
        "model_stock": "evomerge.merging.stock_methods:MODEL_STOCK_METHOD",
        "breadcrumbs": "evomerge.merging.gta_methods:BREADCRUMBS_METHOD",
        "breadcrumbs_ties": "evomerge.merging.gta_methods:BREADCRUMBS_TIES_METHOD",
        "della": "evomerge.merging.della_methods:DELLA_METHOD",
        "della_linear": "evomerge.merging.della_methods:DELLA_LINEAR_METHOD",
        "lines": "evomerge.merging.scaling_methods:LINES_METHOD",
        "fedlaw": "evomerge.merging.scaling_methods:FEDLAW_METHOD",
        "expo": "evomerge.merging.scaling_methods:EXPO_METHOD",
        "metagpt": "evomerge.merging.scaling_methods:METAGPT_METHOD",
        "localize_and_stitch": "evomerge.merging.stitch_methods:LOCALIZE_AND_STITCH_METHOD",
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
