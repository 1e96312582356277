"""Patterns of module paths: as Python's `re` finds them, in linear time, and nothing beyond what is allowed."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.path_patterns import PathTable

PATHS = [
    "q_proj",
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.mlp.up_proj",
    "model.layers.11.mlp.up_proj",
    "model.layersX1Xmlp.up_proj",
    "up_proj.",
    "",
]
PATTERNS = [
    "q_proj",
    "proj",
    r".*\.q_proj",
    ".*q_proj",
    r"layers\.(0|1)\.mlp\.up_proj",
    r"layers.1.mlp.up_proj",
    r"model\.layers\.(?:[0-9]|1[01])\..*",
    "^model.layers.0.self_attn.q_proj",
    "^layers.0.self_attn.q_proj$",
    "q_proj|up_proj",
    r"\d+\.mlp\.\w+",
    r"layers\.\d{1,2}?\.(self_attn|mlp)(\.\w+)?",
    "[^.]+",
    "(x|model)?.*",
    "",
    "...._....",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_it_matches_in_peft(pattern: str) -> None:
    table = PathTable({pattern: 3})
    assert [table.get(p, 0) == 3 for p in PATHS] == [re.match(rf"(.*\.)?({pattern})$", p) is not None for p in PATHS]


@settings(deadline=None, max_examples=150)
@given(
    pattern=st.lists(
        st.sampled_from(["a", "b", ".", r"\.", "a?", "b*", "(a|b.)", "(ab)*", "[ab]+", "^", "$", "|", "a{2,3}"]),
        max_size=7,
    ).map("".join),
    path=st.text("ab.", max_size=9),
)
def test_the_same_as_backtracking(pattern: str, path: str) -> None:
    want = re.match(rf"(.*\.)?({pattern})$", path) is not None
    assert (PathTable({pattern: 3}).get(path, 0) == 3) == want


def test_the_first_pattern_that_matches_decides() -> None:
    assert PathTable({"q_proj": 1, ".*proj": 2}).get("a.q_proj", 0) == 1
    assert PathTable({".*proj": 2, "q_proj": 1}).get("a.q_proj", 0) == 2
    assert PathTable({"a.q_proj": 2, "q_proj": 1, r"a\.q_proj": 3}).get("a.q_proj", 0) == 2
    assert PathTable({"q.proj": 2, "q_proj": 1}).get("a.q_proj", 0) == 2


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (r"(\w+\w*)+!", "'!' at"),
        (r"(\w+\w*)+", "around another quantifier"),
        ("((a|a)*)*", "around another quantifier"),
        ("a**", "around another quantifier"),
        ("(?i)x", "with nothing before it"),
        ("(?=x)", "'=x)' at character 2"),
        (r"(a)\1", r"'\\\\1'"),
        ("(", "not closed"),
        ("a)|(b", "too many"),
        ("[z-a]", "bad character range"),
        ("^*", "repeats nothing"),
        ("a{3,2}", "repeats nothing"),
        ("a\n", "at character 1"),
        ("a" * 257, "more than 256"),
    ],
)
def test_everything_else_is_refused_by_name(pattern: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told) if "\\" not in told else told):
        PathTable({pattern: 1})


@pytest.mark.parametrize(
    "pattern", ["(a|a)" * 50 + "b", "a?" * 100 + "a" * 50 + "b", ".*" * 120 + "b", r"\w*" * 80 + "b", "(a|a|a)*b"]
)
def test_no_pattern_takes_long(pattern: str) -> None:
    start = time.perf_counter()
    assert PathTable({pattern: 1}).get("a" * 300, 0) == 0
    assert time.perf_counter() - start < 2.0


def test_many_plain_names_are_one_look() -> None:
    names = [f"model.layers.{i}.mlp.experts.{j}.up_proj" for i in range(60) for j in range(100)]
    table = PathTable({n: i for i, n in enumerate(names)})
    assert table.work < 10
    assert [table.get(n, -1) for n in names] == list(range(len(names)))
