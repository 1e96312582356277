"""Light commands stay light: what they load, and how long they take."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "ray", "transformers", "lm_eval", "optuna", "cma", "datasets", "matplotlib")


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "more"),
    [
        ("import evomerge", ("pydantic", "numpy", "yaml")),
        ("import evomerge.cli.main", ("pydantic", "numpy", "yaml")),
        ("import evomerge.report.collect", ()),
        ("import evomerge.config.schema", ()),
        ("import evomerge.space.language, evomerge.recipe.serialize", ("pydantic",)),
    ],
)
def test_nothing_heavy_is_loaded(statement: str, more: tuple[str, ...]) -> None:
    assert not loaded_after(statement) & {*HEAVY, *more}


def test_help_is_quick() -> None:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "evomerge", "--help"], check=True, capture_output=True, text=True)
    assert "search" in done.stdout
    assert time.perf_counter() - started < 1.5  # 0.1 s on an idle machine; test machines are not idle
