"""What a checkpoint's tensors are: name, shape, dtype, layer and role. No tensor is ever read here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["embedding", "attention", "mlp", "norm", "head", "other"]
ROLES: tuple[Role, ...] = ("embedding", "attention", "mlp", "norm", "head", "other")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it.

    Attributes:
        name: the checkpoint's name, not the in-memory one.
        shape: as stored.
        dtype: safetensors spelling, for instance `"BF16"`.
        layer: 0-based transformer layer, None outside the layers.
        role: what the tensor does; a norm inside a layer is `norm` with its `layer`, the final norm has None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layer: int | None
    role: Role

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"tensor {self.name}: role {self.role!r} is not one of {', '.join(ROLES)}")
        if self.layer is not None and self.layer < 0:
            raise ValueError(f"tensor {self.name}: layer {self.layer} is negative")


@dataclass(frozen=True)
class Layout:
    """All tensors of one architecture, ordered by name.

    Attributes:
        n_layers: number of transformer layers.
        tensors: unique names, sorted.
    """

    n_layers: int
    tensors: tuple[TensorInfo, ...]

    def __post_init__(self) -> None:
        names = [t.name for t in self.tensors]
        if names != sorted(set(names)):
            raise ValueError("the tensors of a layout must be unique and sorted by name")
        outside = [t.name for t in self.tensors if t.layer is not None and t.layer >= self.n_layers]
        if outside:
            raise ValueError(f"{outside[0]} lies outside the {self.n_layers} layers")

    def roles(self) -> tuple[Role, ...]:
        """The roles that occur, in the order of `ROLES`."""
        present = {t.role for t in self.tensors}
        return tuple(r for r in ROLES if r in present)
