"""Functions that torch and C round differently, in operations that both round alike; fused.c holds their twins.

fp32 throughout; on the ranges named, relative errors are below 1e-6, absolute ones of the logarithm below 2e-6. Inputs
are not changed.
"""

from __future__ import annotations

from typing import Final

import torch

LOG2_E: Final = 1.44269502162933349609375
"""log2(e), an fp32 value."""

_ROUND: Final = 12582912.0
"""1.5 * 2**23: adding and subtracting it rounds a small fp32 number to the nearest whole one."""

_EXP2: Final = (0.00133908668, 0.00966637395, 0.0555035695, 0.240223482, 0.693147182, 1.0)
"""Of `2**f` between -1/2 and 1/2, fitted with 1 at 0; the highest power first."""

_LOG2: Final = (-0.146203533, 0.23420985, -0.24882181, 0.287075609,
               -0.360241979, 0.48092404, -0.721352756, 1.4426949)  # fmt: skip
"""Of `log2(1 + f) / f` between the square roots of one half and of two, fitted; the highest power first."""

_TANH: Final = (-0.00308040925, 0.0167767759, -0.0516354591, 0.132825136, -0.333291799, 0.999999464)
"""Of `tanh(x) / x` on [0, 1], in x squared, fitted; the highest power first."""

_ROOT_HALF: Final = 0x3F3504F3
"""The pattern of the square root of one half."""


def _polynomial(x: torch.Tensor, coefficients: tuple[float, ...]) -> torch.Tensor:
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def exp2(x: torch.Tensor) -> torch.Tensor:
    """2 to the power of x, for x in [-126, 127]; 2**0 is 1 exactly."""
    rounded = x + _ROUND  # its lowest bits are the whole number, which is added to the exponent
    value = _polynomial(x - (rounded - _ROUND), _EXP2)
    return (value.view(torch.int32) + (rounded.view(torch.int32) << 23)).view(torch.float32)


def log2(x: torch.Tensor) -> torch.Tensor:
    """The base 2 logarithm of x >= 0; about -127 for what is subnormal or zero, 0 exactly for 1."""
    pattern = x.view(torch.int32) - _ROOT_HALF
    f = ((pattern & 0x7FFFFF) + _ROOT_HALF).view(torch.float32) - 1.0
    return _polynomial(f, _LOG2) * f + (pattern >> 23).to(torch.float32)


def tanh(x: torch.Tensor) -> torch.Tensor:
    """The hyperbolic tangent on [-1, 1]."""
    return _polynomial(x * x, _TANH) * x
