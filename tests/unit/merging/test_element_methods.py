"""Element-wise methods against slow, obvious implementations of their formulas, and the faults that they mend."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evomerge.merging.fused_measures import MeasureMoments
from evomerge.merging.kernels import Kernels
from evomerge.merging.measures import Deltas, Ranking
from evomerge.merging.methods import Parameters, load_method
from evomerge.merging.widen_method import scores
from evomerge.seeds import generator

SHAPES = {
    "row": (60,),
    "one": (1,),
    "wide": (3, 40),
    "tall": (40, 3),
    "square": (12, 13),
    "three axes": (2, 5, 7),
}


def parameters(method, n, shared=None, *, tensor="model.layers.0.q.weight", **columns):
    specs = load_method(method).spec.parameters
    values = {name: p.default for name, p in specs.items() if not p.per_parent} | (shared or {})
    rows = tuple(
        {name: p.default for name, p in specs.items() if p.per_parent} | {k: v[i] for k, v in columns.items()}
        for i in range(n)
    )
    return Parameters(tensor, tuple(f"m{i}" for i in range(n)), values, rows)


def merge(method, base, inputs, shared=None, **columns):
    return load_method(method).merge(base, inputs, parameters(method, len(inputs), shared, **columns))


def models(shape=(12, 13), n=3, *, seed=0, scale=0.1, rank=None):
    """A base and models near it; with a rank, their deltas have it."""
    rng = generator(seed, "elements", str(shape), n)
    base = rng.standard_normal(shape)
    deltas = [rng.standard_normal(shape) for _ in range(n)]
    if rank is not None:
        deltas = [rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1])) for _ in range(n)]
    as_tensor = [torch.from_numpy(np.asarray(x, np.float32)) for x in (base, *deltas)]
    return as_tensor[0], [as_tensor[0] + scale * d for d in as_tensor[1:]]


def deltas_of(base, inputs):
    """fp64 array of shape `(n, *shape)` of the fp32 differences."""
    return np.stack([(x - base).double().numpy() for x in inputs])


def assert_agrees(expected, base, merged):
    torch.testing.assert_close(merged.double(), base.double() + torch.from_numpy(expected), rtol=2e-6, atol=2e-7)


def obvious_ram(deltas, epsilon, gains):
    active = np.abs(deltas) > epsilon
    count = active.sum(0)
    alone = sum(g * d * a for g, d, a in zip(gains, deltas, active, strict=True))
    return np.where(count > 1, (deltas * active).sum(0) / np.maximum(count, 1), alone)


def obvious_sce(deltas, share):
    if share < 1.0 and deltas[0].ndim > 1:
        variance = deltas.var(0).reshape(-1)
        count = max(1, round(share * (variance > 0).sum()))
        mask = np.zeros(variance.size)
        mask[np.argsort(-variance)[:count]] = 1.0
        deltas = deltas * mask.reshape(deltas[0].shape)
    energy = np.array([(d**2).sum() for d in deltas])
    weights = (energy / energy.sum()).reshape(-1, *[1] * deltas[0].ndim)
    agrees = np.sign(deltas) == np.sign(deltas.sum(0))
    agrees &= deltas != 0
    divisor = (weights * agrees).sum(0)
    return (deltas * weights * agrees).sum(0) / np.where(divisor > 0, divisor, 1.0)


def obvious_gate(base, x):
    """Arcee Fusion's delta; dense for one axis."""
    delta = (x - base).double().numpy()
    if base.dim() <= 1:
        return delta
    p, q = (torch.softmax(t.double(), -1).numpy() + 1e-8 for t in (x, base))
    importance = np.abs(delta) * (p * np.log(p / q)).sum(-1, keepdims=True)
    ordered = np.sort(importance.reshape(-1))
    low, median, high = (ordered[int(q * (ordered.size - 1))] for q in (0.25, 0.5, 0.75))
    return delta * (importance >= median + 1.5 * (high - low))


