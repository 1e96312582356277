"""Parents under one vocabulary that they make together: rules for rows, padding, and the tokenizer's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.checkpoints.tokenizer_files import build_vocabulary, union_vocabulary, usable
from evomerge.errors import ModelError, RecipeError
from evomerge.recipe.recipe import Making, ParentRef
from evomerge.recipe.retokenizing import TokenRule, retokenized, token_rules
from evomerge.recipe.serialize import parent_from_json, parent_to_json
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.virtual.opening import ParentOpener

HEAD = "lm_head.weight"


def model(
    folder: Path, words: str, rows: int, fill: float, added: Mapping[str, int] | None = None, **edit: Any
) -> Path:
    """A Llama whose tokens are `words`, ids in order; the embedding's row i is `fill + i`, the head's its negative."""
    tiny_checkpoint(folder, "llama", 1, tokenizer=True, vocab_size=64)
    tensors = load_file(folder / "model.safetensors")
    values = fill + torch.arange(rows, dtype=torch.float32)
    tensors["model.embed_tokens.weight"] = values[:, None].expand(-1, 32).clone()
    tensors[HEAD] = -tensors["model.embed_tokens.weight"]
    save_file({n: t.to(edit.get("dtype", torch.float32)) for n, t in tensors.items()}, folder / "model.safetensors")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] = {t: i for i, t in enumerate(words.split())}
    marked = content["added_tokens"][0]
    content["added_tokens"] = [{**marked, "content": t, "id": i} for t, i in (added or {}).items()]
    content["model"]["unk_token"] = words.split(maxsplit=1)[0]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Tokens p q r, then q s t, then r s u; the first two have a padding row, the last a special token. Only read."""
    root = tmp_path_factory.mktemp("union")
    first = model(root / "first", "p q r", 4, 100)
    second = model(root / "second", "q s t", 4, 200)
    third = model(root / "third", "r s u", 4, 300, {"<x>": 3})
    return [first, second, third]


def make(folders: list[Path], cache: Path, **asked: Any) -> list[OpenParent]:
    refs = retokenized([ParentRef(f.name, str(f)) for f in folders], **{"base": None, "source": None, **asked})
    assert [parent_from_json(parent_to_json(r)) for r in refs] == list(refs)
    opener = ParentOpener(cache)
    parents = [opener.open(r) for r in refs]
    opener.make()
    return parents


def rows(parent: OpenParent) -> list[float]:
    """One number per row; the head must say the same."""
    tensor = parent.tensor("model.embed_tokens.weight")
    assert torch.equal(parent.tensor(HEAD), -tensor)
    assert torch.equal(tensor, tensor[:, :1].expand(-1, 32))
    return [round(float(v), 4) for v in tensor[:, 0]]


def tokens(parent: OpenParent) -> str:
    return " ".join(sorted(ids := usable(parent).ids, key=lambda t: ids[t]))


def test_a_token_has_its_own_row_the_only_owners_or_the_mean(folders: list[Path], tmp_path: Path) -> None:
    parents = make(folders, tmp_path, keep_rows=False)
    assert [tokens(p) for p in parents] == ["p q r s t u <x>"] * 3
    assert [rows(p) for p in parents] == [
        [100, 101, 102, (201 + 301) / 2, 202, 302, 303],
        [100, 200, (102 + 300) / 2, 201, 202, 302, 303],
        [100, (101 + 200) / 2, 300, 301, 202, 302, 303],
    ]
    assert {p.config["vocab_size"] for p in parents} == {7}


def test_the_base_goes_before_the_mean_and_keeps_its_ids(folders: list[Path], tmp_path: Path) -> None:
    parents = make(folders, tmp_path, base=1, keep_rows=False)
    assert {tokens(p) for p in parents} == {"q s t p r u <x>"}
    assert rows(parents[0])[1] == 201
    assert rows(parents[1]) == [200, 201, 202, 100, (102 + 300) / 2, 302, 303]
    assert rows(parents[2])[0] == 200


def test_the_vocabulary_of_one_model(folders: list[Path], tmp_path: Path) -> None:
    parents = make(folders, tmp_path, base=0, source=1, keep_rows=False)
    assert [rows(p) for p in parents] == [[101, 251, 202], [200, 201, 202], [101, 301, 202]]
    kept = make(folders, tmp_path, base=0, source=1)
    assert [rows(p) for p in kept] == [[101, 251, 202, 203], [200, 201, 202, 203], [101, 301, 202, 203]]


