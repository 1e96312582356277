"""Bins that are counted instead of listed give the thresholds that listing gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging import thresholds, wide_bins
from evomerge.merging.elements import tie_hash, tie_salts
from evomerge.merging.kernels import Kernels
from evomerge.merging.thresholds import Magnitudes

NAMES = ("tensor", "parent")


def pair(n, seed, levels):
    """A base and a parent whose deltas have few magnitudes, zero among them."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randint(-levels, levels + 1, (n,), generator=generator).float() * 2.0**-10
    return torch.zeros(n, dtype=torch.bfloat16), delta.bfloat16()


def kept(cut, base, x):
    """Which entries lie above a cut, spelled out."""
    magnitudes = (x.float() - base.float()).abs().view(torch.int32).tolist()
    hashes = tie_hash(torch.arange(x.numel(), dtype=torch.int32), *tie_salts(*NAMES)).tolist()
    pairs = zip(magnitudes, hashes, strict=True)
    return [m > cut.bits or (m == cut.bits and h % 2**32 <= cut.bound) for m, h in pairs]


@given(n=st.integers(1, 3000), levels=st.integers(0, 40), seed=st.integers(0, 99), share=st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=40)
def test_counting_is_listing(n, levels, seed, share):
    base, x = pair(n, seed, levels)
    count = min(max(1, round(share * n)), n)
    with pytest.MonkeyPatch.context() as patch:
        listed = Magnitudes.measure(base, x, Kernels())
        expected = (listed.cut(count, base, x, NAMES), listed.norm(count, base, x))
        patch.setattr(thresholds, "WIDE", 0)
        patch.setattr(wide_bins, "_CHUNK", 512)
        counted = Magnitudes.measure(base, x, Kernels())
        assert (counted.cut(count, base, x, NAMES), counted.norm(count, base, x)) == expected
    assert sum(kept(expected[0], base, x)) == count


def test_a_tensor_that_did_not_move_is_cut_exactly():
    n = wide_bins.WIDE + 4321
    base = torch.full((n,), 0.5, dtype=torch.bfloat16)
    cut = Magnitudes.measure(base, base, Kernels()).cut(n // 3, base, base, NAMES)
    assert cut.bits == 0
    hashes = tie_hash(torch.arange(n, dtype=torch.int32), *tie_salts(*NAMES)).numpy().view("uint32")
    assert int((hashes <= cut.bound).sum()) == n // 3
