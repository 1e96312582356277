"""Merge methods of the literature that mergekit has not: what each asks for."""

from __future__ import annotations

from typing import Final

from evomerge.recipe.method_spec import MethodSpec

PAPER_SPECS: Final[tuple[MethodSpec, ...]] = ()
