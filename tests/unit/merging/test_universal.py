"""`universal`: what it equals at its ends, that everything fades in, and its formula computed one number at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.elements import mix32, salt
from evomerge.merging.methods import Parameters, load_method
from evomerge.seeds import generator

NEUTRAL = {"density": 1.0, "dropout": 0.0, "epsilon": 0.0}
WEIGHTS = [0.7, -0.2, 0.4]
weights = st.lists(st.floats(-2.0, 2.0, allow_nan=False, width=16), min_size=1, max_size=3)


def models(shape=(40, 50), n=3, scale=0.1):
    rng = generator(0, "universal", str(shape))
    base = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    return base, [base + scale * torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for _ in range(n)]


def merge(method, base, inputs, shared=None, *, seed=0, **columns):
    specs = load_method(method).spec.parameters
    values = {name: p.default for name, p in specs.items() if not p.per_parent} | (shared or {})
    rows = tuple(
        {name: p.default for name, p in specs.items() if p.per_parent} | {k: v[i] for k, v in columns.items()}
        for i in range(len(inputs))
    )
    names = tuple(f"m{i}" for i in range(len(inputs)))
    return load_method(method).merge(base, inputs, Parameters("w", names, values, rows, seed))


def universal(base, inputs, *, weight=WEIGHTS, seed=0, **settings_):
    """`universal` with numbers for all models alike."""
    per_parent = {"density", "dropout", "epsilon"}
    columns = {n: [v] * len(inputs) for n, v in settings_.items() if n in per_parent}
    shared = {"lambda" if n == "scale" else n: v for n, v in settings_.items() if n not in per_parent}
    return merge("universal", base, inputs, shared, seed=seed, weight=list(weight)[: len(inputs)], **columns)


def distance(a, b, base):
    """Relative to the merge's own size."""
    return float((a - b).norm() / (b - base).norm())


class TestEnds:
    @given(weight=weights, scale=st.floats(-2.0, 2.0, width=16), dropout=st.floats(0.0, 1.0))
    @settings(deadline=None, max_examples=30)
    def test_neutral_is_task_arithmetic_bit_for_bit(self, weight, scale, dropout):
        base, inputs = models((7, 9), len(weight))
        expected = merge("task_arithmetic", base, inputs, {"lambda": scale}, weight=weight)
        merged = universal(base, inputs, weight=weight, scale=scale, dropout=dropout)
        assert torch.equal(merged.view(torch.int32), expected.view(torch.int32))

    def test_one_weight_of_one_is_that_parent(self):
        base, inputs = models()
        assert torch.equal(universal(base, inputs, weight=[0.0, 1.0, 0.0]), inputs[1])

    @pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
    def test_full_election_is_ties(self, density):
        base, inputs = models()
        ties = merge("ties", base, inputs, {"normalize": False, "lambda": 0.8}, weight=WEIGHTS, density=[density] * 3)
        assert torch.equal(universal(base, inputs, density=density, election=1.0, scale=0.8), ties)

    @pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
    @pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
    def test_full_dropout_is_dare(self, method, density):
        base, inputs = models()
        shared = {"lambda": 0.8, "normalize": False}
        dare = merge(method, base, inputs, shared, seed=5, weight=WEIGHTS, density=[density] * 3)
        election = float(method == "dare_ties")
        merged = universal(base, inputs, seed=5, density=density, dropout=1.0, election=election, scale=0.8)
        assert torch.equal(merged, dare)

    def test_sharpness_without_bounds_is_magmax(self):
        base, _ = models((5, 6))
        inputs = [base + d for d in (0.25, -0.5, 1.0)]
        merged = universal(base, inputs, weight=[1.0, 1.0, 1.0], sharpness=16.0)
        expected = merge("magmax", base, inputs, {"lambda": 1.0})
        torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4)

    def test_election_of_what_cancels(self):
        base = torch.zeros(2, 2)
        inputs = [torch.ones(2, 2), -torch.ones(2, 2)]
        for election in (0.3, 1.0):
            assert not universal(base, inputs, weight=[0.5, 0.5], election=election).any()

    def test_full_norm_is_the_mean_norm_of_the_deltas(self):
        base, inputs = models()
        wanted = sum(float((x - base).double().norm()) for x in inputs) / 3
        for others in ({}, {"density": 0.3}, {"density": 0.4, "dropout": 0.5}, {"election": 0.7, "sharpness": 2.0}):
            merged = universal(base, inputs, norm=1.0, **others)
            assert float((merged - base).double().norm()) == pytest.approx(wanted, rel=1e-5)

    @pytest.mark.parametrize("shape", [(30,), ()])
    def test_one_axis_is_dense(self, shape):
        base, inputs = models(shape)
        dense = merge("task_arithmetic", base, inputs, weight=WEIGHTS)
        merged = universal(base, inputs, density=0.2, dropout=0.5, epsilon=0.2, norm=1.0)
        assert torch.equal(merged, dense)

    def test_nothing_left(self):
        base, inputs = models((4, 4))
        assert torch.equal(universal(base, inputs, density=0.0), base)
        assert torch.equal(universal(base, inputs, weight=[0.0] * 3, norm=1.0), base)
        same = universal(base, [base] * 3, norm=1.0, epsilon=0.2, sharpness=1.0, election=0.5)
        assert torch.equal(same, base)