def obvious_pcb(deltas, weights, ratio, clip):
    """The paper's steps, one model after the other."""
    flat, n = deltas.reshape(len(deltas), -1), len(deltas)
    if deltas[0].ndim <= 1:
        return np.tensordot(np.array(weights) / n, deltas, 1)
    d = flat.shape[1]
    sizes, kept = [], []
    for delta in flat:
        ordered = np.sort(np.abs(delta))
        low, high = ordered[int(d * clip)], ordered[int(d * (1 - clip) - 1)]
        clamped = np.clip(np.abs(delta), low, high)
        sizes.append((clamped - low) / (high - low))
        kept.append(np.sign(delta) * clamped)
    merged, divisor = np.zeros(d), np.zeros(d)
    for i in range(n):
        inter = sum(np.tanh(np.sign(flat[i]) * sizes[i] * np.sign(flat[j]) * sizes[j]) for j in range(n))
        balance = np.exp(n * sizes[i] ** 2) * inter
        ordered = np.sort(balance)
        low = ordered[int(d * (1 - ratio))]
        share = (np.clip(balance, low, ordered[-1]) - low) / (ordered[-1] - low)
        merged, divisor = merged + weights[i] * kept[i] * share, divisor + share
    return (merged / np.maximum(divisor, 1e-12)).reshape(deltas[0].shape)


def obvious_consensus(deltas, weights, strength, votes):
    values = deltas * np.array(weights).reshape(-1, *[1] * deltas[0].ndim)
    total = values.sum(0)
    found = (np.abs(values) > strength * np.abs(total - values)).sum(0)
    return total * (found >= (votes if deltas[0].ndim > 1 else 0))


def obvious_widen(deltas, base, inputs, t, c):
    """Column by column, for tensors that are not embeddings."""

    def scored(list_of_significances):
        s = np.stack(list_of_significances)
        powers = np.exp(s)
        return np.where(s > t * s.mean(1, keepdims=True), c, powers / powers.sum(0))

    if base.dim() <= 1:
        return (deltas * scored([np.abs(d) for d in deltas])).sum(0)
    width = base.shape[-1]
    origin = base.double().numpy().reshape(-1, width)
    lists = ([], [])
    for x in inputs:
        w = x.double().numpy().reshape(-1, width)
        size, size_0 = (np.array([math.sqrt((a[:, j] ** 2).sum()) for j in range(width)]) for a in (w, origin))
        turned = np.array([1 - (w[:, j] / size[j]) @ (origin[:, j] / size_0[j]) for j in range(width)])
        for found, change in zip(lists, (np.abs(size - size_0), turned), strict=True):
            found.append(np.argsort(np.argsort(change, kind="stable")) / width)
    score = (scored(lists[0]) + scored(lists[1])) / 2
    return sum(d * s for d, s in zip(deltas, score, strict=True))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
