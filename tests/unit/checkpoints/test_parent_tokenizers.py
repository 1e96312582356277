"""Tokenizers of parents: the same tokens under the same numbers, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.compatible import check_compatible
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.checkpoints.tokenizers import (
    Vocabulary,
    VocabularyCache,
    embedding_rows,
    read_vocabulary,
    token_id_faults,
    tokenizer_differences,
    vocabulary_differences,
)
from evomerge.errors import ModelError

Copy = Callable[..., Path]


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder


def compare(left: Path, right: Path) -> list[str]:
    return tokenizer_differences(open_checkpoint(left), open_checkpoint(right))


def test_the_vocabulary_is_what_transformers_loads(sharded: Path) -> None:
    from transformers import AutoTokenizer

    vocabulary = read_vocabulary(sharded)
    tokenizer = AutoTokenizer.from_pretrained(sharded)
    assert vocabulary is not None
    assert dict(vocabulary.ids) == tokenizer.get_vocab()
    assert vocabulary.special == set(tokenizer.all_special_tokens)
    assert tokenizer.decode(tokenizer("rev(abc)=cba 12+3")["input_ids"]).replace("<pad>", "?") == "rev?abc?=cba 12+3"


def test_equal_tokenizers_and_absent_ones_do_not_differ(copy: Copy, sharded: Path, zoo: Mapping[str, Path]) -> None:
    assert compare(sharded, copy(sharded)) == []
    assert compare(sharded, zoo["llama"]) == []
    assert compare(zoo["llama"], sharded) == []


def test_templates_and_settings_may_differ(copy: Copy, sharded: Path) -> None:
    folder = edit(copy(sharded), lambda t: t.update(truncation={"max_length": 4}, post_processor=None))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "tokenizer_config.json").write_text("{}")
    assert compare(sharded, folder) == []


def rename(content: dict[str, Any]) -> None:
    vocab = content["model"]["vocab"]
    vocab["!!"] = vocab.pop("a")


def swap(content: dict[str, Any]) -> None:
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (rename, ["1 tokens it lacks: 'a'", "1 tokens of its own: '!!'"]),
        (swap, ["2 tokens with another id: 'a', 'b'"]),
        (
            lambda t: t["added_tokens"].append({"id": 60, "content": "<x>", "special": False}),
            ["1 tokens of its own: '<x>'"],
        ),
        (lambda t: t["added_tokens"][0].update(special=False), ["1 tokens special in only one of the two: '<pad>'"]),
    ],
)
def test_differences_are_named(copy: Copy, sharded: Path, change: Callable[[Any], Any], lines: list[str]) -> None:
    folder = edit(copy(sharded), change)
    assert compare(sharded, folder) == [f"tokenizer: {line}" for line in lines]
    with pytest.raises(ModelError, match="b: tokenizer: "):
        check_compatible({"a": open_checkpoint(sharded), "b": open_checkpoint(folder)}, "a")


def test_equal_files_are_parsed_once(copy: Copy, sharded: Path, zoo: Mapping[str, Path]) -> None:
    cache = VocabularyCache()
    assert cache.read(sharded) is cache.read(copy(sharded))
    assert cache.read(zoo["llama"]) is None
    assert cache.read(edit(copy(sharded, "other"), rename)) is not cache.read(sharded)


def test_long_lists_are_cut() -> None:
    many = Vocabulary({str(i): i for i in range(20)}, frozenset())
    found = vocabulary_differences(many, Vocabulary({"0": 0}, frozenset()))
    assert found == ["tokenizer: 19 tokens it lacks: '1', '10', '11', '12', '13' and 14 more"]


def test_tokens_without_an_embedding_row_are_refused(copy: Copy, sharded: Path) -> None:
    assert embedding_rows(open_checkpoint(sharded)) == 64
    assert token_id_faults(open_checkpoint(sharded)) == []
    folder = edit(copy(sharded), lambda t: t["added_tokens"].append({"id": 64, "content": "<x>", "special": True}))
    with pytest.raises(ModelError, match="1 tokens beyond the 64 rows of the embedding: '<x>'"):
        check_compatible({"a": open_checkpoint(folder)}, None)


def test_positions_are_not_token_rows(zoo: Mapping[str, Path]) -> None:
    assert embedding_rows(open_checkpoint(zoo["gpt2"])) == 64  # its 128 positions have more rows


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(model=3, added_tokens=[]),
        lambda t: t.update(model={"vocab": {}}, added_tokens=[]),
        lambda t: t.update(model={}, added_tokens=None),
        lambda t: t["model"]["vocab"].update(a="1"),
        lambda t: t["model"]["vocab"].update(a=True),
        lambda t: t["model"]["vocab"].update(a=-1),
        lambda t: t["model"]["vocab"].update(a=1.0),
        lambda t: t.update(added_tokens={"id": 1}),
        lambda t: t.update(added_tokens=[3]),
        lambda t: t.update(added_tokens=[{"id": 1}]),
        lambda t: t.update(added_tokens=[{"content": "x"}]),
    ],
)
def test_damaged_tokenizers_are_refused(copy: Copy, sharded: Path, change: Callable[[Any], Any]) -> None:
    folder = edit(copy(sharded), change)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        read_vocabulary(folder)


def test_unigram_lists_and_vocab_files(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    plain = read_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}}')
    unigram = read_vocabulary(tmp_path)
    assert plain is not None
    assert unigram is not None
    assert vocabulary_differences(plain, unigram) == []
    assert unigram.max_id == 1


def test_other_formats_are_compared_as_a_whole(copy: Copy, zoo: Mapping[str, Path], sharded: Path) -> None:
    one, two = copy(zoo["llama"], "one"), copy(zoo["llama"], "two")
    (one / "tokenizer.model").write_bytes(b"pieces")
    (two / "tokenizer.model").write_bytes(b"pieces")
    assert compare(one, two) == []
    (two / "tokenizer.model").write_bytes(b"other")
    assert compare(one, two) == ["tokenizer: tokenizer.model differs"]
    assert compare(one, sharded) == ["tokenizer: no file in common to compare; save one with a tokenizer.json"]


VOCABULARIES = st.builds(
    lambda tokens, special: Vocabulary({t: i for i, t in enumerate(tokens)}, frozenset(tokens[:special])),
    st.lists(st.text(max_size=3), unique=True, max_size=8),
    st.integers(0, 3),
)


@settings(deadline=None, max_examples=100)
@given(left=VOCABULARIES, right=VOCABULARIES)
def test_no_difference_means_equal_and_the_relation_is_symmetric(left: Vocabulary, right: Vocabulary) -> None:
    same = dict(left.ids) == dict(right.ids) and left.special == right.special
    assert (vocabulary_differences(left, right) == []) is same
    assert len(vocabulary_differences(left, right)) == len(vocabulary_differences(right, left))
    assert vocabulary_differences(left, left) == []
