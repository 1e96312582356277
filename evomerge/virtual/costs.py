"""What making a parent takes, in words: the speed that operations are counted at, and times for people."""

from __future__ import annotations

from typing import Final

FLOPS: Final = 4e10
"""Operations per second that one core gives on products of matrices (2026).

In fp64 on 1024 to 4096 rows, and in fp32 with few rows.
"""


def duration(seconds: float) -> str:
    """A time for people: `40 s`, `3 min`, `2.5 h`."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
