"""mergekit's known faults, each shown in `compat: mergekit` and, where mergekit is installed, equal in it bit for bit.

What the default mode does in these places is tested with its methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from evomerge.merging.compat import merge_compat
from evomerge.merging.compat_case import Draws
from evomerge.seeds import generator
from evomerge.testing.peer import GlobalDraws, agreement, mergekit_tensor, parameters_of

FAULTS: dict[str, Callable[[], Fault]] = {}


@dataclass(frozen=True)
class Fault:
    """A merge, and whether its result shows the fault."""

    method: str
    base: torch.Tensor | None
    models: tuple[torch.Tensor, ...]
    setting: Mapping[str, Any]
    shows: Callable[[torch.Tensor], bool]


def fault(make: Callable[[], Fault]) -> Callable[[], Fault]:
    FAULTS[make.__name__] = make
    return make


def normal(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rng = generator(seed, "fault", str(shape))
    return torch.from_numpy(rng.standard_normal(shape) * scale).to(dtype)


def column(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def near(expected: torch.Tensor, rel: float = 1e-5) -> Callable[[torch.Tensor], bool]:
    return lambda merged: bool(torch.allclose(merged.float(), expected.float(), rtol=rel, atol=1e-7))


@fault
def an_exact_cancellation_elects_the_positive_sign() -> Fault:
    x, y = column(1.0, -2.0), column(-1.0, 2.0)
    return Fault("ties", torch.zeros(2), (x, y), {"weight": (0.5, 0.5)}, near(column(1.0, 2.0)))


@fault
def weights_are_rounded_to_bf16() -> Fault:
    base, x = torch.zeros(1, dtype=torch.bfloat16), column(256.0, dtype=torch.bfloat16)
    return Fault("task_arithmetic", base, (x,), {"weight": (0.6,)}, near(column(0.6015625 * 256)))


@fault
def a_weight_of_one_does_not_give_the_parent_in_bf16() -> Fault:
    """300 and 1.25 differ by 298.75, which bf16 holds as 298."""
    base, x = column(300.0, dtype=torch.bfloat16), column(1.25, dtype=torch.bfloat16)
    return Fault("task_arithmetic", base, (x,), {"weight": (1.0,)}, near(column(2.0)))


@fault
def density_is_truncated() -> Fault:
    x = column(*range(1, 11))
    setting = {"weight": (1.0,), "density": (0.19,)}  # 1.9 entries: one is kept
    return Fault("ties", torch.zeros(10), (x,), setting, lambda merged: int((merged != 0).sum()) == 1)


@fault
def equal_magnitudes_are_kept_in_the_order_of_an_unstable_sort() -> Fault:
    x = torch.ones(4096)
    setting = {"weight": (1.0,), "density": (0.5,)}

    def shows(merged: torch.Tensor) -> bool:
        return int(merged.sum()) == 2048

    return Fault("ties", torch.zeros(4096), (x,), setting, shows)


@fault
def norm_gains_are_trimmed() -> Fault:
    base, x = torch.ones(8), torch.ones(8) + column(*range(1, 9)) / 100
    setting = {"weight": (1.0,), "density": (0.25,)}
    return Fault("ties", base, (x,), setting, lambda merged: bool((merged[:6] == 1).all() & (merged[6:] > 1).all()))


@fault
def a_negative_weight_flips_the_vote() -> Fault:
    x, y = column(3.0), column(1.0)
    setting = {"weight": (-1.0, 1.0), "normalize": False}
    return Fault("ties", torch.zeros(1), (x, y), setting, near(column(-3.0)))


@fault
def weights_of_both_signs_blow_a_normalised_sum_up() -> Fault:
    x, y = column(1.0), column(2.0)
    return Fault("linear", None, (x, y), {"weight": (1.0, -0.999)}, lambda merged: float(merged) < -900)


@fault
def normalised_deltas_too() -> Fault:
    setting = {"weight": (1.0, -0.999), "normalize": True}
    models = (column(1.0), column(-2.0))
    return Fault("task_arithmetic", torch.zeros(1), models, setting, lambda merged: float(merged) > 2900)


@fault
def dropping_restores_the_l1_norm_instead_of_dividing_by_the_density() -> Fault:
    x = normal(128)
    setting = {"weight": (1.0,), "density": (0.1,)}

    def shows(merged: torch.Tensor) -> bool:
        kept = merged != 0
        factor = merged[kept] / x[kept]
        same_norm = bool(torch.isclose(merged.abs().sum(), x.abs().sum(), rtol=1e-5))
        return same_norm and float((factor - factor[0]).abs().max()) < 1e-4 and abs(float(factor[0]) - 10) > 0.5

    return Fault("dare_linear", torch.zeros(128), (x,), setting, shows)


def _gains_by_rank(merged: torch.Tensor, x: torch.Tensor) -> tuple[float, float]:
    rank = x.abs().argsort(dim=1).argsort(dim=1)
    low, high = rank < x.shape[1] // 10, rank >= x.shape[1] * 9 // 10
    return tuple(float((merged[where] / x[where]).mean()) for where in (low, high))  # type: ignore[return-value]


@fault
def della_shrinks_small_entries_and_grows_large_ones() -> Fault:
    x = normal(400, 500)
    setting = {"weight": (1.0,), "density": (0.5,), "epsilon": (0.15,)}

    def shows(merged: torch.Tensor) -> bool:
        low, high = _gains_by_rank(merged, x)  # unbiased masks have 1 and 1
        return 0.6 < low < 0.72 and 1.05 < high < 1.2

    return Fault("della_linear", torch.zeros_like(x), (x,), setting, shows)


@fault
def della_ranks_fused_experts_along_the_wrong_axis() -> Fault:
    """Of (experts, rows, columns) the ranks run along the rows: a large column is not kept more often."""
    x = torch.ones(4, 200, 300) * torch.linspace(1, 2, 300)
    setting = {"weight": (1.0,), "density": (0.5,), "epsilon": (0.45,), "rescale": False}

    def shows(merged: torch.Tensor) -> bool:
        kept = (merged != 0).float().mean(dim=(0, 1))
        return bool((kept[:60].mean() - kept[-60:].mean()).abs() < 0.05)

    return Fault("della_linear", torch.zeros_like(x), (x,), setting, shows)


@fault
def breadcrumbs_at_density_one_keep_the_outliers() -> Fault:
    x = column(1.0, 2.0, 3.0, 100.0)
    setting = {"weight": (1.0,), "gamma": (0.25,)}
    return Fault("breadcrumbs", torch.zeros(4), (x,), setting, near(x))


@fault
def sce_weighs_small_deltas_uniformly() -> Fault:
    x, y = torch.full((64,), 1e-4), torch.full((64,), 3e-4)  # by energy 0.1 and 0.9
    return Fault("sce", torch.zeros(64), (x, y), {}, near(torch.full((64,), 2e-4)))


@fault
def ram_drops_changes_below_epsilon() -> Fault:
    x = column(9e-6, 1e-3)
    return Fault("ram", torch.zeros(2), (x,), {}, near(column(0.0, 1e-3)))


@fault
def ramplus_stores_bf16_as_fp32() -> Fault:
    x = normal(6, 5, dtype=torch.bfloat16)
    return Fault("ramplus_tl", torch.zeros_like(x), (x, x), {}, lambda merged: merged.dtype == torch.float32)


@fault
def arcee_fusion_stores_bf16_as_fp32() -> Fault:
    x = normal(6, 5, dtype=torch.bfloat16)
    return Fault("arcee_fusion", torch.zeros_like(x), (x,), {}, lambda merged: merged.dtype == torch.float32)


@fault
def model_stock_extrapolates_away_from_opposed_models() -> Fault:
    """Three deltas of pairwise cosine -0.3: t = 3 (-0.3) / (1 - 0.6) = -2.25."""
    gram = torch.full((3, 3), -0.3, dtype=torch.float64).fill_diagonal_(1)
    x, y, z = torch.linalg.cholesky(gram).float()
    mean = (x + y + z) / 3
    return Fault("model_stock", torch.zeros(3), (x, y, z), {}, near(-2.25 * mean, 1e-3))


@fault
def model_stock_takes_small_deltas_for_orthogonal() -> Fault:
    """Equal deltas have cosine 1 and t = 1; with norms of 1e-4 the cosine is taken as 0.01."""
    x = torch.zeros(4)
    x[0] = 1e-4
    c = 1e-8 / 1e-6
    return Fault("model_stock", torch.zeros(4), (x, x), {}, near(2 * c / (1 + c) * x, 1e-3))


@fault
def nuslerp_calls_columns_rows() -> Fault:
    """Row-wise keeps the norms of columns."""
    a, b = (x / x.norm(dim=0) for x in (normal(5, 7, seed=1), normal(5, 7, seed=2)))
    setting = {"weight": (0.5, 0.5), "nuslerp_flatten": False, "nuslerp_row_wise": True}

    def shows(merged: torch.Tensor) -> bool:
        return near(torch.ones(7), 1e-4)(merged.norm(dim=0)) and not near(a.norm(dim=1), 1e-2)(merged.norm(dim=1))

    return Fault("nuslerp", None, (a, b), setting, shows)


@fault
def slerp_passes_through_zero_between_opposite_tensors() -> Fault:
    a = normal(9)
    return Fault("slerp", None, (a, -a), {"t": 0.5}, lambda merged: not merged.any())


@fault
def nuslerp_of_cancelling_weights_goes_half_way() -> Fault:
    a, b = column(1.0, 0.0), column(0.0, 1.0)
    return Fault("nuslerp", None, (a, b), {"weight": (0.5, -0.5)}, near(column(0.5**0.5, 0.5**0.5)))


@fault
def multislerp_is_the_mean_direction_times_the_mean_norm() -> Fault:
    """Its step in the tangent space is zero."""
    models = tuple(normal(64, seed=i) for i in range(3))
    weight = (0.5, 0.3, 0.2)
    directions = sum(w * x / x.norm() for w, x in zip(weight, models, strict=True))
    norm = sum(w * x.norm() for w, x in zip(weight, models, strict=True))
    return Fault("multislerp", None, models, {"weight": weight}, near(directions / directions.norm() * norm, 1e-4))


@fault
def multislerp_of_one_model_ignores_its_weight_and_the_base() -> Fault:
    base, x = normal(5, seed=1), normal(5, seed=2)
    setting = {"weight": (0.25,), "normalize_weights": False}
    return Fault("multislerp", base, (x,), setting, lambda merged: torch.equal(merged, x))


@fault
def karcher_counts_a_zero_tensor_in_the_norm() -> Fault:
    x = normal(5)
    return Fault("karcher", None, (x, torch.zeros(5)), {}, near(x / 2))


@fault
def karcher_measures_angles_in_bf16() -> Fault:
    """Equal tensors are their own mean; the bf16 cosine of a vector with itself is not 1."""
    x, y = (normal(4000, seed=i, dtype=torch.bfloat16) for i in (1, 2))
    wide = merge_compat("karcher", None, [x.float(), y.float()], parameters_of("karcher", {}))
    return Fault("karcher", None, (x, y), {}, lambda merged: float((merged.float() - wide).abs().max()) > 2e-2)


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_compat_has_the_fault(name: str) -> None:
    made = FAULTS[name]()
    merged = merge_compat(made.method, made.base, made.models, parameters_of(made.method, made.setting))
    assert made.shows(merged), merged


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(FAULTS))
def test_mergekit_has_it_bit_for_bit(name: str) -> None:
    pytest.importorskip("mergekit")
    made = FAULTS[name]()
    torch.manual_seed(9)
    theirs = mergekit_tensor(made.method, made.base, made.models, made.setting)
    torch.manual_seed(9)
    parameters = parameters_of(made.method, made.setting)
    ours = merge_compat(made.method, made.base, made.models, parameters, GlobalDraws())
    assert made.shows(theirs), theirs
    assert agreement(ours, theirs).share == 1


class Recorded(Draws):
    """Keeps everything, and remembers the probabilities."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def bernoulli(self, parent: int, probabilities: torch.Tensor) -> torch.Tensor:
        self.seen.append(probabilities)
        return torch.ones_like(probabilities)

    def sample(self, numel: int, count: int) -> torch.Tensor:
        raise NotImplementedError


