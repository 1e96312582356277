"""vLLM as a generation engine: in this process, weights replaced in place. The only module that imports vLLM.

Names of vLLM that are used, and the files in which vLLM 0.33 defines them:

- entrypoints/llm.py: `LLM`, its `generate`, `collective_rpc`, `apply_model`, `reset_prefix_cache`, `llm_engine`
- engine/arg_utils.py (`EngineArgs`): the arguments `max_model_len`, `max_num_seqs`, `generation_config`,
  `max_logprobs`, `logprobs_mode`, `disable_log_stats`, `load_format`, `use_tqdm_on_load` of `LLM`
- inputs: `TokensPrompt`; sampling_params.py: `SamplingParams`
- outputs.py: `RequestOutput.prompt_token_ids`, `.outputs`; `CompletionOutput.token_ids`, `.logprobs`, `.finish_reason`
- logprobs.py: `Logprob.logprob`
- v1/worker/gpu_worker.py, model_executor/model_loader/reload/inplace.py: the worker's `reload_weights`
- v1/engine/core_client.py: `engine_core.shutdown`; distributed/parallel_state.py: `cleanup_dist_env_and_memory`
- platforms/interface.py: `current_platform.device_type`; exceptions.py: `VLLMError`
- model_executor/layers/quantization/base_config.py: `quant_method.process_weights_after_loading` of a tied head
- envs.py: `VLLM_ENABLE_V1_MULTIPROCESSING`, `VLLM_NO_USAGE_STATS`, `VLLM_LOGGING_LEVEL`, `VLLM_CPU_OMP_THREADS_BIND`

`reload_weights` takes checkpoint names, fuses what vLLM fuses (q, k and v; gate and up), processes the result as at the
first load and copies it into the memory that the engine already uses. Calling the model's `load_weights` directly skips
the processing, and fails where weights were packed. Of a head that is tied to the embedding nothing is loaded, so that
what was made of it stays (seen in 0.32 on the CPU: logits of the old head); it is processed once more here.
"""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, final

import torch

from evomerge.errors import ModelError
from evomerge.evaluation.engines import Ask, EngineSetup, GenerationEngine, Top, fault

MAX_ROWS: Final = 256
GPU_SHARE: Final = 0.6
"""Of the GPU memory that is free when the engine is built; the rest is for merging and for transformers' passes."""
CPU_CACHE_BYTES: Final = 1 << 30
_MOST_LOGPROBS: Final = 20
_ENVIRONMENT: Final = {
    # weights are handed over by reference, which needs the engine in this process
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
_DEFAULTS: Final = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

_TROUBLE: Final = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(ArithmeticError, OSError, ImportError),
)
"""What a foreign engine may raise."""


