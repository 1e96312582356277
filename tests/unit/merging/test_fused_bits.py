"""The fused kernels: eager and compiled give the same bits, whatever the parts, dtypes and number of models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging import compiled
from evomerge.merging.eager import merge_eager
from evomerge.merging.elements import mix32
from evomerge.merging.fused_math import exp2, log2, tanh
from evomerge.merging.fused_methods import one_each, singles
from evomerge.merging.fused_settings import FUSED_KINDS, FusedSetting, Rows
from evomerge.merging.kernels import Kernels
from evomerge.merging.lanes import LaneSum
from evomerge.seeds import generator

DTYPES = {16: torch.bfloat16, 17: torch.float16, 32: torch.float32}
CUT = (0x39000000, 1 << 30)  # magnitude 1.2e-4, a quarter of the equal ones above it
ALL = (0, 1, 2)
WEIGHTS = one_each([0.3, -0.5, 0.7])
ROWS = Rows(37, np.linspace(0.1, 1.0, 120).astype(np.float32).tobytes())
WORDS = tuple((*CUT, mix32(i), 1 << 31, mix32(50 + i)) for i in ALL)
PCB = tuple(singles(2e-5, 8e-4, 2e-5, 1 / 7.8e-4, 0.2, 6.0, 1 / 5.8, gain) for gain in (1.2, 0.9, -0.4))
SPREAD = tuple(singles(gain, 3e-4, slope, 0.4, 0.1) for gain, slope in ((0.3, 0.2), (-0.5, 0.0), (0.7, 0.5)))

needs_compiler = pytest.mark.skipif(compiled.find_compiler() is None, reason="no C compiler")


def universal(*switches):
    return FusedSetting(
        "universal", ALL, singles(0.8, 0.3, 2.5), SPREAD, (mix32(9),), WORDS, switches=frozenset(switches)
    )


SETTINGS = {
    "ram": FusedSetting("ram", ALL, singles(1.0, 2e-4), one_each([1.0, 1.1, 1.2])),
    "sce": FusedSetting("sce", ALL, parents=one_each([0.3, 0.5, 0.2])),
    "sce selected": FusedSetting(
        "sce", ALL, parents=one_each([0.3, 0.5, 0.2]), words=(0x34800000, 1 << 31, 7, 8), switches=frozenset({"trim"})
    ),
    "nearswap": FusedSetting("nearswap", (1,), singles(1.0, 2e-4)),
    "gate": FusedSetting("gate", (2,), singles(1.0, 1e-4), rows=ROWS),
    "magmax": FusedSetting("magmax", ALL, singles(0.5), WEIGHTS),
    "magmax of one": FusedSetting("magmax", (1,), singles(0.5), WEIGHTS[:1]),
    "emr": FusedSetting("emr", ALL, singles(0.5), WEIGHTS),
    "consensus": FusedSetting("consensus", ALL, singles(0.5, 0.4, 2.0), WEIGHTS),
    "sign": FusedSetting("sign", ALL, parents=WEIGHTS),
    "sign of the largest": FusedSetting(
        "sign", (0, 2), (1.0,), WEIGHTS[:2], (mix32(9),), tuple(w[:3] for w in WORDS[:2]), switches=frozenset({"trim"})
    ),
    "pcb": FusedSetting("pcb", ALL, singles(1.0, 4.3), PCB),
    "universal": universal(),
    "universal trim": universal("trim"),
    "universal mask": universal("trim", "mask"),
    "universal spread": universal("spread"),
    "universal elect": universal("trim", "elect"),
    "universal sharp": universal("sharp"),
    "universal everything": universal("trim", "spread", "elect", "sharp"),
}


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    return Kernels(tmp_path_factory.mktemp("fused"))


def tensors(n, dtype, seed):
    """A base and three near tensors; some deltas vanish, are equal, opposite, or of the magnitude of a cut."""
    rng = generator(seed, "fused", n)
    base = torch.from_numpy(rng.standard_normal(n) * 0.02).to(dtype)
    near = [(base.double() + torch.from_numpy(rng.standard_normal(n) * 4e-4)).to(dtype) for _ in ALL]
    if n > 8:
        base[: n // 3] = 0.0
        for x, value in zip(near, (2.0**-13, -(2.0**-13), 2.0**-11), strict=True):
            x[: n // 4] = value
        near[1][: n // 8] = 0.0
        near[2][: n // 6] = 0.0
    return base, near


def bits(x):
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def run(kernels, setting, base, inputs, *, out_dtype=None, first=0):
    out = torch.full(base.shape, float("nan"), dtype=out_dtype or base.dtype)
    assert kernels.merge(setting, base, inputs, out, first=first)
    return out


def test_every_kind_is_tried():
    assert {s.kind for s in SETTINGS.values()} == FUSED_KINDS.keys()


@needs_compiler
@pytest.mark.parametrize(
    ("name", "code"), [*((n, 16) for n in SETTINGS), ("pcb", 17), ("universal everything", 32), ("gate", 32)]
)
def test_eager_and_compiled_give_the_same_bits(kernels, name, code):
    setting = SETTINGS[name]

    @given(n=st.integers(1, 3000), seed=st.integers(0, 1000))
    @settings(deadline=None, max_examples=4, database=None)
    def check(n, seed):
        base, inputs = tensors(n, DTYPES[code], seed)
        assert torch.equal(bits(run(Kernels(), setting, base, inputs)), bits(run(kernels, setting, base, inputs)))

    check()
    assert kernels._functions[compiled.variant_of(setting, code)] is not None


@needs_compiler
@pytest.mark.parametrize("name", ["ram", "gate", "universal everything"])
def test_dtypes_may_be_mixed(kernels, name):
    base, inputs = tensors(700, torch.float32, 1)
    mixed = [inputs[0].bfloat16(), inputs[1], inputs[2].half()]
    eager = run(Kernels(), SETTINGS[name], base.bfloat16(), mixed, out_dtype=torch.float16)
    assert torch.equal(eager, run(kernels, SETTINGS[name], base.bfloat16(), mixed, out_dtype=torch.float16))


@given(name=st.sampled_from(sorted(SETTINGS)), at=st.integers(1, 399), chunk=st.integers(1, 500))
@settings(deadline=None, max_examples=60)
def test_parts_and_chunks_do_not_matter(kernels, name, at, chunk):
    base, inputs = tensors(400, torch.bfloat16, 3)
    setting = SETTINGS[name]
    whole = run(Kernels(), setting, base, inputs)
    for used in (Kernels(), kernels):
        head = run(used, setting, base[:at], [x[:at] for x in inputs])
        tail = run(used, setting, base[at:], [x[at:] for x in inputs], first=at)
        assert torch.equal(torch.cat([head, tail]), whole)
    chunked = torch.empty_like(base)
    merge_eager(setting, base, [inputs[i] for i in setting.inputs], chunked, chunk)
    assert torch.equal(chunked, whole)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_not_finite_is_told(kernels, name):
    base, inputs = tensors(300, torch.bfloat16, 4)
    for x in inputs:
        x[100:] = float("nan")  # some of them survive every mask
    for used in (Kernels(), kernels):
        assert not used.merge(SETTINGS[name], base, inputs, torch.empty_like(base))


@needs_compiler
@pytest.mark.parametrize("name", [n for n, s in SETTINGS.items() if s.kind == "universal"])
@pytest.mark.parametrize("n", [5, 1024, 5000])
def test_energies_are_the_same_number(kernels, name, n):
    base, inputs = tensors(n, torch.bfloat16, 5)
    eager = Kernels().energy(SETTINGS[name], base, inputs)
    assert eager == kernels.energy(SETTINGS[name], base, inputs)
    unscaled = replace(SETTINGS[name], shared=(1.0, *SETTINGS[name].shared[1:]))
    merged = run(Kernels(), unscaled, base, inputs, out_dtype=torch.float32)
    assert eager == pytest.approx(float((merged.double() - base.double()).square().sum()), rel=1e-3)


@needs_compiler
@pytest.mark.parametrize("name", ["sce selected", "pcb"])
@pytest.mark.parametrize("n", [1, 7, 2000])
def test_scores_are_the_same_numbers(kernels, name, n):
    base, inputs = tensors(n, torch.bfloat16, 8)
    slow, fast = (k.scores(SETTINGS[name], base, inputs) for k in (Kernels(), kernels))
    assert len(fast) == (3 if name == "pcb" else 1)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(slow, fast, strict=True))


def test_many_models_compete_without_a_compiled_kernel(kernels):
    base, inputs = tensors(50, torch.float32, 6)
    many = FusedSetting("pcb", tuple(range(14)), singles(1.0, 20.0), PCB[:1] * 14)
    out = run(kernels, many, base, [inputs[i % 3] for i in range(14)])
    assert torch.isfinite(out).all()
    assert not any(v.n == 14 for v in kernels._functions)


class TestMath:
    def test_exp2(self):
        x = torch.linspace(-126, 127, 100_001)
        assert ((exp2(x).double() / torch.exp2(x.double())) - 1).abs().max() < 7e-7
        assert exp2(torch.zeros(1)) == 1

    def test_log2(self):
        x = torch.linspace(1e-6, 1, 100_001)
        assert (log2(x).double() - torch.log2(x.double())).abs().max() < 2e-6
        assert log2(torch.ones(1)) == 0

    def test_tanh(self):
        x = torch.linspace(-1, 1, 100_001)
        assert (tanh(x).double() - torch.tanh(x.double())).abs().max() < 7e-7

    def test_lane_sums_do_not_depend_on_the_parts(self):
        values = torch.from_numpy(generator(0, "lanes").standard_normal(5000))
        whole, parts = LaneSum(), LaneSum()
        whole.add(values)
        for start in (0, 2048, 4096):
            parts.add(values[start : start + 2048])
        assert whole.total() == parts.total()
        assert whole.total() == pytest.approx(float(values.sum()), rel=1e-12)
