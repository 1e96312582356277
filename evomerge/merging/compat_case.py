"""What one merge in mergekit's arithmetic is given: tensors, parameters, and where its random numbers come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from evomerge.errors import MergeError
from evomerge.merging.elements import FULL, hash_range, salt
from evomerge.merging.methods import Parameters


class Draws(ABC):
    """Where random numbers come from. mergekit takes them from torch's global generator, in the order of its calls."""

    @abstractmethod
    def bernoulli(self, parent: int, probabilities: torch.Tensor) -> torch.Tensor:
        """Zeros and ones.

        Args:
            parent: index of the merged model.
            probabilities: of a one, floating, any shape.

        Returns:
            The shape and dtype of `probabilities`.
        """

    @abstractmethod
    def sample(self, numel: int, count: int) -> torch.Tensor:
        """Indices in `[0, numel)`, repetitions allowed; int64, shape `(count,)`."""


@final
class HashedDraws(Draws):
    """Numbers from a hash of seed, tensor, parent and element: the same on every machine, nested in the probability."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

    def bernoulli(self, parent: int, probabilities: torch.Tensor) -> torch.Tensor:
        """See `Draws.bernoulli`."""
        given = self._parameters
        words = hash_range(0, probabilities.view(-1), salt("mask", given.seed, given.tensor, given.parents[parent]))
        below = (probabilities.double() * 2.0**32).long().view(-1)
        return ((words.long() & FULL) < below).view(probabilities.shape).to(probabilities.dtype)

    def sample(self, numel: int, count: int) -> torch.Tensor:
        """See `Draws.sample`."""
        given = self._parameters
        words = hash_range(0, torch.empty(count), salt("sample", given.seed, given.tensor)).long() & FULL
        return (words.double() * (numel / 2.0**32)).long()


@dataclass(frozen=True)
class Case:
    """One tensor to merge.

    Attributes:
        method: mergekit's name.
        base: in the dtype that is computed in; None for a method, or a recipe, without one.
        models: the merged tensors, of that dtype and shape.
        parameters: complete.
        draws: used by the random methods only.
    """

    method: str
    base: torch.Tensor | None
    models: Sequence[torch.Tensor]
    parameters: Parameters
    draws: Draws

    @property
    def origin(self) -> torch.Tensor:
        """The base of a method that needs one."""
        if self.base is None:
            raise ValueError("this method needs a base")
        return self.base

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in, as far as mergekit does not widen it."""
        return self.models[0].dtype

    @property
    def wide(self) -> torch.dtype:
        """fp64 for fp64 tensors, else fp32: what linear, SLERP and norms of the Karcher mean accumulate in."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def flag(self, name: str) -> bool:
        """A shared flag; false where the method has none of this name."""
        return bool(self.parameters.shared.get(name, False))

    def number(self, name: str) -> float:
        """A shared number."""
        return float(self.parameters.shared[name])

    def refused(self, what: str, got: str, allowed: str, fix: str) -> MergeError:
        """An error about this tensor, where mergekit stops or writes NaN."""
        return MergeError(what, got=f"{self.parameters.tensor}: {got}", allowed=allowed, fix=fix)
