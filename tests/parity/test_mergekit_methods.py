"""`compat: mergekit` equals mergekit 0.1.5 bit for bit; the default differs only where it says so."""

from __future__ import annotations

import pytest
import torch

from evomerge.merging.compat import merge_compat
from evomerge.merging.kernels import Kernels
from evomerge.merging.methods import KernelMethod, Parameters, TensorFacts, load_method
from evomerge.seeds import generator

mergekit_methods = pytest.importorskip("mergekit.merge_methods")
pytestmark = pytest.mark.parity

SHAPES = [(7,), (1, 1), (33, 65), (1024, 1031), (1 << 10, 1 << 10)]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def models(shape, dtype, n=3, seed=0):
    """A base and n models whose deltas look like fine-tuning: on bf16 they lie on a coarse lattice, with many ties."""
    rng = generator(seed, "parity", str(shape), str(dtype))
    base = torch.from_numpy(rng.standard_normal(shape)).mul(0.02).to(dtype)
    noise = [torch.from_numpy(rng.standard_normal(shape)).mul(4e-4) for _ in range(n)]
    return base, [(base.double() + d).to(dtype) for d in noise]


def state_dict_oracle(method, base, inputs, parameters, base_first=False):
    named = {f"m{i}": {"w": x} for i, x in enumerate(inputs)}
    if base is not None:
        named["base"] = {"w": base}
    key = "base" if base is not None else ("m0" if base_first else None)
    return mergekit_methods.merge_state_dicts(named, method, parameters=parameters, base=key)["w"]


def parameters_of(method, n, shared=None, **columns):
    spec = load_method(method).spec
    values = {name: p.default for name, p in spec.parameters.items() if not p.per_parent} | (shared or {})
    rows = []
    for i in range(n):
        row = {name: p.default for name, p in spec.parameters.items() if p.per_parent}
        rows.append(row | {name: column[i] for name, column in columns.items()})
    return Parameters("w", tuple(f"m{i}" for i in range(n)), values, tuple(rows))


def assert_same_bits(ours, theirs):
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    as_int = torch.int32 if ours.dtype == torch.float32 else torch.int16
    differing = int((ours.contiguous().view(as_int) != theirs.contiguous().view(as_int)).sum())
    assert differing == 0, f"{differing} of {ours.numel()} differ"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestSameBits:
    @pytest.mark.parametrize("normalize", [True, False])
    def test_linear(self, shape, dtype, normalize):
        _, inputs = models(shape, dtype)
        weights = [0.6, 0.3, -0.2]
        theirs = state_dict_oracle("linear", None, inputs, {"weight": weights, "normalize": normalize})
        ours = merge_compat(
            "linear", None, inputs, parameters_of("linear", 3, {"normalize": normalize}, weight=weights)
        )
        assert_same_bits(ours, theirs)

    @pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
    def test_slerp(self, shape, dtype, t):
        base, inputs = models(shape, dtype, 1)
        far = torch.from_numpy(generator(1, "far", str(shape)).standard_normal(shape)).to(dtype)
        for other in (inputs[0], far):  # nearly parallel, and nearly orthogonal
            theirs = state_dict_oracle("slerp", None, [base, other], {"t": t}, base_first=True)
            ours = merge_compat("slerp", None, [base, other], parameters_of("slerp", 2, {"t": t}))
            assert_same_bits(ours, theirs)

    @pytest.mark.parametrize(("normalize", "scale"), [(False, 1.0), (True, 0.7)])
    def test_task_arithmetic(self, shape, dtype, normalize, scale):
        base, inputs = models(shape, dtype)
        weights = [0.6, 0.3, -0.2]
        shared = {"normalize": normalize, "lambda": scale}
        theirs = state_dict_oracle("task_arithmetic", base, inputs, {"weight": weights, **shared})
        ours = merge_compat(
            "task_arithmetic", base, inputs, parameters_of("task_arithmetic", 3, shared, weight=weights)
        )
        assert_same_bits(ours, theirs)

    @pytest.mark.parametrize(
        ("densities", "normalize", "scale"), [([0.2, 0.5, 0.8], True, 1.0), ([1.0, 0.4, 0.0], False, 1.3)]
    )
    def test_ties(self, shape, dtype, densities, normalize, scale):
        base, inputs = models(shape, dtype)
        weights = [0.6, 0.3, 0.4]
        shared = {"normalize": normalize, "lambda": scale}
        theirs = state_dict_oracle("ties", base, inputs, {"weight": weights, "density": densities, **shared})
        ours = merge_compat("ties", base, inputs, parameters_of("ties", 3, shared, weight=weights, density=densities))
        assert_same_bits(ours, theirs)


def test_the_default_task_arithmetic_is_mergekits_in_fp32():
    base, inputs = models((300, 400), torch.float32)
    weights = [0.6, 0.3, -0.2]
    method = load_method("task_arithmetic")
    ours = method.merge(base, inputs, parameters_of("task_arithmetic", 3, weight=weights))
    assert_same_bits(ours, state_dict_oracle("task_arithmetic", base, inputs, {"weight": weights}))


def test_the_default_ties_differs_from_mergekits_only_at_ties():
    base, inputs = models((500, 700), torch.float32)
    base, inputs = base.bfloat16().float(), [x.bfloat16().float() for x in inputs]  # bf16 parents merged in fp32
    weights, densities = [0.5, 0.3, 0.4], [0.5, 0.5, 0.5]
    parameters = parameters_of("ties", 3, weight=weights, density=densities)
    ours = load_method("ties").merge(base, inputs, parameters)
    theirs = state_dict_oracle("ties", base, inputs, {"weight": weights, "density": densities})
    facts = TensorFacts(parameters, base.view(-1), [x.view(-1) for x in inputs], (500, 700), Kernels())
    tied, votes = torch.zeros(500, 700, dtype=torch.bool), torch.zeros(500, 700)
    for i, (x, weight) in enumerate(zip(inputs, weights, strict=True)):
        magnitude = (x - base).abs().view(torch.int32)
        threshold = facts.cut(i, round(0.5 * x.numel())).bits
        tied |= magnitude == threshold
        votes += torch.where(magnitude > threshold, weight * (x - base), 0.0)
    cancelled = (votes == 0) & ~tied
    assert torch.equal(ours[~tied & ~cancelled], theirs[~tied & ~cancelled])
    assert torch.equal(ours[cancelled], base[cancelled])  # an exact cancellation elects nothing
    assert tied.any()


def test_default_methods_are_kernel_methods():
    for name in ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"):
        assert isinstance(load_method(name), KernelMethod)
