"""evomerge: an evolutionary merge optimizer for language models.

The names below are the public API; each is imported on first use, so that `import evomerge` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.api import merge, search
    from evomerge.recipe.recipe import Recipe
    from evomerge.types import Evaluation, Failure

__version__ = "0.1.0"

__all__ = ["Evaluation", "Failure", "Recipe", "__version__", "merge", "search"]

_HOMES = {
    "Evaluation": "evomerge.types",
    "Failure": "evomerge.types",
    "Recipe": "evomerge.recipe.recipe",
    "merge": "evomerge.api",
    "search": "evomerge.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
