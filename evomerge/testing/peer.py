"""mergekit 0.1.5 as a peer in tests: the settings that are tried, its merges of single tensors, and how ours compare.

mergekit is imported by the functions that run it; it must be installed (`pip install evomerge[parity]`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, final

import torch

from evomerge.merging.compat_case import Draws
from evomerge.merging.methods import Parameters
from evomerge.recipe.method_spec import MethodSpec
from evomerge.recipe.methods import method_spec
from evomerge.recipe.recipe import Number

Setting = Mapping[str, Any]
"""Parameter name -> value, or for a parameter of the parents one value per model; what is absent has its default."""

_TRIM: Final[tuple[Setting, ...]] = (
    {"weight": (0.6, 0.3, 0.4), "density": (0.2, 0.5, 0.8)},
    {"weight": (0.6, 0.3, -0.2), "density": (1.0, 0.4, 0.0), "rescale": True, "normalize": False, "lambda": 1.3},
)
_DROP: Final[tuple[Setting, ...]] = (
    {"weight": (0.6, 0.3, 0.4), "density": (0.2, 0.5, 0.8)},
    {"weight": (0.6, 0.3, -0.2), "density": (1.0, 0.4, 0.0), "rescale": False, "normalize": True, "lambda": 0.7},
)
_DELLA: Final[tuple[Setting, ...]] = tuple({**s, "epsilon": (0.1, 0.3, 0.15)} for s in _DROP)
_CRUMBS: Final[tuple[Setting, ...]] = (
    {"weight": (0.6, 0.3, 0.4), "density": (0.9, 0.5, 0.2)},
    {
        "weight": (0.6, 0.3, -0.2), "density": (1.0, 0.9, 0.4), "gamma": (0.01, 0.2, 0.0),
        "rescale": True, "normalize": True, "lambda": 0.7,
    },
)  # fmt: skip

SETTINGS: Final[Mapping[str, tuple[Setting, ...]]] = MappingProxyType(
    {
        "linear": ({"weight": (0.6, 0.3, 0.2)}, {"weight": (0.6, 0.3, -0.2), "normalize": False}),
        "slerp": ({"t": 0.35}, {"t": 0.0}, {"t": 1.0}),
        "nuslerp": tuple(
            {"weight": (0.6, 0.3), "nuslerp_flatten": flat, "nuslerp_row_wise": rows}
            for flat, rows in ((True, False), (False, False), (False, True))
        ),
        "multislerp": (
            {"weight": (0.6, 0.3, 0.2)},
            {"weight": (0.6, -0.2), "normalize_weights": False, "eps": 1e-6},
            {"weight": (0.7,)},
        ),
        "karcher": ({}, {"max_iter": 2, "tol": 1e-2}),
        "task_arithmetic": (
            {"weight": (0.6, 0.3, -0.2)},
            {"weight": (0.6, 0.3, 0.4), "normalize": True, "lambda": 0.7},
        ),
        "ties": _TRIM,
        "dare_linear": _DROP,
        "dare_ties": _DROP,
        "della": _DELLA,
        "della_linear": _DELLA,
        "breadcrumbs": _CRUMBS,
        "breadcrumbs_ties": _CRUMBS,
        "sce": ({}, {"select_topk": 0.3}),
        "ram": ({}, {"epsilon": 1e-2}),
        "ramplus_tl": ({}, {"epsilon": 1e-2, "r": 0.5, "alpha": 0.9}),
        "model_stock": ({}, {"filter_wise": True}),
        "nearswap": ({"t": 1e-4}, {"t": 1e-2}),
        "arcee_fusion": ({},),
        "passthrough": ({}, {"scale": (0.3,)}),
    }
)
"""What is tried of every method of mergekit: its defaults, and values that reach its other branches."""


def models_of(spec: MethodSpec, setting: Setting) -> int:
    """How many models a setting merges: as many as it has values for, at most three."""
    lengths = [len(value) for value in setting.values() if isinstance(value, tuple)]
    return min(lengths, default=min(spec.max_models or 3, 3))


def shared_of(spec: MethodSpec, setting: Setting) -> dict[str, Number]:
    """The parameters that all models share, complete."""
    values = {name: setting.get(name, spec.parameters[name].default) for name in spec.shared()}
    return {name: value for name, value in values.items() if value is not None}


def rows_of(spec: MethodSpec, setting: Setting) -> tuple[dict[str, Number], ...]:
    """The parameters of every model, complete."""

    def value(name: str, index: int) -> Any:
        return setting[name][index] if name in setting else spec.parameters[name].default

    return tuple({name: value(name, i) for name in spec.per_parent()} for i in range(models_of(spec, setting)))


def parameters_of(method: str, setting: Setting, tensor: str = "w", seed: int = 0) -> Parameters:
    """The setting as our methods take it; the models are called m0, m1, ..."""
    spec = method_spec(method)
    rows = rows_of(spec, setting)
    return Parameters(tensor, tuple(f"m{i}" for i in range(len(rows))), shared_of(spec, setting), rows, seed)


@final
class GlobalDraws(Draws):
    """What mergekit draws: from torch's global generator, in the order of the calls."""

    def bernoulli(self, parent: int, probabilities: torch.Tensor) -> torch.Tensor:
        """See `Draws.bernoulli`."""
        return torch.bernoulli(probabilities)

    def sample(self, numel: int, count: int) -> torch.Tensor:
        """See `Draws.sample`."""
        return torch.randint(numel, (count,))


def mergekit_tensor(
    method: str, base: torch.Tensor | None, models: Sequence[torch.Tensor], setting: Setting, **options: Any
) -> torch.Tensor:
    """One tensor merged by mergekit, in memory.

    Args:
        method: its name.
        base: None where the method takes none.
        models: in order; of slerp the first is what mergekit calls the base.
        setting: parameters.
        options: mergekit's `dtype` and `out_dtype`.

    Raises:
        Exception: whatever mergekit raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.merge_methods import merge_tensors

    given = {k: dict(enumerate(v)) if isinstance(v, tuple) else v for k, v in setting.items()}
    tensors = [*models] if base is None else [*models, base]
    base_index = len(models) if base is not None else (0 if method == "slerp" else None)
    merged: torch.Tensor = merge_tensors(tensors, method, base_index=base_index, parameters=given, **options)
    return merged


def bit_patterns(x: torch.Tensor) -> torch.Tensor:
    """The bits as integers, so that NaN equals NaN and the zeros differ."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


@dataclass(frozen=True)
class Agreement:
    """How two sets of tensors compare.

    Attributes:
        n: elements compared.
        equal: elements whose bits are equal.
        largest: largest absolute difference.
    """

    n: int = 0
    equal: int = 0
    largest: float = 0.0

    @property
    def share(self) -> float:
        """Share of equal bits; 1 for nothing compared."""
        return self.equal / self.n if self.n else 1.0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.n + other.n, self.equal + other.equal, max(self.largest, other.largest))


def agreement(ours: torch.Tensor, theirs: torch.Tensor) -> Agreement:
    """How two tensors of one shape compare; tensors of two dtypes have no equal bits."""
    largest = float((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0.0
    if ours.dtype != theirs.dtype:
        return Agreement(ours.numel(), 0, largest)
    return Agreement(ours.numel(), int((bit_patterns(ours) == bit_patterns(theirs)).sum()), largest)


def total(parts: Iterable[Agreement]) -> Agreement:
    """All of them together."""
    return sum(parts, start=Agreement())
