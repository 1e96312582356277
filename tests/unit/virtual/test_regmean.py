from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, cg
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import ModelError, NonFinite
from evomerge.layout import Layout
from evomerge.recipe.recipe import Number, ParentRef
from evomerge.testing.tiny import tiny_checkpoint, tiny_siblings
from evomerge.virtual.layered import LayeredPass
from evomerge.virtual.maker import Ingredients, Maker
from evomerge.virtual.mats import MATS, conjugate_gradients
from evomerge.virtual.regmean import REGMEAN, REGMEAN_PP, Normal, solution
from evomerge.virtual.scaffold import Scaffold

PROMPTS = ((1, 5, 9, 20, 33, 7), (1, 8, 8, 40), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 60, 61, 62))
NAMES = ("one", "two", "three")
Folders = Mapping[str, Path]


def ingredients(folders: Folders, maker: Maker, prompts: Any = PROMPTS, **changed: Number) -> Ingredients:
    settings = {n: p.default for n, p in maker.spec.parameters.items() if p.default is not None} | changed
    return Ingredients(
        ParentRef("m", "m"), tuple(open_checkpoint(f) for f in folders.values()), None, settings, prompts
    )


def made(folders: Folders, maker: Maker, prompts: Any = PROMPTS, **changed: Number) -> dict[str, torch.Tensor]:
    given = ingredients(folders, maker, prompts, **changed)
    return dict(maker.tensors(given, maker.plan(given)))


def load(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def maps(model: Any) -> dict[str, Any]:
    """The linear maps inside the layers, head and embedding left out, by the name of their weight."""
    kinds = (torch.nn.Linear, Conv1D)
    return {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, kinds) and "lm_head" not in n}


def moments(model: Any, names: Any) -> dict[str, torch.Tensor]:
    """`X^T X / tokens` of what each map is given in plain forward passes of the whole model, fp64."""
    inputs: dict[str, list[torch.Tensor]] = {n: [] for n in names}
    hooks = []
    for name in names:

        def keep(module: Any, arguments: Any, name: str = name) -> None:
            inputs[name].append(arguments[0].reshape(-1, arguments[0].shape[-1]))

        hooks.append(maps(model)[name].register_forward_pre_hook(keep))
    with torch.no_grad():
        for prompt in PROMPTS:
            model(input_ids=torch.tensor([prompt]))
    for hook in hooks:
        hook.remove()
    return {n: torch.cat(x).T @ torch.cat(x) / len(torch.cat(x)) for n, x in inputs.items()}


def inverse_formula(models: list[Any], grams: list[Mapping[str, torch.Tensor]], name: str, a: float) -> torch.Tensor:
    """The paper's equation, with an inverse."""
    flip = isinstance(maps(models[0])[name], Conv1D)
    weights = [m.state_dict()[name] if flip else m.state_dict()[name].T for m in models]
    shrunk = [a * g[name] + (1 - a) * torch.diag(g[name].diagonal()) for g in grams]
    found = torch.linalg.inv(sum(shrunk)) @ sum(g @ w for g, w in zip(shrunk, weights, strict=True))  # type: ignore[arg-type]
    return found if flip else found.T


