"""Run files, recipe files and exports, on a small real run."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

import evomerge
from evomerge.config.assemble import Assembled, assemble
from evomerge.config.export import export_merge
from evomerge.config.load import ResolvedJob, job_document, load_run_job, resolve_job
from evomerge.config.parents import open_parents
from evomerge.config.recipe_files import open_recipe_parents, read_recipe_file
from evomerge.config.results import read_results
from evomerge.config.run_files import check_unchanged, manifest, package_versions, run_files
from evomerge.dataflow.export import write_recipe
from evomerge.errors import ConfigError, ModelError, RecipeError
from evomerge.merging.parents import ParentPool
from evomerge.publishing.push import plan_push
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_digest, recipe_to_text

pytestmark = pytest.mark.zoo

SPACE = "method: ties\ndepth: model\nparameters: {weight: {low: 0, high: 1}}\n"
SUITE = "include: [TASKS]\ntasks: [add_mc]\nsplit: {search: 6, select: 6, report: 6}\n"


def job(home: Path, **changed: Any) -> dict[str, Any]:
    return {
        "parents": {"base": home / "zoo/base", "models": {"math": home / "zoo/math", "lang": home / "zoo/lang"}},
        "space": str(home / "space.yaml"),
        "suite": str(home / "suite.yaml"),
        "objectives": [{"name": "sums", "task": "add_mc"}],
        "optimizer": {"name": "random", "population": 4},
        "budget": {"evaluations": 9},
        "cluster": {"backend": "local", "workers": 1, "compile": "never"},
        **changed,
    }


def resolved(home: Path, **changed: Any) -> ResolvedJob:
    return resolve_job(job_document(job(home, **changed)), home)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, small_zoo: Path) -> Path:
    """A folder with a finished run, the files that it was made from, and a zoo of its own."""
    home = tmp_path_factory.mktemp("home")
    for name in ("base", "math", "lang"):
        shutil.copytree(small_zoo / name, home / "zoo" / name)
    (home / "space.yaml").write_text(SPACE)
    (home / "suite.yaml").write_text(SUITE.replace("TASKS", str(small_zoo / "tasks")))
    evomerge.search(job(home), run_dir=home / "run")
    return home


@pytest.fixture(scope="module")
def assembled(home: Path) -> Assembled:
    return assemble(resolved(home))


def tensors(folder: Path) -> dict[str, Any]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


# -- run files -------------------------------------------------------------------------------------------------------


def test_a_run_is_born_with_its_job_and_its_manifest(home: Path, assembled: Assembled) -> None:
    files = run_files(assembled)
    for name, text in files.items():
        assert (home / "run" / name).read_text() == text
    assert load_run_job(home / "run").job == assembled.resolved.job
    found = manifest(assembled)
    assert found["space"]["text"] == SPACE
    assert found["base"] == "base"
    assert [p["name"] for p in found["parents"]] == ["base", "math", "lang"]
    assert {"evomerge", "python", "torch", "optuna", "numpy"} <= set(package_versions())
    assert found["suite"]["splits"] == {"add_mc": {"search": 6, "select": 6, "report": 6}}


def test_what_may_change(home: Path) -> None:
    other = {"budget": {"evaluations": 50, "failures": 1}, "cluster": {"workers": 3, "drain_s": 1}}
    check_unchanged(home / "run", assemble(resolved(home, **other)))


@pytest.mark.parametrize(
    ("changed", "diff"),
    [
        ({"seed": 1}, [r'-"seed": 0', r'+"seed": 1']),
        ({"optimizer": "cma"}, ['-"name": "random"', '+"name": "cma"']),
        ({"objectives": [{"name": "other", "task": "add_mc"}]}, ['-"name": "sums"', '+"name": "other"']),
        ({"constraints": [{"task": "add_mc", "at_least": 0}]}, ['+"at_least": 0']),
        ({"name": "other"}, ['+"name": "other"']),
        ({"space": "layer-wise-ties"}, ['-"depth": "model"']),
    ],
)
def test_another_job_is_refused_with_a_diff(home: Path, changed: dict[str, Any], diff: list[str]) -> None:
    with pytest.raises(ConfigError, match="its job has changed") as caught:
        check_unchanged(home / "run", assemble(resolved(home, **changed)))
    lines = [line.replace(" ", "").rstrip(",") for line in caught.value.got.splitlines()]
    for part in diff:
        assert part.replace(" ", "") in lines
    assert "budget.*" in caught.value.allowed
    assert "evomerge search" in caught.value.fix


@pytest.mark.parametrize(("name", "part"), [("space.yaml", "space"), ("suite.yaml", "suite")])
def test_a_file_that_changed_since_is_refused_with_a_diff(home: Path, name: str, part: str) -> None:
    again = assemble(load_run_job(home / "run"))  # the job stands inline: only the file knows
    check_unchanged(home / "run", again)
    text = (home / name).read_text()
    try:
        (home / name).write_text(text + "# edited\n")
        with pytest.raises(ConfigError, match=rf"its {part} .*{name} has changed[\s\S]*\+# edited"):
            check_unchanged(home / "run", again)
        (home / name).write_bytes(b"\xff")
        with pytest.raises(ConfigError, match=r"cannot be read[\s\S]*not UTF-8"):
            check_unchanged(home / "run", again)
        (home / name).unlink()
        check_unchanged(home / "run", again)  # gone: the run has its own copy
    finally:
        (home / name).write_text(text)


def test_other_weights_are_refused(home: Path, assembled: Assembled) -> None:
    named = dict(assembled.parents.named)
    swapped = replace(assembled.parents, named=named | {"math": replace(named["lang"], name="math")})
    with pytest.raises(ConfigError, match=r"its manifest has changed[\s\S]*\"math\""):
        check_unchanged(home / "run", replace(assembled, parents=swapped))


# -- missing parents, injected recipes -------------------------------------------------------------------------------


def test_missing_parents_name_the_line(home: Path, tmp_path: Path) -> None:
    missing = tmp_path / "gone"
    run = shutil.copytree(home / "run", tmp_path / "run")
    text = (run / "job.yaml").read_text()
    line = 1 + next(i for i, t in enumerate(text.splitlines()) if "lang:" in t)
    (run / "job.yaml").write_text(text.replace(str(home / "zoo/lang"), str(missing)))
    with pytest.raises(ModelError, match=rf"job\.yaml:{line} \(parents\.models\.lang\): .*gone"):
        open_parents(load_run_job(run))
    with pytest.raises(ModelError, match=r"job \(parents\.base\)"):
        open_parents(resolved(home, parents={"base": missing, "models": {"math": home / "zoo/math"}}))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"optimizer": "nsga"}, r"no optimizer 'nsga'[\s\S]*job \(optimizer\)[\s\S]*Did you mean 'nsga"),
        ({"optimizer": {"name": "random", "options": {"populaton": 3}}}, r"job \(optimizer\)[\s\S]*mean 'population'"),
        ({"inject": ["none.json"]}, r"recipe file cannot be read[\s\S]*job \(inject\.0\)"),
        ({"suite": {"tasks": ["add_mc", "add_mc"]}}, r"stands twice[\s\S]*job \(suite\)"),
        ({"suite": {"tasks": ["add_mc"], "split": {"search": 0.9, "select": 0.9, "report": 0.9}}}, r"job \(suite\)"),
    ],
)
def test_other_names_say_where_they_stand(home: Path, changed: dict[str, Any], match: str) -> None:
    if isinstance(changed.get("suite"), dict):
        include = yaml.safe_load((home / "suite.yaml").read_text())["include"]
        changed = {"suite": {"include": include, **changed["suite"]}}
    with pytest.raises(ConfigError, match=match):
        assemble(resolved(home, **changed))


# -- recipe files ----------------------------------------------------------------------------------------------------


def plain_recipe(**sources: str) -> Recipe:
    parents = tuple(ParentRef(name, source) for name, source in sources.items())
    return Recipe(parents, None, (Rule("linear", {}, {name: {"weight": 0.5} for name in sources}),))


def test_recipes_start_at_their_own_folder_or_stay_as_they_are(home: Path) -> None:
    recipe = plain_recipe(math="zoo/math", lang=str(home / "zoo/lang"), far="org/far", odd="~nobody-there/x")
    (home / "recipe.json").write_text("\ufeff" + recipe_to_text(recipe))
    found = read_recipe_file(home / "recipe.json")
    assert [p.source for p in found.parents] == [
        *(str(home / "zoo" / n) for n in ("math", "lang")),
        "org/far",
        "~nobody-there/x",
    ]
    assert found.compat == "off"
    assert read_recipe_file(home / "recipe.json", "mergekit").compat == "mergekit"


def test_mergekit_files_are_told_by_content(home: Path) -> None:
    text = "merge_method: linear\nmodels:\n- {model: zoo/math, parameters: {weight: 1}}\ndtype: float32\n"
    (home / "mergekit.json").write_text(text)
    found = read_recipe_file(home / "mergekit.json")
    assert found.compat == "mergekit"
    assert found.parents[0].source == str(home / "zoo/math")
    assert read_recipe_file(home / "mergekit.json", "off").compat == "off"


@pytest.mark.parametrize("content", ["{", "{}", "[1]", "merge_method: magic\nmodels: []\n", ""])
def test_files_that_are_no_recipes(tmp_path: Path, content: str) -> None:
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(RecipeError, match=r"[\s\S]*Fix: "):
        read_recipe_file(tmp_path / "recipe.json")


def test_other_weights_than_the_recipe_s_are_refused(home: Path, assembled: Assembled) -> None:
    refs = {ref.name: ref for ref in assembled.parents.refs()}
    good = Recipe((refs["math"],), None, (Rule("linear", {}, {"math": {"weight": 1.0}}),))
    assert list(open_recipe_parents(good).checkpoints) == ["math"]
    wrong = replace(good, parents=(replace(refs["math"], source=refs["lang"].source),))
    with pytest.raises(ModelError, match=r"not hold the weights[\s\S]*math at .*lang"):
        open_recipe_parents(wrong)


# -- exports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pick", ["knee", "best:sums", "id:g0000-i00", "id:soup", "id:parent-math"])
def test_a_checkpoint_is_the_recipe_that_stands_in_it(home: Path, tmp_path: Path, pick: str) -> None:
    told = export_merge(home / "run", tmp_path / "out", pick=pick, form="checkpoint")
    assert str(tmp_path / "out") in told[0]
    assert (tmp_path / "out" / "README.md").is_file()
    evomerge.merge(tmp_path / "out" / "evomerge_recipe.json", tmp_path / "again")
    one, two = tensors(tmp_path / "out"), tensors(tmp_path / "again")
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).all() for name in one)
    if pick == "id:parent-math":
        assert all((one[name] == t).all() for name, t in tensors(home / "zoo/math").items())


def test_an_export_says_for_programs_what_was_measured_and_brings_its_licences(home: Path, tmp_path: Path) -> None:
    for name, text in (("base", "terms"), ("math", "terms"), ("lang", "other terms")):
        (home / "zoo" / name / "LICENSE").write_text(text)
    (home / "zoo/lang/NOTICE.txt").write_text("by lang")
    chosen = evomerge.search(job(home), run_dir=home / "run", resume="must").chosen
    assert chosen is not None
    assert chosen.report is not None
    export_merge(home / "run", tmp_path / "merged", pick="knee", form="checkpoint")
    results = read_results(tmp_path / "merged")
    (task,) = results["tasks"]
    assert (task["task"], task["value"], task["n"]) == ("add_mc", chosen.report.tasks["add_mc"].value, 6)
    assert (results["id"], results["recipe"]) == (chosen.id, chosen.recipe_digest)
    assert set(results["licences"]) == {"base", "math", "lang"}
    texts = {p.name: p.read_text() for p in (tmp_path / "merged").glob("*[EI][NC][SE]E*")}
    assert texts == {"LICENSE.base": "terms", "LICENSE.lang": "other terms"}
    assert (tmp_path / "merged" / "NOTICE.txt").read_text() == "by lang"
    assert plan_push(tmp_path / "merged", "me/merged").verdict.licence == "apache-2.0"
    written = {p.name for p in (tmp_path / "merged").iterdir()}
    assert set(results["files"]) == written - {"evomerge_results.json"}
    weights = tmp_path / "merged" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ConfigError, match=r"no longer what was exported[\s\S]*Got: model\.safetensors \(changed\)\n"):
        plan_push(tmp_path / "merged", "me/merged")


def test_recipes_and_mergekit_files_are_one_file(home: Path, tmp_path: Path) -> None:
    export_merge(home / "run", tmp_path / "r.json", pick="id:g0001-i00", form="recipe")
    asked = [t for t in (home / "run" / "journal.jsonl").read_text().splitlines() if '"t":"asked"' in t]
    digest = recipe_digest(read_recipe_file(tmp_path / "r.json"))
    assert asked[1].count(digest) == 1
    export_merge(home / "run", tmp_path / "m.yaml", pick="id:g0001-i00", form="mergekit")
    assert yaml.safe_load((tmp_path / "m.yaml").read_text())["merge_method"] == "ties"
    with pytest.raises(ConfigError, match="exists already"):
        export_merge(home / "run", tmp_path / "r.json", pick="knee", form="recipe")
    with pytest.raises(ConfigError, match="folder of the file does not exist"):
        export_merge(home / "run", tmp_path / "no" / "r.json", pick="knee", form="recipe")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises((ConfigError, ModelError), match=r"full"):
        export_merge(home / "run", tmp_path / "full", pick="knee", form="checkpoint")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("pick", "match"),
    [
        ("kne", r"not understood[\s\S]*'kne'[\s\S]*knee, best:OBJECTIVE or id:ID"),
        ("best:", "not understood"),
        ("id:", "not understood"),
        ("best:sum", r"no such objective[\s\S]*Did you mean 'sums'"),
        ("id:g9999-i00", r"no such id[\s\S]*one of "),
    ],
)
def test_what_cannot_be_picked(home: Path, tmp_path: Path, pick: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        export_merge(home / "run", tmp_path / "out", pick=pick, form="checkpoint")


def test_parents_that_changed_are_refused(home: Path, tmp_path: Path) -> None:
    run = shutil.copytree(home / "run", tmp_path / "run")
    text = (run / "job.yaml").read_text()
    (run / "job.yaml").write_text(text.replace(str(home / "zoo/lang"), str(home / "zoo/math")))
    with pytest.raises(ModelError, match=r"A parent has changed since the run[\s\S]*lang at .*math"):
        export_merge(run, tmp_path / "out", pick="knee", form="recipe")
    (run / "job.yaml").write_text(text.replace("    lang:", "    other:"))
    with pytest.raises(
        ModelError, match=r"A parent has changed[\s\S]*other[\s\S]*parents of the run: base, math, lang"
    ):
        export_merge(run, tmp_path / "out", pick="knee", form="recipe")
    with pytest.raises(ConfigError, match="There is no run here"):
        export_merge(tmp_path, tmp_path / "out", pick="knee", form="recipe")


def flip_a_byte(path: Path) -> bytes:
    """Change one byte of the tensors and put the time of modification back; what the file was."""
    before, found = path.stat(), path.read_bytes()
    with path.open("r+b") as f:
        f.seek(-100, os.SEEK_END)
        f.write(bytes([found[-100] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return found


def test_a_byte_that_changed_since_the_run_is_noticed_on_resume_and_on_export(home: Path, tmp_path: Path) -> None:
    weights = home / "zoo/lang/model.safetensors"
    whole = assemble(resolved(home))
    whole.parents.refs()
    found = flip_a_byte(weights)
    try:
        with pytest.raises(ConfigError, match=r"its manifest has changed[\s\S]*\"lang\""):
            check_unchanged(home / "run", assemble(resolved(home)))
        with pytest.raises(ModelError, match="A parent has changed since the run"):
            export_merge(home / "run", tmp_path / "out", pick="knee", form="checkpoint")
        # by a process that has read the parents before they changed
        recipe = Recipe(whole.parents.refs(), "base", (Rule("linear", {}, {"math": {"weight": 1.0}}),))
        with pytest.raises(ModelError, match="changed while it was in use"):
            write_recipe(recipe, ParentPool(whole.parents.checkpoints), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    finally:
        weights.write_bytes(found)
    check_unchanged(home / "run", assemble(resolved(home)))
