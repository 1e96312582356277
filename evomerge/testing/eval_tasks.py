"""Small lm-eval tasks on disk, and models with tokenizers to ask them: inputs for tests of evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evomerge.testing.tiny import tiny_checkpoint

_TEXT = (
    "the sun was low and red over hills while old birds sat near water it ran fast then stopped for one long hour "
    "she said that no man can count all stars but some do try each night with paper and a cold cup of tea"
)
_WORDS = tuple(_TEXT.split(" "))


def sentence(number: int, length: int) -> str:
    """Words in an order that depends on `number`; different numbers give different sentences."""
    picks = [_WORDS[(number * 7 + i * (number % 5 + 3)) % len(_WORDS)] for i in range(length)]
    return " ".join([*picks, f"{number}"])


def write_task(folder: Path, name: str, documents: Sequence[Mapping[str, Any]], **config: Any) -> Path:
    """Writes `name.yaml` and `name.jsonl`, whose path the YAML gives relative to itself.

    Args:
        folder: where to; is made.
        name: the task's name.
        documents: JSON objects.
        config: keys of the lm-eval task file.

    Returns:
        The YAML file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(d) + "\n" for d in documents)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    shared = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str((folder / f"{name}.jsonl").resolve())}},
        "test_split": "test",
        "fewshot_split": "test",
        "metadata": {"version": 1.0},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**shared, **config}, sort_keys=False), encoding="utf-8")
    return path


def metric(name: str, aggregation: str = "mean", **options: Any) -> dict[str, Any]:
    """An entry of `metric_list`."""
    return {"metric": name, "aggregation": aggregation, "higher_is_better": aggregation == "mean", **options}


def write_choice_task(folder: Path, name: str = "pick", n: int = 16, **config: Any) -> Path:
    """Multiple choice: three answers of different lengths, some of one token."""
    documents = [
        {
            "question": sentence(i, 4 + i % 5),
            "choices": [sentence(i + 1, 1 + i % 3), "no", _WORDS[i % len(_WORDS)]],
            "label": i % 3,
        }
        for i in range(n)
    ]
    settings = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [metric("acc"), metric("acc_norm"), metric("acc_bytes"), metric("exact_match")],
    }
    return write_task(folder, name, documents, **{**settings, **config})


def write_loglikelihood_task(folder: Path, name: str = "last", n: int = 16, **config: Any) -> Path:
    """Log-likelihood of a word behind a sentence that ends in a space now and then."""
    documents = [
        {"text": sentence(i, 3 + i % 4) + (" " if i % 3 == 0 else ""), "word": _WORDS[(i * 3) % len(_WORDS)]}
        for i in range(n)
    ]
    settings = {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{' ' + word}}",
        "metric_list": [metric("perplexity", "perplexity"), metric("acc")],
    }
    return write_task(folder, name, documents, **{**settings, **config})


def write_rolling_task(folder: Path, name: str = "read", n: int = 12, **config: Any) -> Path:
    """Perplexity of texts, some of them longer than a small model sees at once."""
    documents = [{"page": sentence(i, 5 + 9 * (i % 4))} for i in range(n)]
    settings = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [
            metric("word_perplexity", "weighted_perplexity"),
            metric("byte_perplexity", "weighted_perplexity"),
            metric("bits_per_byte", "bits_per_byte"),
        ],
    }
    return write_task(folder, name, documents, **{**settings, **config})


def write_generation_task(
    folder: Path, name: str = "say", n: int = 16, answers: Sequence[str] | None = None, **config: Any
) -> Path:
    """Generate-until with exact match.

    Args:
        folder: where to.
        name: the task's name.
        n: number of items.
        answers: the targets; sentences by default, which a random model never writes.
        config: over the defaults.
    """
    documents = [
        {"question": sentence(i, 2 + i % 4), "answer": answers[i] if answers else sentence(i + 3, 1)} for i in range(n)
    ]
    settings = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}:",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 6},
        "metric_list": [metric("exact_match")],
    }
    return write_task(folder, name, documents, **{**settings, **config})


def byte_pair_checkpoint(folder: Path, family: str = "llama", seed: int = 0, **config: Any) -> Path:
    """A tiny random model with a byte-level BPE tokenizer of 300 tokens without `<bos>`, trained on the spot."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([sentence(i, 12) for i in range(40)], trainer)
    eos = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
    tiny_checkpoint(folder, family, seed, **{"vocab_size": 320, **eos, **config})
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=False)
    wrapped.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    wrapped.save_pretrained(folder)
    return folder


def character_checkpoint(folder: Path, family: str = "llama", seed: int = 0, **config: Any) -> Path:
    """A tiny random model with the zoo's character tokenizer, which puts `<bos>` in front of every text."""
    from evomerge.zoo.model import make_tokenizer

    tokenizer = make_tokenizer()
    ids = {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tiny_checkpoint(folder, family, seed, **{"vocab_size": len(tokenizer), **ids, **config})
    tokenizer.save_pretrained(folder)
    return folder