def test_padding_is_the_mean_of_the_tokens(folders: list[Path], tmp_path: Path) -> None:
    (first, *_) = make(folders, tmp_path, keep_rows=False, pad_to_multiple_of=5)
    values = rows(first)
    assert len(values) == 10
    assert values[7:] == [pytest.approx(sum(values[:7]) / 7, abs=1e-3)] * 3


@pytest.mark.parametrize("multiple", [0.0, 65_537.0, 1e12, 1e300])
def test_padding_without_measure_is_refused(folders: list[Path], tmp_path: Path, multiple: float) -> None:
    refs = retokenized([ParentRef("a", str(folders[0]))], base=None, source=None)
    made = Making("retokenized", refs[0].made.of, settings={"pad_to_multiple_of": multiple})  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match=r"(?s)pad_to_multiple_of = .*\[1, 65536\]"):
        ParentOpener(tmp_path).open(ParentRef("a", "a", made=made))


def test_rules_for_single_tokens(folders: list[Path], tmp_path: Path) -> None:
    rules = {
        "q": TokenRule(1, force=True),
        "r": TokenRule(0, token="p"),
        "<new>": TokenRule(),
        "<row>": TokenRule(2, row=1),
        "s": TokenRule(is_default=True),
    }
    parents = make(folders, tmp_path, keep_rows=False, tokens=rules)
    assert {tokens(p) for p in parents} == {"p q r s t u <x> <new> <row>"}
    assert [rows(p)[1] for p in parents] == [200, 200, 200]
    assert [rows(p)[2] for p in parents] == [102, 100, 300]
    assert [rows(p)[3] for p in parents] == [251, 201, 301]
    assert [rows(p)[7:] for p in parents] == [[0, 301]] * 3


def test_a_rule_that_names_what_is_not_there_is_refused(folders: list[Path], tmp_path: Path) -> None:
    for rule in (TokenRule(0), TokenRule(0, token="u"), TokenRule(0, row=4)):
        with pytest.raises(ModelError, match=r"'<new>' from .*first: "):
            make(folders, tmp_path, tokens={"<new>": rule})
    with pytest.raises(ModelError, match="a model that it is not made from"):
        make(folders, tmp_path, tokens={"<new>": TokenRule(3)})


def test_damaged_rules_are_refused() -> None:
    assert token_rules("a word") == {}
    bad = [{"model": "q"}, {"model": 0.5}, {"model": True}, {"model": -2}, {"token": ["a"]}, {"row": "1"}, {"force": 1}]
    rules = [json.dumps({"tokens": [["a", rule]]}) for rule in bad]
    names = ['{"tokens": [[["a"], {}]]}', '{"tokens": [["a", {}], ["a", {}]]}']
    for text in ("{", '{"tokens": 3}', '{"tokens": [["a", {"what": 1}]]}', "{}", *rules, *names):
        with pytest.raises(RecipeError, match="rules for tokens"):
            token_rules(text)


def test_dtypes_of_rows_and_of_their_sums(tmp_path: Path) -> None:
    spelt = (("a", "p q", 1), ("b", "q r", 2), ("c", "p s", 256), ("d", "p t", 1))
    folders = [model(tmp_path / n, w, 2, f, dtype=torch.bfloat16) for n, w, f in spelt]
    found = {}
    for wide, full in ((True, False), (False, False), (False, True)):
        parent = make(folders, tmp_path / "cache", wide=wide, full=full)[1]
        found[wide, full] = (parent.tensor(HEAD).dtype, rows(parent)[0])
    assert found == {
        (False, True): (torch.float32, 86.0),
        (True, False): (torch.bfloat16, 86.0),
        (False, False): (torch.bfloat16, 85.5),  # in bf16 256 + 1 is 256, and 256 / 3 has 8 bits
    }


