from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.errors import ModelError, NonFinite
from evomerge.layout import TensorInfo
from evomerge.recipe.recipe import Making, ParentRef
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.virtual.deltas import DeltaMaker, duration, is_matrix
from evomerge.virtual.maker import Maker
from evomerge.virtual.makers import MAKERS, load_maker
from evomerge.virtual.opening import ParentOpener

Build = Callable[..., dict[str, torch.Tensor]]
DATA_FREE = ("iso_c", "iso_cts", "knots", "opcm", "star", "tsv_m", "wudi")
MATRIX, BIAS, NORM = "model.layers.0.mlp.up.weight", "model.layers.0.mlp.up.bias", "model.layers.0.q_norm.weight"
EMBED, HEAD = "model.embed.weight", "head.weight"
SHAPES = {MATRIX: (6, 4), BIAS: (6,), NORM: (2, 4), EMBED: (8, 4), HEAD: (8, 4)}


def model(seed: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {n: torch.from_numpy(rng.standard_normal(s)).float() for n, s in SHAPES.items()}


@pytest.mark.parametrize("name", DATA_FREE)
def test_what_is_no_matrix_is_averaged_or_added(name: str, build: Build) -> None:
    maker = load_maker(name)
    base, models = model(0), [model(1)] if name == "star" else [model(1), model(2), model(3)]
    made = build(maker, base, models, {})
    assert set(made) == set(SHAPES)
    deltas = {n: torch.stack([m[n] - base[n] for m in models]) for n in SHAPES}
    if name == "opcm":
        norms = [torch.cat([d[i].flatten() for d in deltas.values()]).norm() for i in range(3)]
        whole = torch.cat([(made[n] - base[n]).flatten() for n in SHAPES])
        assert float(whole.norm()) == pytest.approx(float(sum(norms)) / 3, rel=1e-5)
        factors = torch.cat([((made[n] - base[n]) / deltas[n].sum(0)).flatten() for n in (BIAS, NORM, EMBED, HEAD)])
        assert factors.allclose(factors[0].expand_as(factors), rtol=1e-3)
        assert 0 < float(factors[0]) < 1
    else:
        for n in (BIAS, NORM, EMBED, HEAD):
            assert made[n].allclose(base[n] + deltas[n].mean(0), atol=1e-6)
    if isinstance(maker, DeltaMaker):
        settings = {n: p.default for n, p in maker.spec.parameters.items() if p.default is not None}
        expected = base[MATRIX] + maker.matrix(list(deltas[MATRIX]), settings).float()
        assert made[MATRIX].allclose(expected, atol=1e-6)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "knots"])
def test_scale_stretches_the_whole_task_vector(name: str, build: Build) -> None:
    base, models = model(0), [model(1), model(2)]
    once = build(load_maker(name), base, models, {})
    thrice = build(load_maker(name), base, models, {"scale": 3.0})
    for n in SHAPES:
        assert (thrice[n] - base[n]).allclose(3 * (once[n] - base[n]), atol=1e-4)


@pytest.mark.parametrize("name", DATA_FREE)
def test_what_no_model_changed_has_the_bits_of_the_base(name: str, build: Build) -> None:
    base = model(0)
    made = build(load_maker(name), base, [dict(base)] * (1 if name == "star" else 2), {})
    assert all(made[n].equal(base[n]) for n in SHAPES)


@pytest.mark.parametrize("name", DATA_FREE)
def test_equal_ingredients_give_equal_bits_on_any_number_of_threads(name: str, build: Build) -> None:
    rng = np.random.default_rng(1)
    draw = [{MATRIX: torch.from_numpy(rng.standard_normal((192, 256))).float()} for _ in range(4)]
    models = draw[1:2] if name == "star" else draw[1:]
    before = torch.get_num_threads()
    made = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        made.append(build(load_maker(name), draw[0], models, {})[MATRIX])
    torch.set_num_threads(before)
    assert made[0].equal(made[1])
    assert made[0].equal(made[2])


@pytest.mark.parametrize("name", DATA_FREE)
def test_a_model_with_nan_is_named(name: str, build: Build) -> None:
    base, broken = model(0), model(1)
    broken[MATRIX][0, 0] = torch.nan
    with pytest.raises(NonFinite, match=r"mlp\.up\.weight of memory"):
        build(load_maker(name), base, [broken], {})


@pytest.mark.parametrize("name", ["knots", "wudi", "iso_cts"])
def test_gpt2_stores_its_linear_maps_the_other_way_round(name: str, build: Build) -> None:
    base, models = model(0), [model(1), model(2)]
    settings = {"common": 0.5} if name == "iso_cts" else {}
    plain = build(load_maker(name), base, models, settings)[MATRIX]
    turned = [{MATRIX: m[MATRIX].T.contiguous()} for m in (base, *models)]
    made = build(load_maker(name), turned[0], turned[1:], settings, "gpt2")[MATRIX]
    assert made.is_contiguous()
    assert made.allclose(plain.T, atol=1e-5)
    assert not build(load_maker(name), turned[0], turned[1:], settings)[MATRIX].allclose(plain.T, atol=1e-3)


def test_matrices_are_linear_maps_of_layers() -> None:
    def info(name: str, shape: tuple[int, ...], layer: int | None = 0, role: str = "mlp") -> TensorInfo:
        return TensorInfo(name, shape, "F32", layer, role)  # type: ignore[arg-type]

    assert is_matrix(info("up.weight", (4, 3)))
    assert is_matrix(info("gate.weight", (1, 3), role="other"))
    assert not is_matrix(info("up.weight", (2, 4, 3)))  # stacked experts
    assert not is_matrix(info("q_norm.weight", (4, 3), role="norm"))
    assert not is_matrix(info("mixer.A_log", (4, 3), role="other"))
    assert not is_matrix(info("embed.weight", (4, 3), None, "embedding"))


@pytest.mark.parametrize("seconds", [(0.01, "1 s"), (99, "99 s"), (150, "2 min"), (9000, "2.5 h")])
def test_durations_for_people(seconds: tuple[float, str]) -> None:
    assert duration(seconds[0]) == seconds[1]


def test_every_maker_without_data_plans_and_says_what_it_costs(tmp_path: Path, family: dict[str, ParentRef]) -> None:
    assert set(DATA_FREE) < set(MAKERS.names())
    for name in DATA_FREE:
        maker: Maker = load_maker(name)
        of = tuple(family[n] for n in ("math", "code")[: maker.spec.max_models])
        opener = ParentOpener(tmp_path)
        opener.open(ParentRef("v", "", made=Making(name, of, family["base"])))
        (pending,) = opener.pending()
        assert maker.cost(pending.ingredients) == "about 1 s on one core"
        assert {t.dtype for t in pending.plan.changed} == {"F32"}
        assert maker.spec.needs_base
        assert maker.spec.source


def test_models_of_another_shape_are_refused(tmp_path: Path, family: dict[str, ParentRef]) -> None:
    wide = tiny_checkpoint(tmp_path / "wide", "llama", 5, intermediate_size=64)
    ref = ParentRef("v", "", made=Making("tsv_m", (family["math"], ParentRef("w", str(wide))), family["base"]))
    with pytest.raises(ModelError, match=r"model 2 .*wide.*has shape"):
        ParentOpener(tmp_path / "cache").open(ref)
