"""Greedy decoding as lm-eval's HFLM does it at batch size 1: cached, in large batches, finished rows dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.evaluation.caches import select_rows
from evomerge.evaluation.forward import NeededLogits, check_finite
from evomerge.evaluation.plan import GenerationArgs
from evomerge.evaluation.shortcut import cut

Ids = npt.NDArray[np.int32]
_COMPACT = 0.75
"""Rows are dropped from the cache when fewer than this share of them is still writing: dropping copies the cache."""


class Written(NamedTuple):
    """One generation.

    Attributes:
        ids: the new tokens, the one that ended it included.
        margins: per token, how far its logit stood above the second best; empty unless asked for.
    """

    ids: tuple[int, ...]
    margins: tuple[float, ...] = ()


@final
class StopRule:
    """When a generation ends, and what its text is.

    Args:
        tokenizer: a Hugging Face tokenizer.
        generation: stop strings and the limit.
        eos: ids that end a generation.
    """

    def __init__(self, tokenizer: Any, generation: GenerationArgs, eos: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.until = generation.until
        self.limit = generation.max_gen_toks
        self._eos = frozenset(eos)
        # lm-eval looks for a stop string in so many last tokens
        self._stops = [(s, len(tokenizer.encode(s, add_special_tokens=False)) + 2) for s in generation.until if s]
        lasts = {s[-1] for s, _ in self._stops}
        whole = any(c.isspace() and c != "\n" for c in lasts) or getattr(
            tokenizer, "clean_up_tokenization_spaces", False
        )
        self._lasts = None if whole else lasts
        self._may_stop: dict[int, bool] = {}

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the last of the new tokens ends the generation."""
        if ids[-1] in self._eos or len(ids) >= self.limit:
            return True
        if not self._can_finish(ids[-1]):
            return False
        return any(stop in self._tokenizer.decode(list(ids[-window:])) for stop, window in self._stops)

    def _can_finish(self, token: int) -> bool:
        """Whether a token can hold the last character of a stop string; cheap, and never wrongly False."""
        if self._lasts is None:
            return True
        known = self._may_stop.get(token)
        if known is None:
            text = self._tokenizer.decode([token])
            known = not text or "\ufffd" in text or any(c in text for c in self._lasts)
            self._may_stop[token] = known
        return known

    def text(self, ids: Sequence[int]) -> str:
        """The answer: decoded without specials, up to the first stop string."""
        return cut(self._tokenizer.decode(list(ids), skip_special_tokens=True), self.until)


