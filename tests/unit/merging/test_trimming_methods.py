"""Breadcrumbs, rescaling, DELLA, Localize-and-Stitch: closed forms, authors' values, and what is mended."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.merging.della_methods import check_epsilon
from evomerge.merging.kernels import Kernels
from evomerge.merging.methods import Parameters, TensorFacts, load_method
from evomerge.merging.settings import GtaSetting, LinearSetting
from evomerge.merging.thresholds import Magnitudes
from evomerge.seeds import generator

SHAPES = [(40, 50), (3, 700), (700, 3), (4, 5, 60)]


def parameters(method, n, shared=None, seed=0, tensor="w", **columns):
    specs = load_method(method).spec.parameters
    values = {name: p.default for name, p in specs.items() if not p.per_parent} | (shared or {})
    rows = tuple(
        {name: p.default for name, p in specs.items() if p.per_parent} | {k: v[i] for k, v in columns.items()}
        for i in range(n)
    )
    return Parameters(tensor, tuple(f"m{i}" for i in range(n)), values, rows, seed)


def models(shape=(40, 50), n=3, seed=0, dtype=torch.float32):
    """A base and models near it; bf16 values, so that many magnitudes are equal."""
    rng = generator(seed, "trimming", str(shape))
    base = torch.from_numpy(rng.standard_normal(shape) * 0.02).bfloat16()
    near = [(base.double() + torch.from_numpy(rng.standard_normal(shape) * 4e-4)).bfloat16() for _ in range(n)]
    return base.to(dtype), [x.to(dtype) for x in near]


def merge(method, base, inputs, shared=None, seed=0, **columns):
    return load_method(method).merge(base, inputs, parameters(method, len(inputs), shared, seed, **columns))


def alone(method, delta, shared=None, **values):
    """What one model with this delta leaves of it, weight 1 and base 0."""
    columns = {"weight": [1.0]} | {k: [v] for k, v in values.items()}
    return merge(method, torch.zeros_like(delta), [delta], shared, **columns)


class TestBreadcrumbs:
    def test_the_authors_values_on_a_single_row(self):
        # TaskVectorMiddleKeep(top_k_keep=0.4, top_k_remove=0.2) of rezazzr/breadcrumbs@f89fc66, which cuts by row
        row = torch.tensor([[0.3, -1.1, 0.05, 0.8, -0.45, 0.9, -0.02, 0.6, 1.4, -0.7]])
        expected = torch.tensor([[0.0, 0.0, 0.0, 0.8, 0.0, 0.9, 0.0, 0.6, 0.0, -0.7]])
        assert torch.equal(alone("breadcrumbs", row, density=0.4, gamma=0.2), expected)

    @given(
        n=st.integers(1, 300),
        density=st.floats(0.0, 1.0),
        gamma=st.sampled_from([0.0, 0.01, 0.3, 1.0]) | st.floats(0, 1),
    )
    @settings(deadline=None, max_examples=80)
    def test_exactly_the_counts(self, n, density, gamma):
        delta = torch.from_numpy(generator(n, "counts").choice([0.25, 0.5, -0.5, 1.0], (1, n)).astype(np.float32))
        merged = alone("breadcrumbs", delta, density=density, gamma=gamma)
        top = round(gamma * n)
        wanted = min(max(1, round(density * n)) if density > 0 else 0, n - top)
        kept = merged != 0
        assert int(kept.sum()) == wanted
        assert torch.equal(merged[kept], delta[kept])
        larger = (delta.abs() > delta.abs()[kept].max()).sum() if wanted else torch.tensor(0)
        assert int(larger) <= top
        if 0 < wanted < n - top:
            assert int((delta.abs() >= delta.abs()[kept].min()).sum()) >= top + wanted

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_gamma_zero_is_trimming(self, shape):
        base, inputs = models(shape)
        columns = {"weight": [0.5, 0.3, -0.2], "density": [0.2, 0.5, 0.9]}
        ties = merge("ties", base, inputs, {"normalize": False}, **columns)
        crumbs = merge("breadcrumbs_ties", base, inputs, gamma=[0.0] * 3, **columns)
        assert torch.equal(ties, crumbs)

    def test_small_tensors_keep_their_delta(self):
        # with gamma * numel < 1, mergekit before 0.1.5 drops the whole delta
        delta = torch.arange(1.0, 10.0).view(3, 3)
        merged = alone("breadcrumbs", delta, density=0.5)
        assert torch.equal(merged, torch.where(delta > 5, delta, 0))

    @pytest.mark.parametrize("normalize", [False, True])
    def test_sum_of_what_is_kept(self, normalize):
        base, inputs = models()
        columns = {"density": [0.3, 0.6, 1.0], "gamma": [0.1, 0.0, 0.05]}
        shared = {"normalize": normalize, "lambda": 0.7}
        merged = merge("breadcrumbs", base, inputs, shared, weight=[0.5, 0.3, 0.4], **columns)
        one_hot = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])  # who is kept at a tie depends on the names
        kept = [merge("breadcrumbs", base, inputs, weight=w, **columns) - base for w in one_hot]
        total = 0.7 * (0.5 * kept[0] + 0.3 * kept[1] + 0.4 * kept[2]) / (1.2 if normalize else 1.0)
        torch.testing.assert_close(merged, base + total, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
    def test_one_axis_is_dense(self, method):
        base, inputs = models((90,))
        dense = merge(method, base, inputs, weight=[0.5] * 3, density=[1.0] * 3, gamma=[0.0] * 3)
        assert torch.equal(merge(method, base, inputs, weight=[0.5] * 3, density=[0.1] * 3, gamma=[0.3] * 3), dense)

    def test_nothing_dropped_is_task_arithmetic(self):
        base, inputs = models()
        weights = [0.5, 0.3, 0.1]
        merged = merge("breadcrumbs", base, inputs, weight=weights, gamma=[0.0] * 3)
        assert torch.equal(merged, merge("task_arithmetic", base, inputs, weight=weights))


class TestRescale:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @given(n=st.integers(1, 500), count=st.data(), scale=st.sampled_from([0.0, 1e-42, 1e-6, 4e-4, 1.0]))
    @settings(deadline=None, max_examples=40)
    def test_norms_are_exact_sums(self, dtype, n, count, scale):
        rng = generator(n, "norm")
        base = torch.from_numpy(rng.standard_normal(n) * 0.02 * (scale > 1e-40)).to(dtype)
        x = (base.double() + torch.from_numpy(rng.standard_normal(n)) * scale).to(dtype)
        sizes = sorted((x.float() - base.float()).abs().tolist(), reverse=True)
        wanted = count.draw(st.integers(1, n))
        found = Magnitudes.measure(base, x, Kernels()).norm(wanted, base, x)
        assert found == pytest.approx(math.fsum(sizes[:wanted]), rel=1e-15, abs=0)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("gamma", [None, 0.05])
    def test_what_is_kept_gets_the_norm_of_the_whole(self, shape, gamma):
        base, inputs = models(shape, 1)
        method, rest = ("ties", {}) if gamma is None else ("breadcrumbs", {"gamma": gamma})
        delta = inputs[0] - base
        merged = alone(method, delta, {"rescale": True}, density=0.4, **rest)
        plain = alone(method, delta, density=0.4, **rest)
        assert torch.equal(merged != 0, plain != 0)
        assert float(merged.double().abs().sum()) == pytest.approx(float(delta.double().abs().sum()), rel=1e-6)
        assert float(plain.double().abs().sum()) < 0.95 * float(delta.double().abs().sum())

    def test_the_factor_is_at_most_ten(self):
        delta = torch.full((10, 100), 1.0)
        merged = alone("ties", delta, {"rescale": True}, density=0.001)
        assert sorted(set(merged.view(-1).tolist())) == [0.0, 10.0]

    def test_a_delta_of_zeros_has_no_factor(self):
        assert not alone("ties", torch.zeros(4, 5), {"rescale": True}, density=0.3).any()

    def test_one_axis_and_full_density_are_not_rescaled(self):
        base, inputs = models((60,))
        columns = {"weight": [0.5] * 3, "density": [0.2] * 3}
        expected = merge("ties", base, inputs, **columns)
        assert torch.equal(merge("ties", base, inputs, {"rescale": True}, **columns), expected)


def probabilities(delta, density, epsilon):
    """The paper's, one row after the other; equal magnitudes share their mean rank."""
    rows = delta.abs().reshape(-1, delta.shape[-1]).double().numpy()
    result = np.empty_like(rows)
    for r, row in enumerate(rows):
        rank = [(np.sum(row < v) + np.sum(row <= v) - 1) / 2 for v in row]
        result[r] = density - epsilon + 2 * epsilon * np.array(rank) / (row.size - 1)
    return result.reshape(delta.shape)


