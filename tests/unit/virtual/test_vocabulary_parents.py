"""Parents with other vocabularies: rows matched by token string, nothing cut to fit, and what is lost is told."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.compatible import check_compatible
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.checkpoints.token_rows import token_tensors
from evomerge.checkpoints.vocabulary import align, needs_alignment
from evomerge.dataflow.export import write_recipe
from evomerge.errors import ConfigError, ModelError
from evomerge.merging.export import merge_tensors
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.resident import ResidentModel
from evomerge.recipe.recipe import Making, ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_from_text, recipe_to_text
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.virtual.fitting import fit_parents, token_words
from evomerge.virtual.opening import ParentOpener

SPECIAL = ("<pad>", "<bos>", "<eos>")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Llamas with tokenizers: `base`, and `a`, `b` trained from it. Never write into them."""
    root = tmp_path_factory.mktemp("words")
    return {
        name: tiny_checkpoint(root / name, "llama", seed, tokenizer=True)
        for seed, name in enumerate(["base", "a", "b"])
    }


def rewrite(source: Path, target: Path, tokens: Mapping[str, int], rows: int, dtype: torch.dtype | None = None) -> Path:
    """A copy of a checkpoint whose tokens have the ids of `tokens`; a new token's row is filled with 0.5."""
    tensors = load_file(source / "model.safetensors")
    vocabulary = json.loads((source / "tokenizer.json").read_text())
    old = vocabulary["model"]["vocab"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            made = torch.full((rows, tensors[name].shape[1]), 0.25)
            for token, i in tokens.items():
                if i < rows:
                    made[i] = tensors[name][old[token]] if token in old else 0.5
            tensors[name] = made
    target.mkdir()
    save_file({n: t if dtype is None else t.to(dtype) for n, t in tensors.items()}, target / "model.safetensors")
    vocabulary["model"]["vocab"] = dict(tokens)
    vocabulary["added_tokens"] = [
        t | {"id": tokens[t["content"]]} for t in vocabulary["added_tokens"] if t["content"] in tokens
    ]
    (target / "tokenizer.json").write_text(json.dumps(vocabulary))
    (target / "tokenizer_config.json").write_text((source / "tokenizer_config.json").read_text())
    config = json.loads((source / "config.json").read_text())
    ids = {f"{name}_token_id": tokens.get(f"<{name}>") for name in ("pad", "bos", "eos")}
    (target / "config.json").write_text(json.dumps({**config, "vocab_size": rows, **ids}))
    return target


def vocabulary(folder: Path) -> dict[str, int]:
    return dict(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])


def shuffled(folder: Path, seed: int = 0) -> dict[str, int]:
    """The same tokens in another order, the special ones too."""
    tokens = list(vocabulary(folder))
    order = random.Random(seed).sample(range(len(tokens)), len(tokens))
    return dict(zip(tokens, order, strict=True))


def refs(**folders: Path) -> dict[str, ParentRef]:
    return {name: ParentRef(name, str(folder)) for name, folder in folders.items()}


def opened(parents: Mapping[str, ParentRef], cache: Path) -> dict[str, OpenParent]:
    opener = ParentOpener(cache)
    found = {name: opener.open(ref) for name, ref in parents.items()}
    check_compatible(found, next(iter(found)))
    opener.make()
    return found


def task_arithmetic(parents: Mapping[str, ParentRef]) -> Recipe:
    base, *others = parents
    weights = {name: {"weight": 0.7 - 0.3 * i} for i, name in enumerate(others)}
    return Recipe(tuple(parents.values()), base, (Rule("task_arithmetic", per_parent=weights),))


def merged(parents: Mapping[str, ParentRef], cache: Path) -> dict[str, torch.Tensor]:
    return dict(merge_tensors(task_arithmetic(parents), ParentPool(opened(parents, cache))))


