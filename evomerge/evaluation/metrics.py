"""Item scores from log-likelihoods and texts, equal to lm-eval's, and the task's value from item scores.

A task's score is always the mean of its items' scores, so that subsets, standard errors and paired tests need no
special cases. For most metrics an item's score is lm-eval's value for it. Perplexities become log-likelihoods, where
higher is better:

- `perplexity`: the item's log-likelihood; lm-eval's figure is `exp(-mean)`.
- `word_perplexity`, `byte_perplexity`: log-likelihood over the *mean* number of words (bytes) of the item's set, so
  that the mean over the set is sum(ll) / sum(words); lm-eval's figure is `exp(-mean)`.
- `bits_per_byte`: the same with bytes; lm-eval's figure is `-mean / ln 2`.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evomerge.evaluation.plan import Aggregation, Item, MetricPlan

FAST_METRICS: Final[Mapping[str, frozenset[str]]] = {
    "multiple_choice": frozenset({"acc", "acc_norm", "acc_bytes", "exact_match"}),
    "loglikelihood": frozenset({"acc", "perplexity"}),
    "loglikelihood_rolling": frozenset({"word_perplexity", "byte_perplexity", "bits_per_byte"}),
    "generate_until": frozenset({"exact_match"}),
}
"""Output type -> metrics that this module computes; lm-eval's own code computes the others."""

FAST_FILTERS: Final = frozenset({"take_first", "regex", "remove_whitespace", "lowercase", "uppercase"})

Floats = npt.NDArray[np.float64]


def aggregate(aggregation: Aggregation, mean: float) -> float:
    """lm-eval's figure for a task whose items' mean score is `mean` (see the module's text)."""
    if aggregation == "mean":
        return mean
    return -mean / math.log(2) if aggregation == "bits_per_byte" else math.exp(-mean)


def choice_scores(
    metric: str, items: Sequence[Item], lls: Sequence[Floats], greedy: Sequence[Sequence[bool]]
) -> Floats:
    """Multiple choice: acc, acc_norm, acc_bytes or exact_match of every item.

    Args:
        metric: its name.
        items: `n` of them, with `golds` and `lengths`.
        lls: per item the choices' log-likelihoods, in nats.
        greedy: per item and choice, whether greedy decoding would give it.

    Returns:
        0 or 1 per item, shape `(n,)`.
    """
    scores = np.empty(len(items))
    for i, (item, values, is_greedy) in enumerate(zip(items, lls, greedy, strict=True)):
        if metric == "exact_match":
            scores[i] = any(is_greedy[g] for g in item.golds if g != -100)
        else:
            # ties go to the first choice, as lm-eval's argmax does
            scores[i] = int(np.argmax(values / np.asarray(item.lengths))) in item.golds
    return scores


def choice_margins(items: Sequence[Item], lls: Sequence[Floats]) -> Floats:
    """Multiple choice: how much likelier the best right choice is than the best wrong one, in nats, shape `(n,)`.

    Log-likelihoods are divided by `Item.lengths`, as the metric divides them: then positive margins are the items that
    acc, acc_norm and acc_bytes count (but for ties). 0 where no choice is right or none is wrong.

    Args:
        items: `n` of them, with `golds` and `lengths`.
        lls: per item the choices' log-likelihoods, in nats.
    """
    margins = np.zeros(len(items))
    for i, (item, values) in enumerate(zip(items, lls, strict=True)):
        scaled = values / np.asarray(item.lengths)
        right = np.isin(np.arange(len(scaled)), item.golds)
        if right.any() and not right.all():
            margins[i] = scaled[right].max() - scaled[~right].max()
    return margins


def _normalise(options: Mapping[str, Any]) -> Callable[[str], str]:
    """What exact match does to both texts before it compares them, in lm-eval's order."""
    ignored = [re.compile(p) for p in options.get("regexes_to_ignore") or []]
    dropped = string.punctuation if options.get("ignore_punctuation") else ""
    dropped += string.digits if options.get("ignore_numbers") else ""
    table = str.maketrans("", "", dropped)

    def normalise(text: str) -> str:
        for pattern in ignored:
            text = pattern.sub("", text)
        # numpy, which lm-eval compares with, drops NULs at the end
        text = text.rstrip("\0")
        return (text.lower() if options.get("ignore_case") else text).translate(table).rstrip("\0")

    return normalise


def _regex(arguments: Mapping[str, Any]) -> Callable[[str], str]:
    pattern = re.compile(arguments.get("regex_pattern", r"#### (\-?[0-9\.\,]+)"))
    select = arguments.get("group_select", 0)
    fallback = arguments.get("fallback", "[invalid]")

    def extract(text: str) -> str:
        found = pattern.findall(text)
        if not found:
            return str(fallback)
        match = found[select]
        if isinstance(match, tuple):
            match = next((m for m in match if m), fallback)
        return str(match).strip()

    return extract


def _filter(name: str, arguments: Mapping[str, Any]) -> Callable[[str], str]:
    if name == "regex":
        return _regex(arguments)
    plain: Mapping[str, Callable[[str], str]] = {
        "take_first": str,
        "remove_whitespace": str.strip,
        "lowercase": str.lower,
        "uppercase": str.upper,
    }
    return plain[name]


def filtered(metric: MetricPlan, texts: Iterable[str]) -> list[str]:
    """Generated texts after the metric's filter chain."""
    steps = [_filter(name, arguments) for name, arguments in metric.filters]
    result = list(texts)
    for step in steps:
        result = [step(text) for text in result]
    return result


def exact_match(metric: MetricPlan, items: Sequence[Item], texts: Sequence[str]) -> Floats:
    """Generate-until: 1 where a generated text, filtered, is one of the item's targets; shape `(n,)`."""
    normalise = _normalise(metric.options)
    answers = filtered(metric, texts)
    return np.array(
        [
            float(any(normalise(target) == normalise(answer) for target in item.targets))
            for item, answer in zip(items, answers, strict=True)
        ]
    )
