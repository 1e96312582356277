"""A module that stands in for vLLM: the documented names that `vllm_engine` uses, on top of a transformers model.

It is strict: an argument that vLLM 0.33 does not document is an error. Like vLLM it computes in the caller's process,
keeps the keys and values of whole blocks of 16 prompt tokens between calls, and holds a copy of the weights. A head
that is tied to the embedding works on a copy of its own, which loading leaves alone, as vLLM's packed heads do.

A `Fault` makes it lie or break from some load of weights on.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, Final, final

BLOCK: Final = 16
VERSION: Final = "0.33.0+fake"

_LLM: Final = """
    model runner convert tokenizer tokenizer_mode skip_tokenizer_init trust_remote_code allowed_local_media_path
    allowed_media_domains tensor_parallel_size dtype quantization revision tokenizer_revision chat_template seed
    gpu_memory_utilization cpu_offload_gb offload_group_size offload_num_in_group offload_prefetch_step offload_params
    enforce_eager enable_return_routed_experts return_sampling_mask disable_custom_all_reduce hf_token hf_overrides
    mm_processor_kwargs pooler_config structured_outputs_config profiler_config attention_config kv_cache_memory_bytes
    compilation_config quantization_config logits_processors spec_method spec_model spec_tokens
"""
_ENGINE: Final = """
    max_model_len max_num_seqs max_num_batched_tokens enable_prefix_caching max_logprobs logprobs_mode
    generation_config load_format disable_log_stats use_tqdm_on_load async_scheduling
"""
LLM_ARGUMENTS: Final = frozenset((_LLM + _ENGINE).split())
"""Keyword arguments of `vllm.LLM` (entrypoints/llm.py), and of `EngineArgs` (engine/arg_utils.py) behind it some."""

_SAMPLING: Final = """
    n presence_penalty frequency_penalty repetition_penalty temperature watermarking top_p top_k min_p seed stop
    stop_token_ids ignore_eos max_tokens min_tokens logprobs prompt_logprobs prompt_logprob_token_ids
    prompt_logprob_start logprob_token_ids flat_logprobs detokenize skip_special_tokens spaces_between_special_tokens
    include_stop_str_in_output output_kind stream_interval structured_outputs logit_bias allowed_token_ids extra_args
    bad_words
"""
SAMPLING_ARGUMENTS: Final = frozenset(_SAMPLING.split())
"""Keyword arguments of `vllm.SamplingParams` (sampling_params.py)."""

FAULTS: Final = (
    "stale",  # new weights are thrown away
    "stale_layer",  # those of the first layer are
    "late",  # weights arrive one load late
    "keeps_prefixes",  # the prefix cache is not emptied, and says that it was
    "refuses_reset",  # the prefix cache is not emptied, and says so
    "nan_logprobs",
    "nan_later",  # from the second new token on
    "no_logprobs",
    "truncates",  # answers of one token
    "truncates_prompts",  # only the last four tokens are read
    "empty",
    "second_best",  # every third new token is the second best
    "swaps",  # outputs in another order
    "mislabels",  # answers of other prompts under the right prompts
    "unknown_token",
    "aborts",
    "drops",  # the last output is missing
    "dies",
    "dies_loading",
    "runs_on",  # stop strings are not looked for
)


@dataclass
class Fault:
    """What goes wrong, and when.

    Attributes:
        kind: one of `FAULTS`, or `""` for none.
        first: the first load of weights with which it goes wrong, from 1 on.
        loads: for how many loads; None for all that follow.
        seen: loads so far, counted by the fake.
        engines: engines that were built.
        closed: engines that were closed.
    """

    kind: str = ""
    first: int = 1
    loads: int | None = None
    seen: int = field(default=0, init=False)
    engines: int = field(default=0, init=False)
    closed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.kind and self.kind not in FAULTS:
            raise ValueError(f"there is no fault {self.kind!r}")

    def now(self, kind: str) -> bool:
        """Whether this goes wrong now."""
        last = self.first + self.loads if self.loads is not None else self.seen + 1
        return self.kind == kind and self.first <= self.seen < last


@final
class SamplingParams:
    """See vLLM's; unknown arguments are errors."""

    def __init__(self, **given: Any) -> None:
        _known(given, SAMPLING_ARGUMENTS, "SamplingParams")
        self.temperature = given.get("temperature", 1.0)
        self.max_tokens = given.get("max_tokens", 16)
        self.stop: list[str] = given.get("stop") or []
        self.stop_token_ids: list[int] = given.get("stop_token_ids") or []
        self.ignore_eos = given.get("ignore_eos", False)
        self.skip_special_tokens = given.get("skip_special_tokens", True)
        self.logprobs = given.get("logprobs")
        if self.temperature != 0.0 or not self.ignore_eos:
            raise NotImplementedError("the fake is greedy and knows no other end-of-text ids than those it is told")
        if any(not s for s in self.stop):
            raise ValueError("stop cannot contain an empty string.")


