"""The corpus of hostile checkpoints: named mutations of a tiny sound one, and what has to be said of each."""

from __future__ import annotations

from pathlib import Path

from evomerge.testing.hostile_adapters import adapter_mutations, value_mutations
from evomerge.testing.hostile_configs import config_mutations
from evomerge.testing.hostile_files import file_mutations
from evomerge.testing.hostile_headers import header_mutations
from evomerge.testing.hostile_model import Mutation
from evomerge.testing.hostile_tokenizers import tokenizer_mutations
from evomerge.testing.tiny import tiny_checkpoint


def corpus() -> tuple[Mutation, ...]:
    """Every mutation; names are unique."""
    return (
        *header_mutations(),
        *file_mutations(),
        *config_mutations(),
        *tokenizer_mutations(),
        *value_mutations(),
        *adapter_mutations(),
    )


def sound_checkpoint(folder: Path) -> Path:
    """The checkpoint that is damaged: a llama of two layers with a tokenizer."""
    return tiny_checkpoint(folder, "llama", 0, tokenizer=True)
