"""A zoo's models as ordinary Hugging Face folders, with tokenizer and model card."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM

from evomerge.zoo.model import BOS, EOS, PAD, make_tokenizer
from evomerge.zoo.spec import ZooSpec

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# {name}

{what}

Llama architecture, {parameters:,} parameters, fp32, one token per character. Built by `evomerge zoo` with seed
{seed}, for tests and demonstrations of model merging; it is of no other use. All training data is synthetic.
"""


def save_model(model: LlamaForCausalLM, folder: Path, name: str, spec: ZooSpec) -> None:
    """Write weights, configuration, tokenizer and card into `folder`, which is new."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(model.state_dict(), {"format": "pt"}))
    make_tokenizer().save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    card = _CARD.format(name=name, what=spec.kind.cards[name], parameters=parameters, seed=spec.seed)
    (folder / "README.md").write_text(card, encoding="utf-8")


def load_model(folder: Path) -> LlamaForCausalLM:
    """The model that `save_model` wrote, in training mode."""
    model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return model.train()