class TestDella:
    def test_the_authors_factors(self):
        # rank_magnitude(density=0.7, epsilon=0.07) of declare-lab/della@8067515 divides by these probabilities
        row = torch.tensor([[0.5, -2.0, 0.1, 1.0, -0.7]])
        expected = torch.tensor([[0.665, 0.77, 0.63, 0.735, 0.7]])
        for seed in range(12):
            columns = {"weight": [1.0], "density": [0.7], "epsilon": [0.07]}
            merged = merge("della_linear", torch.zeros(1, 5), [row], seed=seed, **columns)
            kept = merged != 0
            torch.testing.assert_close((row / expected)[kept], merged[kept], rtol=1e-3, atol=0)

    @given(rows=st.integers(1, 5), length=st.integers(2, 700), levels=st.sampled_from([3, 50, 10**6]))
    @settings(deadline=None, max_examples=40)
    def test_ranks_are_the_papers_within_the_stored_step(self, rows, length, levels):
        rng = generator(length, "ranks")
        delta = torch.from_numpy(rng.integers(-levels, levels + 1, (rows, length)).astype(np.float32))
        ranks = Kernels().ranks(torch.zeros(delta.numel()), delta.view(-1), length)
        found = 0.35 + 0.3 * ranks.double().view(delta.shape).numpy() / 255
        np.testing.assert_allclose(found, probabilities(delta, 0.5, 0.15), atol=0.15 / 255 + 1e-9)

    @pytest.mark.parametrize("shape", [(40, 50), (4, 5, 60)], ids=str)
    def test_the_expectation_is_the_delta_where_the_l1_rule_is_off(self, shape):
        base, inputs = models(shape, 1)
        delta = inputs[0] - base
        draws = [alone_della(delta, seed) for seed in range(150)]
        ratio = torch.stack(draws).double().mean(0) / delta.double()
        sizes = probabilities(delta, 0.5, 0.15)
        moved = (delta != 0).numpy()
        for part in ((sizes < 0.4) & moved, (sizes > 0.6) & moved):
            assert float(ratio.numpy()[part].mean()) == pytest.approx(1.0, abs=0.02)

    def test_larger_entries_are_kept_more_often(self):
        delta = torch.arange(1.0, 1001.0).repeat(40, 1)
        kept = (alone_della(delta, 0) != 0).float().mean(0)
        assert float(kept.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(kept[:100].mean()) == pytest.approx(0.365, abs=0.03)
        assert float(kept[-100:].mean()) == pytest.approx(0.635, abs=0.03)

    def test_masks_are_nested_in_the_density(self):
        delta = torch.arange(1.0, 1001.0).repeat(40, 1)
        kept = [alone_della(delta, 3, density=d) != 0 for d in (0.3, 0.5, 0.7)]
        assert not (kept[0] & ~kept[1]).any()
        assert not (kept[1] & ~kept[2]).any()

    def test_without_rescaling_values_stay(self):
        base, inputs = models(n=1)
        delta = inputs[0] - base
        merged = alone_della(delta, 0, shared={"rescale": False})
        assert torch.equal(merged[merged != 0], delta[merged != 0])

    def test_epsilon_zero_drops_like_dare(self):
        base, inputs = models()
        columns = {"weight": [0.5, 0.3, 0.4], "density": [0.4, 0.6, 0.8]}
        della = merge("della_linear", base, inputs, epsilon=[0.0] * 3, **columns)
        dare = merge("dare_linear", base, inputs, **columns)
        different = float(((della != base) != (dare != base)).float().mean())
        assert different < 1e-3  # 24 bits of the same hash
        same = (della != base) == (dare != base)
        torch.testing.assert_close(della[same], dare[same], rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("method", ["della", "della_linear"])
    def test_rows_of_one_element_have_the_middle_probability(self, method):
        # mergekit divides by the range of the ranks there, which is zero
        base, x = torch.zeros(2000, 1), torch.ones(2000, 1)
        merged = merge(method, base, [x], weight=[1.0], density=[0.3])
        assert bool(torch.isfinite(merged).all())
        assert float((merged != 0).float().mean()) == pytest.approx(0.3, abs=0.04)

    @pytest.mark.parametrize("method", ["della", "della_linear"])
    def test_one_axis_and_full_density_are_dense(self, method):
        base, inputs = models((90,))
        weights = [0.5, 0.3, 0.1]
        dense = merge(method, base, inputs, weight=weights)
        assert torch.equal(merge(method, base, inputs, weight=weights, density=[0.3] * 3), dense)
        wide, inputs = models()
        other = "dare_ties" if method == "della" else "dare_linear"
        shared = {"normalize": method == "della"}
        assert torch.equal(
            merge(method, wide, inputs, weight=weights), merge(other, wide, inputs, shared, weight=weights)
        )

    @pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.15, 0.15), (0.9, 0.15), (0.5, 0.5)])
    def test_probabilities_outside_the_open_interval_are_refused(self, density, epsilon):
        with pytest.raises(RecipeError, match="probabilities leave the range"):
            load_method("della").check({}, [{"density": density, "epsilon": epsilon}])

    @pytest.mark.parametrize(("density", "epsilon"), [(1.0, 0.15), (0.0, 0.15), (0.16, 0.15), (0.5, 0.49)])
    def test_other_probabilities_are_not(self, density, epsilon):
        check_epsilon([{"density": density, "epsilon": epsilon}])

    def test_dense_and_masked_parents_mix(self):
        base, inputs = models()
        columns = {"weight": [0.5, 0.3, 0.1], "density": [1.0, 0.5, 0.0]}
        merged = merge("della_linear", base, inputs, **columns)
        second = merge("della_linear", base, [base, inputs[1]], weight=[0.0, 0.3], density=[1.0, 0.5]) - base
        torch.testing.assert_close(merged, base + 0.5 * (inputs[0] - base) + second, atol=1e-6, rtol=1e-5)


