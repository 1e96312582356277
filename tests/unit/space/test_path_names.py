"""What paths are called: within the modules that speak of them, one name means one thing."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import evomerge

ROOT = Path(evomerge.__file__).parent
MODULES = [f for part in ("space", "dataflow") for f in (ROOT / part).glob("*.py")]
MODULES += (ROOT / "report").glob("path*.py")


def defined(module: Path) -> set[str]:
    """Public classes, functions and constants at the top of a module."""
    found = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                found.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                found.add(name)
    return {name for name in found if not name.startswith("_")}


def test_one_name_means_one_thing():
    counts = Counter(name for module in MODULES for name in defined(module))
    assert {"PathPlan", "ExportPlan", "MERGED", "hops_of", "drawn_path"} <= counts.keys()
    assert {name: n for name, n in counts.items() if n > 1} == {}


def test_no_two_modules_have_one_name():
    names = Counter(module.stem for module in MODULES if module.stem != "__init__")
    assert {name: n for name, n in names.items() if n > 1} == {}
