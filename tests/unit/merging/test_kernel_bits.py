"""Eager and compiled kernels give the same bits, which are those of the formula computed one number at a time."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging import compiled
from evomerge.merging.compiled import CompilerError, Variant
from evomerge.merging.eager import merge_eager
from evomerge.merging.elements import FULL, mix32
from evomerge.merging.kernels import Kernels, compile_kernels, worth_compiling
from evomerge.merging.settings import Cut, GtaParent, GtaSetting, LinearSetting, single
from evomerge.seeds import generator

DTYPES = {16: torch.bfloat16, 17: torch.float16, 32: torch.float32}
CUT, HIGH = Cut(0x39000000, 1 << 30), Cut(0x3A000000, 1 << 29)  # magnitudes 1.2e-4 and 4.9e-4

needs_compiler = pytest.mark.skipif(compiled.find_compiler() is None, reason="no C compiler")


def gta(n, *, low=None, high=None, mask=None, elect=True, normalize=True, scale=0.8, negative=False):
    weights = [0.3 + 0.2 * i for i in range(n)]
    if negative:
        weights[-1] = -weights[-1]
    parents = tuple(
        GtaParent(single(w), single(abs(w)), low, high, mix32(i), mask, mix32(100 + i)) for i, w in enumerate(weights)
    )
    return GtaSetting(tuple(range(n)), parents, elect, normalize and elect, single(scale), 12345)


SETTINGS = {
    "linear1": LinearSetting((1,), (1.0,), False),
    "linear3": LinearSetting((0, 1, 2), (single(0.2), single(0.3), single(-0.7)), False),
    "delta2": LinearSetting((0, 2), (single(0.2), single(1.3)), True),
    "ties3": gta(3, low=CUT),
    "ties2 negative": gta(2, low=CUT, negative=True),
    "sum of agreeing": gta(3, low=CUT, normalize=False),
    "between cuts": gta(2, low=CUT, high=HIGH, elect=False),
    "capped": gta(3, high=HIGH),
    "masked": gta(3, mask=1 << 30, elect=False),
    "masked and elected": gta(3, mask=FULL >> 2, normalize=False),
    "everything": gta(3, low=CUT, high=HIGH, mask=3 << 30),
    "dense election": gta(3),
}


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    return Kernels(tmp_path_factory.mktemp("kernels"))


def tensors(n, dtype, seed, ties=True):
    """A base and three near tensors; some entries equal, opposite, or of the magnitude of a cut."""
    rng = generator(seed, "kernels", n)
    base = torch.from_numpy(rng.standard_normal(n) * 0.02).to(dtype)
    near = [(base.double() + torch.from_numpy(rng.standard_normal(n) * 4e-4)).to(dtype) for _ in range(3)]
    if ties and n > 3:
        base[: n // 3] = 0.0
        for x, value in zip(near, (2.0**-13, -(2.0**-13), 2.0**-11), strict=True):
            x[: n // 4] = value
    return base, near


def as_bits(x):
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def run(kernels, setting, base, inputs):
    out = torch.full_like(base, float("nan"))
    finite = kernels.merge(setting, base, inputs, out)
    return out, finite


def obvious(setting, base, inputs):
    """The formula in numpy's fp32 scalars, one element at a time."""
    result = np.empty(base.numel(), np.float32)
    b, xs = base.float().numpy(), [inputs[i].float().numpy() for i in setting.inputs]
    for j in range(base.numel()):
        if isinstance(setting, LinearSetting):
            terms = [
                np.float32(c) * ((x[j] - b[j]) if setting.deltas else x[j])
                for c, x in zip(setting.coefficients, xs, strict=True)
            ]
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            result[j] = total + b[j] if setting.deltas else total
        else:
            result[j] = obvious_gta(setting, j, b[j], [x[j] for x in xs])
    return torch.from_numpy(result).to(base.dtype)


def obvious_gta(setting, j, b, xs):
    values, total = [], np.float32(0)
    for p, x in zip(setting.parents, xs, strict=True):
        delta = x - b
        magnitude, tie = int(np.abs(delta).view(np.uint32)), mix32(j ^ setting.tie_salt) ^ p.tie_salt
        above = {c: magnitude > c.bits or (magnitude == c.bits and tie <= c.bound) for c in (p.low, p.high) if c}
        keep = above.get(p.low, True) and not above.get(p.high, False)
        keep = keep and (p.mask_bound is None or mix32(j ^ p.mask_salt) <= p.mask_bound)
        values.append(np.float32(p.gain) * delta if keep else np.float32(0))
        total = total + values[-1]
    if setting.elect:
        agreeing = [
            (v, np.float32(p.weight)) for v, p in zip(values, setting.parents, strict=True) if v * np.sign(total) > 0
        ]
        total = sum((v for v, _ in agreeing), np.float32(0))
        divisor = sum((w for _, w in agreeing), np.float32(0))
        if setting.normalize and divisor:
            total = total / divisor
    return total * np.float32(setting.scale) + b


@needs_compiler
@pytest.mark.parametrize("code", DTYPES)
@pytest.mark.parametrize("name", SETTINGS)
def test_eager_and_compiled_give_the_same_bits(kernels, name, code):
    setting = SETTINGS[name]

    @given(n=st.integers(1, 3000), seed=st.integers(0, 1000))
    @settings(deadline=None, max_examples=8, database=None)
    def check(n, seed):
        base, inputs = tensors(n, DTYPES[code], seed)
        eager, finite = run(Kernels(), setting, base, inputs)
        fused, finite_too = run(kernels, setting, base, inputs)
        assert torch.equal(as_bits(eager), as_bits(fused))
        assert finite
        assert finite_too

    check()
    assert kernels._functions[compiled.variant_of(setting, code)] is not None


