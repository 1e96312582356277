"""What an installation brings: one import name, every package, and data without code."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
        "\n"
    )
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_one_import_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"evomerge"}


def test_data_and_sources_are_in_it(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    presets = {p.name for p in (ROOT / "search_spaces").glob("*.yaml")}
    suites = {p.name for p in (ROOT / "evaluators" / "suites").glob("*.yaml")}
    assert presets
    assert suites
    assert {f"evomerge/search_spaces/{p}" for p in presets} <= names
    assert {f"evomerge/evaluators/suites/{s}" for s in suites} <= names
    assert {"evomerge/py.typed", "evomerge/merging/kernels.c"} <= names


def test_package_list_is_complete() -> None:
    stated = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    on_disk = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "evomerge").rglob("__init__.py")}
    assert stated == on_disk | {"evomerge.search_spaces", "evomerge.evaluators"}


@pytest.mark.parametrize("folder", ["search_spaces", "evaluators"])
def test_data_folders_hold_no_code(folder: str) -> None:
    assert [p.name for p in (ROOT / folder).rglob("*.py")] == ["__init__.py"]
