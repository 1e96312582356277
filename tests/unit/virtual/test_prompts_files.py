"""Files of prompts, and prompts of a suite: only token ids, and no more of them than are read at once."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evomerge.errors import RecipeError
from evomerge.evaluation.plan import Scored, pack
from evomerge.virtual.prompts import MAX_TOKENS, longest_prompt, prompts_digest, prompts_of, prompts_text, read_prompts


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    prompts = ((1, 2), (0,) * MAX_TOKENS)
    book = {prompts_digest(prompts): prompts}
    (tmp_path / "p.json").write_text(prompts_text(book))
    assert read_prompts(tmp_path / "p.json") == book


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ([1, -1], "the token -1"),
        ([1, 2.0], "the token 2.0"),
        ([1, True], "the token True"),
        ([1, "2"], "the token 2"),
        ([10**400], "the token 1000"),
        ([0] * (MAX_TOKENS + 1), f"a prompt of {MAX_TOKENS + 1} tokens"),
        ("12", "'12' as a prompt"),
        ({"1": 2}, "as a prompt"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path: Path, prompt: Any, told: str) -> None:
    text = json.dumps({"format": "evomerge.prompts", "version": 1, "prompts": [[[1], prompt]]})
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(RecipeError, match=told):
        read_prompts(tmp_path / "p.json")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 1' + "0" * 5000 + "}", "[]", "3", "{}"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(RecipeError, match="A file of prompts cannot be read"):
        read_prompts(tmp_path / "p.json")


def test_how_long_a_prompt_may_be() -> None:
    assert longest_prompt({"max_position_embeddings": 128}) == 128
    assert longest_prompt({"n_positions": 64, "n_ctx": 8}) == 64
    assert longest_prompt({"text_config": {"max_position_embeddings": 99}}) == 99
    for config in ({}, {"max_position_embeddings": 10**9}, {"max_position_embeddings": "many"}, {"n_ctx": -1}):
        assert longest_prompt(config) == MAX_TOKENS


def test_prompts_of_a_suite_are_cut_from_the_left() -> None:
    items = [SimpleNamespace(hash=str(i), requests=[Scored(pack([9] * i + [1, 2, 3]), pack([4]))]) for i in range(4)]
    task = SimpleNamespace(kind="multiple_choice", sets={"search": [0, 1, 2, 3]}, items=items)
    plan: Any = SimpleNamespace(max_length=4, tasks=[task])
    assert prompts_of(plan, 9) == ((1, 2, 3), (9, 1, 2, 3))