class FakeVLLMError(Exception):
    """`vllm.exceptions.VLLMError`: no `RuntimeError`, no `ValueError`."""


def _known(given: Mapping[str, Any], names: frozenset[str], what: str) -> None:
    alien = sorted(set(given) - names)
    if alien:
        raise TypeError(f"{what} got an unexpected keyword argument {alien[0]!r}")


@final
class FakeLLM:
    """`vllm.LLM`.

    Args:
        fault: what goes wrong.
        given: vLLM's arguments.
    """

    def __init__(self, fault: Fault, **given: Any) -> None:
        _known(given, LLM_ARGUMENTS, "LLM.__init__()")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._fault = fault
        fault.engines += 1
        self._max_length = int(given["max_model_len"])
        self._most_logprobs = int(given.get("max_logprobs", 20))
        dtype = getattr(torch, given["dtype"])
        self._model: Any = AutoModelForCausalLM.from_pretrained(given["model"], dtype=dtype, use_safetensors=True)
        self._model = self._model.requires_grad_(False).eval()
        self._embedding = self._model.get_input_embeddings()
        self._tied = bool(self._model.config.tie_word_embeddings)
        if self._tied:
            self._model.lm_head.weight = torch.nn.Parameter(self._embedding.weight.clone(), requires_grad=False)
        self._tokenizer = AutoTokenizer.from_pretrained(given["tokenizer"])
        self._waiting: dict[str, Any] | None = None
        self._prefixes: dict[tuple[int, ...], Any] = {}
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self._shut_down))

    def _shut_down(self) -> None:
        self._fault.closed += 1

    def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[None]:
        """Of the worker's methods, `reload_weights` from an iterator."""
        given = dict(kwargs or {})
        if method != "reload_weights" or args or set(given) != {"weights_iterator"}:
            raise NotImplementedError(f"the worker has no method {method}{args}{given}")
        self._fault.seen += 1
        if self._fault.now("dies_loading"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        new = {name: value.clone() for name, value in _pairs(given["weights_iterator"])}
        if self._fault.now("stale"):
            return [None]
        if self._fault.now("stale_layer"):
            new = {name: value for name, value in new.items() if ".layers.0." not in name}
        if self._fault.now("late"):
            new, self._waiting = self._waiting or {}, new
        held = self._model.state_dict()
        if self._tied:
            held.pop("lm_head.weight")
            new.pop("lm_head.weight", None)
        for name, value in new.items():
            held[name].copy_(value)
        return [None]

    def apply_model(self, func: Callable[[Any], Any]) -> list[Any]:
        """Calls a function with something that has a model's head and embedding."""

        def process(_: object) -> None:
            self._model.lm_head.weight.copy_(self._embedding.weight)

        weight = self._embedding.weight
        own = weight if self._tied else self._model.lm_head.weight
        head = SimpleNamespace(weight=own, quant_method=SimpleNamespace(process_weights_after_loading=process))
        body = SimpleNamespace(embed_tokens=SimpleNamespace(weight=weight))
        return [func(SimpleNamespace(lm_head=head, model=body))]

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget all blocks."""
        if self._fault.now("refuses_reset"):
            return False
        if not self._fault.now("keeps_prefixes"):
            self._prefixes.clear()
        return True

    def generate(
        self, prompts: Sequence[Mapping[str, Any]], sampling_params: Any = None, *, use_tqdm: bool = True
    ) -> list[SimpleNamespace]:
        """Greedy answers, one prompt at a time."""
        if self._fault.now("dies"):
            raise FakeVLLMError("EngineCore encountered an issue. See stack trace (above) for the root cause.")
        params = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        outputs = [self._one(list(p["prompt_token_ids"]), s) for p, s in zip(prompts, params, strict=True)]
        if self._fault.now("swaps"):
            outputs.reverse()
        if self._fault.now("drops"):
            outputs.pop()
        if self._fault.now("mislabels"):
            answers = [o.outputs for o in outputs]
            for output, answer in zip(outputs, answers[1:] + answers[:1], strict=True):
                output.outputs = answer
        return outputs

    def _one(self, prompt: list[int], params: SamplingParams) -> SimpleNamespace:
        import torch

        if len(prompt) + params.max_tokens > self._max_length or (params.logprobs or 0) > self._most_logprobs:
            raise FakeVLLMError("This model's maximum context length is exceeded.")
        read = prompt[-4:] if self._fault.now("truncates_prompts") else prompt
        cache, logits = self._prefill(read)
        ids: list[int] = []
        said: list[dict[int, SimpleNamespace]] = []
        reason, stopped = "length", None
        limit = 1 if self._fault.now("truncates") else params.max_tokens
        while len(ids) < limit:
            token, top = self._choose(logits, len(ids), params.logprobs or 0)
            ids.append(token)
            said.append(top)
            text = self._tokenizer.decode(ids, skip_special_tokens=params.skip_special_tokens)
            stopped = next((s for s in params.stop if s in text), None)
            if token in params.stop_token_ids or (stopped is not None and not self._fault.now("runs_on")):
                reason = "stop"
                break
            if len(ids) == limit:
                break
            with torch.no_grad():
                output = self._model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            logits, cache = output.logits[0, -1], output.past_key_values
        return self._output(prompt, ids, said if params.logprobs is not None else None, (reason, stopped))

    def _prefill(self, prompt: list[int]) -> tuple[Any, Any]:
        """Keys and values of a prompt, those of its whole blocks from earlier calls if they are kept; last logits."""
        import torch

        blocks = tuple(prompt[: (len(prompt) - 1) // BLOCK * BLOCK])
        with torch.no_grad():
            if blocks and blocks not in self._prefixes:
                self._prefixes[blocks] = self._model(torch.tensor([blocks]), use_cache=True).past_key_values
            cache = copy.deepcopy(self._prefixes[blocks]) if blocks else None
            rest = torch.tensor([prompt[len(blocks) :]])
            output = self._model(rest, past_key_values=cache, use_cache=True)
        return output.past_key_values, output.logits[0, -1]

    def _choose(self, logits: Any, place: int, n: int) -> tuple[int, dict[int, SimpleNamespace]]:
        """The next token, and log-probabilities of it and the best `n`."""
        values = logits.float().log_softmax(-1)
        best = values.topk(max(n, 2)).indices.tolist()
        token = best[1] if self._fault.now("second_best") and place % 3 == 2 else best[0]
        nan = self._fault.now("nan_logprobs") or (self._fault.now("nan_later") and place > 0)
        shown = dict.fromkeys([token, *best[:n]])
        top = {t: SimpleNamespace(logprob=float("nan") if nan else float(values[t])) for t in shown}
        if self._fault.now("unknown_token"):
            token = len(values) + 7
            top[token] = SimpleNamespace(logprob=-0.5)
        return token, top

    def _output(self, prompt: list[int], ids: list[int], said: Any, end: tuple[str, str | None]) -> SimpleNamespace:
        reason, stopped = end
        if self._fault.now("empty"):
            ids, said = [], []
        answer = SimpleNamespace(
            index=0,
            text="",
            token_ids=ids,
            logprobs=None if self._fault.now("no_logprobs") else said,
            finish_reason="abort" if self._fault.now("aborts") else reason,
            stop_reason=stopped,
        )
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[answer], finished=True)


def _pairs(weights: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
    """Every name once."""
    seen: set[str] = set()
    for name, value in weights:
        if name in seen:
            raise ValueError(f"{name} came twice")
        seen.add(name)
        yield name, value


def fake_vllm(fault: Fault | None = None) -> dict[str, ModuleType]:
    """Modules to put into `sys.modules` in vLLM's place.

    Args:
        fault: what goes wrong; nothing if None.

    Returns:
        Module name -> module.
    """
    chosen = fault or Fault()
    names = ("vllm", "vllm.platforms", "vllm.distributed", "vllm.exceptions")
    vllm, platforms, distributed, exceptions = (ModuleType(n) for n in names)
    for module in (vllm, platforms, distributed, exceptions):
        module.__spec__ = ModuleSpec(module.__name__, None)

    def new_llm(model: str, **given: Any) -> FakeLLM:
        return FakeLLM(chosen, model=model, **given)

    def tokens_prompt(*, prompt_token_ids: list[int]) -> dict[str, Any]:
        return {"prompt_token_ids": prompt_token_ids}

    def clean_up(shutdown_ray: bool = False) -> None:
        pass

    contents: dict[ModuleType, dict[str, Any]] = {
        vllm: {
            "__version__": VERSION,
            "LLM": new_llm,
            "SamplingParams": SamplingParams,
            "TokensPrompt": tokens_prompt,
            "distributed": distributed,
            "platforms": platforms,
            "exceptions": exceptions,
        },
        platforms: {"current_platform": SimpleNamespace(device_type="cpu")},
        exceptions: {"VLLMError": FakeVLLMError},
        distributed: {"cleanup_dist_env_and_memory": clean_up},
    }
    for module, held in contents.items():
        vars(module).update(held)
    return {module.__name__: module for module in contents}


def install(fault: Fault | None = None) -> None:
    """Put the fake in place for the whole process; tests take `monkeypatch.setitem(sys.modules, ...)` instead."""
    sys.modules.update(fake_vllm(fault))
