"""What the built-in methods compute: closed forms, degenerate equalities, and the faults that they mend."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.gram import gram_matrix, inner_product
from evomerge.merging.linear_methods import guarded_sum, slerp_coefficients
from evomerge.merging.methods import Parameters, load_method
from evomerge.seeds import generator

finite = st.floats(-2.0, 2.0, allow_nan=False).filter(lambda w: w == 0 or abs(w) > 1e-3)


def parameters(method, n, shared=None, seed=0, tensor="w", **columns):
    specs = load_method(method).spec.parameters
    values = {name: p.default for name, p in specs.items() if not p.per_parent} | (shared or {})
    rows = tuple(
        {name: p.default for name, p in specs.items() if p.per_parent} | {k: v[i] for k, v in columns.items()}
        for i in range(n)
    )
    return Parameters(tensor, tuple(f"m{i}" for i in range(n)), values, rows, seed)


def models(shape=(40, 50), n=3, seed=0, scale=0.1):
    rng = generator(seed, "settings", str(shape))
    base = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    return base, [base + scale * torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for _ in range(n)]


def merge(method, base, inputs, shared=None, seed=0, **columns):
    return load_method(method).merge(base, inputs, parameters(method, len(inputs), shared, seed, **columns))


class TestLinear:
    @given(weights=st.lists(st.floats(0.05, 3.0), min_size=1, max_size=4))
    @settings(deadline=None, max_examples=30)
    def test_closed_form(self, weights):
        _, inputs = models(n=len(weights))
        expected = sum(w * x.double() for w, x in zip(weights, inputs, strict=True)) / sum(weights)
        merged = merge("linear", None, inputs, weight=weights)
        torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-6)

    def test_one_hot_is_the_parent(self):
        _, inputs = models()
        inputs[1][0, 0] = -0.0
        for normalize in (True, False):
            merged = merge("linear", None, inputs, {"normalize": normalize}, weight=[0.0, 1.0, 0.0])
            assert torch.equal(merged.view(torch.int32), inputs[1].view(torch.int32))

    def test_cancelling_weights_do_not_blow_up(self):
        _, inputs = models(n=2)
        merged = merge("linear", None, inputs, weight=[1.0, -1.0 + 1e-9])
        assert merged.abs().max() <= 10 * max(x.abs().max() for x in inputs)

    def test_all_weights_zero(self):
        _, inputs = models()
        mean = merge("linear", None, inputs, weight=[1.0, 1.0, 1.0])
        assert torch.equal(merge("linear", None, inputs, weight=[0.0, 0.0, 0.0]), mean)
        assert not merge("linear", None, inputs, {"normalize": False}, weight=[0.0, 0.0, 0.0]).any()

    @given(st.lists(finite, min_size=1, max_size=5))
    def test_guarded_sum(self, weights):
        divisor, total, size = guarded_sum(weights), math.fsum(weights), math.fsum(abs(w) for w in weights)
        assert divisor != 0
        assert abs(divisor) >= 0.1 * size
        if abs(total) >= 0.1 * size > 0:
            assert divisor == total


class TestSlerp:
    def test_ends_are_the_parents(self):
        _, inputs = models(n=2)
        for t in (0, 1):
            merged = merge("slerp", None, inputs, {"t": float(t)})
            assert torch.equal(merged.view(torch.int32), inputs[t].view(torch.int32))

    @given(t=st.floats(0.0, 1.0), angle=st.floats(0.01, 3.1))
    @settings(deadline=None, max_examples=60)
    def test_on_the_unit_circle(self, t, angle):
        a, b = slerp_coefficients(t, 1.0, math.cos(angle), 1.0)
        x = a * np.array([1.0, 0.0]) + b * np.array([math.cos(angle), math.sin(angle)])
        np.testing.assert_allclose(x, [math.cos(t * angle), math.sin(t * angle)], atol=1e-7)

    @pytest.mark.parametrize(
        "gram", [(1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (4.0, 6.0, 9.0)]
    )
    def test_parallel_opposite_and_vanishing_tensors_take_the_line(self, gram):
        assert slerp_coefficients(0.25, *gram) == (0.75, 0.25)

    def test_agrees_with_the_direct_formula(self):
        _, inputs = models(n=2, scale=1.0)
        a, b = (x.double() for x in inputs)
        theta = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
        expected = (torch.sin(0.7 * theta) * a + torch.sin(0.3 * theta) * b) / torch.sin(theta)
        torch.testing.assert_close(merge("slerp", None, inputs, {"t": 0.3}).double(), expected, rtol=1e-5, atol=1e-6)


class TestGram:
    @given(n=st.integers(1, 200_000), seed=st.integers(0, 9))
    @settings(deadline=None, max_examples=10)
    def test_inner_product(self, n, seed):
        rng = generator(seed, "gram")
        x, y = (torch.from_numpy(rng.standard_normal(n)).bfloat16() for _ in range(2))
        expected = math.fsum((x.double() * y.double()).tolist())
        assert inner_product(x, y) == pytest.approx(expected, rel=1e-12, abs=1e-12)

    def test_matrix_is_symmetric_with_squared_norms(self):
        _, inputs = models()
        flat = [x.view(-1) for x in inputs]
        gram = gram_matrix(flat)
        np.testing.assert_array_equal(gram, gram.T)
        np.testing.assert_allclose(np.diag(gram), [float(x.double().square().sum()) for x in flat])


class TestTaskArithmetic:
    @given(weights=st.lists(finite, min_size=1, max_size=3), scale=st.floats(0.1, 2.0), normalize=st.booleans())
    @settings(deadline=None, max_examples=40)
    def test_closed_form(self, weights, scale, normalize):
        base, inputs = models(n=len(weights))
        divisor = guarded_sum(weights) if normalize else 1.0
        steps = sum(w * (x.double() - base.double()) for w, x in zip(weights, inputs, strict=True))
        shared = {"lambda": scale, "normalize": normalize}
        merged = merge("task_arithmetic", base, inputs, shared, weight=weights)
        torch.testing.assert_close(merged.double(), base.double() + scale / divisor * steps, rtol=1e-4, atol=1e-5)

    def test_a_lone_weight_of_one_is_the_parent_even_where_deltas_lose_bits(self):
        base, inputs = torch.full((2, 2), 1e4), [torch.full((2, 2), 1e-7), torch.zeros(2, 2)]
        assert torch.equal(merge("task_arithmetic", base, inputs, weight=[1.0, 0.0]), inputs[0])

    def test_no_weight_is_the_base(self):
        base, inputs = models()
        assert torch.equal(merge("task_arithmetic", base, inputs, weight=[0.0, 0.0, 0.0]), base)


class TestTies:
    def test_one_model_is_its_trimmed_delta(self):
        base, inputs = models(n=1)
        merged = merge("ties", base, inputs, weight=[0.7], density=[0.3])
        changed = merged != base
        assert int(changed.sum()) == round(0.3 * base.numel())
        assert torch.equal(merged[changed], (base + (inputs[0] - base))[changed])
        size = (inputs[0] - base).abs()
        assert size[changed].min() >= size[~changed].max()

    def test_dense_agreeing_models_are_task_arithmetic_over_the_weights(self):
        base, _ = models()
        inputs = [base + 0.25, base + 0.5]
        merged = merge("ties", base, inputs, weight=[0.5, 0.25])
        torch.testing.assert_close(merged, base + (0.5 * 0.25 + 0.25 * 0.5) / 0.75)

    def test_density_one_and_one_hot_is_the_parent(self):
        base, inputs = models()
        assert torch.equal(merge("ties", base, inputs, weight=[0.0, 1.0, 0.0]), inputs[1])

    def test_an_exact_cancellation_elects_nothing(self):
        base = torch.zeros(2, 2)
        inputs = [torch.full((2, 2), 0.5), torch.full((2, 2), -0.5)]
        assert not merge("ties", base, inputs, weight=[1.0, 1.0]).any()

    def test_the_heavier_sign_wins_and_the_other_is_left_out(self):
        base = torch.zeros(1, 2)
        inputs = [torch.tensor([[1.0, -1.0]]), torch.tensor([[-3.0, 0.5]]), torch.tensor([[2.5, 0.25]])]
        merged = merge("ties", base, inputs, {"normalize": False}, weight=[1.0, 1.0, 1.0])
        torch.testing.assert_close(merged, torch.tensor([[3.5, -1.0]]))
        mean = merge("ties", base, inputs, weight=[1.0, 1.0, 1.0])
        torch.testing.assert_close(mean, torch.tensor([[1.75, -1.0]]))

    def test_negative_weights_neither_flip_nor_blow_up_a_mean(self):
        base = torch.zeros(1, 1)
        inputs = [torch.full((1, 1), 1.0), torch.full((1, 1), -1.0)]
        merged = merge("ties", base, inputs, weight=[0.5, -0.499])  # both push upwards
        torch.testing.assert_close(merged, torch.ones(1, 1))

    @pytest.mark.parametrize("shape", [(30,), ()])
    def test_one_axis_is_dense(self, shape):
        base, inputs = models(shape)
        dense = merge("ties", base, inputs, weight=[0.5] * 3, density=[1.0] * 3)
        assert torch.equal(merge("ties", base, inputs, weight=[0.5] * 3, density=[0.1] * 3), dense)

    def test_density_zero_leaves_a_model_out(self):
        base, inputs = models()
        without = merge("ties", base, inputs[:1], weight=[0.5], density=[0.5])
        assert torch.equal(merge("ties", base, inputs[:2], weight=[0.5, 0.9], density=[0.5, 0.0]), without)

    @given(d=st.floats(0.01, 1.0), n=st.integers(2, 300))
    @settings(deadline=None, max_examples=40)
    def test_kept_count_is_the_rounded_density(self, d, n):
        base = torch.zeros(1, n)
        x = torch.from_numpy(generator(n, "kept").choice([0.25, 0.5, -0.5], (1, n)).astype(np.float32))
        kept = int((merge("ties", base, [x], weight=[1.0], density=[d]) != 0).sum())
        assert kept == min(n, max(1, round(d * n)))


class TestDare:
    def test_masks_are_nested_in_the_density(self):
        base, inputs = torch.zeros(100, 100), [torch.ones(100, 100)]
        shared = {"rescale": False}
        kept = [merge("dare_linear", base, inputs, shared, weight=[1.0], density=[d]) != 0 for d in (0.2, 0.5, 0.9)]
        assert not (kept[0] & ~kept[1]).any()
        assert not (kept[1] & ~kept[2]).any()
        shares = [float(k.float().mean()) for k in kept]
        np.testing.assert_allclose(shares, [0.2, 0.5, 0.9], atol=0.02)

    def test_the_mean_over_seeds_is_task_arithmetic(self):
        base, inputs = models((20, 20), n=2)
        draws = [merge("dare_linear", base, inputs, seed=s, weight=[0.6, 0.4], density=[0.5, 0.7]) for s in range(400)]
        dense = merge("task_arithmetic", base, inputs, weight=[0.6, 0.4])
        error = (torch.stack(draws).mean(0) - dense).abs().max() / (inputs[0] - base).abs().max()
        assert error < 0.15

    def test_masks_differ_between_parents_and_tensors(self):
        base, inputs = torch.zeros(64, 64), [torch.ones(64, 64), torch.ones(64, 64)]
        method = load_method("dare_linear")
        alone = [[1.0, 0.0], [0.0, 1.0]]
        masks = [
            method.merge(base, inputs, parameters("dare_linear", 2, tensor=t, weight=w, density=[0.5, 0.5])) != 0
            for t in ("a", "b")
            for w in alone
        ]
        agreement = [float((masks[i] == masks[j]).float().mean()) for i in range(4) for j in range(i)]
        np.testing.assert_allclose(agreement, 0.5, atol=0.05)

    def test_density_one_is_dense(self):
        base, inputs = models()
        dense = merge("task_arithmetic", base, inputs, weight=[0.5, 0.3, 0.1])
        assert torch.equal(merge("dare_linear", base, inputs, weight=[0.5, 0.3, 0.1]), dense)
        ties = merge("ties", base, inputs, {"normalize": False}, weight=[0.5, 0.3, 0.1])
        assert torch.equal(merge("dare_ties", base, inputs, weight=[0.5, 0.3, 0.1]), ties)

    @pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
    def test_density_zero_is_the_base(self, method):
        base, inputs = models()
        assert torch.equal(merge(method, base, inputs, weight=[0.5] * 3, density=[0.0] * 3), base)

    def test_kept_entries_are_divided_by_the_density(self):
        base, inputs = torch.zeros(50, 50), [torch.ones(50, 50)]
        merged = merge("dare_linear", base, inputs, weight=[0.5], density=[0.25])
        assert set(merged.view(-1).tolist()) == {0.0, 2.0}
