from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.recipe.recipe import Number
from evomerge.virtual.deltas import DeltaMaker
from evomerge.virtual.iso import ISO_C, ISO_CTS, space_sizes
from evomerge.virtual.knots import KNOTS, largest
from evomerge.virtual.opcm import without
from evomerge.virtual.star import STAR
from evomerge.virtual.tsv import TSV_M
from evomerge.virtual.wudi import WUDI, descend, minimiser

Matrix = npt.NDArray[np.float64]
Deltas = Sequence[torch.Tensor]
SHAPES = [(6, 6), (5, 9), (9, 5), (1, 7), (7, 1)]
KNOTS_DEFAULT: Mapping[str, Number] = {"density": 1.0, "elect": True, "mean": True}


def draw(seed: int, m: int, n: int, models: int, rank: int | None = None) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    full = [rng.standard_normal((m, n)) for _ in range(models)]
    low = [rng.standard_normal((m, rank or 1)) @ rng.standard_normal((rank or 1, n)) for _ in range(models)]
    return [torch.from_numpy(x).float() for x in (full if rank is None else low)]


def arrays(deltas: Deltas) -> list[Matrix]:
    return [d.double().numpy() for d in deltas]


def polar_np(x: Matrix) -> Matrix:
    """By an SVD, restricted to the range."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    kept = s > 1e-5 * s[0]
    return np.asarray(u[:, kept] @ vt[kept])


def opcm(deltas: Deltas, alpha: float = 0.5) -> torch.Tensor:
    merged = deltas[0]
    for d in deltas[1:]:
        merged = merged + without(d, merged, alpha).float()
    return merged


# ---- slow, obvious implementations, from the papers


def tsv_np(deltas: Deltas) -> Matrix:
    kept = max(min(deltas[0].shape) // len(deltas), 1)
    parts = [np.linalg.svd(d, full_matrices=False) for d in arrays(deltas)]
    u = np.concatenate([p[0][:, :kept] for p in parts], axis=1)
    s = np.concatenate([p[1][:kept] for p in parts])
    vt = np.concatenate([p[2][:kept] for p in parts])
    return np.asarray(polar_np(u) @ np.diag(s) @ polar_np(vt))


def iso_np(deltas: Deltas) -> Matrix:
    u, s, vt = np.linalg.svd(sum(arrays(deltas)), full_matrices=False)
    return np.asarray(s.mean() * u @ vt)


def star_np(delta: Matrix, eta: float) -> Matrix:
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    rank = next(r for r in range(1, len(s) + 1) if s[:r].sum() >= s.sum() * eta / 100)
    return np.asarray((u[:, :rank] * s[:rank]) @ vt[:rank] * s.sum() / s[:rank].sum())


def knots_np(deltas: Deltas, *, elect: bool, mean: bool) -> Matrix:
    u, s, vt = np.linalg.svd(np.concatenate(arrays(deltas), axis=1), full_matrices=False)
    kept = s > 1e-5 * s[0]
    blocks = np.split(np.diag(s[kept]) @ vt[kept], len(deltas), axis=1)
    merged = np.zeros_like(blocks[0])
    for place in np.ndindex(*merged.shape):
        values = [float(b[place]) for b in blocks]
        if elect:
            values = [v for v in values if v * sum(float(b[place]) for b in blocks) > 0]
        merged[place] = sum(values) / (max(len(values), 1) if mean else 1)
    return np.asarray(u[:, kept] @ merged)


def wudi_np(deltas: Deltas) -> Matrix:
    """Least squares of smallest norm: t A_i = delta_i A_i with A_i = delta_i^T / |delta_i|, all i at once."""
    xs = arrays(deltas)
    a = np.concatenate([x.T / np.linalg.norm(x) for x in xs], axis=1)
    b = np.concatenate([x @ x.T / np.linalg.norm(x) for x in xs], axis=1)
    return np.asarray(np.linalg.lstsq(a.T, b.T, rcond=1e-5)[0].T)


def opcm_np(deltas: Deltas, alpha: float) -> Matrix:
    """With whole matrices of singular vectors."""
    xs = arrays(deltas)
    merged = xs[0]
    for x in xs[1:]:
        u, s, vt = np.linalg.svd(merged)
        r = sum(1 for i in range(len(s)) if s[: i + 1].sum() <= alpha * s.sum())
        p = u.T @ x @ vt.T
        np.fill_diagonal(p, 0)
        p[:r, :r] = 0
        merged = merged + u @ p @ vt
    return np.asarray(merged)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("models", [1, 2, 3])
def test_makers_do_what_their_papers_say(shape: tuple[int, int], models: int) -> None:
    deltas = draw(7, *shape, models)
    for got, expected in [
        (TSV_M.matrix(deltas, {}), tsv_np(deltas)),
        (ISO_C.matrix(deltas, {"exact": True}), iso_np(deltas)),
        (KNOTS.matrix(deltas, KNOTS_DEFAULT), knots_np(deltas, elect=True, mean=True)),
        (KNOTS.matrix(deltas, {**KNOTS_DEFAULT, "elect": False}), knots_np(deltas, elect=False, mean=True)),
        (KNOTS.matrix(deltas, {**KNOTS_DEFAULT, "mean": False}), knots_np(deltas, elect=True, mean=False)),
        (WUDI.matrix(deltas, {"steps": 0.0}), wudi_np(deltas)),
        (STAR.matrix(deltas[:1], {"eta": 60.0}), star_np(arrays(deltas)[0], 60)),
        (opcm(deltas, 0.7), opcm_np(deltas, 0.7)),
    ]:
        assert np.allclose(got.numpy(), expected, atol=2e-5)
    assert np.allclose(ISO_C.matrix(deltas, {"exact": False}).numpy(), iso_np(deltas), atol=1e-3)


@pytest.mark.parametrize("shape", [(8, 8), (6, 11), (11, 6)])
def test_deltas_of_low_rank(shape: tuple[int, int]) -> None:
    deltas = draw(3, *shape, 3, rank=2)
    assert np.allclose(TSV_M.matrix(deltas, {}).numpy(), tsv_np(deltas), atol=1e-4)
    assert np.allclose(KNOTS.matrix(deltas, KNOTS_DEFAULT).numpy(), knots_np(deltas, elect=True, mean=True), atol=1e-4)
    assert np.allclose(WUDI.matrix(deltas, {"steps": 0.0}).numpy(), wudi_np(deltas), atol=1e-4)
    level = np.linalg.svd(sum(arrays(deltas)), compute_uv=False).mean()
    expected = level * polar_np(np.asarray(sum(arrays(deltas))))
    assert np.allclose(ISO_C.matrix(deltas, {"exact": True}).numpy(), expected, atol=1e-4)
    assert np.linalg.norm(ISO_C.matrix(deltas, {"exact": False}).numpy() - expected) < 0.05 * np.linalg.norm(expected)
    made = ISO_CTS.matrix(deltas, {"common": 0.5})
    assert np.linalg.matrix_rank(made.numpy(), tol=1e-3) <= 6
    assert without(deltas[1], deltas[0], 0.5).isfinite().all()


def test_diagonal_deltas_by_hand() -> None:
    one, two = torch.diag(torch.tensor([4.0, 1.0, 0.0, 0.0])), torch.diag(torch.tensor([0.0, 0.0, 2.0, 1.0]))
    assert TSV_M.matrix([one, two], {}).allclose((one + two).double())  # two directions each, orthogonal already
    assert ISO_C.matrix([one, two], {"exact": True}).allclose(2 * torch.eye(4).double())  # (4 + 1 + 2 + 1) / 4
    assert WUDI.matrix([one, two], {"steps": 0.0}).allclose((one + two).double())  # no input in common
    assert KNOTS.matrix([one, two], KNOTS_DEFAULT).allclose((one + two).double())
    assert STAR.matrix([one], {"eta": 80.0}).allclose(torch.diag(torch.tensor([5.0, 0.0, 0.0, 0.0])).double())
    assert STAR.matrix([one], {"eta": 80.1}).allclose(one.double())
    # along a diagonal everything is said already; what is off it comes through, but for the leading block
    x = torch.arange(16.0).reshape(4, 4)
    kept = without(x, torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])), 0.75)
    assert kept.allclose(torch.tensor([[0, 0, 2, 3], [0, 0, 6, 7], [8, 9, 0, 11], [12, 13, 14, 0]]).double())


def test_wudi_weighs_models_by_what_they_do_to_a_direction() -> None:
    """Rows on one input: t = (d1 |d1|^2/|D1|^2 + d2 |d2|^2/|D2|^2) / (...), in one dimension the shares are 1 and 1."""
    one, two = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [3.0]])
    assert WUDI.matrix([one, two], {"steps": 0.0}).allclose(torch.tensor([[0.5], [1.5]]).double())
    still = torch.zeros(2, 1)
    assert WUDI.matrix([one, still], {"steps": 0.0}).allclose(one.double())


def test_the_space_of_iso_cts_divides_evenly() -> None:
    assert space_sizes(10, 3, 0.8) == (7, 1)
    assert space_sizes(10, 2, 0.0) == (0, 5)
    assert space_sizes(10, 2, 1.0) == (10, 0)
    assert space_sizes(5, 8, 0.0) == (5, 0)  # the authors' rounding would ask for 8 of 5 directions
    deltas = draw(0, 5, 7, 2)
    assert ISO_CTS.matrix(deltas, {"common": 1.0}).allclose(ISO_C.matrix(deltas, {"exact": True}), atol=1e-9)


def test_the_largest_are_counted_exactly() -> None:
    x = torch.tensor([[1.0, -3.0, 2.0], [-2.0, 0.5, 2.0]])
    assert largest(x, 0.5).equal(torch.tensor([[0.0, -3.0, 2.0], [-2.0, 0.0, 0.0]]))  # of equal ones the first
    assert largest(x, 1.0).equal(x)
    assert not largest(x, 0.0).any()


@pytest.mark.parametrize("shape", [(6, 6), (5, 8), (8, 5)])
def test_one_model_gives_its_delta(shape: tuple[int, int]) -> None:
    (delta,) = draw(1, *shape, 1)
    for made in (
        TSV_M.matrix([delta], {}),
        KNOTS.matrix([delta], KNOTS_DEFAULT),
        WUDI.matrix([delta], {"steps": 0.0}),
        STAR.matrix([delta], {"eta": 100.0}),
        opcm([delta]),
    ):
        assert made.double().allclose(delta.double(), atol=1e-5)


def test_equal_models() -> None:
    delta = draw(2, 6, 9, 1)[0]
    u, s, vt = np.linalg.svd(delta.double().numpy(), full_matrices=False)
    for made, expected in [
        (TSV_M.matrix([delta] * 3, {}), (u[:, :2] * s[:2]) @ vt[:2]),
        (ISO_C.matrix([delta] * 2, {"exact": True}), 2 * s.mean() * u @ vt),
        (KNOTS.matrix([delta] * 3, KNOTS_DEFAULT), delta.numpy()),
        (WUDI.matrix([delta] * 3, {"steps": 0.0}), delta.numpy()),
        (opcm([delta] * 3), delta.numpy()),
    ]:
        assert np.allclose(made.numpy(), expected, atol=1e-4)


def test_opposite_models_elect_nothing() -> None:
    delta = draw(4, 4, 6, 1)[0]
    assert not KNOTS.matrix([delta, -delta], KNOTS_DEFAULT).any()


def test_task_arithmetic_does_not_depend_on_the_basis() -> None:
    deltas = draw(5, 7, 4, 3)
    made = KNOTS.matrix(deltas, {"density": 1.0, "elect": False, "mean": False})
    assert made.allclose(torch.stack(deltas).sum(0).double(), atol=1e-5)


def orthogonal(seed: int, n: int) -> torch.Tensor:
    return torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0])


MAKE: dict[str, tuple[Callable[[Deltas], torch.Tensor], bool]] = {
    "tsv_m": (lambda d: TSV_M.matrix(d, {}), True),
    "iso_c": (lambda d: ISO_C.matrix(d, {"exact": True}), True),
    "iso_cts": (lambda d: ISO_CTS.matrix(d, {"common": 0.5}), True),
    "star": (lambda d: STAR.matrix(d[:1], {"eta": 55.0}), True),
    "wudi": (minimiser, True),
    "opcm": (opcm, True),
    "knots": (lambda d: KNOTS.matrix(d, KNOTS_DEFAULT), False),  # inputs are coordinates of their own
}


@pytest.mark.parametrize("name", MAKE)
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 50), shape=st.sampled_from([(5, 8), (8, 5), (6, 6)]), scale=st.floats(1e-3, 1e3))
def test_rotations_and_scales_pass_through(name: str, seed: int, shape: tuple[int, int], scale: float) -> None:
    make, both_sides = MAKE[name]
    deltas = draw(seed, *shape, 2)
    left = orthogonal(seed + 1, shape[0])
    right = orthogonal(seed + 2, shape[1]) if both_sides else torch.eye(shape[1], dtype=torch.float64)
    turned = [(scale * left @ d.double() @ right).float() for d in deltas]
    expected = scale * left @ make(deltas).double() @ right
    assert (make(turned).double() - expected).norm() < 3e-3 * expected.norm()


@pytest.mark.parametrize("name", [n for n in MAKE if n not in ("opcm", "star")])
def test_the_order_of_models_does_not_matter(name: str) -> None:
    make, _ = MAKE[name]
    deltas = draw(8, 6, 7, 3)
    assert make(deltas).allclose(make(deltas[::-1]), atol=1e-6)


def test_the_order_of_models_matters_to_opcm() -> None:
    deltas = draw(8, 6, 7, 3)
    assert not opcm(deltas).allclose(opcm(deltas[::-1]), atol=1e-2)


def test_nothing_lies_below_the_minimiser_of_wudi() -> None:
    deltas = draw(9, 6, 10, 3)

    def objective(t: torch.Tensor) -> float:
        xs = [d.double() for d in deltas]
        return sum(float(((t - x) @ x.T).square().sum() / x.square().sum()) for x in xs)

    best = minimiser(deltas)
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-1):
        other = best + size * torch.from_numpy(rng.standard_normal(best.shape))
        assert objective(best) < objective(other)
    steps = [objective(descend([1e-3 * d for d in deltas], k).double() * 1e3) for k in (1, 100, 1000, 4000)]
    assert steps[0] > steps[1] > steps[2] > objective(best)
    assert steps[3] == pytest.approx(objective(best), rel=1e-3)


def test_works_of_all_makers_grow_with_the_matrix() -> None:
    makers: list[DeltaMaker] = [TSV_M, ISO_C, ISO_CTS, STAR, KNOTS, WUDI]
    for maker in makers:
        given = {n: p.default for n, p in maker.spec.parameters.items() if p.default is not None}
        assert 0 < maker.work(64, 32, 2, given) < maker.work(640, 320, 2, given)
        assert maker.matrix(draw(0, 4, 3, 1), given).shape == (4, 3)
