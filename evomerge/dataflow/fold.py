"""Gains as weights: a hop's gain g, written into the tensors that end its branches.

An output projection is linear in its weight and its bias, so both are multiplied by g. A norm behind the projection
multiplies by `offset + weight` (offset 1 in the Gemma families), so its weight becomes g * (offset + weight) - offset.
Either way the branch adds g times what it added, whatever the sign of g.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from evomerge.dataflow.families import Family
from evomerge.errors import ModelError


def fold_gain(tensor: torch.Tensor, gain: float, offset: float = 0.0) -> torch.Tensor:
    """The weight g * (offset + w) - offset, in the tensor's shape and dtype.

    Products are formed in fp32, and with an offset in fp64, where the difference of near numbers would lose digits;
    one cast follows. A gain of 1 gives the tensor itself back.

    Args:
        tensor: floating.
        gain: g, finite.
        offset: of the norm that the weight belongs to; 0 for a projection.
    """
    if gain == 1.0:
        return tensor
    if not offset:
        wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        return (tensor.to(wide) * gain).to(tensor.dtype)
    return ((tensor.to(torch.float64) + offset) * gain - offset).to(tensor.dtype)


def offsets_of(family: Family) -> dict[str, float]:
    """What takes a gain: name of a layer's tensor behind its number -> the offset of `fold_gain`."""
    found: dict[str, float] = {}
    for branch in family.ends:
        found |= {f"{branch.end}.weight": branch.offset}
        found |= {} if branch.norm else {f"{branch.end}.bias": 0.0}
    return found


def check_foldable(family: Family, dtypes: Mapping[str, str], floating: Collection[str], layer: int) -> None:
    """Refuse a layer whose branches do not end in tensors that can be multiplied.

    Args:
        family: of the model.
        dtypes: the layer's tensors: name behind the layer's number -> dtype, safetensors spelling.
        floating: the dtypes that can be multiplied.
        layer: its number, for the message.

    Raises:
        ModelError: when a weight is missing or is not floating, or a norm has a bias.
    """
    wanted = [f"{branch.end}.weight" for branch in family.ends]
    odd = [name for name in wanted if name not in dtypes]
    odd += [name for name in offsets_of(family) if name in dtypes and dtypes[name] not in floating]
    odd += [f"{b.end}.bias" for b in family.ends if b.norm and f"{b.end}.bias" in dtypes]
    if odd:
        raise ModelError(
            "Gains cannot be folded into these weights.",
            got=f"layer {layer}: {odd[0]}, {dtypes.get(odd[0], 'absent')}",
            allowed=f"floating tensors {', '.join(wanted)}, and no norm with a bias",
            fix="export a path without gains, or report the architecture.",
        )
