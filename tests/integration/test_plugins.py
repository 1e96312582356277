"""Plug-ins of every kind: installed as users install them, listed, tested by the conformance suites, searched with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.config.spaces import plugin_space, space_plugins
from evomerge.errors import ConfigError, PluginError
from evomerge.evaluation.plugin import EVALUATORS
from evomerge.merging.methods import METHODS, load_method
from evomerge.optimizers.base import Problem
from evomerge.optimizers.registry import OPTIMIZERS, make_optimizer
from evomerge.recipe.methods import method_spec
from evomerge.registry import (
    GROUP_EVALUATORS,
    GROUP_MAKERS,
    GROUP_METHODS,
    GROUP_OPTIMIZERS,
    GROUP_SPACES,
    Registry,
    plugin_versions,
)
from evomerge.virtual.makers import MAKERS, load_maker

PACKAGE = Path(__file__).parents[1] / "plugin_package"


def run(*arguments: str, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=variables, capture_output=True, text=True, check=False, timeout=250
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip installed the example package."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    done = run("pip", "install", *options, "--target", str(folder / "site"), str(source), path=folder)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("methods", "example-median", "strength (with a base, models: 2 or more)"),
        ("makers", "example-agreed", "(scale = 1)"),
        ("spaces", "example-median-smooth", "One strength of the median, interpolated over depth. (plug-in)"),
        ("spaces", "example-median-deep", "One strength of the median per layer. (plug-in)"),
        ("optimizers", "example-climber", "(plug-in)"),
    ],
)
def test_plug_ins_are_listed(installed: Path, kind: str, name: str, text: str) -> None:
    listed = run("evomerge", "ls", kind, path=installed)
    assert listed.returncode == 0, listed.stderr
    assert [" ".join(line.split()) for line in listed.stdout.splitlines() if line.split()[0] == name] == [
        f"{name} {text}"
    ]


@pytest.mark.zoo
def test_conformance_and_a_search_with_all_of_them(installed: Path, small_zoo: Path) -> None:
    files = [str(PACKAGE / name) for name in ("conformance.py", "whole_chain.py")]
    done = run("pytest", "-W", "error", *files, path=installed, EVOMERGE_TEST_ZOO=str(small_zoo))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


# -- what plug-ins must not do ---------------------------------------------------------------------------------------


def distribution(folder: Path, name: str, group: str, points: str) -> None:
    """An installed distribution, as importlib.metadata finds it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{points}\n")


REGISTRIES = {
    GROUP_METHODS: (METHODS, "ties"),
    GROUP_MAKERS: (MAKERS, "tsv_m"),
    GROUP_SPACES: (space_plugins(), "layer-wise-ties"),
    GROUP_OPTIMIZERS: (OPTIMIZERS, "cma"),
    GROUP_EVALUATORS: (EVALUATORS, None),
}
GROUPS = pytest.mark.parametrize("group", REGISTRIES)


@GROUPS
def test_a_name_of_evomerge_s_own_is_refused(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, name = REGISTRIES[group]
    if name is None:
        assert registry.names() == []  # evaluators have no names of evomerge's own
        return
    distribution(tmp_path, "greedy", group, f"{name} = math:pi")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=rf"'{name}' from greedy and from evomerge"):
        registry.names()


def test_auto_is_no_name_for_an_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "greedy", GROUP_OPTIMIZERS, "auto = math:pi")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="'auto' from greedy and from evomerge"):
        OPTIMIZERS.names()


def test_the_command_line_says_so_and_exits_with_2(tmp_path: Path) -> None:
    distribution(tmp_path, "greedy", GROUP_OPTIMIZERS, "cma = math:pi")
    listed = run("evomerge", "ls", "optimizers", path=tmp_path)
    assert listed.returncode == 2
    assert all(part in listed.stderr for part in ("bring a optimizer", "greedy", "Allowed", "uninstall"))
    assert "Traceback" not in listed.stderr


