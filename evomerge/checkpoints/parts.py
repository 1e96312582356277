"""Tensors that are written part by part, so that no whole one has to be in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class TensorPart(NamedTuple):
    """A run of one tensor's elements; the parts of a tensor come in order and leave no gap.

    Attributes:
        start: index of the first element, in the order of the file.
        values: flat, `(m,)`; good until the next part is asked for.
        numel: of the whole tensor.
    """

    start: int
    values: torch.Tensor
    numel: int

    @property
    def is_last(self) -> bool:
        """Whether the tensor ends with this part."""
        return self.start + self.values.numel() == self.numel
