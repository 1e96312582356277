"""What lm-eval's own model class answers: the reference of the self-check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evomerge.evaluation.lm_eval_guard import quiet
from evomerge.evaluation.plan import Kind


def reference_model(model: Any, tokenizer: Any, max_length: int) -> HFLM:
    """HFLM around a model in memory: one row at a time, softmax in fp32.

    Args:
        model: a Hugging Face causal language model; its weights are shared, not copied.
        tokenizer: its tokenizer.
        max_length: tokens the model may see at once.
    """
    with quiet():
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, softmax_dtype="float32", max_length=max_length)


def reference_answers(reference: HFLM, kind: Kind, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """HFLM's answers to requests of one output type.

    Returns:
        `(log-likelihood, is greedy)` per request of a multiple choice or log-likelihood task, a log-likelihood per
        text, or a generated text.
    """
    call = "loglikelihood" if kind in ("multiple_choice", "loglikelihood") else kind
    requests = [Instance(call, {}, a, 0) for a in arguments]
    with quiet():
        answers: list[Any] = getattr(reference, call)(requests, disable_tqdm=True)
    return answers
