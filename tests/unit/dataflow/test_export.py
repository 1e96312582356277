"""Paths as stock checkpoints: what plain transformers loads computes what the search scored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from evomerge.api import merge
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.dataflow.export import check_export, recipe_tensors, write_recipe
from evomerge.dataflow.views import PathRunner
from evomerge.digest import digest_file
from evomerge.errors import EvomergeError, MergeError, ModelError, NonFinite, RecipeError
from evomerge.merging.export import METADATA_KEY, merge_tensors
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.resident import ResidentModel
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.path import MAX_HOPS, Hop, plain_path
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_from_text, recipe_to_text
from evomerge.testing.tiny import FAMILIES, MORE_FAMILIES, tiny_checkpoint

LAYERS = 4
WINDOWS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
SETTINGS: Mapping[str, dict[str, Any]] = {
    "gpt2": {"n_layer": LAYERS},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "gemma2": {"sliding_window": 5},
    "gemma3": {"sliding_window": 5, "layer_types": WINDOWS},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "cohere2": {"sliding_window": 5},
    "exaone4": {"sliding_window": 5},
    "olmo3": {"sliding_window": 5},
}
PLAIN = (Hop(0, "a"), Hop(2, "b"), Hop(1), Hop(2, "b"), Hop(1), Hop(3, "a"), Hop(0, "a"))
GAINS = (1.0, -0.7, 1.3, 0.4, 0.1, -1.0, 2.5)
GAINED = tuple(replace(hop, gain=gain) for hop, gain in zip(PLAIN, GAINS, strict=True))
SOUP = Rule("linear", {"normalize": True}, {"a": {"weight": 0.6}, "b": {"weight": 0.4}})
TOKENS = (torch.arange(2 * 19).reshape(2, 19) * 7) % 61 + 3


class Parents:
    """Two parents of one family, opened."""

    def __init__(self, folder: Path, family: str, dtype: str = "float32", **config: Any) -> None:
        depth = {} if family == "gpt2" else {"num_hidden_layers": LAYERS}
        settings = {**depth, **SETTINGS.get(family, {}), **config}
        names = {n: tiny_checkpoint(folder / n, family, seed, dtype, **settings) for seed, n in enumerate("ab")}
        self.reopen(names)

    def reopen(self, names: Mapping[str, Path]) -> None:
        self.folders = dict(names)
        self.pool = ParentPool({name: open_checkpoint(folder) for name, folder in names.items()})
        self.refs = tuple(ParentRef(name, str(folder)) for name, folder in names.items())

    def recipe(self, path: tuple[Hop, ...] | None, **changed: Any) -> Recipe:
        return replace(Recipe(self.refs, None, (SOUP,), path=path), **changed)

    def searched(self, recipe: Recipe) -> Any:
        """The model that a search scores: resident models and a path through them."""
        sources = {ref.name: self._resident(replace(recipe, rules=parent_recipe(ref).rules)) for ref in self.refs}
        assert recipe.path is not None
        return PathRunner(self._resident(recipe), sources).model(recipe.path)

    def _resident(self, recipe: Recipe) -> Any:
        resident = ResidentModel(self.pool, recipe.parents[0].name, kernels=Kernels())
        resident.apply(recipe)
        return resident.model


@pytest.fixture(scope="module", params=FAMILIES)
def parents(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Parents:
    return Parents(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Parents:
    return Parents(tmp_path_factory.mktemp("llamas"), "llama")


@pytest.fixture(autouse=True)
def _no_progress_bars() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def stock(folder: Path) -> Any:
    """What a user loads: no remote code, nothing missing, nothing left over."""
    model, told = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits.double()
    return found


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of the logits, relative to the largest."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def greedy(model: Any, cached: bool) -> list[list[int]]:
    with torch.no_grad():
        out = model.generate(
            TOKENS[:, :5],
            attention_mask=torch.ones_like(TOKENS[:, :5]),
            do_sample=False,
            max_new_tokens=7,
            min_new_tokens=7,
            use_cache=cached,
            pad_token_id=0,
        )
    return [list(map(int, row)) for row in out]


def test_without_gains_the_export_is_the_searched_path_bit_for_bit(parents: Parents, tmp_path: Path) -> None:
    recipe = parents.recipe(PLAIN)
    write_recipe(recipe, parents.pool, tmp_path / "out")
    export, searched = stock(tmp_path / "out"), parents.searched(recipe)
    assert type(export) is type(searched)
    assert torch.equal(logits(export), logits(searched))


def test_with_gains_logits_and_greedy_decoding_are_the_searched_ones(parents: Parents, tmp_path: Path) -> None:
    recipe = parents.recipe(GAINED)
    write_recipe(recipe, parents.pool, tmp_path / "out")
    export, searched = stock(tmp_path / "out"), parents.searched(recipe)
    assert difference(logits(export), logits(searched)) < 1e-5
    assert difference(logits(export), logits(parents.searched(parents.recipe(PLAIN)))) > 1e-2  # gains do something
    texts = greedy(export, cached=True)
    assert texts == greedy(export, cached=False) == greedy(searched, cached=True)


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_further_architectures_export_too(family: str, tmp_path: Path) -> None:
    parents = Parents(tmp_path, family)
    recipe = parents.recipe(GAINED)
    write_recipe(recipe, parents.pool, tmp_path / "out")
    assert difference(logits(stock(tmp_path / "out")), logits(parents.searched(recipe))) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
def test_in_bf16_plain_paths_are_exact_and_gains_cost_a_rounding(family: str, tmp_path: Path) -> None:
    parents = Parents(tmp_path, family, "bfloat16")
    exports = {}
    for name, path in (("plain", PLAIN), ("gained", GAINED)):
        write_recipe(parents.recipe(path), parents.pool, tmp_path / name)
        exports[name] = logits(stock(tmp_path / name))
    assert torch.equal(exports["plain"], logits(parents.searched(parents.recipe(PLAIN))))
    searched = logits(parents.searched(parents.recipe(GAINED)))
    assert 0 < difference(exports["gained"], searched) < 0.04


def test_config_says_depth_and_kinds_of_layers_along_the_path(tmp_path: Path) -> None:
    parents = Parents(tmp_path, "qwen2")
    for folder in parents.folders.values():  # as older files have it: the kinds follow from max_window_layers
        config = json.loads((folder / "config.json").read_text())
        del config["layer_types"]
        (folder / "config.json").write_text(json.dumps(config))
    parents.reopen(parents.folders)
    recipe = parents.recipe(GAINED)
    write_recipe(recipe, parents.pool, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == len(GAINED)
    kinds = ["sliding" if hop.layer >= 2 else "full" for hop in GAINED]
    assert config["layer_types"] == [f"{kind}_attention" for kind in kinds]
    assert difference(logits(stock(tmp_path / "out")), logits(parents.searched(recipe))) < 1e-5


def test_nothing_else_of_the_config_changes(llamas: Parents, tmp_path: Path) -> None:
    permuted = tuple(Hop(layer, "a") for layer in (2, 0, 3, 1))
    write_recipe(llamas.recipe(permuted), llamas.pool, tmp_path / "same")
    ours, theirs = (folder / "config.json" for folder in (tmp_path / "same", llamas.folders["a"]))
    assert ours.read_bytes() == theirs.read_bytes()
    write_recipe(llamas.recipe(PLAIN), llamas.pool, tmp_path / "deeper")
    found, before = json.loads((tmp_path / "deeper" / "config.json").read_text()), json.loads(theirs.read_text())
    assert {k for k in found if found[k] != before.get(k)} == {"num_hidden_layers"}
    assert found.keys() == before.keys()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_tied_embeddings_stay_tied(family: str, tmp_path: Path) -> None:
    parents = Parents(tmp_path, family, tie=True)
    write_recipe(parents.recipe(GAINED), parents.pool, tmp_path / "out")
    written = open_checkpoint(tmp_path / "out")
    assert written.tied_embeddings
    assert "lm_head.weight" not in {t.name for t in written.layout.tensors}
    model = stock(tmp_path / "out")
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert difference(logits(model), logits(parents.searched(parents.recipe(GAINED)))) < 1e-5


def test_files_of_the_bare_inner_model_and_old_masks_are_carried_over(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    parents = Parents(tmp_path, "gpt2")
    for folder in parents.folders.values():  # as the hub has GPT-2
        tensors = load_file(folder / "model.safetensors")
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in range(LAYERS)}
        save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    parents.reopen(parents.folders)
    recipe = parents.recipe(GAINED)
    write_recipe(recipe, parents.pool, tmp_path / "out")
    names = {t.name for t in open_checkpoint(tmp_path / "out").layout.tensors}
    assert {f"h.{k}.mlp.c_proj.bias" for k in range(len(GAINED))} <= names
    assert not any(name.endswith(".attn.bias") for name in names)
    assert difference(logits(stock(tmp_path / "out")), logits(parents.searched(recipe))) < 1e-5


def test_sharded_parents_and_exports_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = Parents(tmp_path, "olmo2", max_shard_size="40KB")
    monkeypatch.setattr("evomerge.dataflow.export.write_checkpoint", partial(write_checkpoint, max_shard_bytes=30_000))
    recipe = parents.recipe(GAINED)
    write_recipe(recipe, parents.pool, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert difference(logits(stock(tmp_path / "out")), logits(parents.searched(recipe))) < 1e-5


def test_writing_twice_gives_the_same_files(llamas: Parents, tmp_path: Path) -> None:
    recipe = llamas.recipe(GAINED)
    for name in ("one", "two"):
        write_recipe(recipe, llamas.pool, tmp_path / name, extra_files={"note.txt": "x"})
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert {"model.safetensors", "config.json", "note.txt"} <= set(files)
    for name in files:
        assert digest_file(tmp_path / "one" / name) == digest_file(tmp_path / "two" / name), name


def test_the_recipe_stands_in_the_weight_files(llamas: Parents, tmp_path: Path) -> None:
    from safetensors import safe_open

    recipe = llamas.recipe(GAINED)
    write_recipe(recipe, llamas.pool, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert recipe_from_text(file.metadata()[METADATA_KEY]) == recipe


def test_a_recipe_without_a_path_is_written_as_a_merge(llamas: Parents, tmp_path: Path) -> None:
    recipe = llamas.recipe(None)
    write_recipe(recipe, llamas.pool, tmp_path / "out")
    written = open_checkpoint(tmp_path / "out")
    tensors = dict(recipe_tensors(recipe, llamas.pool))
    assert tensors.keys() == {t.name for t in written.layout.tensors}
    for name, tensor in merge_tensors(recipe, llamas.pool):
        assert torch.equal(tensors[name], tensor)
        assert torch.equal(written.tensor(name), tensor)


def test_the_identity_path_is_the_parent(llamas: Parents) -> None:
    recipe = replace(parent_recipe(llamas.refs[0]), path=plain_path(LAYERS, "a"))
    checkpoint = llamas.pool.checkpoint("a")
    for name, tensor in recipe_tensors(recipe, llamas.pool):
        assert torch.equal(tensor, checkpoint.tensor(name))


@pytest.mark.parametrize("dtype", ["parent", "bfloat16", "float32"])
@pytest.mark.parametrize("compat", ["off", "mergekit"])
def test_every_hop_holds_what_a_merge_would_hold_there(dtype: Any, compat: Any, tmp_path: Path) -> None:
    a = tiny_checkpoint(tmp_path / "a", "llama", 0, "bfloat16", num_hidden_layers=LAYERS)
    b = tiny_checkpoint(tmp_path / "b", "llama", 1, "float32", num_hidden_layers=LAYERS)
    pool = ParentPool({"a": open_checkpoint(a), "b": open_checkpoint(b)})
    refs = (ParentRef("a", str(a)), ParentRef("b", str(b)))
    ties = Rule("ties", {}, {"b": {"weight": 0.8, "density": 0.5}})
    recipe = Recipe(refs, "a", (ties,), dtype, compat, path=(Hop(1, "b"), Hop(1), Hop(1, "b", 2.0), Hop(3, "a")))
    merged = dict(merge_tensors(replace(recipe, path=None), pool))
    own = {r.name: dict(merge_tensors(replace(recipe, rules=parent_recipe(r).rules, path=None), pool)) for r in refs}
    written = dict(recipe_tensors(recipe, pool))
    assert len(written) == 4 * 9 + 3
    for name, tensor in written.items():
        parts = name.split(".")
        if parts[1] != "layers":
            wanted = merged[name]
        else:
            hop = recipe.path[int(parts[2])] if recipe.path else Hop(0)
            source = merged if hop.parent is None else own[hop.parent]
            wanted = source[".".join([*parts[:2], str(hop.layer), *parts[3:]])]
            ends = parts[-2] in ("o_proj", "down_proj")
            wanted = wanted * hop.gain if ends else wanted  # doubling is exact
        assert tensor.dtype == wanted.dtype
        assert torch.equal(tensor, wanted), name


def refusal(recipe: Recipe, parents: Parents, folder: Path) -> str:
    """The message of a refusal; everything is refused by the check too, and nothing is written."""
    with pytest.raises(EvomergeError, match="Got:") as checked:
        check_export(recipe, parents.pool)
    with pytest.raises(type(checked.value), match="Got:") as written:
        write_recipe(recipe, parents.pool, folder)
    assert str(written.value) == str(checked.value)
    assert not folder.exists()
    return f"{type(checked.value).__name__} {checked.value}"


def test_layers_that_there_are_not_are_refused(llamas: Parents, tmp_path: Path) -> None:
    told = refusal(llamas.recipe((Hop(0), Hop(LAYERS))), llamas, tmp_path / "out")
    assert "RecipeError" in told
    assert f"layers 0 to {LAYERS - 1}" in told


def test_layers_that_know_their_number_are_refused(tmp_path: Path) -> None:
    parents = Parents(tmp_path, "gpt2", scale_attn_by_inverse_layer_idx=True)
    assert "scale_attn_by_inverse_layer_idx" in refusal(parents.recipe(PLAIN), parents, tmp_path / "out")


def test_lists_of_unknown_meaning_are_refused(tmp_path: Path) -> None:
    parents = Parents(tmp_path, "llama")
    config = json.loads((parents.folders["a"] / "config.json").read_text())
    for key, is_odd in (("eos_token_id", False), ("loop_counts", True)):
        changed = {**config, key: list(range(LAYERS))}
        (parents.folders["a"] / "config.json").write_text(json.dumps(changed))
        parents.reopen(parents.folders)
        if is_odd:
            assert "loop_counts: [0, 1, 2, 3]" in refusal(parents.recipe(PLAIN), parents, tmp_path / "out")
        else:
            check_export(parents.recipe(PLAIN), parents.pool)


def test_layers_behind_the_last_one_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    parents = Parents(tmp_path, "llama")
    for folder in parents.folders.values():
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
        tensors = load_file(folder / "model.safetensors")
        more = {n.replace(".3.", ".4."): t.clone() for n, t in tensors.items() if ".layers.3." in n}
        save_file({**tensors, **more}, folder / "model.safetensors", metadata={"format": "pt"})
    parents.reopen(parents.folders)
    assert "Got: model.layers.4." in refusal(parents.recipe(PLAIN), parents, tmp_path / "out")


@pytest.mark.parametrize("other", ["mistral", "qwen3"])
def test_parents_of_several_architectures_are_refused(other: str, llamas: Parents, tmp_path: Path) -> None:
    b = tiny_checkpoint(tmp_path / "b", other, 1, num_hidden_layers=LAYERS)
    mixed = Parents(tmp_path / "more", "llama", attention_bias=False, mlp_bias=False)
    mixed.reopen({"a": mixed.folders["a"], "b": b})
    told = refusal(mixed.recipe(PLAIN), mixed, tmp_path / "out")
    assert "several architectures" in told
    assert f"b: {other}" in told


def test_parents_with_other_kinds_of_layers_are_refused(tmp_path: Path) -> None:
    parents = Parents(tmp_path, "gemma3")
    path = parents.folders["b"] / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "layer_types": config["layer_types"][::-1]}))
    parents.reopen(parents.folders)
    told = refusal(parents.recipe(PLAIN), parents, tmp_path / "out")
    assert "b: layer_types ('sliding_attention', 'full_attention'" in told


def test_gains_beyond_the_dtype_leave_nothing_behind(tmp_path: Path) -> None:
    parents = Parents(tmp_path, "llama", "float16")
    with pytest.raises(NonFinite, match=r"model\.layers\.0\.\S+ \(F16\) times 1e\+06"):
        write_recipe(parents.recipe((Hop(0, "a", 1e6),)), parents.pool, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_recipe(parents.recipe((Hop(0, "a", 1e6),), dtype="float32"), parents.pool, tmp_path / "out")


def test_buffers_that_differ_in_a_merged_layer_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    parents = Parents(tmp_path, "llama")
    for name, folder in parents.folders.items():
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.self_attn.slots"] = torch.tensor([ord(name)])
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    parents.reopen(parents.folders)
    assert "self_attn.slots (I64) in b and a" in refusal(parents.recipe((Hop(1),)), parents, tmp_path / "out")
    raw = dict(recipe_tensors(parents.recipe((Hop(1, "b"),)), parents.pool))
    assert raw["model.layers.0.self_attn.slots"].tolist() == [ord("b")]


# -- the API ----------------------------------------------------------------------------------------------------------


def test_bad_paths_are_refused_before_weights_are_read(tmp_path: Path) -> None:
    parents = Parents(tmp_path, "llama", attention_bias=False, mlp_bias=False)
    file = parents.folders["b"] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64] + b"\xff" * 64)  # NaN, which only reading weights can find
    parents.reopen(parents.folders)
    with pytest.raises(ModelError, match=r"(?i)nan"):
        merge(parents.recipe(PLAIN), tmp_path / "out")
    with pytest.raises(RecipeError, match="hop 1: layer 9"):
        merge(parents.recipe((Hop(0), Hop(9, "b"))), tmp_path / "out")
    long = recipe_to_text(parents.recipe(plain_path(4))).replace('"path":[', '"path":[' + '["b",0,1.0],' * MAX_HOPS)
    (tmp_path / "long.json").write_text(long)
    with pytest.raises(RecipeError, match=f"{MAX_HOPS + 4} hops"):
        merge(tmp_path / "long.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merge_writes_paths_with_their_recipe(llamas: Parents, tmp_path: Path) -> None:
    recipe = merge(llamas.recipe(GAINED), tmp_path / "out")
    (tmp_path / "again.json").write_text((tmp_path / "out" / "evomerge_recipe.json").read_text())
    assert merge(tmp_path / "again.json", tmp_path / "again") == recipe
    for name in ("model.safetensors", "config.json"):
        assert digest_file(tmp_path / "out" / name) == digest_file(tmp_path / "again" / name)


def test_a_merge_error_is_told_for_parents_of_other_shapes(llamas: Parents, tmp_path: Path) -> None:
    wide = tiny_checkpoint(tmp_path / "b", "llama", 1, num_hidden_layers=LAYERS, intermediate_size=64)
    mixed = ParentPool({"a": llamas.pool.checkpoint("a"), "b": open_checkpoint(wide)})
    with pytest.raises(MergeError, match="same tensors"):
        check_export(llamas.recipe(PLAIN), mixed)
