"""mergekit 0.1.5's arithmetic for all of its methods, without speed target.

Written from its documented formulas and its behaviour, faults included. Everything runs on one CPU thread, and with the
same torch the results are those of mergekit on one thread, bit for bit, except for random masks: mergekit draws them
from torch's global generator, here they come from the element hash (`compat_case.HashedDraws`). Where mergekit stops
with an error, or writes NaN because weights sum to zero, this refuses with a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from types import MappingProxyType
from typing import Final

import torch

from evomerge.merging.compat_arithmetic import arithmetic, ram, ramplus_tl, sce
from evomerge.merging.compat_case import Case, Draws, HashedDraws
from evomerge.merging.compat_others import arcee_fusion, linear, model_stock, nearswap, passthrough
from evomerge.merging.compat_sparsify import by_rank, largest, middle, random
from evomerge.merging.compat_sphere import karcher, multislerp, nuslerp, slerp
from evomerge.merging.methods import Parameters

_METHODS: Final[Mapping[str, Callable[[Case], torch.Tensor]]] = MappingProxyType(
    {
        "linear": linear,
        "slerp": slerp,
        "nuslerp": nuslerp,
        "multislerp": multislerp,
        "karcher": karcher,
        "task_arithmetic": arithmetic(None, elect=False),
        "ties": arithmetic(largest, elect=True),
        "dare_linear": arithmetic(random, elect=False),
        "dare_ties": arithmetic(random, elect=True),
        "della": arithmetic(by_rank, elect=True),
        "della_linear": arithmetic(by_rank, elect=False),
        "breadcrumbs": arithmetic(middle, elect=False),
        "breadcrumbs_ties": arithmetic(middle, elect=True),
        "sce": sce,
        "ram": ram,
        "ramplus_tl": ramplus_tl,
        "model_stock": model_stock,
        "nearswap": nearswap,
        "arcee_fusion": arcee_fusion,
        "passthrough": passthrough,
    }
)
_WIDENED: Final = ("arcee_fusion", "ramplus_tl")
_NEEDS_ENTRIES: Final = ("multislerp", "della", "della_linear", "arcee_fusion")


def compat_dtype(method: str, stored: Sequence[torch.dtype], shape: Sequence[int], n_models: int) -> torch.dtype:
    """What mergekit stores when no dtype is asked for: the promoted dtype of all inputs, or fp32 where it is narrower.

    The latter from two methods, whose masks or gains are fp32, and from karcher for a tensor without axes, where its
    fp32 norms are as good as the tensor.

    Args:
        method: a method of mergekit.
        stored: dtypes of the base and the models, floating.
        shape: of the tensor.
        n_models: how many are merged.
    """
    promoted = reduce(torch.promote_types, stored)
    widened = method in _WIDENED or (method == "karcher" and not shape and n_models > 1)
    return torch.promote_types(promoted, torch.float32) if widened else promoted


def merge_compat(
    method: str,
    base: torch.Tensor | None,
    inputs: Sequence[torch.Tensor],
    parameters: Parameters,
    draws: Draws | None = None,
) -> torch.Tensor:
    """One tensor, merged as mergekit 0.1.5 does.

    Args:
        method: one of `plan.MERGEKIT_METHODS`.
        base: in the dtype that the merge computes in; None for a method, or a recipe, without one.
        inputs: the same dtype and shape; not changed.
        parameters: complete.
        draws: where random masks come from; None takes the element hash.

    Returns:
        The merged tensor, in the dtype of the inputs, or in fp32 as `compat_dtype` says.

    Raises:
        MergeError: where mergekit stops: multislerp's vanishing mean, della's rows of one element, tensors without
            elements in some methods; and where it writes NaN because weights sum to zero.
    """
    case = Case(method, base, inputs, parameters, draws or HashedDraws(parameters))
    if inputs[0].numel() == 0:
        return _merge_nothing(case)
    with _one_thread():
        return _METHODS[method](case)


@contextmanager
def _one_thread() -> Iterator[None]:
    """On several threads torch adds and sorts in another order, and a recipe would not have one result."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _merge_nothing(case: Case) -> torch.Tensor:
    """A tensor without elements; refused by the methods that stop at some of them in mergekit."""
    if case.method in _NEEDS_ENTRIES:
        raise case.refused(
            f"Method {case.method!r} cannot merge a tensor without elements.",
            f"shape {list(case.models[0].shape)}",
            "a tensor with elements",
            "merge this tensor by another method.",
        )
    x = case.models[0]
    return torch.empty_like(x, dtype=compat_dtype(case.method, [case.dtype], x.shape, len(case.models)))