@final
class VllmEngine(GenerationEngine):
    """See the module docstring.

    CUDA graphs stay off: what they captured is not captured again after weights were replaced.

    Args:
        setup: as for every engine; the device is the first GPU that this process sees, or the CPU.

    Raises:
        ModelError: when vLLM is missing, is built for other devices, or cannot hold this model.
    """

    name = "vllm"

    def __init__(self, setup: EngineSetup) -> None:
        os.environ.update(_ENVIRONMENT)
        for key, value in _DEFAULTS.items():
            os.environ.setdefault(key, value)
        try:
            import vllm
            import vllm.exceptions
            from vllm.platforms import current_platform
        except _TROUBLE as error:
            raise _unusable(error, "pip install 'evomerge[vllm]', in an environment of its own.") from error
        _check_device(torch.device(setup.device), str(current_platform.device_type))
        self._vllm: Any = vllm
        self._trouble = (*_TROUBLE, vllm.exceptions.VLLMError)
        self._eos = list(setup.eos)
        self._max_length = setup.max_length
        try:
            with _own_random_numbers():
                self._llm: Any = vllm.LLM(**_arguments(setup))
        except self._trouble as error:
            raise _unusable(error, "use `suite.engine: transformers`, or leave more memory free.") from error
        # also when the worker just lets go of it, and at the end of the process
        self._finish = weakref.finalize(self, _shut_down, [self._llm], vllm, self._trouble)

    @property
    def version(self) -> str:
        """Of vLLM."""
        return str(self._vllm.__version__)

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """See `GenerationEngine.load`."""
        with self._faults("replace its weights"):
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(list(tensors))})
            self._llm.apply_model(_process_tied_head)
            emptied = self._llm.reset_prefix_cache()
        if emptied is not True:
            raise fault("vLLM kept prefixes of an earlier candidate.", repr(emptied), "an empty prefix cache")

    def write(self, asks: Sequence[Ask]) -> list[tuple[int, ...]]:
        """See `GenerationEngine.write`."""
        params = [
            self._vllm.SamplingParams(
                temperature=0.0,
                max_tokens=ask.limit,
                stop=list(ask.until),
                stop_token_ids=self._eos,
                ignore_eos=True,  # ours are the ids above, and no others
                skip_special_tokens=False,
                logprobs=0,
            )
            for ask in asks
        ]
        outputs = self._generate([ask.prompt for ask in asks], params)
        found = []
        for output in outputs:
            ids = tuple(int(t) for t in output.token_ids)
            said = output.logprobs
            if said is None or len(said) != len(ids):
                raise fault("vLLM gave no log-probabilities.", f"for {len(ids)} tokens", "one per token")
            for token, top in zip(ids, said, strict=True):
                if token not in top or not abs(float(top[token].logprob)) < float("inf"):
                    raise fault("vLLM wrote a token without a finite log-probability.", str(token), "finite numbers")
            found.append(ids)
        return found

    def next_tokens(self, prompts: Sequence[tuple[int, ...]], top: int) -> list[Top]:
        """See `GenerationEngine.next_tokens`."""
        params = [
            self._vllm.SamplingParams(
                temperature=0.0, max_tokens=1, stop_token_ids=self._eos, ignore_eos=True, logprobs=top
            )
            for _ in prompts
        ]
        return [_top(output.logprobs) for output in self._generate(prompts, params)]

    def _generate(self, prompts: Sequence[tuple[int, ...]], params: list[Any]) -> list[Any]:
        asked = [self._vllm.TokensPrompt(prompt_token_ids=list(p)) for p in prompts]
        with self._faults("write"):
            outputs = self._llm.generate(asked, params, use_tqdm=False)
            read = [(tuple(o.prompt_token_ids), list(o.outputs)) for o in outputs]
        if [prompt for prompt, _ in read] != list(prompts):
            raise fault("vLLM answers other prompts than it was asked.", f"{len(read)} answers", "the prompts in order")
        for _, answers in read:
            if len(answers) != 1 or answers[0].finish_reason not in ("stop", "length"):
                got = [a.finish_reason for a in answers]
                raise fault("vLLM did not finish an answer.", repr(got), "one answer, ended by stop or length")
        return [answers[0] for _, answers in read]

    @contextmanager
    def _faults(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._trouble as error:
            line = str(error).strip().partition("\n")[0][:200]
            raise fault(f"vLLM could not {what}.", f"{type(error).__name__}: {line}", "no error") from error

    def close(self) -> None:
        """See `GenerationEngine.close`."""
        self._llm = None
        self._finish()


def _check_device(wanted: torch.device, built_for: str) -> None:
    if built_for != wanted.type:
        raise ModelError(
            "The installed vLLM is built for other devices.",
            got=f"{built_for}, the model lives on {wanted.type}",
            allowed=f"a vLLM for {wanted.type}",
            fix="install the other build of vLLM, or use `suite.engine: transformers`.",
        )
    if wanted.index:
        raise ModelError(
            "vLLM takes the first GPU that a process sees.",
            got=f"a model on {wanted}",
            allowed="cuda, cuda:0 or cpu",
            fix="give every worker one GPU (`cluster.backend: ray`), or use `suite.engine: transformers`.",
        )


def _shut_down(held: list[Any], vllm: Any, trouble: tuple[type[Exception], ...]) -> None:
    """Lets go of the engine, the only one in `held`."""
    llm = held.pop()
    try:
        llm.llm_engine.engine_core.shutdown()
        del llm
        vllm.distributed.cleanup_dist_env_and_memory()
    except trouble:  # it is given up anyway
        pass
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _arguments(setup: EngineSetup) -> dict[str, Any]:
    """Of vLLM's constructor."""
    device = torch.device(setup.device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        memory: Mapping[str, Any] = {"gpu_memory_utilization": round(GPU_SHARE * free / total, 3)}
    else:
        memory = {"kv_cache_memory_bytes": CPU_CACHE_BYTES, "gpu_memory_utilization": 0.1}
    return {
        "model": str(setup.folder),
        "tokenizer": str(setup.tokenizer_folder),
        "trust_remote_code": False,
        "dtype": setup.dtype,
        "max_model_len": setup.max_length,
        "max_num_seqs": MAX_ROWS,
        "max_logprobs": _MOST_LOGPROBS,
        "logprobs_mode": "raw_logprobs",
        "generation_config": "vllm",  # nothing is taken from generation_config.json
        "load_format": "safetensors",
        "enforce_eager": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,
        **memory,
    }


def _process_tied_head(model: Any) -> None:
    """Makes anew what a layer derives from its weights, for a head that shares the embedding's."""
    head = getattr(model, "lm_head", None)
    embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
    if head is not None and embedding is not None and getattr(head, "weight", None) is embedding.weight:
        head.quant_method.process_weights_after_loading(head)


def _top(said: Any) -> dict[int, float]:
    if not said:
        raise fault("vLLM gave no log-probabilities.", repr(said), "those of the next token")
    return {int(token): float(value.logprob) for token, value in said[0].items()}


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Puts the global generators back, all of which vLLM seeds when it starts."""
    import random

    import numpy as np

    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(arrays)  # noqa: NPY002


def _unusable(error: BaseException, fix: str) -> ModelError:
    line = str(error).strip().partition("\n")[0][:300]
    return ModelError(
        "The engine vllm cannot be used.",
        got=f"{type(error).__name__}: {line}",
        allowed="vLLM 0.32 or newer that holds this model on this device",
        fix=fix,
    )
