"""Fisher merging, LM-Cocktail and AdaMerging against slow implementations on whole models in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import ModelError, NonFinite
from evomerge.merging.export import merge_tensors
from evomerge.merging.parents import ParentPool
from evomerge.recipe.recipe import Number, ParentRef
from evomerge.recipe.shares import softmax
from evomerge.testing.maker_suite import MakerSuite
from evomerge.testing.tiny import tiny_siblings
from evomerge.virtual.adamerging import ADAMERGING, Entropy, coefficients, coefficients_recipe
from evomerge.virtual.cocktail import LM_COCKTAIL, cocktail_recipe, cocktail_weights, prompt_losses
from evomerge.virtual.fisher import FISHER, Diagonals, add_diagonal, all_labels, weighted_mean
from evomerge.virtual.maker import Ingredients, Maker
from evomerge.virtual.mats import MATS
from evomerge.virtual.regmean import REGMEAN, REGMEAN_PP
from evomerge.virtual.scaffold import Scaffold

PROMPTS = ((1, 5, 9, 11), (1, 8, 8), (1, 2, 3, 4, 15))
FEW = ((1, 5, 9), (1, 8))
NAMES = ("base", "one", "two")
Siblings = Callable[[str], dict[str, Path]]


@pytest.fixture(scope="module")
def siblings(tmp_path_factory: pytest.TempPathFactory) -> Siblings:
    """A family's base and two models with a vocabulary of 16."""
    found: dict[str, dict[str, Path]] = {}

    def of(family: str) -> dict[str, Path]:
        if family not in found:
            # all experts run, since which of them do makes steps
            more = {"num_experts_per_tok": 4} if family == "mixtral" else {}
            folder = tmp_path_factory.mktemp(family)
            found[family] = tiny_siblings(folder, family, NAMES, step=0.1, vocab_size=16, **more)
        return found[family]

    return of


def ingredients(folders: Mapping[str, Path], maker: Maker, prompts: Any = PROMPTS, **changed: Number) -> Ingredients:
    settings = {n: p.default for n, p in maker.spec.parameters.items() if p.default is not None} | changed
    opened = {n: open_checkpoint(f) for n, f in folders.items()}
    base = opened.pop("base") if maker.spec.needs_base else None
    return Ingredients(ParentRef("m", "m"), tuple(opened.values()), base, settings, prompts)


def made(given: Ingredients, maker: Maker) -> dict[str, torch.Tensor]:
    return dict(maker.tensors(given, maker.plan(given)))


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def parameters(model: Any) -> dict[str, torch.Tensor]:
    """By checkpoint name; tied ones once."""
    return dict(model.named_parameters())


# -- Fisher ------------------------------------------------------------------------------------------------------------


def slow_fisher(model: Any) -> dict[str, torch.Tensor]:
    """The double expectation, one gradient per token and label."""
    found = {n: torch.zeros_like(p) for n, p in parameters(model).items()}
    for prompt in FEW:
        for t in range(len(prompt)):
            for y in range(16):
                log = model(input_ids=torch.tensor([prompt])).logits[0, t].log_softmax(-1)
                for (n, p), g in zip(
                    found.items(), torch.autograd.grad(log[y], parameters(model).values()), strict=True
                ):
                    found[n] = p + log[y].detach().exp() * g**2
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # the second is tied
def test_fisher_is_the_double_expectation(family: str, siblings: Siblings) -> None:
    folders = siblings(family)
    models = [load(f) for f in folders.values()]
    found = made(ingredients(folders, FISHER, FEW, samples=0), FISHER)
    weights = []
    for model in models:
        diagonal = slow_fisher(model)
        everything = torch.cat([d.flatten() for d in diagonal.values()])
        weights.append({n: d / everything.square().mean().sqrt() + 1e-6 for n, d in diagonal.items()})
    assert set(weights[0]) == set(found)
    for name in found:
        values = [w[name] * parameters(m)[name] for w, m in zip(weights, models, strict=True)]
        expected = sum(values) / sum(w[name] for w in weights)
        assert found[name].double().allclose(expected, atol=2e-4), name
    head = "lm_head.weight" if family == "llama" else "transformer.h.0.mlp.c_fc.weight"
    assert not found[head].double().allclose(sum(parameters(m)[head] for m in models) / 3, atol=1e-2)  # type: ignore[arg-type]


