"""Common vocabularies against mergekit 0.1.5: the same rows for every token, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.api import merge
from evomerge.checkpoints.compatible import check_compatible
from evomerge.checkpoints.tokenizers import Vocabulary, read_vocabulary
from evomerge.merging.export import merge_tensors
from evomerge.merging.parents import ParentPool
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.retokenizing import TokenRule, retokenized
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.virtual.opening import ParentOpener

pytestmark = pytest.mark.parity

WEIGHTS = (0.2, 0.5, 0.3)
TOKENS = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Three Llamas with overlapping vocabularies of 50, 35 and 43 tokens; the second has padding rows."""
    root = tmp_path_factory.mktemp("tokens")
    chosen = {"base": range(50), "a": (0, 1, 2, *range(30, 60)), "b": range(40)}
    extra = {"base": [], "a": ["<a>", "both"], "b": ["<b>", "both", "<tool>"]}
    rows = {"base": 50, "a": 50, "b": 43}
    for seed, name in enumerate(chosen):
        folder = tiny_checkpoint(root / name, "llama", seed, tokenizer=True)
        content = json.loads((folder / "tokenizer.json").read_text())
        known = list(content["model"]["vocab"])
        tokens = {t: i for i, t in enumerate([*(known[i] for i in chosen[name]), *extra[name]])}
        content["model"]["vocab"] = {t: i for t, i in tokens.items() if t != "<tool>"}
        if name == "b":
            content["added_tokens"].append({**content["added_tokens"][0], "content": "<tool>", "id": tokens["<tool>"]})
        (folder / "tokenizer.json").write_text(json.dumps(content))
        tensors = load_file(folder / "model.safetensors")
        save_file(
            {n: t[: rows[name]].clone() if n in TOKENS else t for n, t in tensors.items()}, folder / "model.safetensors"
        )
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows[name]}))
    return root / "base", root / "a", root / "b"


def merged_by_mergekit(folders: tuple[Path, ...], asked: Mapping[str, Any], out: Path) -> Path:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    models = [{"model": str(f), "parameters": {"weight": w}} for f, w in zip(folders, WEIGHTS, strict=True)]
    plan = {"merge_method": "linear", "models": models, "dtype": "float32", "base_model": str(folders[0]), **asked}
    run_merge(MergeConfiguration.model_validate(plan), str(out), MergeOptions(quiet=True, write_model_card=False))
    return out


def asks(folders: tuple[Path, ...]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """What is asked of mergekit, and of evomerge."""
    base, a, b = map(str, folders)
    tokens = {
        "<new>": {"source": {"kind": "zero"}},
        "both": {"source": b, "force": True},
        "6": {"source": {"kind": "model_token", "model": base, "token": "7"}, "force": True},
        "<x>": {"source": {"kind": "model_token", "model": a, "token_id": 5}},
    }
    rules = {
        "<new>": TokenRule(),
        "both": TokenRule(2, force=True),
        "6": TokenRule(0, token="7", force=True),
        "<x>": TokenRule(1, row=5),
    }
    padded = {"source": "union", "pad_to_multiple_of": 16, "tokens": tokens}
    return {
        "union": ({"tokenizer_source": "union"}, {"source": None}),
        "base": ({"tokenizer_source": "base"}, {"source": 0}),
        "model": ({"tokenizer_source": a}, {"source": 1}),
        "tokens": ({"tokenizer": padded}, {"source": None, "pad_to_multiple_of": 16, "tokens": rules}),
    }


def vocabulary(folder: Path) -> Vocabulary:
    found = read_vocabulary(folder)
    assert found is not None
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", ["union", "base", "model", "tokens"])
def test_rows_are_mergekits(folders: tuple[Path, Path, Path], tmp_path: Path, which: str) -> None:
    from transformers import AutoTokenizer

    asked, ours = asks(folders)[which]
    out = merged_by_mergekit(folders, asked, tmp_path / "out")
    refs = retokenized([ParentRef(f.name, str(f)) for f in folders], base=0, wide=False, keep_rows=False, **ours)
    opener = ParentOpener(tmp_path / "cache")
    parents = {r.name: opener.open(r) for r in refs}
    check_compatible(parents, None)
    opener.make()
    weights = {r.name: {"weight": w} for r, w in zip(refs, WEIGHTS, strict=True)}
    recipe = Recipe(refs, None, (Rule("linear", per_parent=weights),), compat="mergekit")
    got, want = dict(merge_tensors(recipe, ParentPool(parents))), load_file(out / "model.safetensors")
    theirs, mine = vocabulary(out), vocabulary(parents["a"].tokenizer_folder)
    assert mine.ids.keys() == theirs.ids.keys()
    assert mine.special == theirs.special
    assert dict(mine.ids) == AutoTokenizer.from_pretrained(parents["a"].tokenizer_folder).get_vocab()
    assert parents["a"].config["vocab_size"] == json.loads((out / "config.json").read_text())["vocab_size"]
    order = sorted(mine.ids)
    for name in want:
        assert want[name].shape == got[name].shape
        if name in TOKENS:
            rows = [t[[ids[token] for token in order]] for t, ids in ((want[name], theirs.ids), (got[name], mine.ids))]
            assert torch.equal(*rows)
            torch.testing.assert_close(got[name][len(order) :], want[name][len(order) :], rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(want[name], got[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", None])
def test_means_of_owners_are_taken_in_the_dtype_of_the_file(
    folders: tuple[Path, Path, Path], tmp_path: Path, dtype: str | None
) -> None:
    """The models are in float32: mergekit casts their rows first."""
    asked = {"tokenizer_source": "union", "dtype": dtype} if dtype else {"tokenizer_source": "union"}
    out = merged_by_mergekit(folders, asked, tmp_path / "out")
    models = [{"model": str(f), "parameters": {"weight": w}} for f, w in zip(folders, WEIGHTS, strict=True)]
    plan = {"merge_method": "linear", "models": models, "dtype": "float32", "base_model": str(folders[0]), **asked}
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(plan))
    merge(tmp_path / "file.yaml", tmp_path / "ours")
    theirs, mine = (vocabulary(folder).ids for folder in (out, tmp_path / "ours"))
    want, got = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "ours"))
    order = sorted(mine)
    for name in want.keys() & set(TOKENS):
        rows = [t[[ids[token] for token in order]] for t, ids in ((want[name], theirs), (got[name], mine))]
        assert torch.equal(*rows)
