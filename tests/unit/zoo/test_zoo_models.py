"""Tokenizer, model, scorer and trainer of the zoo, on models of a few hundred parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evomerge.zoo.model import BOS, CHARACTERS, EOS, encode, make_model, make_tokenizer
from evomerge.zoo.problems import Problem, draw_batch
from evomerge.zoo.scoring import exact_match, make_batch
from evomerge.zoo.spec import ModelSize, Schedule, ZooSpec, full_spec, small_spec
from evomerge.zoo.train import MIXTURES, train_base, train_expert, training_batches

TINY = ModelSize(hidden=16, intermediate=16, layers=1, heads=2)


def silent(step: int, most_steps: int) -> None:
    """A report that nobody reads."""


def test_one_token_per_character() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer(CHARACTERS).input_ids == [BOS, *encode(CHARACTERS)]
    assert tokenizer.decode(encode(CHARACTERS)) == CHARACTERS
    assert len(set(encode(CHARACTERS))) == len(CHARACTERS)
    assert tokenizer.encode("<eos>", add_special_tokens=False) == [EOS]


@pytest.mark.parametrize(("spec", "parameters"), [(full_spec(0), 672_896), (small_spec(0), 197_088)])
def test_models_have_the_stated_sizes(spec: ZooSpec, parameters: int) -> None:
    assert sum(p.numel() for p in make_model(spec.size, seed=1).parameters()) == parameters


def test_a_new_model_depends_on_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (make_model(TINY, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_labels_cover_answer_and_end_only() -> None:
    batch = make_batch([Problem("1+2=", "3"), Problem("abcdef>", "fe")])
    assert batch.ids.tolist()[0] == [BOS, *encode("1+2=3"), EOS, 0, 0, 0, 0]
    assert batch.labels.tolist() == [
        [-100] * 5 + [*encode("3"), EOS] + [-100] * 4,
        [-100] * 8 + [*encode("fe"), EOS],
    ]


@torch.no_grad()
def generate_slowly(model: torch.nn.Module, prompt: str, most: int) -> list[int]:
    """Greedy decoding, token by token, one problem at a time, without a cache."""
    ids = [BOS, *encode(prompt)]
    start = len(ids)
    while len(ids) < start + most and ids[-1] != EOS:
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[start:]


def test_teacher_forcing_equals_greedy_decoding() -> None:
    schedule = Schedule(60, 60, 1.0, 60, 1, 10)
    model = train_base(ModelSize(32, 32, 2, 2), schedule, 0, silent)
    # answers of the model itself: some of them right, some wrong on purpose, so that the scorer has both to tell
    rng = np.random.default_rng(0)
    prompts = [p.prompt for p in draw_batch(MIXTURES["base"], 40, rng)]
    problems = []
    for i, prompt in enumerate(prompts):
        text = make_tokenizer().decode([t for t in generate_slowly(model, prompt, 8) if t > EOS])
        problems.append(Problem(prompt, text + "a" if i % 3 == 0 else text))
    slow = [generate_slowly(model, p, 10) == [*encode(a), EOS] for p, a in problems]
    assert 0 < sum(slow) < len(slow)
    assert exact_match(model, problems, batch_size=7) == pytest.approx(sum(slow) / len(slow))
    assert exact_match(model, problems) == exact_match(model, problems, batch_size=1)


def test_training_is_a_function_of_the_seed() -> None:
    schedule = Schedule(2, 2, 1.0, 4, 3, 10)
    bases = [train_base(TINY, schedule, seed, silent) for seed in (5, 5, 6)]
    train_expert(bases[0], "lang", schedule, 5, silent)
    train_expert(bases[1], "lang", schedule, 5, silent)
    states = [model.state_dict() for model in bases]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_training_lowers_the_loss_and_reports_every_step() -> None:
    steps: list[int] = []
    schedule = Schedule(100, 100, 1.0, 100, 1, 10)
    fresh = make_model(TINY, 0)
    model = train_base(TINY, schedule, 0, lambda step, most: steps.append(step))
    assert steps == list(range(1, 101))
    assert _nats(model) < 0.8 * _nats(fresh)


@torch.no_grad()
def _nats(model: torch.nn.Module) -> float:
    ids, labels = make_batch(draw_batch(MIXTURES["base"], 64, np.random.default_rng(9)))
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()))


def test_the_base_stops_at_the_first_check_that_reaches_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule(first_check=3, check_every=2, target=0.5, base_most_steps=9, expert_steps=1, validation_items=5)
    scores = iter([0.4, 0.4, 0.4, 0.79, 0.2, 0.4, 0.6, 0.8])  # four skills a check: means 0.4975, then 0.5
    monkeypatch.setattr("evomerge.zoo.train.exact_match", lambda model, problems: next(scores))
    steps: list[int] = []
    train_base(TINY, schedule, 0, lambda step, most: steps.append(step))
    assert steps[-1] == 5


def test_a_base_that_never_reaches_the_target_stops_all_the_same() -> None:
    steps: list[int] = []
    train_base(TINY, Schedule(3, 2, 1.0, 6, 1, 5), 0, lambda step, most: steps.append(step))
    assert steps[-1] == 6


def test_mixtures_are_distributions_and_only_the_base_sees_addx() -> None:
    assert all(math.isclose(sum(mixture.values()), 1) for mixture in MIXTURES.values())
    assert [name for name, mixture in MIXTURES.items() if "addx" in mixture] == ["base"]


def test_batches_of_different_models_and_seeds_differ() -> None:
    first = {(name, seed): next(training_batches(name, seed)) for name in MIXTURES for seed in (0, 1)}
    assert len(set(first.values())) == len(first)
    with pytest.raises(KeyError, match="poetry"):
        next(training_batches("poetry", 0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelSize(30, 16, 1, 4), "cannot be built"),
        (lambda: Schedule(0, 1, 0.5, 10, 1, 1), "cannot be trained"),
        (lambda: Schedule(5, 1, 1.5, 10, 1, 1), "cannot be trained"),
        (lambda: ZooSpec(-1, TINY, Schedule(1, 1, 0.5, 1, 1, 1), 10), "negative"),
        (lambda: ZooSpec(0, TINY, Schedule(1, 1, 0.5, 1, 1, 1), 0), "needs items"),
    ],
)
def test_impossible_zoos(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