def test_fisher_of_a_head_is_known_in_closed_form(siblings: Siblings) -> None:
    """`d log p_y / d W_v = (1[y = v] - p_v) h`, hence `F_v = sum_t p_v (1 - p_v) h h`; with h the last hidden state."""
    folder = siblings("llama")["one"]
    scaffold = Scaffold(open_checkpoint(folder))
    values = torch.zeros(scaffold.arena_size)
    for prompt in PROMPTS:
        add_diagonal(scaffold, prompt, values, all_labels)
    model, expected = load(folder), torch.zeros(16, 32, dtype=torch.float64)
    for prompt in PROMPTS:
        output = model(input_ids=torch.tensor([prompt]), output_hidden_states=True)
        chances = output.logits[0].softmax(-1)
        expected += (chances * (1 - chances)).T @ output.hidden_states[-1][0].square()
    size = sum(p.numel() for p in scaffold.model.parameters())
    info = next(t for t in scaffold.layout.tensors if t.name == "lm_head.weight")
    found = Diagonals(scaffold, [values]).of(info, 0) * (values.double().square().sum() / size).sqrt()
    assert found.allclose(expected, rtol=1e-4)


def test_drawn_labels_lead_to_the_expectation(siblings: Siblings) -> None:
    folders = {n: siblings("llama")[n] for n in ("one", "two")}
    exact = made(ingredients(folders, FISHER, samples=0), FISHER)
    name = "lm_head.weight"
    distances = []
    for samples in (1.0, 36.0):
        found = made(ingredients(folders, FISHER, samples=samples), FISHER)
        distances.append(float((found[name] - exact[name]).norm()))
    assert distances[0] > 2 * distances[1] > 0
    other = made(ingredients(folders, FISHER, samples=1.0, seed=1.0), FISHER)
    again = made(ingredients(folders, FISHER, samples=1.0, seed=1.0), FISHER)
    assert all(again[n].equal(t) for n, t in other.items())
    assert not other[name].equal(made(ingredients(folders, FISHER, samples=1.0), FISHER)[name])


class _Given:
    """Diagonals that are given."""

    def __init__(self, values: list[torch.Tensor]) -> None:
        self._values = values

    def of(self, info: object, model: int) -> torch.Tensor:
        return self._values[model].clone()


def test_fisher_by_hand(siblings: Siblings) -> None:
    given = ingredients({n: siblings("llama")[n] for n in ("one", "two")}, FISHER, floor=0.5)
    info = next(t for t in given.of[0].layout.tensors if t.name == "model.norm.weight")
    one, two = (p.tensor(info.name).double() for p in given.of)
    given_diagonals: Any = _Given([torch.full((32,), 0.5).double(), torch.full((32,), 2.5).double()])
    expected = (1.0 * one + 3.0 * two) / 4
    assert weighted_mean(info, given, given_diagonals).double().allclose(expected, atol=1e-7)


# -- LM-Cocktail -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_cocktail_losses_are_those_of_transformers(family: str, siblings: Siblings) -> None:
    folders = siblings(family)
    given = ingredients(folders, LM_COCKTAIL, (*PROMPTS, (1,)), temperature=0.5)
    losses = []
    with torch.no_grad():
        for folder in folders.values():
            ids = [torch.tensor([p]) for p in PROMPTS]
            model = load(folder)
            losses.append(float(sum(model(input_ids=i, labels=i).loss for i in ids)) / 3)
    assert prompt_losses(given) == pytest.approx(losses, abs=1e-5)
    weights = cocktail_weights(given)
    assert weights == pytest.approx(torch.softmax(-torch.tensor(losses) / 0.5, 0).tolist(), abs=1e-5)
    assert max(weights) > 0.34
    found = made(given, LM_COCKTAIL)
    for name, tensor in found.items():
        expected = sum(w * p.tensor(name).double() for w, p in zip(weights, given.of, strict=True))
        assert tensor.double().allclose(expected, atol=1e-6)  # type: ignore[arg-type]


