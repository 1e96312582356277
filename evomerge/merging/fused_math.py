"""Functions that torch and C round differently, in operations that both round alike; fused.c holds their twins.

fp32 throughout; relative errors below 1e-6 on the ranges named. Inputs are not changed.
"""

from __future__ import annotations

from typing import Final

import torch

LOG2_E: Final = 1.44269502162933349609375
"""log2(e), an fp32 value."""

_ROUND: Final = 12582912.0
"""1.5 * 2**23: adding and subtracting it rounds a small fp32 number to the nearest whole one."""

_EXP2: Final = (1.52527335e-05, 1.54035297e-04, 1.33335579e-03, 9.61812865e-03, 5.55041097e-02, 2.40226507e-01,
                6.93147182e-01, 1.0)  # fmt: skip
"""`ln(2)**k / k!`, the highest power first."""

_LOG: Final = (2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0, 2.0)
"""Of the series of `log((1 + s) / (1 - s))` in s squared, the highest power first."""

_ROOT_HALF: Final = 0x3F3504F3
"""The pattern of the square root of one half."""


def _polynomial(x: torch.Tensor, coefficients: tuple[float, ...]) -> torch.Tensor:
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def exp2(x: torch.Tensor) -> torch.Tensor:
    """2 to the power of x, for x in [-126, 127]; 2**0 is 1 exactly."""
    whole = (x + _ROUND) - _ROUND
    power = ((whole.to(torch.int32) + 127) << 23).view(torch.float32)
    return _polynomial(x - whole, _EXP2) * power


def log2(x: torch.Tensor) -> torch.Tensor:
    """The base 2 logarithm of x >= 0; about -127 for what is subnormal or zero, 0 exactly for 1."""
    pattern = x.view(torch.int32) - _ROOT_HALF
    mantissa = ((pattern & 0x7FFFFF) + _ROOT_HALF).view(torch.float32)
    f = mantissa - 1.0
    s = f / (mantissa + 1.0)
    log = _polynomial(s * s, _LOG) * s
    return log * LOG2_E + (pattern >> 23).to(torch.float32)


def power(x: torch.Tensor, exponent: float) -> torch.Tensor:
    """`x ** exponent` for x in [0, 1] and an exponent that is not negative; at least 2**-126, 1 exactly for x = 1."""
    return exp2((log2(x) * exponent).clamp_(min=-126.0))


def tanh(x: torch.Tensor) -> torch.Tensor:
    """The hyperbolic tangent on [-1, 1]: Lambert's continued fraction, seven terms."""
    y = x * x
    above = ((y * 21.0 + 1260.0) * y + 10395.0) * x
    return above / (((y + 210.0) * y + 4725.0) * y + 10395.0)
