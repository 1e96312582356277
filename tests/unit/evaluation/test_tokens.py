"""Our encoding against lm-eval's own class, text by text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from evomerge.errors import EvaluationError
from evomerge.evaluation.lm_eval_reference import reference_model
from evomerge.evaluation.tokens import Encoder, check_greedy, load_tokenizer, model_facts
from evomerge.testing import eval_tasks

TEXT = st.text("ab \n:é<bos>", max_size=14)


class Pair:
    """An encoder of ours, and lm-eval's model class around the same tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.ours = Encoder(self.tokenizer, 11)
        model = AutoModelForCausalLM.from_pretrained(folder)
        self.theirs: Any = reference_model(model, self.tokenizer, 11)


@pytest.fixture(scope="module", params=["bytes", "characters"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    make = {"bytes": eval_tasks.byte_pair_checkpoint, "characters": eval_tasks.character_checkpoint}[request.param]
    return Pair(make(tmp_path_factory.mktemp("model")))


QUICK = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(text=TEXT)
def test_texts(pair: Pair, text: str) -> None:
    assert pair.ours.encode(text) == pair.theirs.tok_encode(text)
    assert pair.ours.encode("<bos>" + text) == pair.theirs.tok_encode("<bos>" + text)


@QUICK
@given(context=TEXT.filter(bool), continuation=TEXT)
def test_pairs(pair: Pair, context: str, continuation: str) -> None:
    assert pair.ours.pair(context, continuation) == pair.theirs._encode_pair(context, continuation)


@QUICK
@given(text=st.text("ab c", max_size=60))
def test_windows(pair: Pair, text: str) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    ids = pair.theirs.tok_encode(text)
    windows = get_rolling_token_windows(ids, pair.theirs.prefix_token_id, 11, 1)
    assert list(pair.ours.windows(text)) == [make_disjoint_window(w) for w in windows]


@QUICK
@given(text=TEXT.filter(bool))
def test_prompts(pair: Pair, text: str) -> None:
    theirs, _ = pair.theirs.tok_batch_encode([text], left_truncate_len=8)
    assert pair.ours.prompt(text, 3) == theirs[0].tolist()


@QUICK
@given(context=st.lists(st.integers(0, 9), min_size=1, max_size=30), n=st.integers(1, 11))
def test_the_left_side_is_cut(pair: Pair, context: list[int], n: int) -> None:
    continuation = [7] * n
    kept, same = pair.ours.cut(context, continuation)
    assert same == continuation
    assert (kept + same)[:-1] == (context + continuation)[-12:][:-1]


def test_an_empty_context_is_the_prefix_token(pair: Pair) -> None:
    ids = pair.tokenizer.encode("ab", add_special_tokens=False)
    assert pair.ours.pair("", "ab") == ([pair.ours.prefix], ids)


def test_facts_of_a_checkpoint(tmp_path: Path) -> None:
    folder = eval_tasks.byte_pair_checkpoint(tmp_path, max_position_embeddings=77)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 5], "repetition_penalty": 1.2}')
    facts = model_facts(folder, load_tokenizer(folder))
    assert (facts.max_length, facts.eos, facts.repetition_penalty) == (77, (0, 5), 1.2)
    (folder / "config.json").unlink()
    assert model_facts(folder, load_tokenizer(folder)).max_length == 2048


def test_decoding_that_we_do_not_follow_is_refused() -> None:
    check_greedy({"num_beams": 1, "top_p": 0.9, "suppress_tokens": None}, "x")
    with pytest.raises(EvaluationError, match="no_repeat_ngram_size: 3"):
        check_greedy({"no_repeat_ngram_size": 3}, "The config")
