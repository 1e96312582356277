"""NaN and infinity in a parent: found before a search, never averaged into a score."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from evomerge.checkpoints.dtypes import FLOATING
from evomerge.checkpoints.opened import OpenParent
from evomerge.errors import ModelError

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 24  # elements looked at together: bounds the memory of the counting pass


class NonFiniteCount(NamedTuple):
    """How many elements of one tensor are not numbers."""

    name: str
    nan: int
    inf: int


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all elements are finite: one reduction that allocates nothing (NaN propagates through both ends)."""
    import torch

    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def _count(name: str, tensor: torch.Tensor) -> NonFiniteCount:
    flat = tensor.reshape(-1)
    chunks = [flat[start : start + _CHUNK] for start in range(0, flat.numel(), _CHUNK)]
    return NonFiniteCount(name, sum(int(c.isnan().sum()) for c in chunks), sum(int(c.isinf().sum()) for c in chunks))


def non_finite(checkpoint: OpenParent) -> tuple[NonFiniteCount, ...]:
    """The floating tensors of a checkpoint that hold NaN or infinity, with counts; reads every weight once."""
    names = [t.name for t in checkpoint.layout.tensors if t.dtype in FLOATING]
    found = []
    for name in names:
        tensor = checkpoint.tensor(name)
        if not is_finite(tensor):
            found.append(_count(name, tensor))
        checkpoint.release(name)
    return tuple(found)


def check_finite(checkpoint: OpenParent) -> None:
    """Refuse a checkpoint that holds NaN or infinity.

    Raises:
        ModelError: naming the tensors (the first 20) and how many elements of each are NaN or infinite.
    """
    faults = non_finite(checkpoint)
    if not faults:
        return
    listed = [f"{f.name} ({f.nan} NaN, {f.inf} Inf)" for f in faults[:20]]
    more = [f"and {len(faults) - 20} tensors more"] if len(faults) > 20 else []
    raise ModelError(
        "A checkpoint holds values that are not finite.",
        got=f"{checkpoint.source}: {'; '.join(listed + more)}",
        allowed="finite weights",
        fix="leave this parent out, or obtain a sound copy of it.",
    )