@pytest.mark.parametrize("name", SETTINGS)
def test_eager_is_the_formula(name):
    base, inputs = tensors(97, torch.float32, 5)
    out, _ = run(Kernels(), SETTINGS[name], base, inputs)
    assert torch.equal(as_bits(out), as_bits(obvious(SETTINGS[name], base, inputs)))


@given(chunk=st.integers(1, 400), name=st.sampled_from(sorted(SETTINGS)))
@settings(deadline=None, max_examples=40)
def test_chunks_do_not_matter(chunk, name):
    base, inputs = tensors(333, torch.bfloat16, 7)
    setting = SETTINGS[name]
    chosen = [inputs[i] for i in setting.inputs]
    whole, parts = torch.empty_like(base), torch.empty_like(base)
    merge_eager(setting, base, chosen, whole)
    merge_eager(setting, base, chosen, parts, chunk=chunk)
    assert torch.equal(as_bits(whole), as_bits(parts))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_a_lone_coefficient_of_one_copies_every_pattern(kernels, dtype):
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    x = patterns.view(dtype) if dtype != torch.float32 else (patterns.to(torch.int32) << 16).view(torch.float32)
    x = x[torch.isfinite(x)]
    for used in (Kernels(), kernels):
        out, finite = run(used, LinearSetting((0,), (1.0,), False), x, [x])
        assert finite
        assert torch.equal(as_bits(out), as_bits(x))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "overflow"])
def test_what_is_not_finite_is_told(kernels, dtype, bad):
    x = torch.zeros(100, dtype=dtype)
    x[63] = torch.finfo(dtype).max if bad == "overflow" else bad
    base = torch.zeros_like(x)
    for setting in (
        LinearSetting((0,), (2.0,), False),
        LinearSetting((0,), (2.0,), True),
        gta(1, elect=False, scale=8.0),
    ):
        for used in (Kernels(), kernels):
            assert not run(used, setting, base, [x])[1]


def test_the_largest_finite_value_is_finite(kernels):
    for dtype in DTYPES.values():
        x = torch.full((70_000,), torch.finfo(dtype).max, dtype=dtype)
        for used in (Kernels(), kernels):
            assert run(used, LinearSetting((0,), (1.0,), False), x, [x])[1]


def test_an_election_that_overflows_is_not_silent(kernels):
    base = torch.zeros(8)
    inputs = [torch.full((8,), 3e38), torch.full((8,), -3e38), torch.full((8,), 3e38)]
    setting = GtaSetting((0, 1), (GtaParent(4.0, 4.0), GtaParent(4.0, 4.0)), True, True, 1.0)
    for used in (Kernels(), kernels):
        assert not run(used, setting, base, inputs)[1]


def test_mixed_dtypes_fall_back_to_eager(kernels):
    base, inputs = tensors(50, torch.bfloat16, 1)
    wide = [inputs[0].float(), inputs[1], inputs[2]]
    out, _ = run(kernels, SETTINGS["ties3"], base, wide)
    again, _ = run(Kernels(), SETTINGS["ties3"], base, inputs)
    assert torch.equal(out, again)


def test_no_inputs_left():
    base, inputs = tensors(9, torch.bfloat16, 1)
    assert torch.equal(run(Kernels(), LinearSetting((), (), True), base, inputs)[0], base)
    assert not run(Kernels(), LinearSetting((), (), False), base, inputs)[0].any()


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_histogram_and_collect_agree(kernels, dtype):
    base, (x, *_) = tensors(5001, dtype, 3)
    counts = Kernels().histogram(base, x)
    np.testing.assert_array_equal(counts, kernels.histogram(base, x))
    assert counts.sum() == 5001
    for bin_index in np.flatnonzero(counts)[::50]:
        slow, fast = (k.collect(base, x, int(bin_index), int(counts[bin_index])) for k in (Kernels(), kernels))
        np.testing.assert_array_equal(slow.indices, fast.indices)
        np.testing.assert_array_equal(slow.low, fast.low)


@needs_compiler
def test_compiled_once_and_found_again(tmp_path):
    variant = Variant("linear", 16, 2)
    first = compiled.build(variant, tmp_path / "cache")
    stamp = first.stat().st_mtime_ns
    assert compiled.build(variant, tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == stamp
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [first.name]


def test_without_a_compiler_everything_runs_eagerly(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "find_compiler", lambda: None)
    with pytest.raises(CompilerError, match="cannot be compiled"):
        compiled.build(Variant("linear", 16, 2), tmp_path)
    assert not compile_kernels([Variant("linear", 16, 2)], tmp_path).compiled
    assert not worth_compiling(10**9, 1000, [Variant("gta", 16, 3)])
    base, inputs = tensors(9, torch.bfloat16, 1)
    late = Kernels(tmp_path)
    assert torch.equal(
        run(late, SETTINGS["ties3"], base, inputs)[0], run(Kernels(), SETTINGS["ties3"], base, inputs)[0]
    )


def test_a_failing_compiler_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "find_compiler", lambda: "/bin/false")
    with pytest.raises(CompilerError, match="/bin/false"):
        compiled.build(Variant("linear", 16, 2), tmp_path)
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_kernels_travel_between_processes(kernels):
    copy = pickle.loads(pickle.dumps(kernels))
    assert copy.folder == kernels.folder
    assert copy.compiled


@needs_compiler
def test_worth_compiling_weighs_work_against_compile_time():
    ties = [Variant("gta", 16, 3)]
    assert worth_compiling(10**9, 10, ties)
    assert not worth_compiling(10**5, 10, ties)
    assert not worth_compiling(10**9, 10, [])
