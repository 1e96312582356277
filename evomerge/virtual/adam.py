"""Adam, as the makers use it that go down a slope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    import torch

_BETAS: Final = (0.9, 0.999)
_EPSILON: Final = 1e-8


@final
class Adam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) on one tensor, in the tensor's own precision.

    With slope g in step t: `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, and the values move by
    `-rate m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + 1e-8)`, where b1 = 0.9 and b2 = 0.999.

    Args:
        rate: step size.
    """

    def __init__(self, rate: float) -> None:
        self._rate, self._step = rate, 0
        self._first: torch.Tensor | None = None
        self._second: torch.Tensor | None = None

    def moved(self, values: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """The values after one more step down, a new tensor; nothing given is written to.

        Args:
            values: of one shape and dtype in all steps.
            slope: likewise.
        """
        import torch

        one, two = _BETAS
        if self._first is None or self._second is None:
            self._first, self._second = torch.zeros_like(values), torch.zeros_like(values)
        self._step += 1
        self._first.lerp_(slope, 1 - one)
        self._second.mul_(two).addcmul_(slope, slope, value=1 - two)
        spread = (self._second / (1 - two**self._step)).sqrt_().add_(_EPSILON)
        return torch.addcdiv(values, self._first, spread, value=-self._rate / (1 - one**self._step))
