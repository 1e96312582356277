"""What transformers raises for configs, tokenizers and weights that it does not understand."""

from __future__ import annotations

from typing import Final

from huggingface_hub.errors import StrictDataclassError

LOADING_ERRORS: Final = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ImportError,
    ArithmeticError,
    RuntimeError,
    StrictDataclassError,
)
"""A config of the wrong shape surfaces as any of these, wherever it is first used."""
