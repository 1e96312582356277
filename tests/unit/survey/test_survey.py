"""Surveys of parents: against slow sums over whole models, and what they say in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.checkpoints.reader import Checkpoint, open_checkpoint
from evomerge.config.surveys import norms_of, survey_of
from evomerge.merging.measure import measure_survey
from evomerge.space.depth import Site
from evomerge.space.language import parse_space
from evomerge.space.priors import step_factors
from evomerge.survey.files import read_survey
from evomerge.survey.hazards import hazards_of
from evomerge.survey.maps import conflict_map, cosine_map, norm_map
from evomerge.survey.values import Survey, SurveyError, survey_from_json, together
from evomerge.testing.tiny import tiny_checkpoint

NAMES = ("base", "a", "b")


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("survey")
    return {
        name: open_checkpoint(tiny_checkpoint(folder / name, "llama", seed, "bfloat16"))
        for seed, name in enumerate(NAMES)
    }


def flat(parent: Checkpoint, chosen=lambda t: True) -> np.ndarray:
    tensors = [parent.tensor(t.name).double().reshape(-1) for t in parent.layout.tensors if chosen(t)]
    return torch.cat(tensors).numpy()


def by_hand(parents, chosen=lambda t: True):
    base, a, b = (flat(parents[n], chosen) for n in NAMES)
    return base, a - base, b - base


def test_the_whole_model_is_the_slow_sum(parents) -> None:
    base, x, y = by_hand(parents)
    whole = measure_survey(parents, "base").whole
    assert whole.numel == base.size
    assert whole.norm(0) == pytest.approx(np.linalg.norm(x), rel=1e-6)
    assert whole.relative(1) == pytest.approx(np.linalg.norm(y) / np.linalg.norm(base), rel=1e-6)
    assert whole.rms(0) == pytest.approx(np.sqrt(np.mean(x**2)), rel=1e-6)
    assert whole.cosine(0, 1) == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-5)
    assert whole.correlation(0, 1) == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-5)
    assert whole.share_moved(0) == np.count_nonzero(x) / x.size
    both = (x != 0) & (y != 0)
    assert whole.conflict(0, 1) == pytest.approx(np.mean(np.sign(x[both]) != np.sign(y[both])))


@pytest.mark.parametrize("role", ["attention", "mlp", "norm"])
def test_places_are_layers_and_roles(parents, role) -> None:
    survey = measure_survey(parents, "base")
    _, x, _ = by_hand(parents, lambda t: t.layer == 1 and t.role == role)
    place = survey.select(layer=1, roles=(role,))
    assert place is not None
    assert (place.numel, place.norm(0)) == (x.size, pytest.approx(np.linalg.norm(x), rel=1e-6))


def test_places_add_up_and_outside_is_not_inside(parents) -> None:
    survey = measure_survey(parents, "base")
    inside, outside = survey.select(), survey.select(inside=False)
    assert inside is not None
    assert outside is not None
    assert together([inside, outside]).numel == survey.whole.numel
    assert inside.norm(0) ** 2 + outside.norm(0) ** 2 == pytest.approx(survey.whole.norm(0) ** 2)
    assert survey.select(layer=7) is None


def test_without_a_base_deltas_are_from_the_mean(parents) -> None:
    models = {n: parents[n] for n in ("a", "b")}
    whole = measure_survey(models, None).whole
    assert whole.cosine(0, 1) == pytest.approx(-1.0)
    a, b = flat(parents["a"]), flat(parents["b"])
    assert whole.norm(0) == pytest.approx(np.linalg.norm(a - b) / 2, rel=1e-6)


def test_json_and_files_give_the_survey_back(parents, tmp_path: Path) -> None:
    survey = measure_survey(parents, "base")
    assert survey_from_json(json.loads(json.dumps(survey.to_json()))) == survey
    (tmp_path / "s.json").write_text("{}")
    assert read_survey(tmp_path / "none.json") is None
    with pytest.raises(SurveyError, match="cannot be read"):
        read_survey(tmp_path / "s.json")
    with pytest.raises(SurveyError, match="KeyError"):
        survey_from_json({**survey.to_json(), "places": [{}]})


def test_it_is_measured_once_and_a_damaged_cache_is_measured_again(parents, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    steps: list[int] = []
    first = survey_of(parents, "base", lambda done, total: steps.append(done))
    n = len(steps)
    assert n > 0
    assert survey_of(parents, "base", lambda done, total: steps.append(done)) == first
    assert len(steps) == n
    (file,) = (tmp_path / "surveys").iterdir()
    file.write_text("no json")
    assert survey_of(parents, "base") == first
    assert survey_of({"base": parents["base"]}, "base") is None


def test_hazards_name_identical_far_and_unmoved_models(parents) -> None:
    found = {"base": parents["base"], "same": parents["base"], "far": parents["a"], "twin": parents["a"]}
    texts = [h.text for h in hazards_of(measure_survey(found, "base"))]
    assert any("same is the base" in t for t in texts)
    assert sum("probably not made from this base" in t for t in texts) == 2
    assert any("far and twin are identical" in t for t in texts)
    assert [h.severity for h in hazards_of(measure_survey(found, "base"))] == ["warning"] * 4


def _near(parents, tmp_path, size: float, share: float = 1.0) -> Survey:
    from safetensors.torch import save_file

    folder = tmp_path / f"near-{size}-{share}"
    folder.mkdir()
    base = parents["base"]
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for t in base.layout.tensors:
        x = base.tensor(t.name).float()
        keep = (torch.rand(x.shape, generator=rng) < share).float()
        tensors[t.name] = x + size * torch.randn(x.shape, generator=rng) * keep
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((base.folder / "config.json").read_bytes())
    return measure_survey({"base": base, "m": open_checkpoint(folder)}, "base")


def test_hazards_name_large_deltas_and_sparse_ones_and_nothing_else(parents, tmp_path) -> None:
    assert hazards_of(_near(parents, tmp_path, 0.001)) == ()
    (large,) = hazards_of(_near(parents, tmp_path, 0.03))
    assert "dare" in large.text
    (sparse,) = hazards_of(_near(parents, tmp_path, 0.001, 0.25))
    assert sparse.severity == "note"
    assert "25 %" in sparse.text


def test_maps_have_a_row_per_module_and_a_column_per_layer(parents) -> None:
    survey = measure_survey(parents, "base")
    norms = norm_map(survey)
    assert norms.columns == ("embed", "0", "1", "norm", "head")
    assert norms.rows[:4] == ("a · attention", "a · mlp", "a · norm", "a · outside")
    place = survey.select(layer=0, roles=("attention",))
    assert place is not None
    assert norms.values[0] == (None, place.relative(0), norms.values[0][2], None, None)
    for drawn in (cosine_map(survey), conflict_map(survey)):
        assert drawn.rows[0] == "a / b · attention"
        assert all(len(row) == len(drawn.columns) for row in drawn.values)


def test_steps_of_weights_shrink_where_deltas_are_long(parents) -> None:
    survey = measure_survey(parents, "base")
    weight = {"low": 0, "high": 1}
    space = parse_space(
        {"method": "ties", "depth": "each", "parameters": {"weight": weight, "density": {"low": 0.1, "high": 1}}},
        models=("a", "b"), base="base", layout=parents["base"].layout,
    )  # fmt: skip
    factors = step_factors(space, norms_of(survey))
    assert factors.keys() == {g.name for g in space.genes if g.parameter == "weight"}
    assert all(0.5 <= f <= 2 for f in factors.values())
    norm = norms_of(survey)
    longest = max(factors, key=lambda n: -factors[n])
    sites = {"layer0": 0, "layer1": 1, "embedding": "embedding", "head": "head"}
    length = {
        name: sum(norm(s, name.split(".")[1]) ** 2 for s in space.sites if s.place == sites[name.split(".")[2]])
        for name in factors
    }
    assert length[longest] == max(length.values())
    assert norm(Site(0, "mlp"), "unknown") == 0.0


def test_equal_lengths_and_unknown_ones_leave_steps_alone(parents) -> None:
    space = parse_space(
        {"method": "task_arithmetic", "depth": "model", "parameters": {"weight": {"low": 0, "high": 1}}},
        models=("a", "b"), base="base", layout=parents["base"].layout,
    )  # fmt: skip
    assert step_factors(space, lambda site, model: 1.0) == {"weight.a": 1.0, "weight.b": 1.0}
    assert step_factors(space, lambda site, model: 0.0) == {}
