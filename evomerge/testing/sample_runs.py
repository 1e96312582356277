"""Invented finished and unfinished runs: what reports, tables and cards are tried on. Nothing was trained for them."""

from __future__ import annotations

import numpy as np

from evomerge.digest import digest_text
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.report.genes import merge_genes
from evomerge.report.summary import (
    ConstraintInfo,
    Counts,
    Difference,
    Entry,
    EntryKind,
    EvaluationRow,
    ObjectiveInfo,
    ObjectiveScore,
    RunDetails,
    RunSummary,
    Scores,
    State,
    TaskScore,
    Timing,
    Verdict,
)

_TASKS = ("add", "rev", "srt", "addx")
_SIZES = {"search": 100, "select": 200, "report": 400}


def sample_scores(values: dict[str, float], n: int) -> Scores:
    """Scores with binomial errors for objective values in `[0, 1]`; tasks scatter a little around them."""
    objectives, tasks = {}, {}
    for name, v in values.items():
        se = float(np.sqrt(max(v * (1 - v), 1e-4) / n))
        objectives[name] = ObjectiveScore(v, se, max(0.0, v - 1.96 * se), min(1.0, v + 1.96 * se))
    mean = sum(values.values()) / len(values)
    for k, task in enumerate(_TASKS):
        v = float(np.clip(mean + 0.06 * (k - 1.5), 0, 1))
        tasks[task] = TaskScore(v, float(np.sqrt(max(v * (1 - v), 1e-4) / n)), n)
    return Scores(objectives, tasks)


def sample_entry(
    entry_id: str, kind: EntryKind, values: dict[str, float], *, feasible: bool = True, scored_on: int = 1
) -> Entry:
    """An entry scored on the first `scored_on` of search, select and report."""
    select = sample_scores({k: v - 0.01 for k, v in values.items()}, 200) if scored_on > 1 else None
    report = sample_scores({k: v - 0.015 for k, v in values.items()}, 400) if scored_on > 2 else None
    digest = digest_text(entry_id)
    return Entry(entry_id, kind, digest, feasible, sample_scores(values, 100), select, report)


def sample_recipe(n_layers: int = 8, parents: tuple[str, ...] = ("math", "string", "lang")) -> Recipe:
    """Layer-and-module-wise task arithmetic with negative weights here and there."""
    rng = np.random.default_rng(3)
    refs = tuple(ParentRef(p, f"zoo/{p}") for p in ("base", *parents))
    rules = []
    for layer in range(n_layers):
        for roles in (("attention",), ("mlp",), None):
            weights = {p: {"weight": round(float(rng.normal(0.45, 0.3)), 2)} for p in parents}
            rules.append(Rule("task_arithmetic", {"lambda": 1.0}, weights, (layer,), roles))
    outside = {p: {"weight": 0.3} for p in parents}
    rules.append(Rule("task_arithmetic", {"lambda": 1.0}, outside))
    return Recipe(refs, "base", tuple(rules))


def _values(rng: np.random.Generator, names: tuple[str, ...], progress: float) -> dict[str, float]:
    """Objective values that improve with progress and trade off against each other."""
    turn = rng.uniform(0, np.pi / 2)
    reach = 0.35 + 0.45 * progress + rng.normal(0, 0.05)
    if len(names) == 1:
        return {names[0]: float(np.clip(reach, 0, 1))}
    spread = [abs(np.cos(turn + k * np.pi / len(names))) ** 0.6 for k in range(len(names))]
    return {n: float(np.clip(reach * s, 0, 1)) for n, s in zip(names, spread, strict=True)}


def _front(rows: list[EvaluationRow], names: tuple[str, ...]) -> list[EvaluationRow]:
    """Feasible rows that no other feasible row dominates (all objectives maximized)."""
    good = [r for r in rows if r.feasible and r.objectives is not None]

    def beats(a: EvaluationRow, b: EvaluationRow) -> bool:
        x, y = a.objectives or {}, b.objectives or {}
        return all(x[n] >= y[n] for n in names) and any(x[n] > y[n] for n in names)

    return [r for r in good if not any(beats(o, r) for o in good)]


