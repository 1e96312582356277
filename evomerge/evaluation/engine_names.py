"""What engines and their stages are called; light enough for reports."""

from __future__ import annotations

from typing import Final

REFERENCE: Final = "transformers"
"""The engine that needs none: the resident model itself."""
FALLBACK: Final = "fallback"
"""The stage of `Evaluation.timing_s` that only candidates have which the reference answered in an engine's place."""
