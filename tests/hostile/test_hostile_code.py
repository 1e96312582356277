"""Read from the source: nothing is unpickled, evaluated, run through a shell, or loaded with code of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "evomerge").rglob("*.py"))
BANNED_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
}
"""Calls by name; `model.eval()` is another thing."""
BANNED_IMPORTS = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
AUTO = ("AutoConfig", "AutoModelForCausalLM", "AutoModel", "AutoTokenizer")
OF_OURS = {"zoo/folders.py", "testing"}
"""Loads only what it has written itself."""


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str, str]:
    return {k.arg: ast.unparse(k.value) for k in call.keywords if k.arg is not None}


def name(path: Path) -> str:
    return path.relative_to(ROOT / "evomerge").as_posix()


def faults(path: Path) -> Iterator[str]:
    for function, call in calls(path):
        given = keywords(call)
        at = f"{name(path)}:{call.lineno} {function}"
        if function in BANNED_CALLS and not (function == "compile" and path.name == "audit_guard.py"):
            yield at
        if (
            function.endswith(("np.load", "numpy.load", "write_array", "read_array"))
            and given.get("allow_pickle") != "False"
        ):
            yield f"{at} without allow_pickle=False"
        if given.get("shell") not in (None, "False"):
            yield f"{at} with shell"
        if function.split(".")[0] in AUTO and function.endswith(".from_pretrained"):
            if given.get("trust_remote_code") != "False" or given.get("local_files_only") != "True":
                yield f"{at} without trust_remote_code=False, local_files_only=True"
            if "Model" in function and given.get("use_safetensors") != "True":
                yield f"{at} without use_safetensors=True"


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_module_can_run_what_a_file_says(path: Path) -> None:
    if not name(path).startswith(tuple(OF_OURS)):
        assert not list(faults(path))
    assert not imported(path) & BANNED_IMPORTS


def test_yaml_is_read_by_loaders_that_make_no_objects() -> None:
    for path in MODULES:
        for function, call in calls(path):
            if function in {"yaml.load_all", "yaml.load", "yaml.compose"}:
                loader = keywords(call).get("Loader", "")
                safe = f"class {loader}(yaml.SafeLoader" in path.read_text(encoding="utf-8")
                assert safe or loader.endswith("SafeLoader"), f"{name(path)}: {loader}"


def test_the_rules_find_what_they_are_for(tmp_path: Path) -> None:
    bad = ROOT / "evomerge" / "never_written.py"
    text = "import numpy as np\nnp.load(1)\neval(1)\nAutoConfig.from_pretrained(1)\nsubprocess.run(1, shell=True)\n"
    (tmp_path / "evomerge").mkdir()
    (tmp_path / "evomerge" / bad.name).write_text(text)
    import unittest.mock

    with unittest.mock.patch(f"{__name__}.ROOT", tmp_path):
        assert len(list(faults(tmp_path / "evomerge" / bad.name))) == 4
