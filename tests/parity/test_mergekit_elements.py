"""Element-wise methods and mergekit 0.1.5: equal where our default mends nothing, and the faults that it mends."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from evomerge.merging.methods import Parameters, load_method
from evomerge.seeds import generator

pytest.importorskip("mergekit")
pytestmark = pytest.mark.parity


def theirs(method, base, inputs, **parameters):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.merge_methods import merge_tensors

        return merge_tensors([base, *inputs], method, base_index=0, parameters=parameters)


def ours(method, base, inputs, **parameters):
    specs = load_method(method).spec.parameters
    shared = {n: p.default for n, p in specs.items()} | parameters
    names = tuple(f"m{i}" for i in range(len(inputs)))
    return load_method(method).merge(base, inputs, Parameters("w", names, shared, tuple({} for _ in names)))


def models(shape, n, *, scale=0.1, seed=0):
    rng = generator(seed, "element parity", str(shape))
    base = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    return base, [base + scale * torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for _ in range(n)]


@pytest.mark.parametrize("shape", [(200, 31), (5, 300), (64,)], ids=str)
@pytest.mark.parametrize(
    ("method", "n", "parameters"),
    [
        ("ram", 3, {"epsilon": 0.08}),
        ("ram", 3, {}),
        ("ramplus_tl", 3, {"epsilon": 0.08}),
        ("ramplus_tl", 3, {"epsilon": 0.08, "r": 0.7, "alpha": 3.0}),
        ("sce", 3, {}),
        ("nearswap", 1, {"t": 0.05}),
        ("nearswap", 1, {"t": 1e-3}),
    ],
)
def test_equal_up_to_rounding(method, n, parameters, shape):
    base, inputs = models(shape, n)
    torch.testing.assert_close(
        ours(method, base, inputs, **parameters), theirs(method, base, inputs, **parameters), rtol=1e-6, atol=5e-7
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_sce_selects_the_same_where_no_variances_are_equal(share):
    base, inputs = models((100, 40), 3)  # int and round agree on these shares of 4000
    torch.testing.assert_close(
        ours("sce", base, inputs, select_topk=share),
        theirs("sce", base, inputs, select_topk=share),
        rtol=1e-6,
        atol=5e-7,
    )


@pytest.mark.parametrize("shape", [(100, 41), (7, 513)], ids=str)
def test_arcee_fusion_where_divergences_are_large(shape):
    base, inputs = models(shape, 1, scale=0.5)
    mine, other = ours("arcee_fusion", base, inputs), theirs("arcee_fusion", base, inputs)
    differ = (mine - other).abs() > 1e-6
    assert int(differ.sum()) <= 2  # entries next to the threshold, which fp32 divergences put elsewhere


class TestMendedFaults:
    def test_equal_weights_for_small_deltas(self):
        base = torch.zeros(4, 4)
        inputs = [torch.full((4, 4), 1e-4), torch.full((4, 4), 3e-4)]
        torch.testing.assert_close(theirs("sce", base, inputs), torch.full((4, 4), 2e-4))
        torch.testing.assert_close(ours("sce", base, inputs), torch.full((4, 4), 2.8e-4))

    def test_less_than_t_for_small_distances(self):
        base, x = torch.zeros(2, 2), torch.full((2, 2), 1e-7)
        torch.testing.assert_close(theirs("nearswap", base, [x], t=5e-8), torch.full((2, 2), 5e-9), rtol=1e-5, atol=0)
        torch.testing.assert_close(ours("nearswap", base, [x], t=5e-8), torch.full((2, 2), 5e-8), rtol=1e-5, atol=0)

    def test_random_quartiles(self):
        base, inputs = models((1001, 1000), 1, scale=0.5)
        with torch.random.fork_rng():
            draws = []
            for seed in (0, 1):
                torch.manual_seed(seed)
                draws.append(theirs("arcee_fusion", base, inputs))
        assert not torch.equal(*draws)
        assert torch.equal(ours("arcee_fusion", base, inputs), ours("arcee_fusion", base, inputs))
