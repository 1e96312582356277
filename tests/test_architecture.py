"""The shape of the code: who may import whom, how long things are, and what must not occur."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "evomerge"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    ("__main__",),
    ("cli",),
    ("api",),
    ("publishing", "tracking", "launching", "checkup"),
    ("config",),
    ("calibration",),
    ("report",),
    ("loop",),
    ("racing", "flow"),
    ("choosing",),
    ("execution",),
    ("runs",),
    ("optimizers",),
    ("virtual",),
    ("dataflow",),
    ("evaluation", "merging"),
    ("checkpoints", "zoo"),
    ("space",),
    ("recipe", "archive", "irt", "survey"),
    ("registry",),
    ("digest", "seeds", "files", "resources", "hostmemory", "ownership", "strict_yaml", "plain_arrays"),
    ("errors", "types", "layout", "failpoints"),
)
"""From the top down: a module may import its own package and whatever stands below it."""

CONFINED = {
    "ray": "execution/ray*.py",
    "pydantic": "config/*",
    "lm_eval": "evaluation/lm_eval*.py",
    "vllm": "evaluation/vllm_engine.py",
    "wandb": "tracking/trackers.py",
    "mlflow": "tracking/trackers.py",
}
TENSOR_PACKAGES = {"checkpoints", "dataflow", "virtual", "merging", "evaluation", "execution", "zoo", "testing"}
BROAD_EXCEPT = {"execution/worker.py", "cli/main.py", "tracking/watcher.py", "registry.py"}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def unit(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_names(node: ast.AST) -> Iterator[str]:
    """Dotted names that one statement imports; `from evomerge import api` imports `evomerge.api`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative imports hide where they point"
        yield node.module or ""
        if node.module == "evomerge":
            known = {p.stem for p in PACKAGE.iterdir()}
            yield from (f"evomerge.{alias.name}" for alias in node.names if alias.name in known)


def imports(module: ast.Module) -> Iterator[str]:
    """Dotted names of everything a module imports, inside functions too, but not for type checkers only."""
    skipped = {
        id(node)
        for branch in ast.walk(module)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for child in branch.body
        for node in ast.walk(child)
    }
    for node in ast.walk(module):
        if id(node) not in skipped:
            yield from imported_names(node)


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_point_down(path: Path) -> None:
    own = unit(path)
    if own in ("__init__", "testing"):
        return
    for name in imports(tree(path)):
        if not name.startswith("evomerge."):
            continue
        other = name.split(".")[1]
        assert other != "testing", f"{relative(path)} imports {name}"
        if other != own:
            assert layer(own) < layer(other), f"{relative(path)} imports {name}, which is not below it"


@pytest.mark.parametrize("library", sorted(CONFINED))
def test_heavy_libraries_are_confined(library: str) -> None:
    found = {relative(p) for p in MODULES if any(i.split(".")[0] == library for i in imports(tree(p)))}
    strays = {f for f in found if not fnmatch(f, CONFINED[library]) and not f.startswith("testing/")}
    assert found
    assert not strays


def test_torch_is_imported_at_the_top_only_where_tensors_are() -> None:
    """Everything else stays quick to start: it imports torch and transformers inside functions, if at all."""
    for path in MODULES:
        top = [n for n in tree(path).body if isinstance(n, ast.Import | ast.ImportFrom)]
        heavy = {name.split(".")[0] for n in top for name in imported_names(n)} & {"torch", "transformers"}
        assert not heavy or unit(path) in TENSOR_PACKAGES, f"{relative(path)} imports {heavy} when it is loaded"


def test_nothing_is_pickled_and_nothing_asserts() -> None:
    for path in MODULES:
        module = tree(path)
        assert not {"pickle", "dill", "cloudpickle", "joblib"} & {i.split(".")[0] for i in imports(module)}, path
        if unit(path) != "testing":
            asserts = [n.lineno for n in ast.walk(module) if isinstance(n, ast.Assert)]
            assert not asserts, f"{relative(path)} asserts in lines {asserts}; -O would remove them"


def test_sizes() -> None:
    for path in MODULES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, f"{relative(path)} has over 400 lines"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{relative(path)}:{node.lineno} {node.name} has {length} lines"


def test_docstrings_prints_and_broad_excepts() -> None:
    for path in MODULES:
        module = tree(path)
        assert ast.get_docstring(module), f"{relative(path)} has no docstring"
        calls = [n for n in ast.walk(module) if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"]
        assert not calls, f"{relative(path)} prints"
        for node in ast.walk(module):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
                allowed = not broad or relative(path) in BROAD_EXCEPT
                assert allowed, f"{relative(path)}:{node.lineno} catches everything"


def test_every_class_is_abstract_final_or_a_value() -> None:
    """Concrete classes are not subclassed: they are final, frozen, named tuples, enums, errors or protocols."""
    bases_of = {}
    for path in MODULES:
        if unit(path) == "testing":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                bases_of[node.name] = {ast.unparse(b).split("[")[0] for b in node.bases}
                if "final" in {ast.unparse(d) for d in node.decorator_list}:
                    bases_of[node.name].add("<final>")
    finals = {name for name, bases in bases_of.items() if "<final>" in bases}
    for name, bases in bases_of.items():
        assert not bases & finals, f"{name} derives from a final class"
