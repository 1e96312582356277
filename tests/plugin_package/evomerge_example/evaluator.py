"""An evaluator: how likely a model finds sums that are right."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, final

from evomerge.evaluation.plugin import ItemTask


@final
class CorrectSums(ItemTask):
    """Mean log-likelihood per token of texts such as `12+30=042`.

    Args:
        n: how many sums there are.
    """

    def __init__(self, n: int = 200) -> None:
        if not 2 <= n <= 5000:
            raise ValueError(f"n is {n}, expected 2 to 5000")
        self._n = n

    @property
    def name(self) -> str:
        """See `ItemTask.name`."""
        return "example-sums"

    def items(self) -> Sequence[str]:
        """See `ItemTask.items`: different sums of two two-digit numbers, in an order of their own."""
        pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
        random.Random(7).shuffle(pairs)
        return [f"{a}+{b}={a + b:03d}" for a, b in pairs[: self._n]]

    def score(self, model: Any, tokenizer: Any, items: Sequence[str]) -> Sequence[float]:
        """See `ItemTask.score`: one pass per item, so that an item's score knows nothing of the others."""
        import torch

        scores = []
        for item in items:
            ids = torch.tensor([tokenizer.encode(item, add_special_tokens=False)], device=model.device)
            with torch.inference_mode():
                logits = model(ids).logits[0, :-1].float()
            chosen = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])
            scores.append(float(chosen.mean()))
        return scores