class TestFormulas:
    def test_ram(self, shape):
        base, inputs = models(shape)
        expected = obvious_ram(deltas_of(base, inputs), 0.08, [1.0] * 3)
        assert_agrees(expected, base, merge("ram", base, inputs, {"epsilon": 0.08}))

    def test_ramplus(self, shape):
        base, inputs = models(shape)
        deltas = deltas_of(base, inputs)
        active = np.abs(deltas) > 0.08
        lone = active.sum(0) == 1
        gains = [1 + 0.5 * min((a & ~lone).sum() / max((a & lone).sum(), 1), 0.9) for a in active]
        shared = {"epsilon": 0.08, "r": 0.5, "alpha": 0.9}
        assert_agrees(obvious_ram(deltas, 0.08, gains), base, merge("ramplus_tl", base, inputs, shared))

    @pytest.mark.parametrize("share", [0.2, 0.7, 1.0])
    def test_sce(self, shape, share):
        base, inputs = models(shape)
        inputs[2] = base + 3 * (inputs[2] - base)
        expected = obvious_sce(deltas_of(base, inputs), share)
        assert_agrees(expected, base, merge("sce", base, inputs, {"select_topk": share}))

    def test_nearswap(self, shape):
        base, (x,) = models(shape, 1)
        (delta,) = deltas_of(base, [x])
        assert_agrees(np.clip(delta, -0.05, 0.05), base, merge("nearswap", base, [x], {"t": 0.05}))

    def test_arcee_fusion(self, shape):
        base, (x,) = models(shape, 1, scale=0.5)
        assert_agrees(obvious_gate(base, x), base, merge("arcee_fusion", base, [x]))

    def test_magmax(self, shape):
        base, inputs = models(shape)
        values = deltas_of(base, inputs) * np.array([1.0, 0.5, -0.8]).reshape(-1, *[1] * len(shape))
        expected = 0.5 * np.take_along_axis(values, np.abs(values).argmax(0)[None], 0)[0]
        assert_agrees(expected, base, merge("magmax", base, inputs, weight=[1.0, 0.5, -0.8]))

    def test_emr(self, shape):
        base, inputs = models(shape)
        deltas = deltas_of(base, inputs)
        sign = np.sign(deltas.sum(0))
        expected = 0.7 * sign * np.where(np.sign(deltas) == sign, np.abs(deltas), 0).max(0)
        assert_agrees(expected, base, merge("emr", base, inputs, {"lambda": 0.7}))

    @pytest.mark.parametrize("votes", [0.0, 2.0, 3.0])
    def test_consensus(self, shape, votes):
        base, inputs = models(shape)
        weights = [0.5, 0.4, 0.3]
        expected = 0.8 * obvious_consensus(deltas_of(base, inputs), weights, 0.6, votes)
        shared = {"strength": 0.6, "votes": votes, "lambda": 0.8}
        assert_agrees(expected, base, merge("consensus", base, inputs, shared, weight=weights))

    @pytest.mark.parametrize("model_wide", [False, True])
    def test_pcb(self, shape, model_wide):
        base, inputs = models(shape)
        expected = obvious_pcb(deltas_of(base, inputs), [1.2, 0.9, 1.1], 0.3, 0.05)
        shared = {"ratio": 0.3, "clip": 0.05, "model_wide": model_wide}
        assert_agrees(expected, base, merge("pcb", base, inputs, shared, weight=[1.2, 0.9, 1.1]))

    def test_ternary(self, shape):
        base, inputs = models(shape)
        expected = np.zeros(shape)
        columns = {"weight": [0.5, 0.4, -0.3], "density": [0.3, 1.0, 0.5], "alpha": [1.0, 2.0, 0.5]}
        for i, delta in enumerate(deltas_of(base, inputs)):
            weight, density, alpha = (column[i] for column in columns.values())
            if len(shape) <= 1:
                expected += weight * delta
                continue
            smallest = np.sort(np.abs(delta).reshape(-1))[-max(1, round(density * delta.size))]
            expected += weight * alpha * delta.std(ddof=1) * np.sign(delta) * (np.abs(delta) >= smallest)
        assert_agrees(expected, base, merge("ternary", base, inputs, **columns))

    def test_binary(self, shape):
        base, inputs = models(shape)
        deltas = deltas_of(base, inputs)
        signs = np.stack([np.abs(d).mean() * np.sign(d) for d in deltas]) if len(shape) > 1 else deltas
        assert_agrees(
            np.tensordot(np.array([0.5, 0.4, -0.3]), signs, 1),
            base,
            merge("binary", base, inputs, weight=[0.5, 0.4, -0.3]),
        )

    @pytest.mark.parametrize("t", [0.6, 1.05])
    def test_widen(self, shape, t):
        base, inputs = models(shape)
        expected = obvious_widen(deltas_of(base, inputs), base, inputs, t, 0.9)
        assert_agrees(expected, base, merge("widen", base, inputs, {"above_average": t, "score": 0.9}))


@pytest.mark.parametrize("method", ["ram", "sce", "magmax", "emr", "consensus", "pcb", "widen"])
def test_deltas_of_low_rank(method):
    base, inputs = models((9, 11), rank=1)
    twins = merge(method, base, [inputs[0], inputs[0], inputs[0]])
    assert torch.isfinite(merge(method, base, inputs)).all()
    assert torch.isfinite(twins).all()


@pytest.mark.parametrize("method", ["ram", "sce", "magmax", "emr", "consensus", "pcb", "widen"])
def test_a_number_without_axes(method):
    base, inputs = models((1,))
    alone = merge(method, base[0], [x[0] for x in inputs])
    assert alone.shape == ()
    assert alone == merge(method, base, inputs)[0]