class _State:
    """Rows that are being written: cache, masks and tokens of one batch."""

    def __init__(self, prompts: Sequence[Ids], pad: int, limit: int, device: Any) -> None:
        lengths = np.array([len(p) for p in prompts])
        width = int(lengths.max())
        ids = np.full((len(prompts), width), pad, np.int64)
        mask = np.ones((len(prompts), width + limit), np.int64)
        for r, prompt in enumerate(prompts):
            ids[r, width - len(prompt) :] = prompt
            mask[r, : width - len(prompt)] = 0
        self.ids = torch.from_numpy(ids).to(device)
        self.mask = torch.from_numpy(mask).to(device)
        self.positions = (self.mask[:, :width].cumsum(-1) - 1).clamp(min=0)
        self.width = width
        self.rows = list(range(len(prompts)))
        self.cache: Any = None
        self.padded = bool((lengths != width).any())

    def step(self, model: NeededLogits) -> torch.Tensor:
        """Runs the pending tokens; logits of the last position of every row, fp32, shape `(rows, vocabulary)`."""
        rows, length = self.ids.shape
        last = torch.arange(1, rows + 1, device=self.ids.device) * length - 1
        logits, self.cache = model.logits(
            self.ids,
            last,
            attention_mask=self.mask[:, : self.width] if self.padded else None,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return logits.float()

    def advance(self, tokens: torch.Tensor) -> None:
        """Appends one token to every row; a model that hands out no cache reads everything again."""
        new, position = tokens.unsqueeze(1), self.positions[:, -1:] + 1
        again = self.cache is None
        self.ids = torch.cat([self.ids, new], 1) if again else new
        self.positions = torch.cat([self.positions, position], 1) if again else position
        self.width += 1

    def keep(self, places: list[int]) -> None:
        """Drops all rows but these."""
        index = torch.tensor(places, device=self.ids.device)
        select_rows(self.cache, index)
        self.ids, self.mask, self.positions = self.ids[index], self.mask[index], self.positions[index]
        self.rows = [self.rows[p] for p in places]


def _penalised(
    logits: torch.Tensor, state: _State, prompts: Sequence[Ids], written: list[list[int]], penalty: float
) -> torch.Tensor:
    """Logits of tokens that were already read or written, divided (positive) or multiplied (negative) by `penalty`."""
    if penalty == 1.0:
        return logits
    result = logits.clone()
    for place, row in enumerate(state.rows):
        seen = torch.tensor(sorted({*prompts[row].tolist(), *written[row]}), device=logits.device)
        values = logits[place, seen]
        result[place, seen] = torch.where(values < 0, values * penalty, values / penalty)
    return result


def _write(
    model: NeededLogits, prompts: Sequence[Ids], rule: StopRule, state: _State, *, penalty: float, margins: bool
) -> list[Written]:
    """Decodes one batch."""
    written: list[list[int]] = [[] for _ in prompts]
    gaps: list[list[float]] = [[] for _ in prompts]
    writing = set(range(len(prompts)))
    while True:
        logits = _penalised(state.step(model), state, prompts, written, penalty)
        best, tokens = logits.max(-1)
        check_finite(best, "while an answer is generated")
        second = logits.topk(2, -1).values[:, 1] if margins else best
        host, gap = tokens.tolist(), (best - second).tolist() if margins else []
        for place, row in enumerate(state.rows):
            if row in writing:
                written[row].append(host[place])
                gaps[row] += gap[place : place + 1]
                if rule.ended(written[row]):
                    writing.discard(row)
        if not writing:
            return [Written(tuple(w), tuple(g)) for w, g in zip(written, gaps, strict=True)]
        state.advance(tokens)
        if model.plain_cache and len(writing) < _COMPACT * len(state.rows):
            state.keep([place for place, row in enumerate(state.rows) if row in writing])


def generate(
    model: NeededLogits,
    prompts: Sequence[Ids],
    rule: StopRule,
    *,
    pad: int,
    device: Any,
    cache_tokens: int,
    repetition_penalty: float = 1.0,
    margins: bool = False,
) -> list[Written]:
    """Greedy continuations of all prompts, in their order.

    Args:
        model: the model, its context open.
        prompts: token ids, each of shape `(length,)`.
        rule: stop strings and limit.
        pad: id on the left of shorter prompts.
        device: where the model lives.
        cache_tokens: tokens that the caches of one batch may hold, padding and new tokens included.
        repetition_penalty: 1 leaves logits alone.
        margins: also return how clear each choice was.

    Raises:
        NonFinite: when a logit is NaN or infinite.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    found: dict[int, Written] = {}
    while order:
        width = len(prompts[order[0]]) + rule.limit
        n = max(1, cache_tokens // width)
        if not model.plain_cache:  # a state cannot be padded: prompts of one length
            n = min(n, sum(len(prompts[i]) == len(prompts[order[0]]) for i in order))
        batch, order = order[:n], order[n:]
        asked = [prompts[i] for i in batch]
        state = _State(asked, pad, rule.limit, device)
        results = _write(model, asked, rule, state, penalty=repetition_penalty, margins=margins)
        found.update(zip(batch, results, strict=True))
    return [found[i] for i in range(len(prompts))]


class Writer(Protocol):
    """What writes answers: `generate`, or something that gives the same answers faster."""

    def __call__(
        self,
        model: NeededLogits,
        prompts: Sequence[Ids],
        rule: StopRule,
        *,
        pad: int,
        device: Any,
        cache_tokens: int,
        repetition_penalty: float = 1.0,
    ) -> list[Written]:
        """See `generate`."""
