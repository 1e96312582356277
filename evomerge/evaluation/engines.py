"""Engines that write answers: the contract, and the reference that every other engine is held against.

An engine holds a copy of the candidate's weights in a form of its own and continues prompts greedily. What it writes is
never trusted by itself: see `guarded`. Log-likelihoods are not an engine's business; transformers computes all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, final

import numpy as np
import torch

from evomerge.errors import ConfigError, EvaluationError, suggest
from evomerge.evaluation.engine_names import REFERENCE
from evomerge.evaluation.forward import NeededLogits
from evomerge.evaluation.generation import Ids, StopRule, generate
from evomerge.evaluation.plan import GenerationArgs

ENGINES: Final[Mapping[str, str]] = {"vllm": "evomerge.evaluation.vllm_engine:VllmEngine"}
"""Name -> class of the engines beside the reference, which needs none: its model is the resident one."""


class EngineFault(EvaluationError):
    """An engine stopped working, or gave something that cannot be the candidate's answer."""


@dataclass(frozen=True)
class EngineSetup:
    """What an engine is built from.

    Attributes:
        folder: the checkpoint that gives config and architecture; its weights may be loaded and are then replaced.
        tokenizer_folder: the tokenizer, for stop strings.
        dtype: of the weights and the arithmetic, torch's spelling without `torch.`.
        device: torch's spelling.
        max_length: tokens of prompt and answer together.
        eos: ids that end an answer.
    """

    folder: Path
    tokenizer_folder: Path
    dtype: str
    device: str
    max_length: int
    eos: tuple[int, ...]


class Ask(NamedTuple):
    """One prompt to continue.

    Attributes:
        prompt: token ids.
        limit: new tokens at most.
        until: stop strings; none of them is empty.
    """

    prompt: tuple[int, ...]
    limit: int
    until: tuple[str, ...]


Top = Mapping[int, float]
"""Next tokens and their log-probabilities in nats, the most probable ones."""


class GenerationEngine(ABC):
    """Continues prompts greedily, with whatever weights were loaded last.

    One engine serves one worker for its whole life. It is built once, from `EngineSetup`, which may take minutes. All
    calls come from one thread, one after the other. An engine keeps nothing of a candidate when the next is loaded: no
    cached prefix, no half-written answer, no weight.

    The same weights and the same prompts give the same answers. Other prompts beside a prompt may change its answer by
    rounding alone.

    The constructor raises `ModelError` when the engine cannot be had or cannot hold the model. Every other method but
    `close` may raise `EngineFault`, and nothing else.

    Attributes:
        name: as in `suite.engine`.
    """

    name: ClassVar[str]

    @abstractmethod
    def __init__(self, setup: EngineSetup) -> None: ...

    @property
    @abstractmethod
    def version(self) -> str:
        """Of the software, for records."""

    @abstractmethod
    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace all weights, in place, and forget everything computed with the old ones.

        Args:
            tensors: checkpoint names and values, all of them, in the dtype of the setup, on its device. They belong to
                the caller and change later: what is kept is copied.
        """

    @abstractmethod
    def write(self, asks: Sequence[Ask]) -> list[tuple[int, ...]]:
        """New tokens for every prompt, in order, each the most probable one.

        An answer ends with an end-of-text id or with the token that completes a stop string, that token included, or
        at its limit. A stop string may be noticed late: what stands behind it is cut off by the caller. It may also be
        noticed where the caller sees none; the caller then asks for the rest.

        Raises:
            EngineFault: also when a log-probability on the way was not finite.
        """

    @abstractmethod
    def next_tokens(self, prompts: Sequence[tuple[int, ...]], top: int) -> list[Top]:
        """The `top` most probable next tokens of every prompt, in order; never from a candidate loaded earlier."""

    @abstractmethod
    def close(self) -> None:
        """Give back all memory; the engine is not used again. May be called twice."""


def engine_class(name: str) -> type[GenerationEngine]:
    """The class behind a name.

    Raises:
        ConfigError: for an unknown name, and for the reference, which is no engine.
    """
    if name not in ENGINES:
        raise ConfigError(
            f"There is no engine {name!r}.",
            got=repr(name),
            allowed=suggest(name, ENGINES),
            fix="use one of these names.",
        )
    module, attribute = ENGINES[name].split(":")
    found: type[GenerationEngine] = getattr(import_module(module), attribute)
    return found


def next_log_probabilities(needed: NeededLogits, prompts: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """What a transformers model says of the token behind every prompt: fp32, on the host, `(prompts, vocabulary)`.

    Each prompt is a pass of its own, so that nothing depends on its neighbours.
    """
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=needed.device)
        last = torch.tensor([len(prompt) - 1], device=needed.device)
        logits, _ = needed.logits(ids, last, use_cache=False)
        rows.append(logits[0].float().log_softmax(-1).cpu())
    return torch.stack(rows)


@final
class ReferenceEngine(GenerationEngine):
    """The transformers path as an engine of its own, with a model of its own: what the conformance suite measures by.

    Args:
        setup: as for every engine.
    """

    name = REFERENCE

    def __init__(self, setup: EngineSetup) -> None:
        from transformers import AutoModelForCausalLM

        from evomerge.evaluation.tokens import load_tokenizer

        self._setup = setup
        self._tokenizer = load_tokenizer(setup.tokenizer_folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            str(setup.folder),
            dtype=getattr(torch, setup.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        self._model = self._model.requires_grad_(False).to(setup.device).eval()

    @property
    def version(self) -> str:
        """Of transformers."""
        from transformers import __version__

        return str(__version__)

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """See `GenerationEngine.load`.

        Raises:
            EngineFault: when a parameter is missing or has another shape.
        """
        held = self._model.state_dict(keep_vars=True)
        left = {value.data_ptr() for value in held.values()}
        for name, value in tensors:
            if name not in held or held[name].shape != value.shape:
                raise fault("Weights do not fit the engine.", f"{name} {list(value.shape)}", "the model's tensors")
            held[name].data.copy_(value)
            left.discard(held[name].data_ptr())
        if left:
            raise fault("Weights do not fit the engine.", f"{len(left)} tensors were not given", "all of them")

    def write(self, asks: Sequence[Ask]) -> list[tuple[int, ...]]:
        """See `GenerationEngine.write`; one prompt at a time."""
        found = []
        with NeededLogits(self._model) as needed:
            for ask in asks:
                rule = StopRule(self._tokenizer, GenerationArgs(ask.until, ask.limit), self._setup.eos)
                prompt: Ids = np.asarray(ask.prompt, np.int32)
                (written,) = generate(needed, [prompt], rule, pad=0, device=needed.device, cache_tokens=1)
                found.append(written.ids)
        return found

    def next_tokens(self, prompts: Sequence[tuple[int, ...]], top: int) -> list[Top]:
        """See `GenerationEngine.next_tokens`."""
        with NeededLogits(self._model) as needed:
            best = next_log_probabilities(needed, prompts).topk(top, -1)
        return [dict(zip(i.tolist(), v.tolist(), strict=True)) for i, v in zip(best.indices, best.values, strict=True)]

    def close(self) -> None:
        """See `GenerationEngine.close`."""
        self._model = None


def fault(what: str, got: str, allowed: str) -> EngineFault:
    """An `EngineFault`."""
    return EngineFault(what, got=got, allowed=allowed, fix="use `suite.engine: transformers`, or report the model.")