def check_rest(result: dict[str, torch.Tensor], models: list[Any], linear: Any) -> None:
    states = [m.state_dict() for m in models]
    rest = set(result) - set(linear)
    assert len(rest) > 2
    for name in rest:
        assert result[name].double().allclose(sum(s[name] for s in states) / len(states), atol=1e-6)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def siblings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}

    def of(family: str) -> dict[str, Path]:
        if family not in found:
            found[family] = tiny_siblings(tmp_path_factory.mktemp(family), family, NAMES, step=0.1)
        return found[family]

    return of


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2", "mixtral"])
def test_regmean_is_the_inverse_formula_on_plain_passes(family: str, siblings: Any) -> None:
    folders = siblings(family)
    # grouped products of experts are not to be had in fp64
    models = [load(f, torch.float32 if family == "mixtral" else torch.float64) for f in folders.values()]
    names = maps(models[0])
    grams = [{n: g.double() for n, g in moments(m, names).items()} for m in models]
    models = [m.double() for m in models]
    result = made(folders, REGMEAN, off_diagonal=0.8)
    assert len(names) == {"llama": 14, "qwen2": 14, "gpt2": 8, "gemma2": 14, "mixtral": 8}[family]
    for name in names:
        expected = inverse_formula(models, grams, name, 0.8)
        assert result[name].dtype == torch.float32
        assert result[name].double().allclose(expected, atol=2e-5), name
    if family != "mixtral":  # whose experts transformers stacks under names of its own
        check_rest(result, models, names)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_regmean_pp_sees_what_the_merged_layers_give(family: str, siblings: Any) -> None:
    folders = siblings(family)
    models = [load(f) for f in folders.values()]
    names = maps(models[0])
    result = made(folders, REGMEAN_PP, off_diagonal=0.7)
    merged = load(folders["one"])
    states = [m.state_dict() for m in models]
    mean = {n: sum(s[n] for s in states) / len(states) for n in states[0]}
    merged.load_state_dict(mean)
    layers = [".0.", ".1."]
    for layer in layers:
        grams = []
        for state in states:  # the merged model, but for this model's own layer
            mixed = merged.state_dict() | {n: v for n, v in state.items() if layer in n}
            candidate = load(folders["one"])
            candidate.load_state_dict(mixed)
            grams.append(moments(candidate, [n for n in names if layer in n]))
        for name in grams[0]:
            expected = inverse_formula(models, grams, name, 0.7)
            assert result[name].double().allclose(expected, atol=2e-5), name
            merged.state_dict()[name].copy_(expected)
    check_rest(result, models, names)
    plain = made(folders, REGMEAN, off_diagonal=0.7)
    first, second = (next(n for n in names if layer in n) for layer in layers)
    assert not plain[second].allclose(result[second], atol=1e-4)
    assert plain[first].shape == result[first].shape


@pytest.mark.parametrize("maker", [REGMEAN, REGMEAN_PP, MATS], ids=lambda m: m.spec.name)
def test_equal_models_and_a_single_one_keep_their_bits(maker: Maker, siblings: Any) -> None:
    folder = siblings("gpt2")["two"]
    stored = open_checkpoint(folder)
    for folders in ({"a": folder}, {"a": folder, "b": folder, "c": folder}):
        assert all(t.equal(stored.tensor(n)) for n, t in made(folders, maker).items())


def test_without_cross_moments_it_is_a_weighted_mean_of_rows(siblings: Any) -> None:
    folders = siblings("llama")
    models = [load(f) for f in folders.values()]
    name = "model.layers.0.mlp.down_proj.weight"
    power = torch.stack([moments(m, [name])[name].diagonal() for m in models])
    weights = torch.stack([m.state_dict()[name] for m in models])
    expected = (weights * power.unsqueeze(1)).sum(0) / power.sum(0)
    assert made(folders, REGMEAN, off_diagonal=0.0)[name].double().allclose(expected, atol=1e-5)


def test_mats_leads_from_the_mean_to_regmean(siblings: Any) -> None:
    folders = siblings("llama")
    many = tuple(tuple(int(i) for i in np.random.default_rng(s).integers(1, 64, 30)) for s in range(8))
    goal = made(folders, REGMEAN, many, off_diagonal=1.0)
    name = "model.layers.1.self_attn.q_proj.weight"
    distances = [float((made(folders, MATS, many, iterations=n)[name] - goal[name]).norm()) for n in (1.0, 5.0, 500.0)]
    assert distances[0] > distances[1] > 100 * distances[2]
    assert distances[2] < 1e-4


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 7), st.integers(1, 12), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_solutions_satisfy_their_equations(seed: int, inputs: int, outputs: int, tokens: int, models: int) -> None:
    """Wide, tall and rank-deficient ones: the residual vanishes, and what no input shows stays at the mean."""
    rng = np.random.default_rng(seed)
    normal = Normal(inputs, outputs)
    draws = [torch.from_numpy(rng.standard_normal((tokens, inputs))) for _ in range(models)]
    for x in draws:
        x[:, 0] = 0  # an input that is never there
        normal.add(x.T @ x / tokens, torch.from_numpy(rng.standard_normal((inputs, outputs))), 1.0)
    found = solution(normal)
    assert (normal.gram @ found).allclose(normal.right, atol=1e-7)
    assert not found[0].any()
    everything = torch.cat(draws)
    kernel = torch.eye(inputs, dtype=torch.float64) - torch.linalg.pinv(everything) @ everything
    assert (kernel @ found).abs().max() < 1e-6
    shrunk = Normal(inputs, outputs)
    shrunk.gram += 0.9 * normal.gram + 0.1 * torch.diag(normal.gram.diagonal())
    shrunk.right += normal.right
    assert (shrunk.gram @ solution(shrunk)).allclose(normal.right, atol=1e-9)