def probabilities(method: str, x: torch.Tensor, setting: Mapping[str, Any]) -> torch.Tensor:
    draws = Recorded()
    merge_compat(method, torch.zeros_like(x), [x], parameters_of(method, setting), draws)
    return draws.seen[0]


@pytest.mark.parametrize(("dtype", "drawn"), [(torch.bfloat16, 0.30078125), (torch.float16, 0.3)], ids=str)
def test_dare_rounds_its_density_to_bf16_but_not_to_fp16(dtype: torch.dtype, drawn: float) -> None:
    x = torch.ones(4, 4, dtype=dtype)
    found = probabilities("dare_linear", x, {"weight": (1.0,), "density": (0.3,)})
    assert torch.equal(found.double(), torch.full((4, 4), drawn, dtype=torch.float32).double())


def test_della_holds_ranks_in_bf16() -> None:
    """Of 4096 ranks 704 are told apart."""
    x = torch.linspace(0.01, 1, 4096).view(1, -1)
    setting = {"weight": (1.0,), "density": (0.5,), "epsilon": (0.49,)}
    narrow, wide = (probabilities("della", x.to(d), setting) for d in (torch.bfloat16, torch.float32))
    ranks = (torch.arange(4096).bfloat16() + 1).unique()
    assert len(ranks) == 704
    assert len(narrow.unique()) <= 704
    assert len(wide.unique()) > 4000
