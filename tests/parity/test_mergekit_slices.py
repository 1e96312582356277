"""Paths and mergekit's passthrough slices: its files run here, ours run there, and the tensors are the same."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from evomerge.api import merge
from evomerge.checkpoints.reader import Checkpoint, open_checkpoint
from evomerge.config.recipe_files import read_recipe_file
from evomerge.dataflow.export import write_recipe
from evomerge.dataflow.mergekit import mergekit_text
from evomerge.errors import RecipeError
from evomerge.merging.parents import ParentPool
from evomerge.recipe.path import Hop, Hops
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.testing.tiny import tiny_checkpoint

pytest.importorskip("mergekit")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
]

LAYERS = 4
SETTINGS: Mapping[str, dict[str, Any]] = {
    "gpt2": {"n_layer": LAYERS},
    "llama": {"tie_word_embeddings": False},
    "gemma2": {"sliding_window": 8},
}


@pytest.fixture(autouse=True)
def _offline_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()
    torch.set_num_threads(before)


class Parents:
    def __init__(
        self, folder: Path, family: str, dtypes: tuple[str, ...] = ("float32", "float32"), *, lists: bool = True
    ) -> None:
        depth = {} if family == "gpt2" else {"num_hidden_layers": LAYERS}
        settings = {**depth, **SETTINGS.get(family, {})}
        self.folders = {
            n: tiny_checkpoint(folder / n, family, seed, dtype, **settings)
            for seed, (n, dtype) in enumerate(zip("ab", dtypes, strict=True))
        }
        if not lists:
            for path in (f / "config.json" for f in self.folders.values()):
                config = json.loads(path.read_text())
                del config["layer_types"]
                path.write_text(json.dumps(config))
        self.pool = ParentPool({n: open_checkpoint(f) for n, f in self.folders.items()})
        self.refs = tuple(ParentRef(n, str(f)) for n, f in self.folders.items())

    def recipe(self, path: Hops, first: str = "a", last: str | None = None, **changed: Any) -> Recipe:
        def own(parent: str, *where: Any) -> Rule:
            return Rule("linear", {"normalize": True}, {parent: {"weight": 1.0}}, *where)

        rules = (own(first, (), ("embedding",)), own(last or first))
        return Recipe(self.refs, None, rules, path=path, **changed)

    def text(self, text: str) -> str:
        """A file with the models A and B at their places."""
        return text.replace("AAA", str(self.folders["a"])).replace("BBB", str(self.folders["b"]))


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Parents:
    return Parents(tmp_path_factory.mktemp("llamas"), "llama")


def run_mergekit(text: str, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False, num_threads=1)
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(folder), options)
    return folder


def bits(checkpoint: Checkpoint) -> dict[str, tuple[torch.dtype, bytes]]:
    """Even the sign of zeros."""
    found = {t.name: checkpoint.tensor(t.name) for t in checkpoint.layout.tensors}
    return {n: (t.dtype, t.contiguous().view(-1).view(torch.uint8).numpy().tobytes()) for n, t in found.items()}


def assert_same(ours: Path, theirs: Path) -> None:
    mine, other = bits(open_checkpoint(ours)), bits(open_checkpoint(theirs))
    assert mine.keys() == other.keys()
    assert [name for name in mine if mine[name] != other[name]] == []


REPEATS = (Hop(0, "a"), Hop(1, "a"), Hop(1, "b"), Hop(2, "b"), Hop(1, "b"), Hop(2, "b"), Hop(3, "a"))
GAINED = (Hop(0, "a", 0.5), Hop(1, "a", 0.5), Hop(1, "b"), Hop(3, "b", -1.3))
SAME_KINDS = tuple(Hop(i, p) for i, p in ((2, "b"), (1, "a"), (0, "a"), (3, "b")))  # kinds alternate in Gemma 2
FILES = [
    ("llama", REPEATS, "aa"),
    ("llama", REPEATS, "bb"),
    ("llama", REPEATS[2:5], "ab"),
    ("llama", GAINED, "ba"),
    ("mistral", REPEATS, "aa"),
    ("phi3", GAINED, "aa"),
    ("olmo2", GAINED, "aa"),
    ("gpt2", GAINED, "bb"),
    ("qwen3", (*REPEATS[:3], Hop(3, "b")), "aa"),
    ("gemma2", SAME_KINDS, "bb"),
]


@pytest.mark.parametrize(("family", "path", "ends"), FILES)
def test_mergekit_makes_our_export_of_our_file(
    family: str, path: Hops, ends: str, tmp_path: Path, llamas: Parents
) -> None:
    parents = llamas if family == "llama" else Parents(tmp_path, family)
    recipe = parents.recipe(path, *ends)
    text = mergekit_text(recipe, parents.pool.checkpoint("a"))
    theirs = run_mergekit(text, tmp_path / "theirs")
    write_recipe(recipe, parents.pool, tmp_path / "ours")
    assert_same(tmp_path / "ours", theirs)
    models = [transformers.AutoModelForCausalLM.from_pretrained(f, dtype="auto") for f in (tmp_path / "ours", theirs)]
    tokens = torch.arange(3, 23)[None]
    with torch.no_grad():
        mine, other = (model(tokens).logits for model in models)
    assert torch.equal(mine, other)
    (tmp_path / "file.yaml").write_text(text)
    back = read_recipe_file(tmp_path / "file.yaml")
    assert (back.path, {p.source for p in back.parents}) == (path, {str(f) for f in parents.folders.values()})


@pytest.mark.parametrize("lists", [True, False], ids=["stated", "derived"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2"])
def test_where_mergekit_would_leave_a_wrong_config_the_file_is_refused(
    family: str, lists: bool, tmp_path: Path
) -> None:
    """Also where config.json leaves the list out: transformers fills it in before mergekit sets the depth."""
    parents = Parents(tmp_path, family, lists=lists)
    recipe = parents.recipe(REPEATS)
    who = "mergekit leaves as it is" if lists else "transformers fills in when mergekit opens a parent"
    with pytest.raises(RecipeError, match=rf"(?s)per-layer settings.*layer_types, which {who}.* 4 layers.* has 7"):
        mergekit_text(recipe, parents.pool.checkpoint("a"))
    # the reason, as long as it holds
    from evomerge.recipe.mergekit import to_mergekit

    with pytest.raises(
        Exception, match=r"`num_hidden_layers` \(7\) must be equal to the number of `layer_types` \(4\)"
    ):
        run_mergekit(to_mergekit(recipe, parents.pool.checkpoint("a").layout), tmp_path / "out")


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_lists_that_a_file_leaves_out_are_no_obstacle_where_they_stay(family: str, tmp_path: Path) -> None:
    parents = Parents(tmp_path, family, lists=False)
    recipe = parents.recipe(SAME_KINDS)
    theirs = run_mergekit(mergekit_text(recipe, parents.pool.checkpoint("a")), tmp_path / "theirs")
    write_recipe(recipe, parents.pool, tmp_path / "ours")
    assert_same(tmp_path / "ours", theirs)
    kinds = [transformers.AutoConfig.from_pretrained(f).layer_types for f in (tmp_path / "ours", theirs)]
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) == LAYERS


FRANKEN = """
merge_method: passthrough
slices:
- sources: [{model: AAA, layer_range: [0, 3]}]
- sources: [{model: BBB, layer_range: [1, 4]}]
- sources: [{model: AAA, layer_range: [2, 4]}]
"""
SCALED = """
merge_method: passthrough
base_model: BBB
slices:
- sources:
  - model: AAA
    layer_range: [0, 3]
    parameters:
      scale: [{filter: o_proj, value: [0.7, 0.1, -0.3]}, {filter: down_proj, value: [0.7, 0.1, -0.3]}, {value: 1.0}]
