"""Whole tiny models, written by `run_merge` of mergekit 0.1.5 and merged by us with `compat: mergekit`: equal bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.merging.export import merge_tensors
from evomerge.merging.parents import ParentPool
from evomerge.testing.parity import (
    BASE,
    Bench,
    built_methods,
    cases_of,
    cell_from_json,
    compare,
    make_parents,
    mergekit_config,
    recipe_of,
    run_mergekit,
)
from evomerge.testing.peer import SETTINGS
from evomerge.virtual.fitting import fit_parents
from evomerge.virtual.opening import ParentOpener

pytest.importorskip("mergekit")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
]

CASES = [("llama", "bfloat16"), ("llama", "float32"), ("gpt2", "float16"), ("qwen3_moe", "bfloat16")]


@pytest.fixture(scope="module", params=CASES, ids=str)
def bench(request, tmp_path_factory):
    family, dtype = request.param
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield Bench.open(tmp_path_factory.mktemp(family), family, dtype)
    transformers.utils.logging.enable_progress_bar()
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", SETTINGS)
def test_a_file_of_mergekits_has_our_tensors(bench, method):
    cell = bench.measure(method, "compat", SETTINGS[method][:1])
    assert cell.failed == ()
    assert cell.refused == ()
    assert cell.agreement.n > 15_000
    assert (cell.agreement.share, cell.agreement.largest) == (1.0, 0.0)


def test_of_a_mixture_we_are_given_the_experts_as_mergekit_stacks_them(bench):
    assert bench.respelled == (bench.family == "qwen3_moe")


def parents_of(folder, kinds):
    """Parents of one family that differ in dtype, or in whether the head is tied; name -> (dtype, tied)."""
    folders = {}
    for name, (dtype, tie) in kinds.items():
        made = make_parents(folder / f"{name}-of", "llama", dtype, tie=tie)
        folders[name] = made[name]
    return folders


def both(case, folders, folder):
    """Our tensors and mergekit's in `compat: mergekit`."""
    recipe = recipe_of(case, folders, "compat")
    pool = ParentPool({ref.name: open_checkpoint(ref.source) for ref in recipe.parents})
    return dict(merge_tensors(recipe, pool)), run_mergekit(mergekit_config(case, folders, {}), folder / "theirs")


@pytest.mark.parametrize("method", ["linear", "ties", "nuslerp", "arcee_fusion", "sce"])
def test_parents_of_several_dtypes_are_stored_as_mergekit_stores_them(tmp_path, method):
    kinds = {"b": ("bfloat16", False), "m0": ("bfloat16", False), "m1": ("float16", False), "m2": ("bfloat16", False)}
    folders = parents_of(tmp_path, kinds)
    ours, theirs = both(next(cases_of(method)), folders, tmp_path)
    assert {x.dtype for x in theirs.values()} == {torch.float32}
    assert compare(ours, theirs).share == 1


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp"])
def test_a_tied_parent_beside_an_untied_one(tmp_path, method):
    kinds = {"b": ("float32", True), "m0": ("float32", False), "m1": ("float32", True), "m2": ("float32", True)}
    folders = parents_of(tmp_path, kinds)
    case = next(cases_of(method))
    recipe = recipe_of(case, folders, "compat")
    opener = ParentOpener(tmp_path / "cache")
    fitted = fit_parents({r.name: r for r in recipe.parents}, recipe.base, opener, tokens="refuse")
    pool = ParentPool({name: opener.open(ref) for name, ref in fitted.items()})
    ours = dict(merge_tensors(replace(recipe, parents=tuple(fitted.values())), pool))
    theirs = run_mergekit(mergekit_config(case, folders, {}), tmp_path / "theirs")
    assert "lm_head.weight" in theirs
    assert compare(ours, theirs).share == 1


def test_every_method_is_built():
    assert built_methods() == tuple(SETTINGS)


def test_cells_are_read_back(bench):
    cell = bench.measure("linear", "plain")
    assert cell_from_json(cell.to_json()) == cell
    assert 0.5 < cell.agreement.share <= 1
    assert cell.agreement.largest < 1e-2


def test_what_only_one_of_the_two_merges_is_told(bench):
    ours = {"a": torch.ones(3), "b": torch.ones(3)}
    assert compare(ours, "ValueError: no") == "ours: merged; mergekit: ValueError: no"
    assert compare(ours, {"a": torch.ones(3)}) == "1 tensors stand in one of the two only: b"
    assert compare(ours, {"a": torch.ones(3), "b": torch.zeros(3)}).share == 0.5


def test_parents_lie_near_their_base(tmp_path):
    from safetensors.torch import load_file

    folders = make_parents(tmp_path, "llama", "bfloat16")
    base, model = (load_file(folders[n] / "model.safetensors") for n in (BASE, "m1"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert base[name].dtype == model[name].dtype == torch.bfloat16
    assert 0 < (model[name] - base[name]).float().norm() < 0.2 * base[name].float().norm()
    assert '"bfloat16"' in (folders["m1"] / "config.json").read_text()


def test_methods_with_an_optional_base_are_tried_with_and_without():
    assert {case.base for case in cases_of("nuslerp")} == {None, BASE}
    assert {case.base for case in cases_of("linear")} == {None}
    assert {case.base for case in cases_of("sce")} == {BASE}
