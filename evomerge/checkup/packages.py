"""Python and the packages: versions against the ranges that this installation asks for."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from evomerge.checkup.finding import Finding

OPTIONAL: Final = {
    "vllm": ("suite.engine: vllm, for tasks with long answers", "pip install vllm (Linux with a GPU)"),
    "tensorboard": ("track: [tensorboard]", "pip install tensorboard"),
    "wandb": ("track: [wandb]", "pip install wandb"),
    "mlflow": ("track: [mlflow]", "pip install mlflow"),
    "mergekit": ("comparing merges with mergekit's", "pip install 'evomerge[parity]'"),
    "optuna-dashboard": ("looking at a run in the browser", "pip install 'evomerge[dashboard]'"),
}
"""Package -> (what it adds, how to get it)."""


def version_of(package: str) -> str | None:
    """The installed version; None when the package is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def provided(package: str) -> str | None:
    """The version of what `import package` would load, whatever distribution it came with; None when nothing would.

    MLflow, for instance, comes as `mlflow` and as `mlflow-skinny`. Nothing is imported.
    """
    if (version := version_of(package)) is not None:
        return version
    module = package.replace("-", "_")
    spec = find_spec(module)
    if spec is None or spec.origin is None:  # without origin it is only a folder of that name
        return None
    for distribution in metadata.packages_distributions().get(module, []):
        return f"{version_of(distribution)} ({distribution})"
    return "of unknown version"


def python_and_packages(
    requirements: Sequence[str] | None = None, found: Callable[[str], str | None] = version_of
) -> Iterator[Finding]:
    """Python, and every package that evomerge needs.

    Args:
        requirements: as in pyproject; those of the installed evomerge if None.
        found: the installed version of a package, or None.
    """
    yield _python()
    needed = metadata.requires("evomerge") or [] if requirements is None else requirements
    wrong = []
    n_fine = 0
    for text in needed:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = found(requirement.name)
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            n_fine += 1
        else:
            wrong.append(_wrong(requirement, version))
    if n_fine:
        main = ", ".join(f"{name} {found(name)}" for name in ("torch", "transformers", "ray", "lm-eval") if found(name))
        yield Finding("packages", "needed", "ok", f"{n_fine} in their ranges: {main}, ...")
    yield from wrong


def _python() -> Finding:
    wanted = str(metadata.metadata("evomerge").json.get("requires_python", "")) if version_of("evomerge") else ""
    version = platform.python_version()
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding("packages", "Python", "ok", f"{version}, {sys.executable}")
    return Finding("packages", "Python", "missing", f"{version}; needed: {wanted}", "install another Python")


def _wrong(requirement: Requirement, version: str | None) -> Finding:
    wanted = f"{requirement.name}{requirement.specifier}"
    text = f"not installed; needed: {wanted}" if version is None else f"{version}; needed: {wanted}"
    return Finding("packages", requirement.name, "missing", text, f"pip install '{wanted}'")


def optional_packages(found: Callable[[str], str | None] = provided) -> Iterator[Finding]:
    """What is not needed, and what each would add."""
    for name, (adds, how) in OPTIONAL.items():
        version = found(name)
        text = f"{version}: {adds}" if version is not None else f"not installed; it would add {adds}: {how}"
        yield Finding("optional", name, "ok", text)