def sample_rows(
    n: int, names: tuple[str, ...], *, failures: int, feasible_share: float, seed: int = 1
) -> list[EvaluationRow]:
    """`n` candidates in batches of 16; the last ones are better than the first."""
    rng = np.random.default_rng(seed)
    failed = set(rng.choice(n, failures, replace=False).tolist())
    rows = []
    for k in range(n):
        if k in failed:
            why = "nan: logits of task srt are not finite" if k % 3 else "memory: out of memory while merging"
            rows.append(EvaluationRow(f"c{k:04d}", k // 16, "candidate", None, False, why))
            continue
        ok = bool(rng.uniform() < feasible_share)
        values = _values(rng, names, k / n)
        rows.append(EvaluationRow(f"c{k:04d}", k // 16, "candidate", values, ok, None, False, 0.04, 0.9))
    return rows


def sample_run(
    names: tuple[str, ...] = ("skills", "cross"),
    *,
    n: int = 160,
    failures: int = 0,
    feasible_share: float = 1.0,
    state: State = "finished",
    parents: tuple[str, ...] = ("math", "string", "lang"),
    name: str = "sample",
) -> tuple[RunSummary, RunDetails]:
    """A run of `n` candidates with its details; with `feasible_share=0` nothing can be chosen."""
    rows = sample_rows(n, names, failures=failures, feasible_share=feasible_share)
    top = sorted(_front(rows, names), key=lambda r: r.id)
    done = state == "finished"
    front = [sample_entry(r.id, "candidate", dict(r.objectives or {}), scored_on=2 if done else 1) for r in top]
    rng = np.random.default_rng(2)
    base_values: list[tuple[str, EntryKind]] = [(p, "parent") for p in parents] + [
        ("soup", "soup"),
        ("ta-0.4", "task-arithmetic"),
    ]
    baselines = tuple(
        sample_entry(
            b,
            kind,
            _values(rng, names, 0.25),
            feasible=feasible_share > 0 and (k != 1 or feasible_share == 1),
            scored_on=(3 if feasible_share else 2) if done else 1,
        )
        for k, (b, kind) in enumerate(base_values)
    )
    chosen = None
    if done and front:
        best = max(front, key=lambda e: sum(s.value for s in e.search.objectives.values()))
        values = {k: s.value for k, s in best.search.objectives.items()}
        chosen = sample_entry(best.id, "candidate", values, scored_on=3)
        front = [chosen if e.id == chosen.id else e for e in front]
    constraints = () if feasible_share == 1 else (ConstraintInfo("task", "rev", 0.8, "rev >= 0.8"),)
    summary = RunSummary(
        state, name, 7, Counts(n + 5, n - failures, 5, failures, n * 400), Timing(301.2, 31.9, 2),
        tuple(ObjectiveInfo(o) for o in names), constraints, baselines, tuple(front), chosen, n,
    )  # fmt: skip
    return summary, _details(summary, rows, parents)


def _differences(summary: RunSummary) -> tuple[Difference, ...]:
    found = []
    for b in summary.baselines:
        for o in summary.objectives:
            if summary.chosen and summary.chosen.report and b.report:
                mean = summary.chosen.report.objectives[o.name].value - b.report.objectives[o.name].value
                low, high = mean - 0.07, mean + 0.07
                verdict: Verdict = "better" if low > 0 else "worse" if high < 0 else "not separable"
                found.append(Difference(b.id, o.name, mean, low, high, verdict))
    return tuple(found)


def _details(summary: RunSummary, rows: list[EvaluationRow], parents: tuple[str, ...]) -> RunDetails:
    grown = np.maximum.accumulate(np.linspace(0.1, 0.6, len(rows)) ** 0.5)
    genes = (merge_genes(summary.chosen.id, sample_recipe(parents=parents), 8),) if summary.chosen else ()
    return RunDetails(
        evaluations=tuple(rows),
        hypervolume=tuple((k + 1, float(v)) for k, v in enumerate(grown)) if summary.front else (),
        genes=genes,
        differences=_differences(summary),
        splits=dict.fromkeys(_TASKS, _SIZES),
        optimizer="nsga2",
        optimizer_why="two objectives: NSGA-II keeps a front",
        versions={"evomerge": "0.1.0", "torch": "2.13.0"},
        host="2 cores, Linux",
        recipe='{\n  "format": "evomerge.recipe"\n}' if summary.chosen else "",
        job="name: sample\n",
        run_folder=f"runs/{summary.name}",
        workers=2,
    )
