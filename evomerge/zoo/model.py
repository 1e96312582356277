"""The zoo's architecture and its character-level tokenizer."""

from __future__ import annotations

import string

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.zoo.spec import ModelSize

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(4)
CHARACTERS = string.digits + string.ascii_lowercase + "ABCDEFGHIJ" + "+=><#:" + "\n ,.-*/?"
MAX_POSITIONS = 64
INIT_STD = 0.02


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, `<bos>` in front of every text, `<eos>` never added."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = {token: i for i, token in enumerate((*SPECIALS, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def encode(text: str) -> list[int]:
    """Token ids of `text` without specials: what the tokenizer gives, without its overhead."""
    return [len(SPECIALS) + CHARACTERS.index(c) for c in text]


def make_config(size: ModelSize) -> LlamaConfig:
    """An ordinary Llama configuration with an untied head, fp32."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(SPECIALS) + len(CHARACTERS),
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        dtype="float32",
    )


def make_model(size: ModelSize, seed: int) -> LlamaForCausalLM:
    """A fresh model: matrices normal with standard deviation 0.02, norms one; a pure function of size and seed."""
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(make_config(size))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, INIT_STD, generator=generator)
    return model
