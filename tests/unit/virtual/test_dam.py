from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cosine_similarity, kl_div
from transformers import AutoModelForCausalLM

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.recipe.recipe import Number, ParentRef
from evomerge.testing.maker_suite import MakerSuite
from evomerge.testing.tiny import tiny_siblings
from evomerge.virtual.dam import DAM, Distance, column_coefficients
from evomerge.virtual.maker import Ingredients

PROMPTS = ((1, 5, 9, 11), (1, 8, 8), (1, 2, 3, 4, 15))
SETTINGS = {"steps": 5.0, "rate": 0.02, "batch": 2.0, "similarity": 0.3, "l1": 0.01, "l2": 0.02}
Siblings = Callable[[str], dict[str, Path]]


@pytest.fixture(scope="module")
def siblings(tmp_path_factory: pytest.TempPathFactory) -> Siblings:
    found: dict[str, dict[str, Path]] = {}

    def of(family: str) -> dict[str, Path]:
        if family not in found:
            more = {"num_experts_per_tok": 4} if family == "mixtral" else {}
            folder = tmp_path_factory.mktemp(family)
            found[family] = tiny_siblings(folder, family, ("one", "two"), step=0.2, vocab_size=16, **more)
        return found[family]

    return of


def ingredients(folders: Mapping[str, Path], **changed: Number) -> Ingredients:
    settings = {n: p.default for n, p in DAM.spec.parameters.items() if p.default is not None} | changed
    return Ingredients(
        ParentRef("m", "m"), tuple(open_checkpoint(f) for f in folders.values()), None, settings, PROMPTS
    )


def made(given: Ingredients) -> dict[str, torch.Tensor]:
    return dict(DAM.tensors(given, DAM.plan(given)))


def broadcast(name: str, own: torch.Tensor, weight: torch.Tensor, family: str) -> torch.Tensor:
    rows = family == "gpt2" and weight.dim() == 2 and ".h." in name  # stored input by output
    return own.unsqueeze(1) * weight if rows else own * weight


def slow_loss(models: list[Any], values: dict[str, torch.Tensor], prompts: Any, family: str) -> torch.Tensor:
    """Through autograd from the coefficients on, with torch's own divergence and cosine."""
    weights = [{n: p.detach() for n, p in m.named_parameters()} for m in models]
    merged = {n: sum(broadcast(n, c[i], w[n], family) for i, w in enumerate(weights)) for n, c in values.items()}
    loss: Any = 0
    for prompt in prompts:
        ids = (torch.tensor([prompt]),)
        log = (functional_call(models[0], merged, ids, tie_weights=True).logits[0] / 2).log_softmax(-1)
        for model in models:
            with torch.no_grad():
                theirs = (model(*ids).logits[0] / 2).softmax(-1)
            loss = loss + 4 * kl_div(log, theirs, reduction="batchmean") / len(prompts)
    for name, c in values.items():
        if not name.endswith("bias"):
            pairs = [cosine_similarity(a, b, dim=0) for a, b in combinations(c, 2)]
            loss = loss + 0.3 * sum(pairs) / len(pairs) + sum(0.01 * v.norm(1) + 0.02 * v.norm(2) for v in c)
    return loss  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])  # input first and tied; with biases
def test_dam_walks_as_torch_does(family: str, siblings: Siblings) -> None:
    folders = siblings(family)
    models = [AutoModelForCausalLM.from_pretrained(f, dtype=torch.float64).eval() for f in folders.values()]
    given = ingredients(folders, **SETTINGS)
    found = column_coefficients(given)
    values = {n: torch.full_like(v, 0.5).requires_grad_(True) for n, v in found.items()}
    assert found["transformer.h.0.mlp.c_fc.weight" if family == "gpt2" else "lm_head.weight"].shape == (2, 32)
    adam = torch.optim.Adam(values.values(), lr=0.02)
    for step in range(5):
        adam.zero_grad()
        slow_loss(models, values, [PROMPTS[(2 * step + i) % 3] for i in range(2)], family).backward()  # type: ignore[no-untyped-call]
        adam.step()
    for name, own in found.items():
        apart = (own - values[name].detach()).abs()
        assert float(apart.median()) < 1e-4, name
        assert float(apart.quantile(0.98)) < 5e-3, name  # where a slope is rounding noise, Adam still steps
        assert not own.allclose(torch.full_like(own, 0.5), atol=1e-2), name
    result = made(given)
    for name, tensor in result.items():
        parts = [
            broadcast(name, c, p.tensor(name).double(), family) for c, p in zip(found[name], given.of, strict=True)
        ]
        assert tensor.double().allclose(parts[0] + parts[1], atol=1e-6)


def test_slopes_are_those_of_finite_differences_with_stacked_experts(siblings: Siblings, tmp_path: Path) -> None:
    given = ingredients(siblings("mixtral"))
    distance = Distance(given, tmp_path)
    values = {
        n: torch.full_like(v, 0.5) for n, v in column_coefficients(ingredients(siblings("mixtral"), steps=0)).items()
    }
    slopes = distance.slopes(values, [0, 1, 2])
    for part in ("experts.1.w2.weight", "embed_tokens.weight", "layers.1.input_layernorm.weight", "q_proj.weight"):
        name = next(n for n in values if n.endswith(part))
        ends = []
        for sign in (1, -1):
            moved = {n: v.clone() for n, v in values.items()}
            moved[name][1] += sign * 0.02
            distance.slopes(moved, [0, 1, 2])
            ends.append(distance.value)
        assert (ends[0] - ends[1]) / 0.04 == pytest.approx(float(slopes[name][1].sum()), rel=0.05, abs=2e-3), part


def test_dam_without_steps_is_the_mean_and_steps_bring_it_nearer(siblings: Siblings, tmp_path: Path) -> None:
    given = ingredients(siblings("llama"), steps=0.0)
    for name, tensor in made(given).items():
        assert tensor.allclose((given.of[0].tensor(name) + given.of[1].tensor(name)) / 2, atol=1e-6)
    free = ingredients(siblings("llama"), steps=10.0, rate=0.01, similarity=0.0, l1=0.0, l2=0.0)
    distance = Distance(free, tmp_path)
    distance.slopes(column_coefficients(given), [0, 1, 2])
    before = distance.value
    distance.slopes(column_coefficients(free), [0, 1, 2])
    assert distance.value < 0.98 * before
    words = DAM.cost(ingredients(siblings("llama")))
    assert "306 forward and 300 backward passes of 4 tokens" in words


class TestDam(MakerSuite):
    maker = DAM
    settings: ClassVar[Mapping[str, Number]] = {"steps": 2.0}
    family = "gpt_neox"