@pytest.mark.parametrize("iterations", [1, 2, 5, 11])
def test_every_iterate_is_that_of_scipy_on_one_long_vector(iterations: int) -> None:
    """As the authors call it: r-three/mats@df71e97, src/merging/conjugateGradient_fisherMerging.py."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 6))
    normal = Normal(6, 4)
    for _ in range(2):
        normal.add(torch.from_numpy(x.T @ x / 40), torch.from_numpy(rng.standard_normal((6, 4))), 1.0)
    gram, right = normal.gram.numpy(), normal.right.numpy()
    operator = LinearOperator((24, 24), matvec=lambda v: (gram @ v.reshape(6, 4)).reshape(-1))
    expected, _ = cg(operator, right.reshape(-1), maxiter=iterations, rtol=0, atol=0)
    assert conjugate_gradients(normal, iterations).numpy() == pytest.approx(expected.reshape(6, 4), abs=1e-10)


def test_by_hand() -> None:
    """Two inputs, one output; model 1 saw (2, 0), model 2 saw (1, 1); maps (1, 0) and (0, 3)."""
    normal = Normal(2, 1)
    mean = torch.tensor([[0.5], [1.5]], dtype=torch.float64)
    for x, w in (([2.0, 0.0], [1.0, 0.0]), ([1.0, 1.0], [0.0, 3.0])):
        row = torch.tensor([x], dtype=torch.float64)
        normal.add(row.T @ row, torch.tensor([w], dtype=torch.float64).T - mean, 1.0)
    # answers: 2 to (2, 0) and 3 to (1, 1), which (1, 2) gives exactly
    assert (mean + solution(normal)).allclose(torch.tensor([[1.0], [2.0]], dtype=torch.float64))
    assert (mean + conjugate_gradients(normal, 2)).allclose(torch.tensor([[1.0], [2.0]], dtype=torch.float64))


def test_what_cannot_be_done_is_refused(tmp_path: Path, siblings: Any) -> None:
    folders = siblings("llama")
    with pytest.raises(ModelError, match="none of 1 tokens or more"):
        made(folders, REGMEAN, ())
    with pytest.raises(ModelError, match="token 64 for a vocabulary of 64"):
        made(folders, REGMEAN, ((1, 64),))
    wide = tiny_checkpoint(tmp_path / "wide", "llama", 5, intermediate_size=64)
    with pytest.raises(ModelError, match="has shape"):
        made({**folders, "wide": wide}, REGMEAN)
    given = ingredients(folders, REGMEAN)
    assert REGMEAN.cost(given).startswith("about 1 s on one core, 9 forward passes of 8 tokens, ")
    assert REGMEAN_PP.cost(given).startswith("about 1 s on one core, 12 forward")


def test_a_model_with_nan_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folders = tiny_siblings(tmp_path, "llama", ["one", "two"])
    file = folders["two"] / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(NonFinite, match=r"layers\.1\.mlp\.up_proj\.weight of .*two"):
        made(folders, REGMEAN)


def test_layers_that_do_not_give_what_the_model_gives_are_refused(
    siblings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = siblings("qwen2")
    plain = LayeredPass._step
    monkeypatch.setattr(LayeredPass, "_step", lambda self, state, layer: plain(self, state, layer) + 0.01)
    with pytest.raises(ModelError, match="layers alone do not give what the whole model gives"):
        made(folders, REGMEAN)
    scaffold = Scaffold(open_checkpoint(folders["one"]))
    scaffold.layout = Layout(3, ())
    with pytest.raises(ModelError, match="no list of 3 layers"):
        scaffold.layers()
