"""Every family of docs/families.md does what its row says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.merging.export import merge_tensors
from evomerge.merging.kernels import Kernels
from evomerge.merging.placement import place
from evomerge.merging.resident import ResidentModel
from evomerge.recipe.methods import BUILTIN
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.testing.family_checks import check_family, open_siblings
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


def any_rule(method: str) -> Rule:
    """A rule with one half wherever a method asks for a number."""
    spec = BUILTIN[method]
    asked = {n: 0.5 for n in spec.per_parent() if spec.parameters[n].default is None}
    parents = ("x",) if spec.max_models == 1 else ("x", "y")
    return Rule(
        method, {n: 0.5 for n in spec.shared() if spec.parameters[n].default is None}, dict.fromkeys(parents, asked)
    )


@pytest.mark.parametrize("family", ["deepseek_v3", "granitemoe"])
def test_every_method_merges_experts_in_memory_as_on_disk(family: str, tmp_path: Path) -> None:
    """One by one where the checkpoint names them, and as the stacks of three axes that other checkpoints hold."""
    _, pool = open_siblings(tmp_path, family)
    resident = ResidentModel(pool, "base", kernels=Kernels())
    places = place(resident.model, pool.checkpoint("base").layout.tensors)
    for method, spec in BUILTIN.items():
        rule = any_rule(method)
        names = [*(["base"] if spec.needs_base else []), *rule.per_parent]
        recipe = Recipe(tuple(ParentRef(n, n) for n in names), "base" if spec.needs_base else None, (rule,))
        resident.apply(recipe)
        for name, tensor in merge_tensors(recipe, pool):
            assert torch.equal(places[name].read(), tensor), (method, name)
