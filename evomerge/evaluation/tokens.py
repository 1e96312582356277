"""Text to token ids exactly as lm-eval's HFLM does it, and what else of a tokenizer's folder decides scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from evomerge.checkpoints.beside import check_settings
from evomerge.checkpoints.loading_errors import LOADING_ERRORS
from evomerge.checkpoints.tokenizers import read_vocabulary
from evomerge.errors import EvaluationError
from evomerge.evaluation.tokenizer_faults import tokenizer_faults

DEFAULT_MAX_LENGTH: Final = 2048
LENGTH_KEYS: Final = ("n_positions", "max_position_embeddings", "n_ctx")
_UNSET_LENGTH: Final = 1000000000000000019884624838656
_UNSUPPORTED: Final[dict[str, Any]] = {
    "num_beams": 1,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "guidance_scale": 1.0,
    "penalty_alpha": None,
}
"""Settings of a generation config that change greedy decoding and that our decoder does not know."""


class ModelFacts(NamedTuple):
    """What a checkpoint's config and generation config say about scoring.

    Attributes:
        max_length: tokens the model may see at once.
        eos: ids that end a generation; empty when the configs name none.
        repetition_penalty: the generation config's default.
        generation: the whole generation config.
    """

    max_length: int
    eos: tuple[int, ...]
    repetition_penalty: float
    generation: dict[str, Any]


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint's folder, with a padding token as lm-eval chooses it. Never runs its code.

    Raises:
        ModelError: when its files are damaged, lead out of the folder, or ask for more than tokens.
        EvaluationError: when the folder holds no loadable tokenizer, or one without `<bos>` and `<eos>`.
    """
    from transformers import AutoTokenizer

    check_settings(folder)
    read_vocabulary(folder)
    try:
        with tokenizer_faults(folder):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise EvaluationError(
            "The tokenizer does not load.",
            got=f"{folder}: {str(error).splitlines()[0][:300] if str(error) else type(error).__name__}",
            allowed="a folder with tokenizer.json (or other tokenizer files) that AutoTokenizer loads without code",
            fix="add the tokenizer's files to the checkpoint's folder.",
        ) from error
    if tokenizer.eos_token_id is None:
        raise EvaluationError(
            "The tokenizer has no end-of-text token.",
            got=f"{folder}: eos_token is not set",
            allowed="a tokenizer with eos_token",
            fix="set eos_token in tokenizer_config.json.",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    return tokenizer


def model_facts(folder: Path, tokenizer: Any) -> ModelFacts:
    """Maximum length and generation defaults, from the folder's config files and the tokenizer.

    Raises:
        EvaluationError: when a config cannot be read.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        config = None
        if (folder / "config.json").is_file():
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if (folder / "generation_config.json").is_file():
            generation = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
        elif config is not None:
            generation = GenerationConfig.from_model_config(config)
        else:
            generation = GenerationConfig()
    except LOADING_ERRORS as error:
        raise EvaluationError(
            "The model's config cannot be read.",
            got=f"{folder}: {str(error)[:300]}",
            allowed="config.json and generation_config.json of a known model type",
            fix="repair these files.",
        ) from error
    eos = generation.eos_token_id
    ids = () if eos is None else tuple(int(i) for i in (eos if isinstance(eos, list | tuple) else [eos]))
    return ModelFacts(
        _max_length(config, tokenizer), ids, float(generation.repetition_penalty or 1.0), generation.to_dict()
    )


def positions_of(config: Any) -> int | None:
    """How many positions a model's config says it has; None where it says nothing, or there is no config."""
    text = getattr(config, "text_config", None) or config
    for key in LENGTH_KEYS:
        value = getattr(text, key, None)
        if value is not None:
            return int(value)
    return None


def _max_length(config: Any, tokenizer: Any) -> int:
    """lm-eval's order: the text config's positions, then the tokenizer's limit, then 2,048."""
    positions = positions_of(config)
    if positions is not None:
        return positions
    limit = getattr(tokenizer, "model_max_length", None)
    return DEFAULT_MAX_LENGTH if limit is None or limit == _UNSET_LENGTH else int(limit)


def check_greedy(settings: dict[str, Any], where: str) -> None:
    """Refuses settings that our greedy decoder does not follow.

    Raises:
        EvaluationError: naming the first such setting.
    """
    for key, neutral in _UNSUPPORTED.items():
        value = settings.get(key)
        if value is not None and value != neutral:
            raise EvaluationError(
                f"{where} asks for a way of decoding that is not supported.",
                got=f"{key}: {value!r}",
                allowed="greedy decoding with until, max_gen_toks and repetition_penalty",
                fix=f"remove {key}.",
            )


@final
@dataclass(frozen=True)
class Encoder:
    """lm-eval's encoding rules for a causal model with the default `add_bos_token`.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        max_length: tokens the model may see at once.
    """

    tokenizer: Any
    max_length: int

    @property
    def prefix(self) -> int:
        """The token that conditions a text without context: `<bos>`, else `<eos>`."""
        bos = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if bos is None else bos)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; specials as the tokenizer adds them, unless the text already opens with `<bos>`."""
        if text.startswith(self.tokenizer.decode(self.prefix)):
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        return list(self.tokenizer.encode(text))

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of what follows; white space at the border belongs to the continuation."""
        if not context:
            ids = list(self.tokenizer.encode(continuation, add_special_tokens=False))
            return ([self.prefix], ids) if ids[:1] != [self.prefix] else (ids[:1], ids[1:])
        bare = context.rstrip()
        moved = context[len(bare) :] + continuation
        head = self.encode(bare)
        return head, self.encode(bare + moved)[len(head) :]

    def cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The last `max_length + 1` tokens of the pair (the last one is never an input)."""
        surplus = len(context) + len(continuation) - (self.max_length + 1)
        return (context[surplus:] if surplus > 0 else context), continuation

    def windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        """A text in disjoint windows, each a context and what is predicted: every token exactly once."""
        ids = self.encode(text)
        length = self.max_length
        if ids:
            yield [self.prefix], ids[:length]
        for start in range(length, len(ids), length):
            end = min(start + length, len(ids))
            # lm-eval gives a short last window as much context as fits
            yield ids[end - length - 1 : start], ids[start:end]

    def prompt(self, text: str, max_gen_toks: int) -> list[int]:
        """Ids of a prompt, cut from the left so that `max_gen_toks` new tokens fit."""
        bos = self.tokenizer.bos_token
        bare = bos is not None and text.startswith(bos)
        ids = self.tokenizer(text, add_special_tokens=False) if bare else self.tokenizer(text)
        return list(ids["input_ids"])[-(self.max_length - max_gen_toks) :]


def characters(tokenizer: Any) -> tuple[str, ...] | None:
    """Token id -> its character, when every text has exactly one spelling; None when that cannot be shown.

    Shown for a WordLevel vocabulary whose ordinary tokens are single, different characters, with the Fuse decoder
    and without clean-up of spaces: decoding joins the characters, so two different sequences of ordinary tokens never
    give the same text. Special tokens map to `""`, as decoding drops them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return None
    state = json.loads(backend.to_str())
    if state["model"]["type"] != "WordLevel" or (state["decoder"] or {}).get("type") != "Fuse":
        return None
    table = [""] * len(tokenizer)
    specials = set(tokenizer.all_special_ids)
    for text, i in tokenizer.get_vocab().items():
        table[i] = "" if i in specials else text
    ordinary = [t for i, t in enumerate(table) if i not in specials]
    unique = len(set(ordinary)) == len(ordinary) and all(len(t) == 1 for t in ordinary)
    ids = [i for i in range(len(table)) if i not in specials]
    whole = tokenizer.decode(ids, skip_special_tokens=True) == "".join(ordinary)
    return tuple(table) if unique and whole else None
