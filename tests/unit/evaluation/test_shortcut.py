"""The teacher-forced shortcut gives what real generation gives, whatever the model would write."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.evaluation.generation import StopRule
from evomerge.evaluation.plan import GenerationArgs, MetricPlan, unpack
from evomerge.evaluation.shortcut import OPEN, Judge, answer, cut
from evomerge.evaluation.tokens import characters
from evomerge.zoo.model import make_tokenizer

METRIC = MetricPlan("exact_match", filters=(("take_first", {}),))
TOKENIZER = make_tokenizer()
TABLE = characters(TOKENIZER)
IDS = TOKENIZER.get_vocab()
ALPHABET = ["a", "b", "\n", "<pad>", "<bos>", "<eos>", "<unk>"]


def generation(*until: str, limit: int = 6, **more: Any) -> GenerationArgs:
    return GenerationArgs((*until, "<eos>"), limit, **more)


def scripted(target: str, seed: int) -> Any:
    """A greedy 'model': the next token as a fixed function of what was written; mostly the right one."""

    def following(written: tuple[int, ...]) -> int:
        rng = random.Random(f"{seed}/{written}")
        right = target[len(written)] if len(written) < len(target) else "<eos>"
        return int(IDS[right if rng.random() < 0.75 else rng.choice(ALPHABET)])

    return following


def really_generated(following: Any, rule: StopRule) -> str:
    ids: list[int] = []
    while not ids or not rule.ended(ids):
        ids.append(following(tuple(ids)))
    return rule.text(ids)


@settings(deadline=None, max_examples=300)
@given(
    target=st.text("ab", min_size=1, max_size=5),
    until=st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3, unique=True),
    limit=st.integers(1, 7),
    seed=st.integers(0, 10_000),
)
def test_verdicts_equal_generation(target: str, until: list[str], limit: int, seed: int) -> None:
    arguments = generation(*until, limit=limit)
    packed = answer(TABLE, METRIC, arguments, (target,))
    if packed is None:
        assert len(target) > limit or cut(target, until) != target
        return
    ids = unpack(packed)
    following = scripted(target, seed)
    predicted = np.array([following(tuple(ids[:j].tolist())) for j in range(len(ids) + 1)])
    (verdict,) = Judge(TABLE or (), arguments, (IDS["<eos>"],)).verdicts([ids], [predicted])
    text = really_generated(following, StopRule(TOKENIZER, arguments, (IDS["<eos>"],)))
    assert verdict in (OPEN, float(text == target))


@pytest.mark.parametrize(
    ("predicted", "verdict"),
    [
        ("ab<eos>", 1.0),
        ("ab\n", 1.0),
        ("abb", 0.0),
        ("bb<eos>", 0.0),
        ("a<eos>b", 0.0),
        ("a<pad>b", OPEN),
        ("ab<pad>", OPEN),
        ("abc", OPEN),
    ],
)
def test_each_verdict(predicted: str, verdict: float) -> None:
    arguments = generation("\n", "cc")
    ids = np.array(TOKENIZER.encode("ab", add_special_tokens=False))
    top = np.array(TOKENIZER.encode(predicted, add_special_tokens=False))
    assert Judge(TABLE or (), arguments, (2,)).verdicts([ids], [top]).tolist() == [verdict]


def test_an_answer_as_long_as_the_limit_needs_no_end() -> None:
    judge = Judge(TABLE or (), generation(limit=2), (2,))
    ids = np.array(TOKENIZER.encode("ab", add_special_tokens=False))
    assert judge.verdicts([ids], [np.append(ids, ids[0])]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("metric", "arguments", "targets"),
    [
        (MetricPlan("exact_match", filters=(("lowercase", {}), ("take_first", {}))), generation(), ("ab",)),
        (MetricPlan("exact_match", filters=METRIC.filters, options={"ignore_case": True}), generation(), ("ab",)),
        (MetricPlan("other", fast=False), generation(), ("ab",)),
        (METRIC, generation(repetition_penalty=1.1), ("ab",)),
        (METRIC, generation(), ("ab", "ba")),
        (METRIC, generation(), ("",)),
        (METRIC, generation(), ("é",)),
        (METRIC, generation("b"), ("ab",)),
        (METRIC, generation(limit=1), ("ab",)),
    ],
)
def test_what_the_shortcut_does_not_decide(
    metric: MetricPlan, arguments: GenerationArgs, targets: tuple[str, ...]
) -> None:
    assert answer(TABLE, METRIC, generation(), ("ab",)) is not None
    assert answer(TABLE, metric, arguments, targets) is None


def test_only_one_spelling_counts() -> None:
    assert TABLE is not None
    assert TABLE[:4] == ("", "", "", "")
    assert answer(None, METRIC, generation(), ("ab",)) is None
    loose = make_tokenizer()
    loose.clean_up_tokenization_spaces = True
    assert characters(loose) is None


def test_byte_pairs_have_many_spellings(tmp_path: Any) -> None:
    from evomerge.evaluation.tokens import load_tokenizer
    from evomerge.testing import eval_tasks

    assert characters(load_tokenizer(eval_tasks.byte_pair_checkpoint(tmp_path))) is None
