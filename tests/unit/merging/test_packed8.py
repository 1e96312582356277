"""Task vectors in eight bits: what they lose is bounded, told, and does not depend on how they are read."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging import feeding
from evomerge.merging.feeding import feed
from evomerge.merging.packed8 import BLOCK, BYTES_PER_ELEMENT, agreement, pack, packed_bytes, unpack

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def pair(n, seed, dtype, spread=1e-3):
    generator = torch.Generator().manual_seed(seed)
    base = (0.02 * torch.randn(n, generator=generator)).to(dtype)
    delta = spread * torch.randn(n, generator=generator) * torch.rand(n, generator=generator) ** 3
    return base, (base.double() + delta.double()).to(dtype)


def obvious(base, x):
    """The formula, element by element, in fp32."""
    b, values = (t.to(torch.float32).numpy() for t in (base, x))
    found = np.empty(len(values), np.float32)
    for start in range(0, len(values), BLOCK):
        delta = values[start : start + BLOCK] - b[start : start + BLOCK]
        scale = np.float32(np.abs(delta).max() / np.float32(127))
        codes = np.rint(delta / scale) if scale > 0 else np.zeros_like(delta)
        found[start : start + BLOCK] = codes.clip(-127, 127).astype(np.float32) * scale + b[start : start + BLOCK]
    return torch.from_numpy(found).to(x.dtype)


@given(
    n=st.integers(0, 1000),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([0, 1e-3, 1.0]),
)
@settings(deadline=None, max_examples=60)
def test_packing_is_its_formula_and_loses_half_a_step(n, seed, dtype, spread):
    base, x = pair(n, seed, dtype, spread)
    packed = pack(base, x)
    again = unpack(packed, base, 0, n)
    assert again.dtype == dtype
    assert torch.equal(again, obvious(base, x))
    assert packed.nbytes == packed_bytes(n)
    step = packed.scales.double().repeat_interleave(BLOCK)[:n]
    # half a step, and the roundings to fp32 and to the parent's dtype
    rounding = x.double().abs() * max(torch.finfo(dtype).eps, 2e-7) + torch.finfo(dtype).tiny
    assert bool(((again.double() - x.double()).abs() <= 0.5001 * step + rounding).all())


@given(n=st.integers(1, 700), cut=st.lists(st.integers(0, 700), max_size=5), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_parts_are_parts_of_the_whole(n, cut, seed):
    base, x = pair(n, seed, torch.bfloat16)
    packed = pack(base, x)
    whole = unpack(packed, base, 0, n)
    ends = sorted({0, n, *(c for c in cut if c < n)})
    parts = [unpack(packed, base[a:b], a, b) for a, b in pairwise(ends)]
    assert torch.equal(torch.cat(parts), whole)


def test_packing_in_steps_changes_nothing(monkeypatch):
    base, x = pair(1000, 1, torch.bfloat16)
    whole = pack(base, x)
    monkeypatch.setattr("evomerge.merging.packed8._STEP", 128)
    stepwise = pack(base, x)
    assert torch.equal(whole.codes, stepwise.codes)
    assert torch.equal(whole.scales, stepwise.scales)


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-38, 3e38])
def test_extreme_deltas_are_finite(size):
    base = torch.zeros(130)
    x = torch.linspace(-1, 1, 130) * size
    again = unpack(pack(base, x), base, 0, 130)
    assert bool(torch.isfinite(again).all())
    assert float((again - x).abs().max()) <= torch.tensor(size)


def test_fine_tunes_in_bf16_come_back_almost_bit_for_bit():
    base, x = pair(1 << 16, 0, torch.bfloat16, 4e-4)
    found = agreement(base, x)
    assert found.equal > 0.97
    assert found.error < 0.004
    base, x = pair(1 << 16, 0, torch.float32, 4e-4)
    assert agreement(base, x).error < 0.01


def test_agreement_is_what_it_says():
    base, x = pair(640, 3, torch.float32)
    again = obvious(base, x).double()
    lost = float(((again - x.double()) ** 2).sum() / ((x.double() - base.double()) ** 2).sum())
    assert agreement(base, x) == (float((again == x.double()).double().mean()), pytest.approx(math.sqrt(lost)))
    assert agreement(base, base) == (1.0, 0.0)
    assert agreement(base[:0], base[:0]) == (1.0, 0.0)


def test_half_the_bytes_of_bf16():
    assert BYTES_PER_ELEMENT == 1.0625
    assert packed_bytes(1 << 20) == 1.0625 * (1 << 20)
    assert packed_bytes(65) == 65 + 8


def test_parts_on_the_cpu_come_in_order(monkeypatch):
    monkeypatch.setattr(feeding, "HOST_PART", 4)
    x = torch.arange(20)
    parts = list(feed(lambda a, b: [x[a:b]], 3, 13, "cpu"))
    assert [p.start for p in parts] == [3, 7, 11]
    assert torch.equal(torch.cat([p.values[0] for p in parts]), x[3:13])
    assert list(feed(lambda a, b: [x[a:b]], 3, 3, "cpu")) == []


class FakeGpu:
    """What `feeding` asks of torch.cuda, writing down the order."""

    def __init__(self):
        self.log = []

    def Stream(self, device):
        return self

    def current_stream(self, device):
        return self

    def stream(self, stream):
        return memoryview(b"")  # a context manager that does nothing

    def record_event(self):
        return f"copied {self.log[-1]}"

    def wait_event(self, event):
        self.log.append(event)


class FakeTensor:
    def record_stream(self, stream):
        pass


def test_on_a_gpu_the_next_part_is_begun_before_the_last_is_used(monkeypatch):
    gpu = FakeGpu()
    monkeypatch.setattr("torch.cuda", gpu)
    monkeypatch.setattr(feeding, "PART", 10)

    def read(start, stop):
        gpu.log.append(f"{start}-{stop}")
        return [FakeTensor()]

    for part in feed(read, 0, 25, "cuda"):
        gpu.log.append(f"use {part.start}")
    copies = ["0-10", "10-20", "copied 0-10", "use 0", "20-25", "copied 10-20", "use 10", "copied 20-25", "use 20"]
    assert gpu.log == copies
    assert list(feed(read, 5, 5, "cuda")) == []
