from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.dataflow.views import PathRunner, view_of
from evomerge.errors import ModelError, RecipeError
from evomerge.recipe.path import Hop, Hops, plain_path
from evomerge.testing.path_models import CASES, N_LAYERS, PATH, path_parent, stock_model

IDS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))
PROMPT = IDS[:, :8]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@cache
def parents(case: str) -> tuple[Any, dict[str, Any]]:
    """A merged model and two sources; one of them is the merged model. Never change them."""
    merged = path_parent(case, 0)
    return merged, {"a": merged, "b": path_parent(case, 1)}


def runner_of(case: str) -> PathRunner:
    return PathRunner(*parents(case))


def logits(model: Any, ids: torch.Tensor = IDS, **arguments: Any) -> torch.Tensor:
    found: torch.Tensor = model(ids, **arguments).logits
    return found


def steps(model: Any, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Logits of a prompt and then of single tokens, through the cache."""
    output = model(ids[:, :prompt], use_cache=True)
    found = [output.logits]
    for i in range(prompt, ids.shape[1]):
        output = model(ids[:, i : i + 1], past_key_values=output.past_key_values, use_cache=True)
        found.append(output.logits)
    return torch.cat(found, 1)


def greedy(model: Any, **arguments: Any) -> list[list[int]]:
    found: list[list[int]] = model.generate(
        PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=6, min_new_tokens=6, do_sample=False, **arguments
    ).tolist()
    return found


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def state_of(model: Any) -> dict[str, Any]:
    """Everything that a path might disturb in a model."""
    modules = dict(model.named_modules())
    return {
        "config": json.dumps(model.config.to_dict(), sort_keys=True, default=str),
        "generation": model.generation_config.to_dict(),
        "identities": {n: id(m) for n, m in modules.items()},
        "numbers": {n: vars(m).get("layer_idx") for n, m in modules.items()},
        "configs": {n: id(vars(m).get("config")) for n, m in modules.items()},
        "hooks": {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in modules.items()},
        "own forward": [n for n, m in modules.items() if "forward" in vars(m)],
        "weights": {n: (t.data_ptr(), t._version) for n, t in model.state_dict().items()},
    }


@pytest.mark.parametrize("case", CASES)
def test_the_identity_path_is_the_parent(case: str) -> None:
    merged, sources = parents(case)
    for parent in (merged, sources["b"]):
        path = PathRunner(parent, {"p": parent}).model(plain_path(N_LAYERS, "p"))
        assert type(path) is type(parent)
        assert torch.equal(logits(path, use_cache=False), logits(parent, use_cache=False))
        assert torch.equal(logits(path, use_cache=True), logits(parent, use_cache=True))
        assert torch.equal(steps(path, IDS, 8), steps(parent, IDS, 8))


@pytest.mark.parametrize("case", CASES)
def test_cached_decoding_equals_uncached(case: str) -> None:
    path = runner_of(case).model(PATH)
    assert close(steps(path, IDS, 5), logits(path, use_cache=False))
    assert greedy(path, use_cache=True) == greedy(path, use_cache=False)


@pytest.mark.parametrize("case", CASES)
def test_a_path_computes_what_the_deeper_stock_model_computes(case: str) -> None:
    """The stock model is built from tensors by name and from `path_config`; it knows nothing of views."""
    merged, sources = parents(case)
    path, stock = PathRunner(merged, sources).model(PATH), stock_model(PATH, merged, sources)
    assert close(logits(path), logits(stock))
    assert close(steps(path, IDS, 7), steps(stock, IDS, 7))
    assert not close(logits(path), logits(merged), 1e-2)
    without = tuple(Hop(h.layer, h.parent) for h in PATH)
    assert torch.equal(logits(runner_of(case).model(without)), logits(stock_model(without, merged, sources)))


@pytest.mark.parametrize("case", CASES)
def test_a_gain_of_zero_skips_and_a_gain_of_one_is_none(case: str) -> None:
    runner = runner_of(case)
    zero = (Hop(0), Hop(2, "b", 0.0), Hop(3, "b"), Hop(1, gain=-0.0), Hop(1))
    rest = tuple(h for h in zero if h.gain)
    assert torch.equal(logits(runner.model(zero)), logits(runner.model(rest)))
    assert not close(logits(runner.model(rest)), logits(runner.model((Hop(0), Hop(2, "b"), *rest[1:]))), 1e-3)
    hooked = runner.model(rest)
    for layer in runner.layers(hooked):
        for branch in runner.family.ends:
            layer.get_submodule(branch.end).register_forward_hook(lambda _module, _args, output: output * 1.0)
    assert torch.equal(logits(hooked), logits(runner.model(rest)))


@pytest.mark.parametrize("case", CASES)
def test_views_share_every_weight_and_disturb_nothing(case: str) -> None:
    merged, sources = parents(case)
    models = {"merged": merged, **sources}
    before = {name: state_of(model) for name, model in models.items()}
    runner = PathRunner(merged, sources)
    path = runner.model(PATH)
    logits(path, output_hidden_states=True)
    greedy(path)
    owned = {t.data_ptr() for m in models.values() for t in (*m.parameters(), *m.buffers())}
    shared = [*path.parameters(), *path.buffers()]
    assert shared
    assert all(t.data_ptr() in owned for t in shared)
    assert {name: state_of(model) for name, model in models.items()} == before
    assert len({id(p) for p in path.parameters()}) < len(list(stock_model(PATH, merged, sources).parameters()))


@pytest.mark.parametrize("case", CASES)
def test_hops_have_numbers_and_settings_of_their_own(case: str) -> None:
    merged, sources = parents(case)
    runner = PathRunner(merged, sources)
    path = runner.model(PATH)
    layers = runner.layers(path)
    assert len(layers) == len(PATH) == path.config.num_hidden_layers == len({id(layer) for layer in layers})
    for number, layer in enumerate(layers):
        numbers = {vars(m)["layer_idx"] for m in layer.modules() if "layer_idx" in vars(m)}
        assert numbers == {number}
    for key in ("layer_types", "no_rope_layers"):
        if getattr(merged.config, key, None) is not None:
            assert getattr(path.config, key) == [getattr(merged.config, key)[h.layer] for h in PATH]
    configs = {id(vars(m)["config"]) for m in (path, *layers) if "config" in vars(m)}
    assert configs == {id(path.config)}


def test_masks_of_sliding_layers_are_made_only_where_there_are_some() -> None:
    runner = runner_of("qwen2-mixed")
    assert runner.model(PATH).model.has_sliding_layers
    assert not runner.model((Hop(0), Hop(2, "b"))).model.has_sliding_layers
    assert parents("qwen2-mixed")[0].model.has_sliding_layers


@pytest.mark.parametrize("case", [c for c in CASES if "-" not in c])
def test_paths_under_the_other_attention(case: str) -> None:
    """What runs is the merged model's implementation, whatever the sources were built with."""
    own = parents(case)[0].config._attn_implementation
    other = "eager" if own == "sdpa" else own
    merged, source = path_parent(case, 0, other), path_parent(case, 1, own)
    hops = tuple(Hop(h.layer, None if h.parent == "a" else h.parent, h.gain) for h in PATH)
    path = PathRunner(merged, {"b": source}).model(hops)
    assert torch.equal(logits(PathRunner(merged, {}).model(plain_path(N_LAYERS))), logits(merged))
    assert path.config._attn_implementation == other
    assert close(logits(path), logits(stock_model(hops, merged, {"b": source})))
    assert close(logits(path), logits(runner_of(case).model(PATH)))


@given(
    hops=st.lists(
        st.builds(Hop, st.integers(0, N_LAYERS - 1), st.sampled_from([None, "a", "b"]), st.floats(-2, 2)),
        min_size=1,
        max_size=9,
    ).map(tuple),
    case=st.sampled_from(["llama", "qwen2-mixed", "gemma3", "gpt2", "gpt_neox"]),
)
@settings(deadline=None, max_examples=15)
def test_any_path(hops: Hops, case: str) -> None:
    merged, sources = parents(case)
    with torch.no_grad():
        path = PathRunner(merged, sources).model(hops)
        expected = logits(stock_model(hops, merged, sources))
        assert close(logits(path), expected, 2e-5)
        assert close(steps(path, IDS, 9), expected, 2e-5)


@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt2"])
def test_changes_in_place_are_seen(case: str) -> None:
    merged, source = path_parent(case, 0), path_parent(case, 1)
    path = PathRunner(merged, {"a": merged, "b": source}).model(PATH)
    old = logits(path)
    for number, model in enumerate((merged, source)):
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * (number + 1))
    assert not close(logits(path), old, 1e-3)
    assert torch.equal(logits(path), logits(PathRunner(merged, {"a": merged, "b": source}).model(PATH)))


