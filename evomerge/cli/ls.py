"""The command that lists what a job may name."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Final

import typer

from evomerge.cli.console import say

OPTIMIZERS: Final = {
    "cma": "CMA-ES, full covariance: one objective, up to about 20 continuous genes",
    "sep-cma": "CMA-ES, one variance per gene: one objective, more genes",
    "lra-cma": "CMA-ES with learning-rate adaptation: one objective under strong item noise",
    "catcmawm": "CatCMA with margin: one objective, mixed genes",
    "como-catcmawm": "COMO-CatCMA with margin: two objectives, mixed genes",
    "nsga2": "NSGA-II: two or three objectives, constraints, mixed genes",
    "nsga3": "NSGA-III: four objectives and more",
    "tpe": "tree-structured Parzen estimator: any number of objectives, mixed genes",
    "gp": "Gaussian process: up to about 60 evaluations",
    "evolve": "edits and crosses of the best: any number of objectives, mixed genes, paths",
    "scan": "all combinations of the discrete genes, such as every repeat window",
    "random": "uniform sampling: a yardstick",
}


class Kind(StrEnum):
    """What can be listed."""

    methods = "methods"
    spaces = "spaces"
    suites = "suites"
    makers = "makers"
    optimizers = "optimizers"
    tasks = "tasks"


def ls(kind: Annotated[Kind, typer.Argument(help="methods, makers, spaces, suites, optimizers or tasks.")]) -> None:
    """List merge methods, makers of parents, search spaces, suites, optimizers or lm-eval tasks."""
    rows = {
        Kind.methods: _methods,
        Kind.makers: _makers,
        Kind.spaces: _spaces,
        Kind.suites: _suites,
        Kind.optimizers: _optimizers,
        Kind.tasks: _tasks,
    }[kind]()
    listed = list(rows)
    width = max((len(name) for name, _ in listed), default=0)
    for name, text in listed:
        say(f"{name:<{width}}  {text}".rstrip())


def _methods() -> Iterable[tuple[str, str]]:
    from evomerge.recipe.methods import method_names, method_spec

    for name in method_names():
        spec = method_spec(name)
        needs = "with a base" if spec.needs_base else "without a base"
        yield name, f"{', '.join(spec.parameters)} ({needs}, models: {spec.models_allowed()})"


def _makers() -> Iterable[tuple[str, str]]:
    from evomerge.virtual.makers import MAKERS, load_maker

    for name in MAKERS.names():
        spec = load_maker(name).spec
        settings = ", ".join(f"{n} = {_shown(p.default)}" for n, p in spec.parameters.items())
        needs = ", shown prompts" if spec.needs_prompts else ""
        yield name, f"{spec.source}{f' ({settings})' if settings else ''}{needs}"


def _shown(default: float | bool | None) -> str:
    if default is None:
        return "must be said"
    return str(default).lower() if isinstance(default, bool) else f"{default:g}"


def _about(text: str, key: str) -> str:
    from evomerge.strict_yaml import parse_yaml

    found = parse_yaml(text, "the preset").value
    about = found.get(key, "") if isinstance(found, dict) else ""
    return " ".join(str(about).split())


def _spaces() -> Iterable[tuple[str, str]]:
    from evomerge.config.spaces import plugin_space, space_plugins
    from evomerge.resources import preset_names, preset_path

    for name in preset_names("search_spaces"):
        yield name, _about(preset_path("search_spaces", name).read_text(encoding="utf-8"), "about")
    for name in space_plugins().names():
        yield name, f"{plugin_space(name).get('about', '')} (plug-in)".strip()


def _suites() -> Iterable[tuple[str, str]]:
    from evomerge.resources import preset_names, preset_path

    for name in preset_names("evaluators", "suites"):
        path = preset_path("evaluators", name, "suites")
        yield name, _about(path.read_text(encoding="utf-8"), "description")


def _optimizers() -> Iterable[tuple[str, str]]:
    from evomerge.optimizers.registry import OPTIMIZERS as REGISTRY

    yield "auto", "chooses by objectives, genes and budget, and says why"
    for name in REGISTRY.names():
        yield name, OPTIMIZERS.get(name, "(plug-in)")


def _tasks() -> Iterable[tuple[str, str]]:
    from evomerge.cli.working import working
    from evomerge.evaluation.lm_eval_tasks import shipped_task_names
    from evomerge.evaluation.plugin import EVALUATORS

    with working("Reading the task index of lm-eval"):
        names = shipped_task_names()
    plugins = ((name, f"(plug-in: written as {{evaluator: {name}}})") for name in EVALUATORS.names())
    return (*plugins, *((name, "") for name in names))