def test_cocktail_leads_from_the_best_model_to_the_mean(siblings: Siblings) -> None:
    given = [ingredients(siblings("llama"), LM_COCKTAIL, temperature=t) for t in (1e-3, 1e9)]
    cold, hot = (cocktail_weights(g) for g in given)
    assert max(cold) == pytest.approx(1, abs=1e-3)
    assert hot == pytest.approx((1 / 3,) * 3)
    assert cold.index(max(cold)) == min(range(3), key=prompt_losses(given[0]).__getitem__)
    assert softmax([-2.0, -2.0, -2.0 - math.log(2)]) == pytest.approx((0.4, 0.4, 0.2))
    assert softmax([1000.0, 0.0]) == (1.0, 0.0)


def test_cocktail_is_a_recipe(siblings: Siblings) -> None:
    folders = siblings("llama")
    given = ingredients(folders, LM_COCKTAIL, temperature=0.1)
    refs = [ParentRef(n, str(f)) for n, f in folders.items()]
    recipe = cocktail_recipe(refs, cocktail_weights(given))
    found = made(given, LM_COCKTAIL)
    pool = ParentPool(dict(zip(folders, given.of, strict=True)))
    for name, tensor in merge_tensors(recipe, pool):
        assert tensor.allclose(found[name], atol=1e-6)


