"""Whether an engine holds the candidate's weights: its next tokens against those of the resident model.

A probe is a fixed set of prompts of the plan. Of each, the engine names its most probable next tokens with their
log-probabilities, and transformers' model says what they are. What is refused, in this order:

1. Numbers that are not finite, missing tokens.
2. A log-probability that is further from transformers' than the tolerance, or a best token that transformers finds
   worse than its own best by more than that.
3. Stale weights, which small steps of a search can hide within the tolerance: numbers that are to the bit those of an
   earlier candidate of whom transformers says something else; or numbers that are nearer to what transformers said of
   an earlier candidate, where the two candidates differ by well more than the engine does from transformers.

Tolerances per log-probability, in nats: 1e-3 in fp32, 0.25 in bf16, whose logits are rounded to 1/8 between 16 and 32.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple, final

import torch

from evomerge.errors import EvaluationError
from evomerge.evaluation.engines import Top
from evomerge.evaluation.plan import EvalPlan, Prompted, unpack

PROBES: Final = 8
TOP: Final = 5
TOLERANCES: Final = {"float32": 1e-3, "bfloat16": 0.25}
_REMEMBERED: Final = 3
_CLEARLY: Final = 4.0
"""Candidates that differ by so many times what the engine is off are told apart."""


class Reading(NamedTuple):
    """What was said of one candidate.

    Attributes:
        engine: the engine's next tokens, one mapping per prompt.
        reference: log-probabilities of transformers, fp32, shape `(prompts, vocabulary)`.
    """

    engine: tuple[Top, ...]
    reference: torch.Tensor


def tolerance_of(dtype: str) -> float:
    """How far an engine's log-probability may be off, in nats.

    Raises:
        EvaluationError: for a dtype that no engine is trusted with.
    """
    if dtype not in TOLERANCES:
        raise EvaluationError(
            "Engines are not trusted with this dtype.",
            got=dtype,
            allowed=", ".join(TOLERANCES),
            fix="set `suite.dtype: bfloat16`, or `suite.engine: transformers`.",
        )
    return TOLERANCES[dtype]


def probe_prompts(plan: EvalPlan, n: int = PROBES) -> tuple[tuple[int, ...], ...]:
    """Prompts of the search set: from each task in turn, spread from its longest to its shortest.

    Long ones are among them because a prefix that was kept from an earlier candidate shows only there.
    """
    found: list[tuple[int, ...]] = []
    tasks = [t for t in plan.tasks if t.kind == "generate_until"]
    for number, task in enumerate(tasks):
        items = [task.items[i] for i in task.sets["search"]]
        prompts = {tuple(unpack(r.prompt).tolist()) for item in items for r in item.requests if isinstance(r, Prompted)}
        ranked = sorted(prompts, key=lambda p: (-len(p), p))
        share = min(len(ranked), n // len(tasks) + (number < n % len(tasks)))
        found += [ranked[place] for place in spread(len(ranked), share)]
    return tuple(dict.fromkeys(found))


def spread(n: int, wanted: int) -> list[int]:
    """At most `wanted` different places of `n`, evenly from the first to the last."""
    if wanted < 2 or n < 2:
        return list(range(min(n, wanted)))
    return sorted({round(i * (n - 1) / (wanted - 1)) for i in range(wanted)})


@final
class Probe:
    """Judges readings, one after the other, and remembers the last few.

    Args:
        tolerance: see `tolerance_of`.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._earlier: deque[Reading] = deque(maxlen=_REMEMBERED)

    def judge(self, reading: Reading) -> str | None:
        """What is wrong with a reading; None when nothing is. Only a good one is remembered."""
        reason = self._wrong(reading) or self._stale(reading)
        if reason is None and not any(torch.equal(e.reference, reading.reference) for e in self._earlier):
            self._earlier.append(reading)
        return reason

    def _wrong(self, reading: Reading) -> str | None:
        if len(reading.engine) != len(reading.reference):
            return f"{len(reading.engine)} answers to {len(reading.reference)} prompts"
        vocabulary = reading.reference.shape[1]
        for number, (top, truth) in enumerate(zip(reading.engine, reading.reference, strict=True)):
            if len(top) < min(TOP, vocabulary) or not all(0 <= token < vocabulary for token in top):
                return f"prompt {number}: {len(top)} next tokens, {TOP} of {vocabulary} were asked"
            values = torch.tensor(list(top.values()), dtype=torch.float32)
            if not bool(torch.isfinite(values).all()):
                return f"prompt {number}: a log-probability is not finite"
            off = (values - truth[list(top)]).abs().max().item()
            if not off <= self._tolerance:
                return f"prompt {number}: a log-probability is off by {off:.3g} nats"
            behind = (truth.max() - truth[max(top, key=lambda t: top[t])]).item()
            if not behind <= self._tolerance:
                return f"prompt {number}: the best next token is {behind:.3g} nats behind transformers' best"
        return None

    def _stale(self, reading: Reading) -> str | None:
        off = _distance(reading.engine, reading.reference)
        for earlier in self._earlier:
            if torch.equal(earlier.reference, reading.reference):
                continue
            if earlier.engine == reading.engine:
                return "its numbers are an earlier candidate's, to the bit: the weights were not replaced"
            step = _distance_at(reading.engine, reading.reference, earlier.reference)
            if (
                step > _CLEARLY * _distance(earlier.engine, earlier.reference)
                and _distance(reading.engine, earlier.reference) < off
            ):
                return "its numbers are nearer to an earlier candidate's: not all weights were replaced"
        return None


def _picked(engine: Sequence[Top], values: torch.Tensor) -> torch.Tensor:
    return torch.cat([row[list(top)] for top, row in zip(engine, values, strict=True)])


def _distance(engine: Sequence[Top], values: torch.Tensor) -> float:
    said = torch.tensor([v for top in engine for v in top.values()], dtype=torch.float32)
    return float((said - _picked(engine, values)).square().mean().sqrt())


def _distance_at(engine: Sequence[Top], one: torch.Tensor, other: torch.Tensor) -> float:
    return float((_picked(engine, one) - _picked(engine, other)).square().mean().sqrt())
