from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.evaluation import metrics
from evomerge.evaluation.plan import Item, MetricPlan
from evomerge.types import Digest


def item(**more: Any) -> Item:
    return Item(Digest("0" * 64), 0, 0, (), **more)


@settings(deadline=None, max_examples=80)
@given(
    st.text("aB1.\0 é", max_size=6),
    st.text("aB1.\0 é", max_size=6),
    st.fixed_dictionaries(
        {},
        optional={
            "ignore_case": st.booleans(),
            "ignore_punctuation": st.booleans(),
            "ignore_numbers": st.booleans(),
            "regexes_to_ignore": st.lists(st.sampled_from(["a", "[0-9]$", r"\.", "B1"]), max_size=2),
        },
    ),
)
def test_exact_match_equals_lm_eval(answer: str, target: str, options: dict[str, Any]) -> None:
    from lm_eval.api.metrics import exact_match_fn

    theirs = exact_match_fn(predictions=[answer], references=[target], **options)["exact_match"]
    plan = MetricPlan("exact_match", filters=(("take_first", {}),), options=options)
    assert metrics.exact_match(plan, [item(targets=(target,))], [answer]).tolist() == [float(theirs)]


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.text("aB1# .", max_size=8), min_size=1, max_size=4),
    st.lists(
        st.sampled_from(
            [
                ("lowercase", {}),
                ("uppercase", {}),
                ("remove_whitespace", {}),
                ("regex", {"regex_pattern": "[aB1]+"}),
                ("regex", {"regex_pattern": "(a)|(B)", "group_select": -1, "fallback": "none"}),
                ("regex", {"regex_pattern": r"#(\s*)", "fallback": "-"}),
            ]
        ),
        max_size=3,
    ),
)
def test_filters_equal_lm_eval(texts: list[str], steps: list[tuple[str, dict[str, Any]]]) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.filters import build_filter_ensemble

    chain = [*steps, ("take_first", {})]
    instances = [Instance("generate_until", {}, (), 0, resps=[t]) for t in texts]
    build_filter_ensemble("f", [[n, a] for n, a in chain]).apply(instances)
    theirs = [i.filtered_resps["f"] for i in instances]
    assert metrics.filtered(MetricPlan("exact_match", filters=tuple(chain)), texts) == theirs


def test_choices() -> None:
    lls = [np.array([-3.0, -2.0, -2.0]), np.array([-4.0, -6.0, -1.0])]
    greedy = [[False, True, False], [True, False, False]]
    plain = [item(golds=(1,), lengths=(1.0, 1.0, 1.0)), item(golds=(0, 2), lengths=(1.0, 1.0, 1.0))]
    assert metrics.choice_scores("acc", plain, lls, greedy).tolist() == [1.0, 1.0]
    assert metrics.choice_scores("exact_match", plain, lls, greedy).tolist() == [1.0, 1.0]
    long = [item(golds=(1,), lengths=(9.0, 1.0, 1.0)), item(golds=(-100,), lengths=(1.0, 2.0, 3.0))]
    assert metrics.choice_scores("acc_norm", long, lls, greedy).tolist() == [0.0, 0.0]
    assert metrics.choice_scores("exact_match", long, lls, greedy).tolist() == [1.0, 0.0]


def test_figures_of_lm_eval() -> None:
    assert metrics.aggregate("mean", 0.25) == 0.25
    assert metrics.aggregate("perplexity", -math.log(7)) == pytest.approx(7)
    assert metrics.aggregate("weighted_perplexity", -math.log(3)) == pytest.approx(3)
    assert metrics.aggregate("bits_per_byte", -math.log(2)) == pytest.approx(1)