@pytest.mark.parametrize("method", ["ram", "sce", "magmax", "emr", "consensus", "pcb", "widen"])
def test_no_entries_at_all(method):
    shared = {"select_topk": 0.5} if method == "sce" else {}
    for shape in ((0, 4), (4, 0)):
        base = torch.empty(shape)
        assert merge(method, base, [base.clone()] * 3, shared).shape == shape


@pytest.mark.parametrize("shape", [(7, 5), (11,)])
class TestOneModel:
    """What is left of a method when one model is merged."""

    @pytest.mark.parametrize("method", ["ram", "sce", "emr", "widen"])
    def test_it_is_the_model(self, method, shape):
        base, (x,) = models(shape, 1)
        torch.testing.assert_close(merge(method, base, [x]), x)

    def test_magmax_is_task_arithmetic(self, shape):
        base, (x,) = models(shape, 1)
        torch.testing.assert_close(merge("magmax", base, [x]), base + 0.5 * (x - base))

    def test_two_votes_of_one_leave_the_base(self, shape):
        base, (x,) = models(shape, 1)
        expected = base if len(shape) > 1 else x
        torch.testing.assert_close(merge("consensus", base, [x]), expected)
        torch.testing.assert_close(merge("consensus", base, [x], {"votes": 1.0}), x)


class TestMendedFaults:
    def test_sce_weighs_small_deltas_too(self):
        """mergekit gives equal weights where the energies add up to less than 1e-6."""
        base = torch.zeros(4, 4)
        inputs = [torch.full((4, 4), 1e-4), torch.full((4, 4), 3e-4)]
        torch.testing.assert_close(merge("sce", base, inputs), torch.full((4, 4), 0.1 * 1e-4 + 0.9 * 3e-4))

    def test_sce_selects_exactly_among_equals(self):
        base = torch.zeros(10, 10)
        inputs = [torch.ones(10, 10), torch.zeros(10, 10)]
        for share in (0.2, 0.37, 0.9):
            assert int(merge("sce", base, inputs, {"select_topk": share}).count_nonzero()) == round(100 * share)

    def test_selections_of_sce_are_nested(self):
        base, inputs = torch.zeros(10, 10), [torch.ones(10, 10), torch.zeros(10, 10)]
        few, many = (merge("sce", base, inputs, {"select_topk": s}) != 0 for s in (0.3, 0.5))
        assert not (few & ~many).any()

    @pytest.mark.parametrize("method", ["sce", "emr"])
    def test_a_cancellation_elects_nothing(self, method):
        base = torch.zeros(2, 2)
        inputs = [torch.full((2, 2), 0.5), torch.full((2, 2), -0.5)]
        assert not merge(method, base, inputs).any()

    def test_nearswap_moves_by_t_however_small(self):
        """mergekit moves by a tenth of t here: it divides by 1e-6 at least."""
        base, x = torch.zeros(2, 2), torch.full((2, 2), 1e-7)
        torch.testing.assert_close(
            merge("nearswap", base, [x], {"t": 5e-8}), torch.full((2, 2), 5e-8), rtol=1e-6, atol=0
        )

    def test_nearswap_ends_are_the_models_bit_for_bit(self):
        base, (x,) = models((5, 5), 1)
        assert torch.equal(merge("nearswap", base, [x], {"t": 10.0}), x)
        assert torch.equal(merge("nearswap", base, [x], {"t": 0.0}), base)

    def test_arcee_fusion_tells_small_divergences_apart(self):
        """Deltas of a fine-tuning: in fp32 the divergence of such rows drowns in rounding noise."""
        rng = generator(0, "arcee")
        base = torch.from_numpy(rng.standard_normal((6, 512)).astype(np.float32) * 0.02)
        x = base + torch.from_numpy(rng.standard_normal((6, 512)).astype(np.float32)) * 2e-5
        assert_agrees(obvious_gate(base, x), base, merge("arcee_fusion", base, [x]))

    def test_pcb_without_spread_of_magnitudes_is_the_mean(self):
        base = torch.zeros(4, 5)
        inputs = [torch.full((4, 5), 0.5), torch.full((4, 5), 0.25)]
        torch.testing.assert_close(merge("pcb", base, inputs), torch.full((4, 5), 0.375))
        torch.testing.assert_close(merge("pcb", base, [inputs[0], base]), inputs[0])

    def test_widen_of_a_column_that_vanishes(self):
        base, inputs = models((6, 4))
        for x in (base, *inputs):
            x[:, 1] = 0.0
        merged = merge("widen", base, inputs)
        assert torch.isfinite(merged).all()
        assert not merged[:, 1].any()


