"""One tree of random streams per run: every draw has a purpose and an index, none is global."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(run_seed: int, *path: str | int) -> int:
    """A 32-bit seed for one purpose: a pure function of the run's seed and the path.

    Args:
        run_seed: the job's seed, any non-negative integer.
        path: purpose and indices, for instance `("optuna", 12)`.

    Returns:
        An integer in `[1, 2**32 - 1]` (never 0: some libraries read 0 as "from the clock").
    """
    text = "/".join([str(run_seed), *(f"{type(p).__name__}:{p}" for p in path)])
    word = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return word or 1


def generator(run_seed: int, *path: str | int) -> np.random.Generator:
    """A private numpy generator for one purpose (see `derive_seed`)."""
    return np.random.default_rng(derive_seed(run_seed, *path))