def test_prompts_of_one_token_tell_a_cocktail_nothing(siblings: Siblings) -> None:
    with pytest.raises(ModelError, match="none of 2 tokens or more"):
        LM_COCKTAIL.plan(ingredients(siblings("llama"), LM_COCKTAIL, ((1,), (2,))))


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        (((1, -1, 3), (2, 3)), "token -1 for a vocabulary of 16"),
        (((1, 2), (3, 16)), "token 16 for a vocabulary of 16"),
        (((1, 2), (3,) * 129), "a prompt of 129 tokens for models that see 128 at once"),
        (((), ()), "none of 2 tokens"),
    ],
)
def test_prompts_that_a_model_cannot_see_are_refused(siblings: Siblings, prompts: Any, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        LM_COCKTAIL.plan(ingredients(siblings("llama"), LM_COCKTAIL, prompts))
    LM_COCKTAIL.plan(ingredients(siblings("llama"), LM_COCKTAIL, ((), (0, 15) * 64)))


# -- AdaMerging --------------------------------------------------------------------------------------------------------


def group(name: str) -> int:
    """0 outside the layers, else 1 more than the layer's number."""
    return next((int(part) + 1 for part in name.split(".") if part.isdigit()), 0)


def slow_entropy(models: list[Any], raw: torch.Tensor, prompts: Any) -> torch.Tensor:
    """Through autograd, all the way from the coefficients."""
    base, *others = (parameters(m) for m in models)
    values = raw.clamp(0, 1)
    merged = {
        n: p.detach() + sum(values[group(n), i] * (o[n] - p).detach() for i, o in enumerate(others))
        for n, p in base.items()
    }
    found = []
    for prompt in prompts:
        output = functional_call(models[0], merged, (torch.tensor([prompt]),), tie_weights=True)
        chances = output.logits[0].softmax(-1)
        found.append(-(chances * chances.log()).sum(-1).mean())
    return sum(found) / len(found)  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_adamerging_walks_as_torch_does(family: str, siblings: Siblings) -> None:
    folders = siblings(family)
    models = [load(f) for f in folders.values()]
    raw = torch.full((3, 2), 0.95, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([raw], lr=0.03)
    for step in range(6):
        adam.zero_grad()
        slow_entropy(models, raw, [PROMPTS[(2 * step + i) % 3] for i in range(2)]).backward()  # type: ignore[no-untyped-call]
        adam.step()
    given = ingredients(folders, ADAMERGING, steps=6.0, rate=0.03, batch=2.0, start=0.95)
    found = coefficients(given)
    expected = raw.detach().clamp(0, 1).tolist()
    assert raw.max() > 1 or raw.min() < 0.9
    assert [*found.outside] == pytest.approx(expected[0], abs=2e-4)
    assert [list(row) for row in found.layers] == [pytest.approx(row, abs=2e-4) for row in expected[1:]]


@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_slopes_are_those_of_finite_differences(family: str, siblings: Siblings) -> None:
    """In fp32, hence a wide step; the second has experts that transformers stacks."""
    entropy = Entropy(ingredients(siblings(family), ADAMERGING))
    at = torch.full((3, 2), 0.4, dtype=torch.float64)
    slope = entropy.slope(at, PROMPTS)
    for spot in np.ndindex(3, 2):
        ends = []
        for sign in (1, -1):
            moved = at.clone()
            moved[spot] += sign * 0.02
            entropy.slope(moved, PROMPTS)
            ends.append(entropy.value)
        assert (ends[0] - ends[1]) / 0.04 == pytest.approx(float(slope[spot]), rel=0.05, abs=2e-3)


def test_adamerging_lowers_the_entropy_and_is_a_recipe(siblings: Siblings) -> None:
    folders = siblings("llama")
    given = ingredients(folders, ADAMERGING, steps=8.0, rate=0.1)
    found = coefficients(given)
    entropy = Entropy(given)
    entropy.slope(torch.full((3, 2), 0.3, dtype=torch.float64), PROMPTS)
    before = entropy.value
    entropy.slope(torch.tensor([found.outside, *found.layers], dtype=torch.float64), PROMPTS)
    assert entropy.value < before - 0.01
    refs = [ParentRef(n, str(f)) for n, f in folders.items()]
    recipe = coefficients_recipe(refs[0], refs[1:], found)
    opened = {n: open_checkpoint(f) for n, f in folders.items()}
    merged = dict(merge_tensors(recipe, ParentPool(opened)))
    result = made(given, ADAMERGING)
    assert all(merged[n].allclose(t, atol=1e-6) for n, t in result.items())


def test_adamerging_without_steps_is_task_arithmetic(siblings: Siblings) -> None:
    given = ingredients(siblings("gpt2"), ADAMERGING, steps=0.0, start=0.5)
    for name, tensor in made(given, ADAMERGING).items():
        base = given.origin.tensor(name)
        expected = base + 0.5 * sum(p.tensor(name) - base for p in given.of)
        assert tensor.allclose(expected, atol=1e-6)


# -- all ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", [FISHER, LM_COCKTAIL, ADAMERGING], ids=lambda m: m.spec.name)
def test_equal_models_keep_their_bits(maker: Maker, siblings: Siblings) -> None:
    folder = siblings("gpt2")["one"]
    folders = {"base": folder, "a": folder, "b": folder}
    stored = open_checkpoint(folder)
    steps = {"steps": 2.0} if maker is ADAMERGING else {}
    found = made(ingredients(folders, maker, **steps), maker)
    assert all(t.equal(stored.tensor(n)) for n, t in found.items())
    alone = made(ingredients({"a": folder} | ({"base": folder} if maker is ADAMERGING else {}), maker, **steps), maker)
    assert all(t.equal(stored.tensor(n)) for n, t in alone.items())


def test_answers_that_are_not_finite_are_refused(siblings: Siblings) -> None:
    scaffold = Scaffold(open_checkpoint(siblings("llama")["one"]))
    scaffold.put("model.norm.weight", torch.full((32,), torch.inf))
    with pytest.raises(NonFinite, match="answers a prompt with NaN"):
        scaffold.logits((1, 2))


@pytest.mark.parametrize(
    ("maker", "words"),
    [
        (FISHER, "9 forward and 9 backward passes of 4 tokens, 0.0 GB of memory, 0.0 GB of temporary files"),
        (LM_COCKTAIL, "9 forward passes of 4 tokens"),
        (ADAMERGING, "1,500 forward and 1,500 backward passes of 4 tokens"),
        (MATS, "9 forward passes of 4 tokens"),
    ],
    ids=lambda m: m.spec.name if isinstance(m, Maker) else "",
)
def test_costs_are_told(maker: Maker, words: str, siblings: Siblings) -> None:
    assert words in maker.cost(ingredients(siblings("llama"), maker))


class TestFisher(MakerSuite):
    maker = FISHER
    family = "qwen3"


class TestLmCocktail(MakerSuite):
    maker = LM_COCKTAIL
    family = "phi3"


class TestAdaMerging(MakerSuite):
    maker = ADAMERGING
    settings: ClassVar[Mapping[str, Number]] = {"steps": 2.0}
    family = "gpt_neox"


class TestRegMean(MakerSuite):
    maker = REGMEAN
    family = "olmo2"


class TestRegMeanPlusPlus(MakerSuite):
    maker = REGMEAN_PP
    family = "gemma3"


class TestMats(MakerSuite):
    maker = MATS
    settings: ClassVar[Mapping[str, Number]] = {"iterations": 7.0}
    family = "phi3"