def test_the_union_loads_in_transformers_under_the_same_ids(folders: list[Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (parent, *_) = make(folders, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(parent.tokenizer_folder)
    union = union_vocabulary([open_checkpoint(f) for f in folders])
    assert tokenizer.get_vocab() == dict(union.ids)
    assert tokenizer.convert_ids_to_tokens(range(7)) == list(union.order)
    assert parent.tokenizer_folder.parent == tmp_path
    assert "<x>" in union.files()["tokenizer.json"].decode()


def test_tokens_without_rows_are_left_out_with_their_merges(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = model(tmp_path / "bpe", "a b c", 5, 0)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = {"a": 0, "b": 1, "ab": 2, "aba": 5, "c": 3, "abc": 4}
    merges = [["a", "b"], ["ab", "a"], ["ab", "c"]]
    content["model"] = {"type": "BPE", "vocab": vocab, "merges": merges}
    content["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content))
    built = build_vocabulary(open_checkpoint(folder), added=["a", "new"])
    assert dict(built.ids) == {"a": 0, "b": 1, "ab": 2, "c": 3, "abc": 4, "new": 5}
    text = built.files()["tokenizer.json"].decode()
    assert json.loads(text)["model"]["merges"] == [["a", "b"], ["ab", "c"]]
    assert Tokenizer.from_str(text).get_vocab() == dict(built.ids)


def test_stale_spellings_of_a_vocabulary_are_left_behind(folders: list[Path], tmp_path: Path) -> None:
    folder = model(tmp_path / "spelt", "p q r", 4, 0)
    spelt = ("sentencepiece.bpe.model", "tekken.json", "qwen.tiktoken", "tokenizer.model.v3", "spiece.model")
    for name in ("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", *spelt):
        (folder / name).write_text("{}")
    files = build_vocabulary(open_checkpoint(folder)).files()
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} == set(files)


def test_a_config_may_hold_infinity(folders: list[Path], tmp_path: Path) -> None:
    folder = model(tmp_path / "endless", "p q r", 4, 0)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "limit": float("inf")}))
    (parent, _) = make([folder, folders[1]], tmp_path / "cache")
    assert parent.config["limit"] == float("inf")


def test_files_of_a_tokenizer_may_hold_any_bytes(folders: list[Path], tmp_path: Path) -> None:
    folder = model(tmp_path / "binary", "p q r", 4, 0)
    (folder / "sentencepiece.bpe.model").write_bytes(b"\xff\xfe\x00\x80")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\x00\x80")
    (parent, _) = make([folder, folders[1]], tmp_path / "cache")
    assert (parent.tokenizer_folder / "chat_template.jinja").read_bytes() == b"\xff\xfe\x00\x80"
    assert not (parent.tokenizer_folder / "sentencepiece.bpe.model").exists()


@pytest.mark.parametrize(
    ("edit", "got"),
    [
        ({"merges": [5]}, "the merge '5'"),
        ({"merges": [["a", 5]]}, "the merge \"\\['a', 5\\]\""),
        ({"merges": "a b"}, "the merge 'a b'"),
        ({"merges": [["a", "b"]], "continuing_subword_prefix": 3}, "continuing_subword_prefix = '3'"),
    ],
)
def test_merges_that_are_no_pairs_of_texts_are_refused(tmp_path: Path, edit: Any, got: str) -> None:
    folder = model(tmp_path / "bpe", "a b c", 2, 0)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] = {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, **edit}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=got):
        build_vocabulary(open_checkpoint(folder))


def test_an_added_token_named_twice_needs_an_id_each_time(tmp_path: Path) -> None:
    folder = model(tmp_path / "twice", "p q", 3, 0)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = [{"content": "z", "id": None}, {"content": "z", "id": 2}]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="malformed added_tokens"):
        build_vocabulary(open_checkpoint(folder))


def test_a_base_without_token_strings_is_refused(folders: list[Path], tmp_path: Path) -> None:
    folder = model(tmp_path / "bare", "p q", 2, 0)
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    (folder / "vocab.json").write_text('{"p": 0, "q": 1}')
    with pytest.raises(ModelError, match="A tokenizer cannot be extended"):
        make([folder, *folders], tmp_path / "cache")


def test_members_must_be_named(folders: list[Path], tmp_path: Path) -> None:
    made = Making("retokenized", (ParentRef("a", str(folders[0])),), settings={"member": 1.0})
    with pytest.raises(ModelError, match=r"Allowed: 0 to 0"):
        ParentOpener(tmp_path).open(ParentRef("a", "a", made=made))
