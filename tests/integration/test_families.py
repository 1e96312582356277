"""Every family of docs/families.md does what its row says."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.merging.kernels import Kernels
from evomerge.testing.family_checks import check_family
from evomerge.testing.family_table import COLUMNS, fact_cells, read_rows, replaced
from evomerge.testing.tiny_families import ALL, MIXTURES

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
ROWS = read_rows(PAGE.read_text(encoding="utf-8"))
BFLOAT16 = ("llama", "gpt2", "gemma2", "mixtral", "deepseek_v3", "gpt_oss", "qwen3_next", "nemotron_h", "jamba")


def test_the_page_lists_all_families_and_hides_no_failure() -> None:
    assert list(ROWS) == list(ALL)
    assert len(ROWS) - len(MIXTURES) >= 25
    assert len(MIXTURES) >= 10
    for family, row in ROWS.items():
        assert row[3:7] == ("yes",) * 4, family


def test_replacing_a_table_changes_nothing_else() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert replaced(page, ROWS.values()) == page
    one = replaced(page, [("x",) * len(COLUMNS)])
    assert list(read_rows(one)) == ["x"]
    assert one.count("\n") == page.count("\n") - len(ROWS) + 1


@pytest.mark.parametrize("family", ALL)
def test_a_family_does_what_its_row_says(family: str, tmp_path: Path) -> None:
    facts = check_family(family, tmp_path)
    assert fact_cells(facts) == ROWS[family][:8]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels(tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("family", BFLOAT16)
def test_half_precision_and_compiled_kernels_change_no_fact(family: str, tmp_path: Path, kernels: Kernels) -> None:
    facts = check_family(family, tmp_path, "bfloat16", kernels)
    assert fact_cells(facts) == ROWS[family][:8]