class TestMagnitudesDecide:
    def test_the_later_of_equals_wins_in_magmax(self):
        base = torch.zeros(1, 2)
        inputs = [torch.tensor([[1.0, -2.0]]), torch.tensor([[-1.0, 2.0]])]
        torch.testing.assert_close(merge("magmax", base, inputs, {"lambda": 1.0}), torch.tensor([[-1.0, 2.0]]))

    def test_binary_leaves_what_did_not_change(self):
        base = torch.zeros(2, 2)
        x = torch.tensor([[0.0, 2.0], [-1.0, 1.0]])
        torch.testing.assert_close(merge("binary", base, [x], weight=[1.0]), torch.tensor([[0.0, 1.0], [-1.0, 1.0]]))

    def test_ternary_keeps_exactly_its_share_of_equals(self):
        base, x = torch.zeros(10, 10), torch.ones(10, 10)
        x[0, 0] = -1.0
        merged = merge("ternary", base, [x], weight=[1.0], density=[0.37])
        assert int(merged.count_nonzero()) == 37

    def test_weights_of_zero_leave_a_model_out(self):
        base, inputs = models()
        for method in ("magmax", "emr", "consensus"):
            without = merge(method, base, inputs[:2])
            assert torch.equal(merge(method, base, inputs, weight=[1.0, 1.0, 0.0]), without)

    def test_embeddings_are_weighed_by_row(self):
        base, inputs = models((6, 9))
        embedding = load_method("widen").merge(base, inputs, parameters("widen", 3, tensor="model.embed_tokens.weight"))
        across = merge("widen", base.T.contiguous(), [x.T.contiguous() for x in inputs])
        torch.testing.assert_close(embedding, across.T)
        assert not torch.allclose(embedding, merge("widen", base, inputs))


class TestMeasurements:
    def test_moments(self):
        base, inputs = models((300, 500))
        deltas = tuple(x.reshape(-1) for x in inputs)
        measured = MeasureMoments().take([Deltas("w", (300, 500), base.reshape(-1), deltas, Kernels())])
        for found, delta in zip(measured, deltas_of(base, inputs), strict=True):
            assert found.magnitude == pytest.approx(np.abs(delta).mean(), rel=1e-12)
            assert found.deviation == pytest.approx(delta.std(ddof=1), rel=1e-9)
            assert found.norm == pytest.approx(np.linalg.norm(delta), rel=1e-12)

    @pytest.mark.parametrize("n", [1, 2, 70_000])
    def test_order_statistics_are_exact(self, n):
        rng = generator(n, "ranking")
        lists = [torch.from_numpy(np.round(rng.standard_normal(n) * s, 2).astype(np.float32)) for s in (0.1, 100.0)]
        ranking = Ranking(lambda: ([x[a : a + 999] for x in lists] for a in range(0, n, 999)))
        ranks = sorted({0, n // 4, n // 2, n - 1})
        for found, values in zip(ranking.values([ranks, ranks]), lists, strict=True):
            assert found == [float(v) for v in values.sort().values[ranks]]

    def test_ranks_outside_are_refused(self):
        ranking = Ranking(lambda: iter([[torch.ones(3)]]))
        with pytest.raises(ValueError, match="rank 3 is not in"):
            ranking.values([[3]])

    def test_scores_of_one_model(self):
        np.testing.assert_array_equal(scores(np.array([[0.0, 0.5]]), 1.0, 0.3), [[1.0, 0.3]])