@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_half_precision_paths_are_the_stock_model_but_for_gains(case: str) -> None:
    merged, source = path_parent(case, 0), path_parent(case, 1)
    for parameter in (*merged.parameters(), *source.parameters()):  # as loading does: rotary tables stay in fp32
        parameter.data = parameter.data.to(torch.bfloat16)
    sources = {"a": merged, "b": source}
    runner = PathRunner(merged, sources)
    assert torch.equal(logits(runner.model(plain_path(N_LAYERS))), logits(merged))
    without = tuple(Hop(h.layer, h.parent) for h in PATH)
    assert torch.equal(logits(runner.model(without)), logits(stock_model(without, merged, sources)))
    assert logits(runner.model(PATH)).dtype == torch.bfloat16
    assert close(logits(runner.model(PATH)), logits(stock_model(PATH, merged, sources)), 5e-2)


def test_generation_with_a_static_cache_and_beams() -> None:
    for case in ("llama", "gemma2", "gpt_neox"):
        path = runner_of(case).model(PATH)
        assert greedy(path, cache_implementation="static") == greedy(path)
        assert greedy(path, num_beams=2) == greedy(path, num_beams=2, use_cache=False)


def test_left_padding_changes_nothing() -> None:
    path = runner_of("qwen3-mixed").model(PATH)
    ids = torch.cat([torch.zeros((2, 4), dtype=torch.long), IDS], 1)
    mask = torch.cat([torch.zeros((2, 4), dtype=torch.long), torch.ones_like(IDS)], 1)
    padded = logits(path, ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    assert close(padded[:, 4:], logits(path))


def test_rotary_tables_that_stretch_with_the_text_stay_with_the_path() -> None:
    """Such an architecture replaces its table when a text is long; another model must not see it."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    merged = path_parent("llama", 0, rope_parameters=rope, max_position_embeddings=8)
    before = merged.model.rotary_emb.inv_freq.clone()
    short = logits(merged, IDS[:, :6])
    path = PathRunner(merged, {}).model(plain_path(N_LAYERS))
    assert not torch.equal(logits(path, IDS)[:, :6], short)
    assert not torch.equal(path.model.rotary_emb.inv_freq, before)
    assert torch.equal(merged.model.rotary_emb.inv_freq, before)


def test_hidden_states_of_every_hop_are_told() -> None:
    merged, sources = parents("llama")
    logits(merged, output_hidden_states=True)  # leaves hooks on the merged model's layers, which must not be doubled
    path = PathRunner(merged, sources).model(PATH)
    assert len(path(IDS, output_hidden_states=True).hidden_states) == len(PATH) + 1
    assert len(path(IDS, output_hidden_states=True).hidden_states) == len(PATH) + 1


def test_a_view_is_a_module_of_its_own() -> None:
    merged = path_parent("llama", 0)
    original = merged.model.layers[0].mlp
    original.register_forward_hook(lambda _module, _args, output: output * 2)
    view = view_of(original)
    assert type(view) is type(original)
    assert not view._forward_hooks
    view.extra = torch.nn.Linear(2, 2)
    view.register_buffer("note", torch.zeros(1))
    view.register_parameter("more", None)
    view.forward = lambda x: x
    assert not hasattr(original, "extra")
    assert "note" not in dict(original.named_buffers())
    assert "more" not in original._parameters
    assert "forward" not in vars(original)
    assert "forward" not in vars(view_of(view))
    assert view.training is original.training is False


def test_paths_that_are_none_are_refused() -> None:
    runner = runner_of("llama")
    with pytest.raises(RecipeError, match="A path has no hops"):
        runner.model(())
    with pytest.raises(RecipeError, match="A hop names an unknown parent"):
        runner.model((Hop(0, "c"),))
    with pytest.raises(RecipeError, match="layer that the parents do not have"):
        runner.model((Hop(0), Hop(N_LAYERS)))
    with pytest.raises(RecipeError, match="A path is too long"):
        runner.model((Hop(0),) * 1025)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, not 4"),
        ({"rms_norm_eps": 0.1}, "rms_norm_eps is 0.1, not 1e-06"),
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1, not 2"),
    ],
)
def test_sources_of_another_shape_are_refused(change: dict[str, Any], told: str) -> None:
    merged = parents("llama")[0]
    with pytest.raises(ModelError, match=f"'c': .*{told}"):
        PathRunner(merged, {"c": path_parent("llama", 1, **change)})


def test_sources_of_another_class_or_dtype_are_refused() -> None:
    merged = parents("llama")[0]
    with pytest.raises(ModelError, match="'c': class MistralForCausalLM, not LlamaForCausalLM"):
        PathRunner(merged, {"c": path_parent("mistral", 1)})
    with pytest.raises(ModelError, match=r"dtype torch\.bfloat16, not torch\.float32"):
        PathRunner(merged, {"c": path_parent("llama", 1).to(torch.bfloat16)})
    lenient = path_parent("llama", 1)
    lenient.config = copy.copy(lenient.config)
    lenient.config.eos_token_id, lenient.config.attention_dropout = 7, 0.5
    assert PathRunner(merged, {"c": lenient}).n_layers == N_LAYERS
