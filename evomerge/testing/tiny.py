"""Tiny random checkpoints of many architectures, saved as transformers saves them, in milliseconds each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import ConfigError, suggest
from evomerge.seeds import generator
from evomerge.testing.tiny_families import ALL, BASIC, DENSE, MIXTURES, MORE

FAMILIES: tuple[str, ...] = tuple(BASIC)
"""The architectures that every part is tested with."""
MORE_FAMILIES: tuple[str, ...] = tuple(MORE)
"""Further architectures through whose layers paths run."""
DENSE_FAMILIES: tuple[str, ...] = tuple(DENSE)
"""Architectures that are only merged, without experts."""
MIXTURE_FAMILIES: tuple[str, ...] = tuple(MIXTURES)
"""Mixtures of experts."""


def _randomize(model: Any, seed: int) -> None:
    """Give every parameter values of its own: normal ones of a layer's usual size, norm gains near where they were."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rng = generator(seed, "tiny", name)
            noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape), dtype=np.float32))
            if parameter.dim() == 1:
                parameter.add_(0.05 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)


def _save_tokenizer(folder: Path, vocab_size: int) -> None:
    """A tokenizer of single characters: three special tokens, then printable ASCII, as many as the vocabulary holds."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<bos>", "<eos>"]
    # letters and digits first, so that even a small vocabulary spells the toy tasks
    characters = " 0123456789abcdefghijklmnopqrstuvwxyz+-=?:.,\nABCDEFGHIJKLMNOPQRSTUVWXYZ!\"#$%&'()*/;<>@[\\]^_`{|}~"
    tokens = [*specials, *characters][:vocab_size]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<pad>"
    )
    wrapped.save_pretrained(folder)


def tiny_model(family: str, seed: int, *, tie: bool | None = None, attention: str | None = None, **config: Any) -> Any:
    """A random fp32 model of two layers, 32 wide, with a vocabulary of 64, in eval mode and without gradients.

    Args:
        family: a name in `tiny_families.ALL`.
        seed: of the weights; equal arguments give equal weights.
        tie: share embedding and head; None leaves it to the architecture.
        attention: transformers' name of the implementation; None leaves it to transformers.
        config: keyword arguments of the architecture's config class, over the tiny defaults.

    Raises:
        ConfigError: for an unknown family.
    """
    if family not in ALL:
        raise ConfigError(
            "There is no tiny checkpoint of this family.",
            got=repr(family),
            allowed=suggest(family, ALL),
            fix="use one of these names.",
        )
    import torch
    import transformers

    class_name, defaults = ALL[family]
    arguments = {**defaults, **({} if tie is None else {"tie_word_embeddings": tie}), **config}
    model_config = getattr(transformers, class_name)(**arguments)
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(
            model_config, dtype=torch.float32, attn_implementation=attention
        )
    _randomize(model, seed)
    return model.requires_grad_(False).eval()


def tiny_checkpoint(
    folder: Path,
    family: str,
    seed: int,
    dtype: str = "float32",
    *,
    tokenizer: bool = False,
    tie: bool | None = None,
    max_shard_size: str | int = "5GB",
    **config: Any,
) -> Path:
    """Save a random model of two layers, 32 wide, with a vocabulary of 64; about 25 thousand parameters.

    Args:
        folder: where to; is made.
        family: a name in `tiny_families.ALL`.
        seed: of the weights; equal arguments give equal files.
        dtype: of the weights, torch's spelling.
        tokenizer: also save a tokenizer of single characters.
        tie: share embedding and head; None leaves it to the architecture.
        max_shard_size: as in transformers, for sharded checkpoints (`"20KB"`).
        config: keyword arguments of the architecture's config class, over the tiny defaults.

    Returns:
        `folder`.

    Raises:
        ConfigError: for an unknown family.
    """
    import torch

    model = tiny_model(family, seed, tie=tie, **config)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        _save_tokenizer(folder, int(model.config.vocab_size))
    return folder


def tiny_siblings(
    folder: Path, family: str, names: Sequence[str], dtype: str = "float32", *, step: float = 0.05, **config: Any
) -> dict[str, Path]:
    """Save a random model and others as if fine-tuned from it: every floating tensor, buffers too, moved a little.

    Args:
        folder: where to; one folder per name is made in it.
        family: a name in `tiny_families.ALL`.
        names: the first is the base.
        dtype: of the weights, torch's spelling.
        step: standard deviation of the differences.
        config: as for `tiny_checkpoint`.

    Returns:
        Name -> folder.

    Raises:
        ConfigError: for an unknown family.
    """
    import torch

    saved = {}
    for i, name in enumerate(names):
        model = tiny_model(family, 0, **config)
        for key, tensor in model.state_dict().items():
            if i and tensor.is_floating_point():
                rng = generator(i, "sibling", key)
                tensor.add_(step * torch.from_numpy(rng.standard_normal(tuple(tensor.shape), dtype=np.float32)))
        saved[name] = folder / name
        model.to(getattr(torch, dtype)).save_pretrained(saved[name])
    return saved
