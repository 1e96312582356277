from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.virtual.spectral import RANK_TOLERANCE, newton_schulz, one_thread, polar, triplets


def random(seed: int, m: int, n: int, rank: int | None = None) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((m, n)) if rank is None else rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
    return torch.from_numpy(x).float()


def with_spectrum(seed: int, m: int, n: int, s: torch.Tensor) -> torch.Tensor:
    u, _, vt = np.linalg.svd(np.random.default_rng(seed).standard_normal((m, n)), full_matrices=False)
    return torch.from_numpy(u @ np.diag(s.double().numpy()) @ vt).float()


def polar_by_svd(matrix: torch.Tensor) -> torch.Tensor:
    u, _, vt = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    return torch.from_numpy(u @ vt)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_triplets_are_those_of_an_svd(seed: int, m: int, n: int, rank: int) -> None:
    x = random(seed, m, n, rank)
    u, s, vt = triplets(x)
    expected = np.linalg.svd(x.double().numpy(), compute_uv=False)
    count = int((expected > expected[0] * RANK_TOLERANCE).sum())
    assert u.shape == (m, count)
    assert vt.shape == (count, n)
    assert np.allclose(s.numpy(), expected[:count], rtol=1e-9)
    assert torch.allclose(u.T @ u, torch.eye(count, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(vt @ vt.T, torch.eye(count, dtype=torch.float64), atol=1e-5)
    assert torch.allclose((u * s) @ vt, x.double(), atol=1e-5 * float(expected[0]))


def test_what_is_rounding_noise_of_fp32_counts_as_absent() -> None:
    x = with_spectrum(0, 5, 7, torch.tensor([1.0, 0.5, 2e-5, 5e-6, 1e-7]))
    assert triplets(x).s.numel() == 3
    assert triplets(torch.zeros(3, 4)).s.numel() == 0
    assert polar(torch.zeros(3, 4)).equal(torch.zeros(3, 4, dtype=torch.float64))


def test_polar_of_a_diagonal_and_of_a_lower_rank() -> None:
    assert polar(torch.diag(torch.tensor([3.0, -2.0, 0.5]))).allclose(
        torch.diag(torch.tensor([1.0, -1.0, 1.0])).double()
    )
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 5.0, 12.0])
    assert polar(torch.outer(a, b)).allclose(torch.outer(a / 5, b / 13).double())


@pytest.mark.parametrize("shape", [(24, 24), (24, 40), (40, 24)])
@pytest.mark.parametrize(("condition", "tolerance"), [(1e1, 1e-5), (1e2, 1e-5), (1e3, 1e-5), (1e4, 2e-4)])
def test_newton_schulz_agrees_with_an_svd(shape: tuple[int, int], condition: float, tolerance: float) -> None:
    x = with_spectrum(1, *shape, torch.logspace(0, -float(np.log10(condition)), 24))
    expected = polar_by_svd(x)
    assert (newton_schulz(x).double() - expected).norm() < tolerance * expected.norm()
    assert (polar(x) - expected).norm() < 1e-8 * expected.norm()
    assert newton_schulz(1e-7 * x).allclose(newton_schulz(x), atol=1e-3)


def test_newton_schulz_leaves_what_lies_outside_the_range() -> None:
    x = random(2, 32, 48, rank=5)
    factor = newton_schulz(x)
    assert (factor.double() - polar(x)).norm() < 0.02 * 5**0.5
    assert newton_schulz(torch.zeros(3, 2)).equal(torch.zeros(3, 2))


def test_the_number_of_threads_is_put_back_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with one_thread():
            seen.append(torch.get_num_threads())
            raise ValueError("inside")

    seen: list[int] = []
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="inside"):
        fail()
    assert (seen, torch.get_num_threads()) == ([1], 2)
    torch.set_num_threads(before)
