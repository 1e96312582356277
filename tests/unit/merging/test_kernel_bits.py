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
from evomerge.merging.settings import (
    Cut,
    GtaParent,
    GtaSetting,
    LinearSetting,
    Ramp,
    VectorSetting,
    ranked_inputs,
    single,
)
from evomerge.seeds import generator

DTYPES = {16: torch.bfloat16, 17: torch.float16, 32: torch.float32}
CUT, HIGH = Cut(0x39000000, 1 << 30), Cut(0x3A000000, 1 << 29)  # magnitudes 1.2e-4 and 4.9e-4

needs_compiler = pytest.mark.skipif(compiled.find_compiler() is None, reason="no C compiler")


RAMP = Ramp(single(0.3), single(0.4 / 255), single(0.3), single(0.4 / 255))


def gta(
    n, *, low=None, high=None, mask=None, ramps=None, elect=True, normalize=True, scale=0.8, negative=False, mean=False
):
    weights = [0.3 + 0.2 * i for i in range(n)]
    if negative:
        weights[-1] = -weights[-1]
    parents = tuple(
        GtaParent(single(w), single(abs(w)), low, high, mix32(i), mask, mix32(100 + i), ramps[i] if ramps else None)
        for i, w in enumerate(weights)
    )
    return GtaSetting(tuple(range(n)), parents, elect, normalize and (elect or mean), single(scale), 12345)


def vectors(by, inputs=(0, 1, 2), deltas=False):
    """Coefficients for a tensor of rows of 7 elements; 3010 elements at most."""
    count, length = (7, 430) if by == "columns" else (430, 7)
    table = generator(3, "table", by).standard_normal((len(inputs), count)).astype(np.float32)
    return VectorSetting(inputs, table.tobytes(), count, length, by, deltas)


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
    "mean of the kept": gta(3, low=CUT, elect=False, mean=True),
    "masked means": gta(2, mask=1 << 30, elect=False, mean=True, negative=True),
    "by rank": gta(3, ramps=[RAMP] * 3, elect=False),
    "by rank, not rescaled": gta(2, ramps=[Ramp(single(0.3), single(0.4 / 255), 1.0, 0.0)] * 2, elect=False),
    "by rank, one dense, elected": gta(3, ramps=[RAMP, None, RAMP]),
    "rows": vectors("rows"),
    "rows of deltas": vectors("rows", (0, 2), deltas=True),
    "columns": vectors("columns"),
    "columns of deltas": vectors("columns", (1,), deltas=True),
}
MIXED = ["linear3", "delta2", "ties3", "by rank, one dense, elected", "rows of deltas"]


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


def ranks_of(setting, n):
    """Some ranks; the kernels do not ask where they come from."""
    ranks = torch.from_numpy(generator(n, "ranks").integers(0, 256, n).astype(np.uint8))
    return {i: ranks.roll(i) for i in ranked_inputs(setting)}