def aligned(parents: Mapping[str, ParentRef], cache: Path) -> dict[str, ParentRef]:
    return fit_parents(parents, "base", ParentOpener(cache), tokens="align")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_permuted_vocabulary_merges_to_the_same_bits(
    zoo: Mapping[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    same = {name: rewrite(zoo[name], tmp_path / name, vocabulary(zoo[name]), 64, dtype) for name in zoo}
    other = rewrite(zoo["a"], tmp_path / "permuted", shuffled(zoo["a"]), 64, dtype)
    plain = refs(**same)
    fitted = aligned(refs(base=same["base"], a=other, b=same["b"]), tmp_path / "cache")
    assert [r.made is not None for r in fitted.values()] == [False, True, False]
    want, got = merged(plain, tmp_path / "cache"), merged(fitted, tmp_path / "cache")
    assert want.keys() == got.keys()
    assert all(torch.equal(want[n], got[n]) for n in want)
    assert want["lm_head.weight"].dtype == dtype


def test_generated_text_agrees_and_the_recipe_replays(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = rewrite(zoo["a"], tmp_path / "permuted", shuffled(zoo["a"]), 64)
    texts = []
    for name, a in (("plain", zoo["a"]), ("permuted", other)):
        fitted = aligned(refs(base=zoo["base"], a=a, b=zoo["b"]), tmp_path / "cache")
        recipe = recipe_from_text(recipe_to_text(task_arithmetic(fitted)))
        assert recipe == task_arithmetic(fitted)
        pool = ParentPool(opened({p.name: p for p in recipe.parents}, tmp_path / "cache"))
        write_recipe(recipe, pool, tmp_path / f"{name}-merge")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-merge", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / f"{name}-merge")
        ids = tokenizer("rev(abc)=", return_tensors="pt")["input_ids"]
        texts.append(tokenizer.decode(model.generate(ids, max_new_tokens=12, do_sample=False)[0]))
    assert texts[0] == texts[1]


def test_a_permuted_reference_is_what_others_follow(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    tokens = shuffled(zoo["base"])
    base = rewrite(zoo["base"], tmp_path / "base", tokens, 64)
    want = merged(refs(base=zoo["base"], a=zoo["a"]), tmp_path / "cache")
    fitted = aligned(refs(base=base, a=zoo["a"]), tmp_path / "cache")
    got = merged(fitted, tmp_path / "cache")
    order = torch.tensor([tokens[t] for t in vocabulary(zoo["base"])])
    for name in want:
        rows = got[name][order] if name in {"model.embed_tokens.weight", "lm_head.weight"} else got[name]
        assert torch.equal(rows, want[name])
    parent = opened(fitted, tmp_path / "cache")["a"]
    assert parent.config["eos_token_id"] == tokens["<eos>"]
    assert parent.tokenizer_folder == base


def obvious(parent: Path, reference: Path, name: str, tokens: Mapping[str, int]) -> torch.Tensor:
    """The slow way: row by row of the reference."""
    own, out = load_file(parent / "model.safetensors")[name], load_file(reference / "model.safetensors")[name].clone()
    for token, row in vocabulary(reference).items():
        if token in tokens and tokens[token] < len(own):
            out[row] = own[tokens[token]]
    return out


def test_lacking_tokens_and_padding_have_the_references_rows(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    tokens = {t: i for i, t in enumerate([*list(vocabulary(zoo["a"]))[:50], "<mine>", "ours"])}
    parent = rewrite(zoo["a"], tmp_path / "a", tokens, 56)
    reference = rewrite(zoo["base"], tmp_path / "base", vocabulary(zoo["base"]), 70)
    fitted = aligned(refs(base=reference, a=parent), tmp_path / "cache")
    got = opened(fitted, tmp_path / "cache")["a"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(got.tensor(name), obvious(parent, reference, name, tokens))
        base_rows = load_file(reference / "model.safetensors")[name]
        assert torch.equal(got.tensor(name)[50:], base_rows[50:])
        assert not torch.equal(got.tensor(name)[:50], base_rows[:50])
    assert got.config["vocab_size"] == 70
    words = token_words({"base": open_checkpoint(reference), "a": open_checkpoint(parent)})["a"]
    assert words[0].startswith("14 tokens that it lacks have the reference's rows: ")
    assert words[1] == "2 tokens of its own are dropped: '<mine>', 'ours'"


def test_padding_alone_is_mended_too(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    padded = rewrite(zoo["a"], tmp_path / "a", vocabulary(zoo["a"]), 80)
    with pytest.raises(ModelError, match=r"parents\.tokens: align"):
        check_compatible({"base": open_checkpoint(zoo["base"]), "a": open_checkpoint(padded)}, "base")
    fitted = aligned(refs(base=zoo["base"], a=padded), tmp_path / "cache")
    assert torch.equal(
        opened(fitted, tmp_path / "cache")["a"].tensor("lm_head.weight"),
        open_checkpoint(zoo["a"]).tensor("lm_head.weight"),
    )


def test_ids_beyond_the_rows_count_as_lacking_and_are_told(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    tokens = vocabulary(zoo["a"])
    parent = rewrite(zoo["a"], tmp_path / "a", {**tokens, "a": 64, "<new>": 65}, 64)
    found = align(open_checkpoint(parent), open_checkpoint(zoo["base"]))
    assert found.source[tokens["a"]] == -1
    assert (found.lacking, found.dropped, found.beyond) == (("a",), (), ("<new>", "a"))
    assert "2 tokens whose id has no row in its embedding count as lacking: '<new>', 'a'" in found.words()
    with pytest.raises(ModelError, match="2 tokens beyond its 64 rows: '<new>', 'a'"):
        align(open_checkpoint(zoo["base"]), open_checkpoint(parent))


def test_special_tokens_that_clash_are_told(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    parent = rewrite(zoo["a"], tmp_path / "a", vocabulary(zoo["a"]), 64)
    content = json.loads((parent / "tokenizer.json").read_text())
    content["added_tokens"][0]["special"] = False
    (parent / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps({**config, "eos_token_id": [1, 2]}))
    assert align(open_checkpoint(parent), open_checkpoint(zoo["base"])).words() == (
        "1 tokens are special in only one of the two: '<pad>'",
        "eos_token_id is '<bos>', '<eos>', and '<eos>' in the reference",
    )
    fitted = aligned(refs(base=zoo["base"], a=parent), tmp_path / "cache")
    assert opened(fitted, tmp_path / "cache")["a"].config["eos_token_id"] == 2


def test_a_token_with_two_strings_is_matched_by_either(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    tokens = vocabulary(zoo["base"])
    content = json.loads((zoo["base"] / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "content": "<tool>", "id": tokens["z"]})
    base = rewrite(zoo["base"], tmp_path / "base", tokens, 64)
    (base / "tokenizer.json").write_text(json.dumps(content))
    assert align(open_checkpoint(zoo["a"]), open_checkpoint(base)).source[tokens["z"]] == tokens["z"]
    with_tool = rewrite(zoo["a"], tmp_path / "a", {**shuffled(zoo["a"]), "<tool>": 64}, 65)
    assert align(open_checkpoint(with_tool), open_checkpoint(base)).source[tokens["z"]] == 64


@settings(deadline=None, max_examples=15)
@given(kept=st.sets(st.integers(3, 63), min_size=1), extra=st.integers(0, 5), seed=st.integers(0, 99))
def test_every_row_is_the_parents_or_the_references(
    zoo: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory, kept: set[int], extra: int, seed: int
) -> None:
    root = tmp_path_factory.mktemp("any")
    names = list(vocabulary(zoo["a"]))
    chosen = [*SPECIAL, *(names[i] for i in sorted(kept)), *(f"<{i}>" for i in range(extra))]
    tokens = dict(zip(chosen, random.Random(seed).sample(range(len(chosen)), len(chosen)), strict=True))
    parent = rewrite(zoo["a"], root / "a", tokens, len(chosen))
    got = opened(aligned(refs(base=zoo["base"], a=parent), root / "cache"), root / "cache")["a"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(got.tensor(name), obvious(parent, zoo["base"], name, tokens))


def test_nothing_to_do_gives_the_same_refs(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    given_refs = refs(**zoo)
    for tokens in ("align", "refuse"):
        assert fit_parents(given_refs, "base", ParentOpener(tmp_path), tokens=tokens) == given_refs
    with pytest.raises(ConfigError, match="tokens = 'cut'"):
        fit_parents(given_refs, "base", ParentOpener(tmp_path), tokens="cut")  # type: ignore[arg-type]


def test_refusing_leaves_vocabularies_as_they_are(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    other = rewrite(zoo["a"], tmp_path / "a", shuffled(zoo["a"]), 64)
    fitted = fit_parents(refs(base=zoo["base"], a=other), None, ParentOpener(tmp_path), tokens="refuse")
    assert fitted["a"].made is None
    with pytest.raises(ModelError, match=r"tokens with another id[^$]*Fix: set `parents.tokens: align`"):
        opened(fitted, tmp_path)


def test_without_token_strings_nothing_is_guessed(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    other = rewrite(zoo["a"], tmp_path / "a", vocabulary(zoo["a"]), 70)
    (other / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json in"):
        opened(aligned(refs(base=zoo["base"], a=other), tmp_path / "cache"), tmp_path / "cache")


def test_other_widths_are_refused(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    wide = tiny_checkpoint(tmp_path / "wide", "llama", 1, tokenizer=True, hidden_size=48, vocab_size=60)
    with pytest.raises(ModelError, match=r"lm_head.weight: \[60, 48\] and \[64, 32\]"):
        opened(aligned(refs(base=zoo["base"], a=wide), tmp_path / "cache"), tmp_path / "cache")


def test_a_model_in_memory_follows_a_resized_reference(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    """The aligned parent is the template: the model in memory has another number of rows than its files."""
    small = rewrite(zoo["a"], tmp_path / "a", {t: i for t, i in vocabulary(zoo["a"]).items() if i < 60}, 60)
    fitted = aligned(refs(base=zoo["base"], a=small), tmp_path / "cache")
    alone = {"a": fitted["a"]}
    pool = ParentPool(opened(alone, tmp_path / "cache"))
    recipe = Recipe(tuple(alone.values()), None, (Rule("linear", per_parent={"a": {"weight": 1.0}}),))
    resident = ResidentModel(pool, "a", kernels=Kernels())
    resident.apply(recipe)
    write_recipe(recipe, pool, tmp_path / "out")
    from transformers import AutoModelForCausalLM

    ids = torch.arange(64)[None]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(exported(ids).logits, resident.model(ids).logits)
    assert exported.config.vocab_size == 64
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (zoo["base"] / "tokenizer.json").read_bytes()


def test_another_vocabulary_is_another_content(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    one = rewrite(zoo["a"], tmp_path / "one", shuffled(zoo["a"], 1), 64)
    parents = aligned(refs(base=zoo["base"], a=one), tmp_path / "cache")
    first = ParentOpener(tmp_path / "cache").open(parents["a"]).content
    (one / "tokenizer.json").write_text(
        (rewrite(zoo["a"], tmp_path / "two", shuffled(zoo["a"], 2), 64) / "tokenizer.json").read_text()
    )
    assert ParentOpener(tmp_path / "cache").open(parents["a"]).content != first


def test_aligned_to_itself_needs_no_file(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    ref = ParentRef(
        "a", "a", made=Making("aligned", (ParentRef("a", str(zoo["a"])),), ParentRef("base", str(zoo["base"])))
    )
    opener = ParentOpener(tmp_path)
    assert opener.open(ref).tensor("lm_head.weight").equal(open_checkpoint(zoo["a"]).tensor("lm_head.weight"))
    assert opener.pending() == ()


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("gpt2", ["transformer.wte.weight"]),
        ("phi", ["lm_head.bias", "lm_head.weight", "model.embed_tokens.weight"]),
        ("gpt_neox", ["embed_out.weight", "gpt_neox.embed_in.weight"]),
    ],
)
def test_what_has_a_row_per_token(tmp_path: Path, family: str, names: list[str]) -> None:
    parent = open_checkpoint(tiny_checkpoint(tmp_path / family, family, 1))
    found = [t.info.name for t in token_tensors(parent)]
    assert found == names
    assert {t.rows for t in token_tensors(parent)} == {64}
    assert not needs_alignment(parent, parent)


def test_what_a_parent_is_made_from_is_fitted_first(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    other = rewrite(zoo["a"], tmp_path / "permuted", shuffled(zoo["a"]), 64)
    plain = refs(**zoo)
    own_base = ParentRef("b", str(zoo["b"]))

    def chat(folder: Path) -> dict[str, ParentRef]:
        made = Making("transplant", (ParentRef("m", str(folder)), own_base), plain["base"], {"scale": 0.5})
        return aligned({"base": plain["base"], "chat": ParentRef("chat", "chat", made=made)}, tmp_path / "cache")

    assert chat(zoo["a"])["chat"].made == Making(
        "transplant", (ParentRef("m", str(zoo["a"])), own_base), plain["base"], {"scale": 0.5}
    )
    want, got = (opened(chat(f), tmp_path / "cache")["chat"] for f in (zoo["a"], other))
    assert all(torch.equal(want.tensor(t.name), got.tensor(t.name)) for t in want.layout.tensors)
