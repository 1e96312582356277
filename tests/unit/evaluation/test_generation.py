from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.evaluation.generation import StopRule
from evomerge.evaluation.plan import GenerationArgs
from evomerge.evaluation.shortcut import cut
from evomerge.evaluation.tokens import load_tokenizer
from evomerge.testing import eval_tasks


@pytest.fixture(scope="module", params=["bytes", "characters"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    make = {"bytes": eval_tasks.byte_pair_checkpoint, "characters": eval_tasks.character_checkpoint}[request.param]
    folder: Path = make(tmp_path_factory.mktemp("model"))
    return load_tokenizer(folder)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    words=st.lists(st.sampled_from(["a", "the", "e s", " ", "\n", "\n\n", "é", "ab", ": ", "<eos>"]), max_size=3),
)
def test_generations_end_where_lm_eval_ends_them(tokenizer: Any, ids: list[int], words: list[str]) -> None:
    import torch
    from lm_eval.models.utils_hf import stop_sequences_criteria

    until = tuple(dict.fromkeys([*words, "<eos>"]))
    rule = StopRule(tokenizer, GenerationArgs(until, 100), (tokenizer.eos_token_id,))
    criteria = stop_sequences_criteria(tokenizer, list(until), 0, 1)
    for n in range(1, len(ids) + 1):
        theirs = bool(criteria(torch.tensor([ids[:n]]), None).all())  # type: ignore[arg-type]
        assert rule.ended(ids[:n]) == theirs
        if theirs:
            break


def test_the_limit_and_the_end_token_end_a_generation(tokenizer: Any) -> None:
    rule = StopRule(tokenizer, GenerationArgs(("<eos>",), 3), (tokenizer.eos_token_id,))
    assert [rule.ended([5] * n) for n in (1, 2, 3)] == [False, False, True]
    assert rule.ended([5, tokenizer.eos_token_id])


def test_texts_end_at_the_first_stop_string() -> None:
    assert cut("one two three", ["three", "two", ""]) == "one "
    assert cut("one", ["x"]) == "one"