- sources: [{model: BBB, layer_range: [2, 3]}]
  parameters: {scale: [{filter: o_proj, value: 1.7}, {filter: down_proj, value: 1.7}]}
- sources: [{model: BBB, layer_range: [3, 4]}]
"""
WHOLE = "merge_method: passthrough\nmodels: [{model: AAA}]\n"
FOREIGN = [
    (FRANKEN, ("float32", "float32"), ""),
    (FRANKEN, ("bfloat16", "float32"), "dtype: bfloat16"),
    (FRANKEN, ("bfloat16", "bfloat16"), "dtype: float16"),
    (FRANKEN, ("bfloat16", "bfloat16"), "dtype: float32\nout_dtype: bfloat16"),
    (SCALED, ("float32", "float32"), ""),
    (SCALED, ("bfloat16", "bfloat16"), ""),
    (SCALED, ("float32", "bfloat16"), "dtype: bfloat16"),
    (WHOLE, ("bfloat16", "bfloat16"), "dtype: float16"),
]


@pytest.mark.parametrize(("text", "dtypes", "more"), FOREIGN)
def test_files_of_others_give_mergekits_bits(text: str, dtypes: Any, more: str, tmp_path: Path) -> None:
    parents = Parents(tmp_path, "llama", dtypes)
    (tmp_path / "file.yaml").write_text(parents.text(text) + more)
    recipe = merge(tmp_path / "file.yaml", tmp_path / "ours")
    assert (recipe.path is None) == (text is WHOLE)
    theirs = run_mergekit(parents.text(text) + more, tmp_path / "theirs")
    assert_same(tmp_path / "ours", theirs)
    depths = [json.loads((f / "config.json").read_text())["num_hidden_layers"] for f in (tmp_path / "ours", theirs)]
    assert depths == [len(recipe.path or range(LAYERS))] * 2


def test_mergekits_arithmetic_may_be_asked_for(llamas: Parents, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(llamas.text(SCALED))
    recipe = merge(tmp_path / "file.yaml", tmp_path / "ours", compat="mergekit")
    assert recipe.compat == "mergekit"
    ours, theirs = (
        {t.name: found.tensor(t.name) for t in found.layout.tensors}
        for found in map(open_checkpoint, (tmp_path / "ours", run_mergekit(llamas.text(SCALED), tmp_path / "theirs")))
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_scales_that_are_no_gain_of_the_architecture_are_refused(tmp_path: Path) -> None:
    gemmas = Parents(tmp_path, "gemma2")  # the norm behind o_proj undoes its scale
    (tmp_path / "file.yaml").write_text(gemmas.text(SCALED))
    with pytest.raises(RecipeError, match=r"(?s)its scales are no gain.*equal scales wherever"):
        read_recipe_file(tmp_path / "file.yaml")
    recipe = gemmas.recipe(tuple(replace(hop, gain=0.5) for hop in SAME_KINDS))
    with pytest.raises(RecipeError, match="its path has gains"):
        mergekit_text(recipe, gemmas.pool.checkpoint("a"))