def run(kernels, setting, base, inputs, dtype=None):
    out = torch.full_like(base, float("nan"), dtype=dtype)
    finite = kernels.merge(setting, base, inputs, out, ranks=ranks_of(setting, base.numel()))
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
        elif isinstance(setting, VectorSetting):
            table = np.frombuffer(setting.table, np.float32).reshape(len(xs), -1)
            column = table[:, j % 7 if setting.by == "columns" else j // 7]
            total = None
            for c, x in zip(column, xs, strict=True):
                term = c * ((x[j] - b[j]) if setting.deltas else x[j])
                total = term if total is None else total + term
            result[j] = total + b[j] if setting.deltas else total
        else:
            ranks = [ranks_of(setting, base.numel()).get(i) for i in setting.inputs]
            result[j] = obvious_gta(
                setting, j, b[j], [x[j] for x in xs], [r if r is None else int(r[j]) for r in ranks]
            )
    return torch.from_numpy(result).to(base.dtype)


def obvious_gta(setting, j, b, xs, ranks):
    values, total, kept = [], np.float32(0), np.float32(0)
    for p, x, rank in zip(setting.parents, xs, ranks, strict=True):
        delta = x - b
        magnitude, tie = int(np.abs(delta).view(np.uint32)), mix32(j ^ setting.tie_salt) ^ p.tie_salt
        above = {c: magnitude > c.bits or (magnitude == c.bits and tie <= c.bound) for c in (p.low, p.high) if c}
        keep = above.get(p.low, True) and not above.get(p.high, False)
        keep = keep and (p.mask_bound is None or mix32(j ^ p.mask_salt) <= p.mask_bound)
        value = np.float32(p.gain) * delta
        if p.ramp is not None:
            r = np.float32(rank)
            drawn = np.float32(mix32(j ^ p.mask_salt) >> 8) * np.float32(2.0**-24)
            keep = keep and drawn < np.float32(p.ramp.keep) + np.float32(p.ramp.keep_step) * r
            value = value / (np.float32(p.ramp.divisor) + np.float32(p.ramp.divisor_step) * r)
        values.append(value if keep else np.float32(0))
        total = total + values[-1]
        kept = kept + (np.float32(p.weight) if keep else np.float32(0))
    if setting.normalize and not setting.elect and kept:
        total = total / kept
    if setting.elect:
        agreeing = [
            (v, np.float32(p.weight)) for v, p in zip(values, setting.parents, strict=True) if v * np.sign(total) > 0
        ]
        total = sum((v for v, _ in agreeing), np.float32(0))
        divisor = sum((w for _, w in agreeing), np.float32(0))
        if setting.normalize and divisor:
            total = total / divisor
    return total * np.float32(setting.scale) + b


FAMILIES = ("linear3", "delta2", "everything", "by rank, one dense, elected", "rows", "columns of deltas")
PAIRS = [(name, code) for name in SETTINGS for code in DTYPES if code == 16 or name in FAMILIES]


@needs_compiler
@pytest.mark.parametrize(("name", "code"), PAIRS)
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
    chosen, ranks = [inputs[i] for i in setting.inputs], ranks_of(setting, 333)
    whole, parts = torch.empty_like(base), torch.empty_like(base)
    merge_eager(setting, base, chosen, whole, ranks=ranks)
    merge_eager(setting, base, chosen, parts, chunk=chunk, ranks=ranks)
    assert torch.equal(as_bits(whole), as_bits(parts))


@given(cut=st.integers(1, 332), name=st.sampled_from(sorted(SETTINGS)))
@settings(deadline=None, max_examples=40)
def test_a_tensor_may_be_merged_in_parts(kernels, cut, name):
    base, inputs = tensors(333, torch.bfloat16, 7)
    setting, ranks = SETTINGS[name], ranks_of(SETTINGS[name], 333)
    whole, _ = run(kernels, setting, base, inputs)
    for used in (Kernels(), kernels):
        out = torch.empty_like(base)
        for part in (slice(0, cut), slice(cut, 333)):
            own = {i: r[part] for i, r in ranks.items()}
            used.merge(setting, base[part], [x[part] for x in inputs], out[part], ranks=own, first=part.start)
        assert torch.equal(as_bits(whole), as_bits(out))


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


@needs_compiler
@pytest.mark.parametrize(("name", "out"), list(zip(MIXED, [*DTYPES.values()] * 2, strict=False)))
def test_mixed_dtypes_are_compiled_and_have_the_eager_bits(kernels, name, out):
    base, inputs = tensors(501, torch.bfloat16, 1)
    mixed = [inputs[0].float() + 1e-6, inputs[1].half(), inputs[2]]
    before = set(kernels._functions)
    fused, _ = run(kernels, SETTINGS[name], base, mixed, out)
    eager, _ = run(Kernels(), SETTINGS[name], base, mixed, out)
    assert fused.dtype == out
    assert torch.equal(as_bits(fused), as_bits(eager))
    (variant,) = set(kernels._functions) - before
    assert variant.mixed
    assert kernels._functions[variant] is not None


def test_a_dtype_without_compiled_functions_falls_back_to_eager(kernels):
    base, inputs = tensors(50, torch.bfloat16, 1)
    wide = [inputs[0].double(), inputs[1], inputs[2]]
    out, _ = run(kernels, SETTINGS["ties3"], base, wide)
    again, _ = run(Kernels(), SETTINGS["ties3"], base, inputs)
    assert torch.equal(out, again)


@needs_compiler
@pytest.mark.parametrize("code", DTYPES)
def test_compiled_lower_sums_and_ranks_agree(kernels, code):
    for base_type in {DTYPES[code], torch.bfloat16}:
        base, (x, *_) = tensors(3000, DTYPES[code], 3)
        base = base.to(base_type)
        np.testing.assert_array_equal(Kernels().lower_sums(base, x), kernels.lower_sums(base, x))
        for length in (1, 2, 5, 300, 3000):
            assert torch.equal(Kernels().ranks(base, x, length), kernels.ranks(base, x, length))


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
