"""Every merge method on toy zoos: at its defaults, and after a search of equal budget, on the report set.

    python benchmarks/search_methods.py --zoos DIR                 all methods, five zoos: about an hour on two cores
    python benchmarks/search_methods.py --zoos DIR --seeds 0 1 --methods ties magmax tsv_m

One objective, the mean of add, rev, srt and addx. "Defaults" are the method's, with weight 0.5 where a weight must be
said, t = 0.5, and the two best parents (on the select set) where it merges two. The search has the same budget and
optimizer for every method, over the numbers of `RANGES`, each the same at all depths. A maker (a method that makes a
parent) is scored as it is, and searched as one more parent of task arithmetic. Zoos are built in DIR unless they are
there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from machine import machine_facts, one_thread

EXPERTS: Final = ("math", "string", "lang")
TASKS: Final = ("add", "rev", "srt", "addx")
WEIGHT: Final = 0.5
RANGES: Final[Mapping[str, Mapping[str, Any]]] = {
    "weight": {"low": 0, "high": 1.5, "step": 0.05, "start": 0.5},
    "density": {"low": 0.1, "high": 1, "step": 0.05, "start": 0.8},
    "t": {"low": 0, "high": 1, "step": 0.05, "start": 0.5},
    "lambda": {"low": 0.2, "high": 2, "step": 0.05, "start": 1},
    "gamma": {"low": 0, "high": 0.05, "step": 0.005, "start": 0.01},
    "epsilon": {"low": 0.01, "high": 0.09, "step": 0.01, "start": 0.05},
    "select_topk": {"low": 0.1, "high": 1, "step": 0.05, "start": 1},
}
"""What is searched where a method has it; other numbers stay at their defaults."""
OWN_RANGES: Final[Mapping[tuple[str, str], Mapping[str, Any]]] = {
    ("nearswap", "t"): {"low": 0.0001, "high": 0.1, "scale": "log", "start": 0.003},
    ("ram", "epsilon"): {"low": 1e-6, "high": 0.01, "scale": "log", "start": 1e-5},
    ("ramplus_tl", "epsilon"): {"low": 1e-6, "high": 0.01, "scale": "log", "start": 1e-5},
    ("della", "density"): {"low": 0.1, "high": 0.9, "step": 0.05, "start": 0.7},
    ("della_linear", "density"): {"low": 0.1, "high": 0.9, "step": 0.05, "start": 0.7},
}
OWN_DEFAULTS: Final[Mapping[tuple[str, str], float]] = {("nearswap", "t"): 0.003}


def main() -> int:
    """Run the benchmark and print its table."""
    arguments = _arguments()
    one_thread()
    from evomerge.recipe.methods import BUILTIN
    from evomerge.virtual.makers import MAKERS, load_maker

    makers = [n for n in MAKERS.names() if load_maker(n).spec.min_models <= 3 and _is_joint(load_maker(n).spec)]
    wanted = arguments.methods or [*BUILTIN, *makers]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ("best parent", *wanted)}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in arguments.seeds:
            bench = _Zoo(arguments, seed, Path(scratch))
            rows["best parent"].append({"default": bench.best_parent, "search": bench.best_parent})
            for name in wanted:
                found = bench.maker(name) if name in makers else bench.method(BUILTIN[name])
                rows[name].append(found)
                print(f"zoo {seed} {name}: {found}", file=sys.stderr, flush=True)
    facts = machine_facts()
    if arguments.json:
        print(json.dumps({"machine": facts, "evaluations": arguments.evaluations, "rows": rows}, indent=1))
    else:
        print(_table(rows), "", *(f"{key}: {value}" for key, value in facts.items()), sep="\n")
    return 0


def _is_joint(spec: Any) -> bool:
    """Whether a maker merges several models, with nothing but the job's own parents."""
    joins = spec.max_models is None or spec.max_models >= 3
    return joins and not spec.needs_files and spec.name != "retokenized"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoos", type=Path, default=Path(".cache/zoos"), help="folder of the zoos, one per seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="*", help="methods and makers; all if unset")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--report-items", type=int, default=800, help="per task")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


