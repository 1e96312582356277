"""A planted path, cut down: the default finds it, random search does not; and the problem is what it says it is."""

from dataclasses import replace

import pytest
import torch

from evomerge.dataflow.views import PathRunner
from evomerge.optimizers.auto import choose
from evomerge.optimizers.registry import make_optimizer
from evomerge.recipe.path import Hop
from evomerge.testing.deep_model import Training, train_deep
from evomerge.testing.planted_paths import PathJudge, Planting, search_planted
from evomerge.testing.plantings import PLANTINGS, complementary
from evomerge.zoo.scoring import exact_match
from evomerge.zoo.spec import ModelSize

SMALL = Training(ModelSize(hidden=32, intermediate=64, layers=5, heads=4), skill="cpd", steps=150, batch=32)
BUDGET = 250


@pytest.fixture(scope="module")
def planting() -> Planting:
    torch.set_num_threads(1)
    return complementary(train_deep(SMALL))


@pytest.fixture(scope="module")
def judge(planting: Planting) -> PathJudge:
    return PathJudge(planting, "cpd", n_items=40, n_held_out=100)


def found(name: str, judge: PathJudge, planting: Planting) -> list[int | None]:
    problems = [planting.problem(seed=seed, budget=BUDGET) for seed in range(3)]
    return [search_planted(make_optimizer(name, p, {}), judge, planting, BUDGET).found for p in problems]


def test_the_default_restores_the_model_and_random_search_does_not(planting: Planting, judge: PathJudge) -> None:
    assert choose(planting.problem(seed=0, budget=BUDGET), True).name == "evolve"
    assert all(n is not None for n in found("evolve", judge, planting))
    assert found("random", judge, planting) == [None, None, None]


def test_only_the_planted_path_is_good(planting: Planting, judge: PathJudge) -> None:
    hidden = planting.hidden_hops
    assert judge.score(hidden).right > 0.9
    assert judge.restores(hidden)
    for parent in planting.parents:
        assert judge.score(tuple(Hop(i, parent) for i in range(5))).right < 0.1
    missing = [(*hidden[:i], *hidden[i + 1 :]) for i in range(5)]
    assert all(judge.score(hops).margin < judge.score(hidden).margin - 0.5 for hops in missing)
    assert sum(judge.restores(hops) for hops in missing) <= 1  # of so easy a skill's last layer little is seen


def test_scores_are_those_of_the_transformers_model_that_runs_the_path(planting: Planting, judge: PathJudge) -> None:
    """With a gain, too: the judge's own arithmetic is the path runner's."""
    sources = {}
    for name, layers in planting.parents.items():
        sources[name] = type(planting.original)(planting.original.config).eval()
        sources[name].load_state_dict(planting.original.state_dict())
        sources[name].model.layers = torch.nn.ModuleList(layers)
    runner = PathRunner(planting.original, sources)
    hidden = planting.hidden_hops
    ids = judge.items.ids[:, :-1]
    for hops in (hidden, (hidden[1], replace(hidden[0], gain=0.7), *hidden[1:], hidden[4])):
        with torch.inference_mode():
            expected = runner.model(hops)(input_ids=ids, use_cache=False).logits
            ours = judge.logits(hops)
        assert torch.allclose(ours, expected, atol=1e-4 * float(expected.abs().max()))


def test_every_problem_holds_its_planted_path_among_a_million() -> None:
    """The published ones, for a model of eight layers; untrained, because only the layers' places matter here."""
    model = train_deep(Training(ModelSize(hidden=8, intermediate=8, layers=8, heads=2), steps=0))
    for name, plant in PLANTINGS.items():
        planting = plant(model)
        vector = planting.vector([(str(h.parent), h.layer) for h in planting.hidden_hops])
        assert vector is not None, name
        assert planting.hops(vector) == planting.hidden_hops
        assert planting.n_genotypes >= 1e6
        original = list(model.model.layers)
        assert [planting.parents[str(h.parent)][h.layer] for h in planting.hidden_hops] == original


def test_the_trained_model_answers_by_transformers_too(planting: Planting) -> None:
    from evomerge.seeds import generator
    from evomerge.zoo.problems import draw_distinct

    problems = draw_distinct("cpd", "items", 80, generator(7, "planted", "check"))
    assert exact_match(planting.original, problems) > 0.9
