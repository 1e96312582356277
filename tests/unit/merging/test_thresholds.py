from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.elements import hash_range, tie_hash, tie_salts
from evomerge.merging.kernels import Kernels
from evomerge.merging.thresholds import Magnitudes, density_count
from evomerge.seeds import generator

NAMES = ("model.layers.0.w", "math")


def pair(n, dtype, seed=0, scale=4e-4):
    rng = generator(seed, "thresholds", n)
    base = torch.from_numpy(rng.standard_normal(n)).mul(0.02)
    return base.to(dtype), (base + torch.from_numpy(rng.standard_normal(n)).mul(scale)).to(dtype)


def above(cut, base, x):
    """The slow, obvious reading of a cut."""
    magnitude = (x.float() - base.float()).abs().view(torch.int32).numpy()
    tensor_salt, parent_salt = tie_salts(*NAMES)
    ties = tie_hash(torch.arange(x.numel()).to(torch.int32), tensor_salt, parent_salt).numpy().view(np.uint32)
    return (magnitude > cut.bits) | ((magnitude == cut.bits) & (ties <= cut.bound))


@given(
    n=st.integers(1, 400),
    share=st.floats(0.0, 1.0),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 1e-5, 4e-4, 1.0]),
)
@settings(deadline=None, max_examples=120)
def test_exactly_count_entries_lie_above_and_they_are_the_largest(n, share, dtype, seed, scale):
    base, x = pair(n, dtype, seed, scale)
    count = max(1, round(share * n))
    cut = Magnitudes.measure(base, x, Kernels()).cut(count, base, x, NAMES)
    kept = above(cut, base, x)
    assert kept.sum() == count
    magnitude = (x.float() - base.float()).abs().numpy()
    assert magnitude[kept].min() >= magnitude[~kept].max(initial=0.0)


@given(n=st.integers(2, 300), counts=st.data(), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_what_a_smaller_count_keeps_a_larger_one_keeps(n, counts, seed):
    base, x = pair(n, torch.bfloat16, seed)
    small = counts.draw(st.integers(1, n))
    large = counts.draw(st.integers(small, n))
    magnitudes = Magnitudes.measure(base, x, Kernels())
    few, many = (above(magnitudes.cut(c, base, x, NAMES), base, x) for c in (small, large))
    assert not (few & ~many).any()


def test_a_lattice_with_many_ties_is_cut_exactly_where_a_bare_threshold_cannot():
    base, x = pair(200_000, torch.bfloat16)
    count = 100_000
    cut = Magnitudes.measure(base, x, Kernels()).cut(count, base, x, NAMES)
    magnitude = (x.float() - base.float()).abs().view(torch.int32)
    assert int((magnitude >= cut.bits).sum()) > count + 1000  # what `>=` would keep
    assert above(cut, base, x).sum() == count


def test_ties_are_kept_in_the_order_of_their_hash():
    base, x = torch.zeros(64), torch.full((64,), 0.5)
    cut = Magnitudes.measure(base, x, Kernels()).cut(10, base, x, NAMES)
    tensor_salt, parent_salt = tie_salts(*NAMES)
    words = hash_range(0, x, tensor_salt).numpy().view(np.uint32) ^ np.uint32(parent_salt)
    assert set(np.flatnonzero(above(cut, base, x))) == set(np.argsort(words)[:10])


def test_a_long_tensor_crosses_the_chunks_of_the_eager_histogram(monkeypatch):
    monkeypatch.setattr("evomerge.merging.kernels._HISTOGRAM_CHUNK", 1000)
    base, x = pair(4567, torch.bfloat16)
    assert above(Magnitudes.measure(base, x, Kernels()).cut(1234, base, x, NAMES), base, x).sum() == 1234


@pytest.mark.parametrize("count", [0, 6])
def test_counts_outside_the_tensor_are_refused(count):
    base, x = pair(5, torch.float32)
    with pytest.raises(ValueError, match=f"count {count} is not in"):
        Magnitudes.measure(base, x, Kernels()).cut(count, base, x, NAMES)


@pytest.mark.parametrize(
    ("density", "numel", "count"),
    [
        (0.0, 10, 0),
        (1e-9, 10, 1),
        (0.25, 10, 2),
        (0.35, 10, 4),
        (1.0, 10, 10),
        (0.5, 1, 1),
        (0.5, 0, 0),
        (0.999, 10, 10),
    ],
)
def test_density_count_rounds_and_keeps_at_least_one(density, numel, count):
    assert density_count(density, numel) == count