class _Zoo:
    """One zoo: scores recipes and runs searches.

    Args:
        arguments: of the command line.
        seed: of the zoo and of the searches.
        scratch: for runs.
    """

    def __init__(self, arguments: argparse.Namespace, seed: int, scratch: Path) -> None:
        import subprocess

        self._arguments, self._seed, self._scratch = arguments, seed, scratch
        self.folder = (arguments.zoos / f"seed{seed}").resolve()
        subprocess.run([sys.executable, "-m", "evomerge", "zoo", str(self.folder), "--seed", str(seed)], check=True)
        select = {e: self._score(str(self.folder / e), "select") for e in EXPERTS}
        self._two = tuple(sorted(sorted(EXPERTS, key=lambda e: -select[e])[:2], key=EXPERTS.index))
        self.best_parent = max(self._score(str(self.folder / e), "report") for e in EXPERTS)

    def _job(self, space: Any, models: Mapping[str, Any], *, with_base: bool = True) -> dict[str, Any]:
        base = {"base": str(self.folder / "base")} if with_base else {}
        return {
            "name": "one",
            "parents": {**base, "models": dict(models)},
            "space": space,
            "suite": {
                "include": [str(self.folder / "tasks")],
                "tasks": list(TASKS),
                "questions": "all",
                "split": {"search": 100, "select": 200, "report": self._arguments.report_items},
            },
            "objectives": [{"name": "mean", "tasks": list(TASKS), "aggregate": "mean"}],
            "budget": {"evaluations": self._arguments.evaluations},
            "cluster": {"backend": "local", "workers": 1},
            "seed": self._seed,
        }

    def _models(self, names: Sequence[str]) -> dict[str, str]:
        return {name: str(self.folder / name) for name in names}

    def _score(self, model: str, set_name: Any) -> float:
        from evomerge.config.evaluate import evaluate_model
        from evomerge.config.load import job_document, resolve_job

        job = self._job("layer-wise-task-arithmetic", self._models(EXPERTS))
        answers = evaluate_model(model, resolve_job(job_document(job), self.folder), set_name).answers
        return fmean(a.mean for a in answers.values())

    def _search(self, space: Any, models: Mapping[str, Any], *, with_base: bool = True) -> float:
        import evomerge

        run = Path(tempfile.mkdtemp(dir=self._scratch)) / "run"
        summary = evomerge.search(self._job(space, models, with_base=with_base), run_dir=run)
        if summary.chosen is None or summary.chosen.report is None:
            raise RuntimeError("the search chose nothing")
        return float(summary.chosen.report.objectives["mean"].value)

    def _recipe_score(self, recipe: Any) -> float:
        from evomerge.recipe.serialize import recipe_to_text

        file = Path(tempfile.mkdtemp(dir=self._scratch)) / "recipe.json"
        file.write_text(recipe_to_text(recipe), encoding="utf-8")
        return self._score(str(file), "report")

    def method(self, spec: Any) -> dict[str, float]:
        """A method's report score at its defaults and after a search."""
        from evomerge.recipe.recipe import ParentRef, Recipe, Rule

        names = EXPERTS if spec.max_models is None else self._two[: spec.max_models]
        row, shared = {}, {}
        for name, parameter in spec.parameters.items():
            fallback = {"weight": WEIGHT, "t": 0.5}.get(name)
            value = OWN_DEFAULTS.get(
                (spec.name, name), parameter.default if parameter.default is not None else fallback
            )
            (row if parameter.per_parent else shared)[name] = value
        refs = [ParentRef(n, str(self.folder / n)) for n in (("base",) if spec.needs_base else ()) + tuple(names)]
        rule = Rule(spec.name, shared, dict.fromkeys(names, row) if row else {})
        found = {"default": self._recipe_score(Recipe(tuple(refs), "base" if spec.needs_base else None, (rule,)))}
        ranges = {n: dict(OWN_RANGES.get((spec.name, n), RANGES.get(n, {}))) for n in spec.parameters}
        parameters = {n: r for n, r in ranges.items() if r}
        if parameters:
            space = {"method": spec.name, "depth": "model", "parameters": parameters}
            found["search"] = self._search(space, self._models(names), with_base=spec.needs_base)
        return found

    def maker(self, name: str) -> dict[str, float]:
        """A made parent's report score as it is, and in a search beside the parents that it is made from."""
        from evomerge.config.assemble import assemble
        from evomerge.config.load import job_document, resolve_job
        from evomerge.config.parents import quiet
        from evomerge.recipe.baselines import parent_recipe

        models = {**self._models(EXPERTS), name: {"make": name, "of": list(EXPERTS)}}
        job = self._job("layer-wise-task-arithmetic", models)
        parents = assemble(resolve_job(job_document(job), self.folder)).parents
        parents.make(quiet)
        made = next(ref for ref in parents.refs() if ref.name == name)
        space = {"method": "task_arithmetic", "depth": "model", "parameters": {"weight": dict(RANGES["weight"])}}
        return {"default": self._made_score(parent_recipe(made), parents), "search": self._search(space, models)}

    def _made_score(self, recipe: Any, parents: Any) -> float:
        from evomerge.virtual.prompts import prompts_text

        prompts = parents.opener.prompts_of(recipe.parents[0])
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        if prompts:
            (folder / "recipe.prompts.json").write_text(prompts_text(prompts), encoding="utf-8")
        from evomerge.recipe.serialize import recipe_to_text

        (folder / "recipe.json").write_text(recipe_to_text(recipe), encoding="utf-8")
        return self._score(str(folder / "recipe.json"), "report")


def _spread(values: Sequence[float]) -> str:
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{fmean(values):.3f} ±{error:.3f}"


def _table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    lines = ["| method | at its defaults | after the search | gain |", "|---|---|---|---|"]
    for name, found in rows.items():
        default = [r["default"] for r in found]
        search = [r["search"] for r in found if "search" in r]
        gains = [r["search"] - r["default"] for r in found if "search" in r]
        searched = _spread(search) if search else "nothing to search"
        gain = f"{100 * fmean(gains):+.1f}" if gains else ""
        lines.append(f"| {name} | {_spread(default)} | {searched} | {gain} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