def alone_della(delta, seed, shared=None, density=0.5):
    columns = {"weight": [1.0], "density": [density]}
    return merge("della_linear", torch.zeros_like(delta), [delta], shared, seed, **columns)


class TestLocalizeAndStitch:
    def test_the_authors_values(self):
        # create_basepatch and get_average_masks of uiuctml/Localize-and-Stitch@109d206 on two tensors as one model;
        # sparsity 0.4 of ten entries keeps three there, since the smallest of the top four is left out again
        first = torch.tensor([[3.0, -1.0, 0.5, 2.0, 0.1, -4.0, 0.2, -5.0, 1.5, 0.7]])
        second = torch.tensor([[2.5, 0.3, -0.4, -6.0, 0.2, 0.6, -3.5, 0.9, 0.8, 1.0]])
        expected = torch.tensor([[2.75, 0.0, 0.0, -6.0, 0.0, -4.0, -3.5, -5.0, 0.0, 0.0]])
        for wide in (True, False):
            merged = merge(
                "localize_and_stitch", torch.zeros(1, 10), [first, second], {"model_wide": wide}, density=[0.3, 0.3]
            )
            torch.testing.assert_close(merged, expected)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_weighted_means_of_what_is_kept(self, shape):
        base, inputs = models(shape)
        weights, densities = [0.5, 1.0, 0.25], [0.3, 0.1, 1.0]
        merged = merge("localize_and_stitch", base, inputs, {"lambda": 0.8}, weight=weights, density=densities)
        deltas = [x - base for x in inputs]
        masks = [
            alone("breadcrumbs", d, density=p, gamma=0.0) != 0 if p < 1 else torch.ones_like(d, dtype=torch.bool)
            for d, p in zip(deltas, densities, strict=True)
        ]
        top = sum(w * d.double() * m for w, d, m in zip(weights, deltas, masks, strict=True))
        share = sum(w * m.double() for w, m in zip(weights, masks, strict=True))
        # which of equal magnitudes are kept depends on the names of the parents: compare where none is at a threshold
        sure = torch.ones_like(base, dtype=torch.bool)
        for d, p in zip(deltas, densities, strict=True):
            if p < 1:
                limit = d.abs().view(-1).sort(descending=True).values[round(p * d.numel()) - 1]
                sure &= d.abs() != limit
        expected = base.double() + 0.8 * top / share
        torch.testing.assert_close(merged.double()[sure], expected[sure], rtol=1e-5, atol=1e-7)

    def test_one_axis_is_averaged(self):
        base, inputs = models((90,))
        merged = merge("localize_and_stitch", base, inputs)
        torch.testing.assert_close(merged, base + sum(x - base for x in inputs) / 3)

    def test_one_model_is_its_trimmed_delta(self):
        base, inputs = models(n=1)
        stitched = merge("localize_and_stitch", base, inputs, weight=[0.2], density=[0.3])
        assert torch.equal(stitched, merge("ties", base, inputs, weight=[0.2], density=[0.3]))

    def test_no_model_is_the_base(self):
        base, inputs = models()
        assert torch.equal(merge("localize_and_stitch", base, inputs, density=[0.0] * 3), base)


def test_nothing_dropped_needs_no_cuts():
    base, inputs = models()
    cases = [
        ("breadcrumbs", {"gamma": [0.0] * 3}),
        ("della_linear", {}),
        ("localize_and_stitch", {"density": [1.0] * 3}),
    ]
    for method, columns in cases:
        made = parameters(method, 3, weight=[0.5] * 3, **columns)
        facts = TensorFacts(made, base.view(-1), [x.view(-1) for x in inputs], tuple(base.shape), Kernels())
        assert isinstance(load_method(method).compile(made, facts), LinearSetting)
    made = parameters("breadcrumbs_ties", 3, weight=[0.5] * 3)
    facts = TensorFacts(made, base.view(-1), [x.view(-1) for x in inputs], tuple(base.shape), Kernels())
    setting = load_method("breadcrumbs_ties").compile(made, facts)
    assert isinstance(setting, GtaSetting)
    assert setting.capped
    assert not setting.masked
