"""The long matrix: every method, setting, dtype and family through `run_merge` and through us.

What is measured is kept in `.cache/parity`, from where `benchmarks/parity.py` writes docs/parity.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from evomerge.testing.parity import MODES, Bench, built_methods
from evomerge.testing.peer import SETTINGS
from evomerge.testing.tiny import DENSE_FAMILIES, FAMILIES, MIXTURE_FAMILIES, MORE_FAMILIES

pytest.importorskip("mergekit")
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
]

DTYPES = ("float32", "bfloat16", "float16")
VANISHING_SCALARS = {("apertus", "karcher"): 2}
"""Tensors without axes and below `tol`, whose zero mergekit stores in the narrow dtype: no header tells."""
MEASURED = Path(__file__).parents[2] / ".cache" / "parity"


@pytest.fixture(autouse=True)
def _offline_on_one_thread(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()
    torch.set_num_threads(before)


def keep(cells, family, dtype):
    MEASURED.mkdir(parents=True, exist_ok=True)
    (MEASURED / f"{family}-{dtype}.json").write_text(json.dumps([cell.to_json() for cell in cells], indent=1))


def assert_mergekits_bits(cells):
    for cell in cells:
        assert all("mergekit: merged" not in failure for failure in cell.failed), cell
        if cell.mode == "compat":
            vanishing = VANISHING_SCALARS.get((cell.family, cell.method), 0)
            assert cell.agreement.equal >= cell.agreement.n - vanishing, cell
            assert cell.agreement.largest == 0, cell


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_a_family_at_every_setting(family, dtype, tmp_path):
    bench = Bench.open(tmp_path, family, dtype)
    cells = [bench.measure(method, mode) for mode in MODES for method in built_methods()]
    keep(cells, family, dtype)
    assert_mergekits_bits(cells)


@pytest.mark.parametrize("family", [*DENSE_FAMILIES, *MIXTURE_FAMILIES])
def test_a_further_family_at_the_first_setting(family, tmp_path):
    bench = Bench.open(tmp_path, family, "bfloat16")
    cells = [bench.measure(m, mode, SETTINGS[m][:1]) for mode in ("compat", "plain") for m in built_methods()]
    keep(cells, family, "bfloat16")
    assert_mergekits_bits(cells)