PLACES = {
    "neutral": {},
    "trimmed": {"density": 0.6},
    "half dropped": {"density": 0.6, "dropout": 0.5},
    "elected": {"election": 0.5, "density": 0.8},
    "sharp": {"sharpness": 1.0, "election": 0.3},
    "all": {"density": 0.6, "dropout": 0.5, "epsilon": 0.2, "election": 0.5, "sharpness": 1.0, "norm": 0.5},
}
STEPS = {
    "density": -0.001, "dropout": 0.001, "epsilon": 0.001, "election": 0.001, "sharpness": 0.001, "norm": 0.001,
    "scale": 0.001,
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", STEPS)
def test_a_small_step_changes_little(name, place):
    base, inputs = models((60, 80))
    here = PLACES[place]
    before = {"density": 1.0, "scale": 1.0}.get(name, 0.0)
    stepped = here | {name: here.get(name, before) + STEPS[name]}
    change = distance(universal(base, inputs, **stepped), universal(base, inputs, **here), base)
    assert 0.0 < change < 0.1 or (change == 0.0 and name == "dropout" and "density" not in here)


@pytest.mark.parametrize(
    ("name", "end"), [("election", 1.0), ("dropout", 1.0), ("norm", 1.0), ("epsilon", 0.0), ("sharpness", 0.0)]
)
def test_the_ends_are_reached_continuously(name, end):
    """The general kernel next to an end gives what the special one gives at the end."""
    base, inputs = models((60, 80))
    near = 1.0 - 1e-6 if end else 1e-6
    others = {"density": 0.5, "dropout": 0.3} if name != "dropout" else {"density": 0.5}
    change = distance(
        universal(base, inputs, **others, **{name: near}), universal(base, inputs, **others, **{name: end}), base
    )
    assert change < 2e-3


def obvious(base, inputs, weight, *, density, dropout, epsilon, election, sharpness, norm, scale, seed=0):
    """The module's formula in fp64, entry after entry; no two magnitudes are equal."""
    deltas = np.stack([(x - base).double().numpy().reshape(-1) for x in inputs])
    values = np.zeros_like(deltas)
    for i, delta in enumerate(deltas):
        size = np.abs(delta)
        count = max(1, round(density ** (1 - dropout) * delta.size))
        smallest, q = np.sort(size)[-count], density**dropout
        word = salt("mask", seed, "w", f"m{i}")
        for j, d in enumerate(delta):
            p = np.clip(q + epsilon * (2 * size[j] / (size[j] + size.mean()) - 1), q / 4, 1.0)
            if size[j] >= smallest and (mix32(j ^ word) >> 8) / 2**24 < p:
                values[i, j] = weight[i] * d / p
    total = values.sum(0)
    values *= np.where(np.sign(values) == np.sign(total), 1.0, 1.0 - election)
    most = np.abs(values).max(0)
    merged = (values * (np.abs(values) / np.where(most > 0, most, 1)) ** sharpness).sum(0)
    wanted = np.linalg.norm(deltas, axis=1).mean()
    merged *= (wanted / np.linalg.norm(merged)) ** norm
    return (base.double().numpy().reshape(-1) + scale * merged).reshape(base.shape)


@given(
    st.fixed_dictionaries(
        {
            "density": st.floats(0.1, 1.0),
            "dropout": st.sampled_from([0.0, 0.3, 1.0]),
            "epsilon": st.sampled_from([0.0, 0.05, 0.2]),
            "election": st.sampled_from([0.0, 0.4, 1.0]),
            "sharpness": st.sampled_from([0.0, 0.7, 3.0]),
            "norm": st.sampled_from([0.0, 0.5, 1.0]),
            "scale": st.just(0.9),
            "seed": st.integers(0, 3),
        }
    )
)
@settings(deadline=None, max_examples=40)
def test_the_formula(given_):
    base, inputs = models((9, 14))
    merged = universal(base, inputs, **given_)
    expected = torch.from_numpy(obvious(base, inputs, WEIGHTS, **given_))
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=2e-6)


def test_dropping_is_unbiased():
    """The mean over seeds is what trimming alone gives, whether or not the probability depends on the size."""
    base, inputs = models((20, 20), 1)
    for epsilon in (0.0, 0.2):
        draws = [
            universal(base, inputs, weight=[1.0], seed=s, density=0.5, dropout=1.0, epsilon=epsilon) for s in range(400)
        ]
        error = (torch.stack(draws).mean(0) - inputs[0]).norm() / (inputs[0] - base).norm()
        assert error < 0.1


def test_large_entries_survive_more_often():
    base, inputs = models((100, 100), 1)
    kept = universal(base, inputs, weight=[1.0], density=0.5, dropout=1.0, epsilon=0.3) != base
    size = (inputs[0] - base).abs()
    large = size > size.median()
    assert kept[large].float().mean() > kept[~large].float().mean() + 0.1
