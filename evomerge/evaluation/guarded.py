"""Answers of an engine that are also the reference's: nothing that an engine writes is used unproven.

For every candidate that must write something:

1. Its weights are loaded into the engine, from the resident model's memory.
2. The probe (`engine_probe`) shows that the engine answers with them.
3. The engine writes. Each answer is cut where `StopRule` ends it, and continued where the engine stopped too early.
4. Some of the answers are audited: one teacher-forced pass of the resident model over each says whether every token was
   its best one, or a near tie.

A fault in any step repeats all of them once, from the loading on. After a second fault the candidate is answered by the
reference, which is slower and right; `taken` and `notes` say so. After three such candidates in a row the engine is
closed, and the reference answers the rest of the worker's life.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, final

import torch

from evomerge.evaluation.engine_names import FALLBACK
from evomerge.evaluation.engine_probe import TOP, Probe, Reading, spread, tolerance_of
from evomerge.evaluation.engines import Ask, EngineFault, GenerationEngine, fault, next_log_probabilities
from evomerge.evaluation.forward import NeededLogits
from evomerge.evaluation.generation import Ids, StopRule, Written, generate

AUDITED: Final = 8
RETIRED_AFTER: Final = 3
_ROUNDS: Final = 8
_ATTEMPTS: Final = 2


@final
class GuardedWriter:
    """A `generation.Writer`; see the module docstring.

    Args:
        engine: what writes; closed with `close`.
        tensors: the candidate's weights under checkpoint names, as they are now.
        probes: prompts of the probe.
        dtype: of the resident model and the engine.

    Raises:
        EvaluationError: for a dtype without a tolerance, or without probes.
    """

    def __init__(
        self,
        engine: GenerationEngine,
        tensors: Callable[[], Iterable[tuple[str, torch.Tensor]]],
        probes: Sequence[tuple[int, ...]],
        dtype: str,
    ) -> None:
        self._tolerance = tolerance_of(dtype)
        self._engine: GenerationEngine | None = engine
        self._tensors = tensors
        self._probes = tuple(probes)
        self._probe = Probe(self._tolerance)
        self._seconds: dict[str, float] = {}
        self._notes: list[str] = []
        self._reference = torch.empty(0, 0)
        self._fallbacks = 0
        self._loaded = False
        self._refused = False

    @property
    def trusted(self) -> bool:
        """Whether the engine will be asked, or is asked, for the present candidate."""
        return self._engine is not None and not self._refused

    def outdated(self) -> None:
        """The resident model's weights have changed: there is a new candidate."""
        self._loaded = self._refused = False

    def taken(self) -> Mapping[str, float]:
        """Seconds by stage since the last call: `load`, `probe`, `write`, `audit`; `fallback` if there was one."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def notes(self) -> tuple[str, ...]:
        """What went wrong since the last call, one line each."""
        notes, self._notes = self._notes, []
        return tuple(notes)

    def close(self) -> None:
        """Close the engine; everything is answered by the reference from then on."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

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
        """See `generation.generate`.

        Raises:
            NonFinite: when the reference, where it has to answer, finds a logit that is NaN or infinite.
        """
        if repetition_penalty == 1.0:
            written = self._by_engine(model, [tuple(p.tolist()) for p in prompts], rule)
            if written is not None:
                return written
        with self._timed(FALLBACK):
            return generate(
                model,
                prompts,
                rule,
                pad=pad,
                device=device,
                cache_tokens=cache_tokens,
                repetition_penalty=repetition_penalty,
            )

    def _by_engine(
        self, model: NeededLogits, prompts: Sequence[tuple[int, ...]], rule: StopRule
    ) -> list[Written] | None:
        if self.trusted and not self._loaded and not self._measured(model):
            return None
        for _ in range(_ATTEMPTS):
            engine = self._engine
            if engine is None or self._refused:
                return None
            try:
                self._bring_up_to_date(engine)
                with self._timed("write"):
                    answers = complete(engine, prompts, rule)
                with self._timed("audit"):
                    self._check_ids(answers)
                    self._audit(model, prompts, answers)
            except EngineFault as error:
                self._loaded = False
                self._notes.append(f"{engine.name}: {error.what} {error.got}")
                continue
            self._fallbacks = 0
            return [Written(ids) for ids in answers]
        self._refuse()
        return None

    def _refuse(self) -> None:
        """The present candidate is the reference's; perhaps all later ones, too."""
        self._refused = True
        self._fallbacks += 1
        self._notes.append("this candidate is answered by transformers")
        if self._fallbacks == RETIRED_AFTER:
            self._notes.append(f"{RETIRED_AFTER} candidates in a row: the engine is closed")
            self.close()

    def _measured(self, model: NeededLogits) -> bool:
        """Reads the probe off the reference; without finite numbers there is nothing to hold an engine against."""
        with self._timed("probe"):
            self._reference = next_log_probabilities(model, self._probes)
        self._refused = not bool(torch.isfinite(self._reference).all())
        if self._refused:
            self._notes.append("transformers' own numbers are not finite: it answers this candidate itself")
        return not self._refused

    def _bring_up_to_date(self, engine: GenerationEngine) -> None:
        if self._loaded:
            return
        with self._timed("load"):
            engine.load(self._tensors())
        with self._timed("probe"):
            reading = Reading(tuple(engine.next_tokens(self._probes, TOP)), self._reference)
            reason = self._probe.judge(reading)
        if reason is not None:
            raise fault("The engine does not answer as the candidate does:", reason, "transformers' numbers")
        self._loaded = True

    def _check_ids(self, answers: Sequence[tuple[int, ...]]) -> None:
        vocabulary = self._reference.shape[1]
        alien = [t for ids in answers for t in ids if not 0 <= t < vocabulary]
        if alien:
            raise fault("The engine wrote an unknown token.", str(alien[0]), f"0 to {vocabulary - 1}")

    def _audit(
        self, model: NeededLogits, prompts: Sequence[tuple[int, ...]], answers: Sequence[tuple[int, ...]]
    ) -> None:
        """Refuse tokens that the reference would not have written; two log-probabilities make twice the tolerance."""
        for place in spread(len(prompts), AUDITED):
            gap = worst_gap(model, prompts[place], answers[place])
            if not gap <= 2 * self._tolerance:
                raise fault("The engine wrote what the candidate would not:", f"a token {gap:.3g} nats behind", "ties")

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - started