@GROUPS
def test_two_that_share_a_name_are_refused(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        distribution(tmp_path, name, group, "shared = math:pi")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"'shared' from (first and from second|second and from first)"):
        REGISTRIES[group][0].load("shared")


@GROUPS
@pytest.mark.parametrize(
    ("point", "got"),
    [
        ("no_such_module_at_all:x", "ModuleNotFoundError"),
        ("math:no_such_attribute", "AttributeError"),
        ("raises_on_import:x", "ValueError: out of order"),
        ("is_no_python:x", "SyntaxError"),
    ],
)
def test_what_does_not_load_names_its_distribution(
    group: str, point: str, got: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, "broken-plug", group, f"broken = {point}")
    (tmp_path / "raises_on_import.py").write_text("raise ValueError('out of order')\n")
    (tmp_path / "is_no_python.py").write_text("def\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry = REGISTRIES[group][0]
    assert "broken" in registry.names()  # listing imports nothing
    with pytest.raises(PluginError, match=f"{got}.*from broken-plug") as caught:
        registry.load("broken")
    assert "repair or uninstall broken-plug" in caught.value.fix


@GROUPS
def test_unknown_names_are_told_with_the_nearest(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "fine", group, "wonderful = math:pi")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'wonderful'"):
        REGISTRIES[group][0].load("wonderfull")


def test_plug_ins_count_among_the_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plugin_versions()
    distribution(tmp_path, "fine", GROUP_METHODS, "wonderful = math:pi")
    monkeypatch.syspath_prepend(tmp_path)
    assert plugin_versions() == before | {"fine": "1.0"}


ODD = """
from evomerge.recipe.mergekit_specs import TIES
from evomerge.virtual.tsv import TSV_M
class Named:
    spec = TIES
class Speechless:
    pass
NAMED, SPEECHLESS = Named(), Speechless()
SPACE = {"method": "linear", "parameters": {1: 2}}
def raising():
    raise ValueError("not today")
def nothing():
    return None
def wants(something):
    return something
def optimizer(problem, options):
    return object()
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_plug.py").write_text(ODD)
    names = {
        GROUP_METHODS: ["NAMED", "SPEECHLESS"],
        GROUP_MAKERS: ["TSV_M", "SPEECHLESS"],
        GROUP_SPACES: ["SPACE", "raising", "nothing", "wants"],
        GROUP_OPTIMIZERS: ["optimizer", "NAMED"],
    }
    for i, (group, attributes) in enumerate(names.items()):
        distribution(tmp_path, f"odd{i}", group, "\n".join(f"odd-{a.lower()} = odd_plug:{a}" for a in attributes))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_plug", raising=False)


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("odd-space", "the key 1 is not text"),
        ("odd-raising", "not today"),
        ("odd-nothing", "NoneType"),
        ("odd-wants", "missing 1 required positional argument"),
    ],
)
def test_spaces_must_be_mappings(name: str, got: str) -> None:
    with pytest.raises(PluginError, match=got):
        plugin_space(name)


@pytest.mark.usefixtures("odd")
def test_makers_must_be_makers_of_their_name() -> None:
    with pytest.raises(PluginError, match=r"spec\.name = 'tsv_m'"):
        load_maker("odd-tsv_m")
    with pytest.raises(PluginError, match="is not a maker"):
        load_maker("odd-speechless")


@pytest.mark.usefixtures("odd")
def test_methods_must_be_methods() -> None:
    with pytest.raises(PluginError, match=r"spec\.name = 'ties'"):
        method_spec("odd-named")
    with pytest.raises(PluginError, match="does not say what it asks for"):
        method_spec("odd-speechless")
    with pytest.raises(PluginError, match="is not a merge method"):
        load_method("odd-named")


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(("name", "got"), [("odd-optimizer", "object"), ("odd-named", "Named")])
def test_optimizers_must_be_optimizers(name: str, got: str) -> None:
    problem = Problem(1, 1, 0, [0.5], [0.2], [0.01], 10, 0)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=f"Got: {got}"):
        make_optimizer(name, problem, {})
