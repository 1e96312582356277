"""Spheres, Model Stock and scaled sums: direct implementations on whole vectors, closed forms, what is mended."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.gram import vector_grams
from evomerge.merging.linear_methods import guarded_sum
from evomerge.merging.methods import Parameters, load_method
from evomerge.merging.sphere_methods import karcher_coefficients, multislerp_coefficients
from evomerge.merging.stock_methods import stock_share
from evomerge.seeds import generator

SHAPES = [(90,), (), (1, 1), (7, 40), (40, 7), (3, 4, 10)]


def parameters(method, n, shared=None, layer=None, n_layers=0, **columns):
    specs = load_method(method).spec.parameters
    values = {name: p.default for name, p in specs.items() if not p.per_parent} | (shared or {})
    rows = tuple(
        {name: p.default for name, p in specs.items() if p.per_parent} | {k: v[i] for k, v in columns.items()}
        for i in range(n)
    )
    return Parameters("w", tuple(f"m{i}" for i in range(n)), values, rows, 0, layer, n_layers)


def models(shape=(12, 30), n=3, seed=0, scale=0.5, rank=None):
    """fp32 models around a base; with a rank, the deltas are products of that rank."""
    rng = generator(seed, "family", str(shape))
    base = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    deltas = [rng.standard_normal(shape) for _ in range(n)]
    if rank is not None:
        deltas = [rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1])) for _ in range(n)]
    return base, [base + scale * torch.from_numpy(np.asarray(d).astype(np.float32)) for d in deltas]


def merge(method, base, inputs, shared=None, **columns):
    return load_method(method).merge(base, inputs, parameters(method, len(inputs), shared, **columns))


def assert_near(merged, expected, rtol=2e-5):
    torch.testing.assert_close(merged.double(), expected, rtol=rtol, atol=rtol * float(expected.abs().max()) + 1e-12)


def slerp(t, a, b):
    """The direct formula on two vectors."""
    cosine = float(torch.dot(a, b) / (a.norm() * b.norm())) if a.norm() * b.norm() > 0 else 1.0
    theta = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(theta) < 1e-4:
        return (1 - t) * a + t * b
    return (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)


class TestPassthrough:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_the_model_times_scale(self, shape):
        _, (x,) = models(shape, 1)
        assert torch.equal(merge("passthrough", None, [x]), x)
        assert torch.equal(merge("passthrough", None, [x], scale=[0.5]), 0.5 * x)
        assert not merge("passthrough", None, [x], scale=[0.0]).any()


class TestNuSlerp:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("with_base", [False, True])
    @pytest.mark.parametrize("variant", ["flat", "last", "first"])
    def test_agrees_with_the_formula_on_each_vector(self, shape, with_base, variant):
        base, inputs = models(shape, 2)
        shared = {"nuslerp_flatten": variant == "flat", "nuslerp_row_wise": variant == "first"}
        merged = merge("nuslerp", base if with_base else None, inputs, shared, weight=[0.6, 0.2])
        a, b = (x.double() - (base.double() if with_base else 0.0) for x in inputs)
        if variant == "flat":
            pairs = [(a.reshape(-1), b.reshape(-1))]
        elif variant == "last":
            pairs = list(
                zip(a.reshape(-1, shape[-1] if shape else 1), b.reshape(-1, shape[-1] if shape else 1), strict=True)
            )
        else:
            length = shape[0] if shape else 1
            pairs = list(zip(a.reshape(length, -1).T, b.reshape(length, -1).T, strict=True))
        results = torch.stack([slerp(0.25, x, y) for x, y in pairs])
        results = results.T if variant == "first" else results
        assert_near(merged, results.reshape(shape) + (base.double() if with_base else 0.0))

    def test_flat_without_base_is_slerp(self):
        _, inputs = models(n=2)
        expected = merge("slerp", None, inputs, {"t": 0.25})
        assert torch.equal(merge("nuslerp", None, inputs, weight=[0.75, 0.25]), expected)

    def test_one_weight_is_that_model(self):
        base, inputs = models(n=2)
        for flatten in (True, False):
            for weights, x in (([1.0, 0.0], inputs[0]), ([0.0, 0.3], inputs[1])):
                merged = merge("nuslerp", base, inputs, {"nuslerp_flatten": flatten}, weight=weights)
                assert torch.equal(merged, x)

    def test_no_weights_are_half_way(self):
        _, inputs = models(n=2)
        merged = merge("nuslerp", None, inputs, weight=[0.0, 0.0])
        assert torch.equal(merged, merge("slerp", None, inputs, {"t": 0.5}))

    def test_weights_that_cancel_do_not_blow_up(self):
        _, inputs = models(n=2)
        merged = merge("nuslerp", None, inputs, weight=[1.0, -1.0 + 1e-7])
        assert float(merged.norm()) < 50 * float(inputs[0].norm())

    def test_vectors_of_zeros_take_the_line(self):
        a, b = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
        merged = merge("nuslerp", None, [a, b], {"nuslerp_flatten": False}, weight=[0.5, 0.5])
        torch.testing.assert_close(merged, 0.5 * b)

    def test_angles_are_not_rounded_to_the_stored_dtype(self):
        # nearly parallel bf16 vectors: mergekit's cosine in bf16 is 1, and its result a line of the wrong length
        rng = generator(0, "parallel")
        a = torch.from_numpy(rng.standard_normal(4096)).bfloat16().float()
        b = torch.from_numpy(rng.standard_normal(4096) * 0.05).bfloat16().float() + a
        assert_near(merge("nuslerp", None, [a, b], weight=[0.5, 0.5]), slerp(0.5, a.double(), b.double()))


class TestMultiSlerp:
    @given(
        weights=st.lists(st.floats(0.05, 2.0), min_size=2, max_size=5),
        normalize=st.booleans(),
        with_base=st.booleans(),
        shape=st.sampled_from(SHAPES),
    )
    @settings(deadline=None, max_examples=40)
    def test_is_mean_direction_times_mean_norm(self, weights, normalize, with_base, shape):
        base, inputs = models(shape, len(weights), seed=3)
        shared = {"normalize_weights": normalize}
        merged = merge("multislerp", base if with_base else None, inputs, shared, weight=weights)
        xs = [x.double() - (base.double() if with_base else 0.0) for x in inputs]
        total = sum(weights) if normalize else 1.0
        shares = [w / total for w in weights]
        mean = sum(w * x / (x.norm() + 1e-8) for w, x in zip(shares, xs, strict=True))
        if float(mean.norm()) < 1e-3:
            return
        norm = sum(w * x.norm() for w, x in zip(shares, xs, strict=True))
        assert_near(merged, mean / mean.norm() * norm + (base.double() if with_base else 0.0), rtol=1e-4)

    def test_equal_norms_at_a_right_angle(self):
        a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
        merged = merge("multislerp", None, [a, b], weight=[1.0, 1.0])
        torch.testing.assert_close(merged, torch.full((2,), 3 / math.sqrt(2)))

    def test_one_model_is_itself(self):
        base, (x,) = models(n=1)
        assert torch.equal(merge("multislerp", base, [x], weight=[0.3]), x)
        _, inputs = models()
        assert torch.equal(merge("multislerp", None, inputs, weight=[0.0, 0.4, 0.0]), inputs[1])

    @pytest.mark.parametrize("n", [2, 4])
    def test_opposite_models_take_the_weighted_sum(self, n):
        # mergekit refuses more than two
        x = models(n=1)[1][0]
        inputs = [x * (-1.0) ** i for i in range(n)]
        merged = merge("multislerp", None, inputs, weight=[1.0] * n)
        assert float(merged.abs().max()) <= 1e-6

    def test_a_negative_weight_turns_the_direction_and_not_the_sign(self):
        # mergekit's norm is 2 |a| - |b| = -1 here, so that its result points away from a
        a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
        merged = merge("multislerp", None, [a, b], weight=[2.0, -1.0])
        direction = merged / merged.norm()
        torch.testing.assert_close(direction, torch.tensor([2.0, -1.0]) / math.sqrt(5))

    def test_a_model_of_zeros_adds_nothing_to_the_direction(self):
        coefficients = multislerp_coefficients((0.5, 0.5), np.array([[4.0, 0.0], [0.0, 0.0]]), 1e-8)
        assert coefficients == pytest.approx((0.5, 0.0), rel=1e-6)


def karcher(inputs, max_iter, tol):
    """Direct iteration on whole vectors."""
    xs = [x.double().reshape(-1) for x in inputs]
    units = [x / x.norm() for x in xs]
    mean = sum(units) / len(units)
    mean = mean / mean.norm()
    for _ in range(max_iter):
        tangent = torch.zeros_like(mean)
        for u in units:
            dot = float(torch.dot(u, mean).clamp(-1, 1))
            theta = math.acos(dot)
            if theta > 1e-9:
                tangent += theta / math.sin(theta) * (u - dot * mean) / len(units)
        step = float(tangent.norm())
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) * tangent / step
        mean = mean / mean.norm()
    return mean * sum(float(x.norm()) for x in xs) / len(xs)


class TestKarcher:
    @pytest.mark.parametrize("shape", [(90,), (7, 40), (40, 7), (3, 4, 10)], ids=str)
    @pytest.mark.parametrize(
        ("n", "max_iter", "tol"), [(2, 10, 1e-5), (3, 10, 1e-5), (5, 100, 1e-12), (4, 1, 1e-5), (3, 0, 1e-5)]
    )
    def test_agrees_with_the_iteration_on_vectors(self, shape, n, max_iter, tol):
        _, inputs = models(shape, n, scale=2.0)
        merged = merge("karcher", None, inputs, {"max_iter": float(max_iter), "tol": tol})
        assert_near(merged, karcher(inputs, max_iter, tol).reshape(shape))

    def test_two_models_meet_half_way_on_the_great_circle(self):
        rng = generator(0, "circle")
        a, b = (torch.from_numpy(rng.standard_normal(50)).float() for _ in range(2))
        a, b = a / a.norm(), b / b.norm()
        torch.testing.assert_close(merge("karcher", None, [a, b]), merge("slerp", None, [a, b], {"t": 0.5}))

    def test_the_mean_is_where_the_logarithms_cancel(self):
        rng = generator(1, "gram")
        x = rng.standard_normal((4, 30)) + 1.0
        c = np.array(karcher_coefficients(x @ x.T, 200, 1e-14))
        mean = c @ x / np.linalg.norm(c @ x)
        units = x / np.linalg.norm(x, axis=1, keepdims=True)
        dots = units @ mean
        theta = np.arccos(dots)
        tangent = ((theta / np.sin(theta))[:, None] * (units - dots[:, None] * mean)).sum(0)
        assert np.linalg.norm(tangent) < 1e-10

    def test_directions_that_cancel_take_the_plain_mean(self):
        x = models(n=1)[1][0]
        torch.testing.assert_close(merge("karcher", None, [x, -3 * x]), -x)

    def test_zeros_count_in_the_norm_alone(self):
        x = models(n=1)[1][0]
        torch.testing.assert_close(merge("karcher", None, [x, torch.zeros_like(x)]), x / 2)
        assert not merge("karcher", None, [torch.zeros_like(x)] * 2).any()

    def test_one_model_is_itself(self):
        x = models(n=1)[1][0]
        assert torch.equal(merge("karcher", None, [x]), x)


def stock(base, inputs):
    """Direct formula on vectors, t kept within [0, 1]."""
    deltas, n = [x.double() - base.double() for x in inputs], len(inputs)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    product = {p: float(deltas[p[0]].norm() * deltas[p[1]].norm()) for p in pairs}
    cosine = sum(
        float((deltas[i] * deltas[j]).sum()) / product[i, j] if product[i, j] else 0.0 for i, j in pairs
    ) / len(pairs)
    t = 0.0 if cosine <= 0 else n * cosine / (1 + (n - 1) * cosine)
    return base.double() + t * sum(deltas) / n


class TestModelStock:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("n", [2, 4])
    def test_whole_tensors(self, shape, n):
        base, inputs = models(shape, n)
        assert_near(merge("model_stock", base, [x + 0.4 for x in inputs]), stock(base, [x + 0.4 for x in inputs]))

    @pytest.mark.parametrize("shape", [(90,), (7, 40), (40, 7), (3, 4, 10)], ids=str)
    def test_rows(self, shape):
        base, inputs = models(shape, 3)
        inputs = [x + 0.3 for x in inputs]
        merged = merge("model_stock", base, inputs, {"filter_wise": True})
        rows = zip(base.reshape(-1, shape[-1]), *(x.reshape(-1, shape[-1]) for x in inputs), strict=True)
        assert_near(merged, torch.stack([stock(b, xs) for b, *xs in rows]).reshape(shape))

    def test_rank_deficient_deltas(self):
        base, inputs = models((20, 30), 3, rank=2)
        inputs = [x + 0.5 for x in inputs]
        assert_near(merge("model_stock", base, inputs), stock(base, inputs))

    @pytest.mark.parametrize("filter_wise", [False, True])
    def test_opposing_models_leave_the_base(self, filter_wise):
        # c = -0.3 of three models gives mergekit t = -2.25
        base, (x,) = models(n=1)
        delta = x - base
        inputs = [base + delta, base - delta, base - 0.5 * delta]
        assert torch.equal(merge("model_stock", base, inputs, {"filter_wise": filter_wise}), base)

    def test_small_deltas_count_as_large_ones_do(self):
        # mergekit holds the product of the norms above 1e-6: t is next to nothing here
        base = torch.zeros(4, 5)
        _, inputs = models((4, 5), 3)
        large = merge("model_stock", base, inputs)
        small = merge("model_stock", base, [1e-5 * x for x in inputs])
        torch.testing.assert_close(small, 1e-5 * large)

    @given(st.lists(st.floats(-1.0, 1.0), min_size=3, max_size=3))
    def test_the_share_is_a_share(self, cosines):
        a, b, c = cosines
        gram = np.array([[[1, a, b], [a, 1, c], [b, c, 1]]])
        share = stock_share(gram)
        assert 0.0 <= share[0] <= 1.0

    def test_equal_models_are_reached(self):
        base, (x,) = models(n=1)
        torch.testing.assert_close(merge("model_stock", base, [x, x, x]), x)


class TestScaledSums:
    @pytest.mark.parametrize(
        ("layer", "scale"), [(None, 0.25), (0, 0.25), (1, 0.25 + 0.5 / 3), (2, 0.25 + 1 / 3), (3, 0.75)]
    )
    def test_lines_has_the_authors_factors(self, layer, scale):
        # LiNeS_scaling(alpha=0.25, beta=0.5, num_blocks=4) of wang-kee/LiNeS@43a7bdd
        base, inputs = models()
        made = parameters("lines", 3, {"alpha": 0.25, "beta": 0.5}, layer, 4, weight=[1.0, 0.5, -0.5])
        merged = load_method("lines").merge(base, inputs, made)
        total = sum(w * (x.double() - base.double()) for w, x in zip([1.0, 0.5, -0.5], inputs, strict=True))
        assert_near(merged, base.double() + scale * total)

    def test_lines_of_one_layer_takes_alpha(self):
        base, inputs = models()
        columns = {"weight": [0.3, 0.2, 0.1]}
        merged = load_method("lines").merge(base, inputs, parameters("lines", 3, {"alpha": 1.0}, 0, 1, **columns))
        assert torch.equal(merged, merge("task_arithmetic", base, inputs, **columns))

    @given(st.lists(st.floats(-700.0, 700.0), min_size=1, max_size=4), st.floats(0.0, 1.1))
    @settings(deadline=None, max_examples=40)
    def test_fedlaw(self, logits, gamma):
        _, inputs = models(n=len(logits))
        merged = merge("fedlaw", None, inputs, {"gamma": gamma}, logit=logits)
        shares = torch.softmax(torch.tensor(logits, dtype=torch.float64), 0)
        expected = gamma * sum(s * x.double() for s, x in zip(shares, inputs, strict=True))
        assert_near(merged, expected, rtol=1e-4)

    def test_fedlaw_by_default_is_the_mean(self):
        _, inputs = models()
        assert_near(merge("fedlaw", None, inputs), sum(x.double() for x in inputs) / 3)

    @pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.3])
    def test_expo(self, alpha):
        base, (x,) = models(n=1)
        merged = merge("expo", base, [x], {"alpha": alpha})
        assert_near(merged, x.double() + alpha * (x.double() - base.double()))
        if alpha in (-1.0, 0.0):
            assert torch.equal(merged, x if alpha == 0.0 else base)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_metagpt(self, shape):
        base, inputs = models(shape)
        energies = [float((x.double() - base.double()).square().sum()) for x in inputs]
        total = sum(e / sum(energies) * (x.double() - base.double()) for e, x in zip(energies, inputs, strict=True))
        assert_near(merge("metagpt", base, inputs, {"lambda": 0.5}), base.double() + 0.5 * total)

    def test_metagpt_of_equal_models_is_the_base(self):
        base, _ = models()
        assert torch.equal(merge("metagpt", base, [base, base]), base)


class TestVectorGrams:
    @given(
        shape=st.sampled_from([(1, 1), (5, 7), (7, 5), (3, 4, 5), (70, 300), (300, 70)]),
        columns=st.booleans(),
        deltas=st.booleans(),
    )
    @settings(deadline=None, max_examples=30)
    def test_inner_products_of_every_vector(self, shape, columns, deltas):
        base, inputs = models(shape)
        length = shape[0] if columns else shape[-1]
        origin = base.view(-1) if deltas else None
        found = vector_grams([x.view(-1) for x in inputs], origin, length, columns=columns)
        wide = torch.stack([x - base if deltas else x for x in inputs]).double()
        vectors = wide.reshape(3, length, -1) if columns else wide.reshape(3, -1, length).transpose(1, 2)
        expected = torch.einsum("ilv,jlv->vij", vectors, vectors).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)

    def test_blocks_do_not_change_rows(self, monkeypatch):
        base, inputs = models((70, 33))
        flat = [x.view(-1) for x in inputs]
        whole = vector_grams(flat, base.view(-1), 33, columns=False)
        monkeypatch.setattr("evomerge.merging.gram._BLOCK", 100)
        np.testing.assert_array_equal(vector_grams(flat, base.view(-1), 33, columns=False), whole)


def test_guarded_sums_are_used_for_weights_of_both_signs():
    _, inputs = models()
    weights = [1.0, -0.5, 0.2]
    t = [w / guarded_sum(weights) for w in weights]
    gram = np.array([[float((a.double() * b.double()).sum()) for b in inputs] for a in inputs])
    expected = sum(c * x.double() for c, x in zip(multislerp_coefficients(t, gram, 1e-8), inputs, strict=True))
    assert_near(merge("multislerp", None, inputs, weight=weights), expected)