def worst_gap(model: NeededLogits, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """How far the least probable token of an answer stands behind the model's best there, in nats; NaN if any is."""
    n = len(answer)
    device = model.device
    ids = torch.tensor([[*prompt, *answer[:-1]]], device=device)
    places = torch.arange(len(prompt) - 1, len(prompt) - 1 + n, device=device)
    which, targets = torch.arange(n, device=device), torch.tensor(answer, device=device)
    said = model.score(ids, places, which, targets)
    if bool(torch.isfinite(said.ll).all()) and bool((said.top == targets).all()):
        return 0.0
    return float((model.score(ids, places, which, said.top).ll - said.ll).max())


def complete(engine: GenerationEngine, prompts: Sequence[tuple[int, ...]], rule: StopRule) -> list[tuple[int, ...]]:
    """An engine's answers, each exactly as long as the rule says: cut, or continued by asking again.

    Raises:
        EngineFault: when an engine does not go on.
    """
    until = tuple(s for s in rule.until if s)
    written: list[tuple[int, ...]] = [()] * len(prompts)
    writing = list(range(len(prompts)))
    for _ in range(_ROUNDS):
        asks = [Ask(prompts[i] + written[i], rule.limit - len(written[i]), until) for i in writing]
        found = engine.write(asks)
        if len(found) != len(asks):
            raise fault("The engine left prompts out.", f"{len(found)} answers to {len(asks)} prompts", "all of them")
        for i, new in zip(writing, found, strict=True):
            if not new:
                raise fault("The engine wrote nothing.", f"an empty answer to {len(prompts[i])} tokens", "a token")
            written[i] = _cut(written[i], new, rule)
        writing = [i for i in writing if not rule.ended(written[i])]
        if not writing:
            return written
    raise fault("The engine ends answers too early.", f"{len(writing)} answers in {_ROUNDS} rounds", "whole answers")


def _cut(before: tuple[int, ...], new: Sequence[int], rule: StopRule) -> tuple[int, ...]:
    """`before` and so much of `new` as the rule lets stand."""
    ids = list(before)
    for token in new:
        ids.append(int(token))
        if rule.ended(ids):
            break
    return tuple(ids)
