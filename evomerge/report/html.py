"""The report of a run: one HTML file that needs nothing else, neither network nor script."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.report.genes import gene_map
from evomerge.report.intervals import difference_rows, interval_rows
from evomerge.report.plots import (
    front_scatter,
    hypervolume_progress,
    objective_progress,
    parallel_coordinates,
)
from evomerge.report.style import CSS
from evomerge.report.summary import Entry, RunDetails, RunSummary
from evomerge.report.svg import cross, escape, line, marker, number
from evomerge.report.tables import failure_table, front_table, split_table, task_table, timing_table, versions_table
from evomerge.report.words import duration, recommendation, separability, what_next

_MAX_GENES = 6
"""Merges whose genes are drawn; a front of fifty would bury the page."""


def render_report(summary: RunSummary, details: RunDetails) -> str:
    """The whole page as text.

    Args:
        summary: what `evomerge status` shows.
        details: what only the report shows.
    """
    sections = [
        _head(summary, details),
        _notes(details),
        _differences(summary, details),
        _front(summary, details),
        _progress(summary, details),
        _tasks(summary, details),
        _genes(details),
        _failures(details),
        _cost(summary, details),
        _reproduce(summary, details),
    ]
    title = f"{escape(summary.name)} · evomerge"
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f'<!doctype html><html lang="en"><head>{meta}<title>{title}</title><style>{CSS}</style></head>'
    foot = f"<footer>Written by evomerge. Result digest <code>{summary.result_digest}</code></footer>"
    return f"{head}<body><main>{''.join(sections)}{foot}</main></body></html>\n"


def _section(title: str, intro: str, *parts: str) -> str:
    told = f'<p class="soft">{intro}</p>' if intro else ""
    return f"<section><h2>{title}</h2>{told}{''.join(parts)}</section>"


def _figure(svg: str, caption: str = "") -> str:
    told = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{told}{svg}</figure>"


def _head(summary: RunSummary, details: RunDetails) -> str:
    c, t = summary.counts, summary.timing
    of = f" / {summary.budget}" if summary.budget else ""
    tiles = [
        (f"{c.evaluated}{of}", "candidates scored"),
        (str(len(summary.front)), "on the front"),
        (str(c.failed), "failed"),
        (f"{c.questions:,}", "questions answered"),
        (duration(t.wall_s), "wall time" if t.lives == 1 else f"wall time, {t.lives} lives"),
        (number(t.evaluations_per_min), "candidates per minute"),
    ]
    drawn = "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)
    chip = f'<span class="chip">{summary.state}</span>'
    optimizer = f"optimizer {escape(details.optimizer)} · " if details.optimizer else ""
    goals = ", ".join(
        f"{'maximize' if o.direction == 'maximize' else 'minimize'} {escape(o.name)}" for o in summary.objectives
    )
    line_two = f'<p class="soft">{goals} · {optimizer}seed {summary.seed}</p>'
    verdict = f'<p class="verdict">{escape(recommendation(summary, details))}</p>'
    return f'<h1>{escape(summary.name)}{chip}</h1>{line_two}{verdict}<div class="tiles">{drawn}</div>'


def _notes(details: RunDetails) -> str:
    return "".join(f'<p class="note"><b>Note.</b> {escape(note)}</p>' for note in details.notes)


def _differences(summary: RunSummary, details: RunDetails) -> str:
    if not details.differences:
        return ""
    sentences = "".join(f"<li>{escape(s)}</li>" for s in separability(details))
    intro = (
        "Paired differences on the report set, which no step of the search has seen. The intervals are corrected for "
        f"the number of comparisons; {summary.counts.evaluated} candidates were tried on other items."
    )
    goals = {o.name for o in summary.objectives}
    drawn = [d for d in details.differences if d.what in goals]  # tasks are told in words: six baselines would be many
    figure = _figure(difference_rows(drawn)) if drawn else ""
    return _section("Is it better than its parents?", intro, f"<ul>{sentences}</ul>", figure)


def _legend(*items: tuple[str, str]) -> str:
    drawn = "".join(
        f'<span><svg viewBox="0 0 16 16" aria-hidden="true">{mark}</svg>{name}</span>' for mark, name in items
    )
    return f'<div class="legend">{drawn}</div>'


def _kinds_legend(summary: RunSummary) -> str:
    items = [
        (marker("candidate", 8, 8, "candidate", radius=4), "candidate"),
        (marker("candidate", 8, 8, "infeasible", radius=4), "infeasible"),
    ]
    if summary.front:
        items.append((marker("candidate", 8, 8, "front", radius=5), "front"))
    kinds = dict.fromkeys(e.kind for e in summary.baselines)
    items += [(marker(k, 8, 8, "baseline", radius=5), k.replace("-", " ")) for k in kinds]
    if summary.chosen:
        items.append((marker(summary.chosen.kind, 8, 8, "chosen", radius=5), "chosen"))
    return _legend(*items)


def _front(summary: RunSummary, details: RunDetails) -> str:
    n = len(summary.objectives)
    parts = []
    if not summary.front:
        parts.append('<p class="bad-text">No candidate satisfies every constraint, so the front is empty.</p>')
    if n == 2:
        charts = [_figure(front_scatter(summary, details, "search"), "Search set, all candidates")]
        for set_name in ("select", "report"):
            if any(e.scores(set_name) for e in summary.entries().values()):
                caption = f"{set_name.capitalize()} set, with intervals"
                charts.append(_figure(front_scatter(summary, details, set_name), caption))
        parts.append(f'<div class="pair">{"".join(charts)}</div>')
    elif n > 2:
        parts.append(_figure(parallel_coordinates(summary, details)))
    else:
        parts.append(_figure(objective_progress(summary, details, summary.objectives[0])))
    parts.append(_kinds_legend(summary))
    parts.append(front_table(summary))
    constraints = "; ".join(
        c.rule + (f" (= {number(c.bound)})" if c.bound is not None and "parent" in c.rule else "")
        for c in summary.constraints
    )
    intro = f"Under the constraints: {escape(constraints)}." if constraints else ""
    return _section("The front beside the baselines" if n > 1 else "Candidates beside the baselines", intro, *parts)


def _progress(summary: RunSummary, details: RunDetails) -> str:
    parts = []
    if len(summary.objectives) > 1:
        parts += [_figure(objective_progress(summary, details, o), escape(o.name)) for o in summary.objectives]
    if details.hypervolume:
        parts.append(_figure(hypervolume_progress(details), "Hypervolume of the feasible front, search set"))
    if not parts:
        return ""
    items = [
        (line(1, 8, 15, 8, "best-line"), "best feasible so far"),
        (line(1, 8, 15, 8, "baseline-line"), "baselines"),
        (cross(8, 8, "failure", ""), "failed"),
    ]
    return _section("Progress", "", f'<div class="pair">{"".join(parts)}</div>', _legend(*items))


def _compared(summary: RunSummary) -> Sequence[Entry]:
    """Chosen first, then baselines: what the interval charts and the task table show."""
    return [e for e in summary.entries().values() if summary.chosen is not None and e.id == summary.chosen.id] + [
        b for b in summary.baselines if summary.chosen is None or b.id != summary.chosen.id
    ]


def _tasks(summary: RunSummary, details: RunDetails) -> str:
    compared = _compared(summary)
    if not compared:
        return ""
    charts = [_figure(interval_rows(summary, o, compared), escape(o.name)) for o in summary.objectives]
    items = [(marker("candidate", 8, 8, f"set-{s}", radius=4), f"{s} set") for s in ("search", "select", "report")]
    parts = [
        f'<div class="pair">{"".join(charts)}</div>',
        _legend(*items),
        task_table(summary, compared),
        split_table(details),
    ]
    intro = (
        "The search was guided by the search set and the choice made on the select set; "
        "the report set was scored once, at the end."
    )
    return _section("Scores with intervals", intro, *parts)


def _genes(details: RunDetails) -> str:
    parts = []
    for genes in details.genes[:_MAX_GENES]:
        parts.append(
            f"<h3>{escape(genes.entry_id)} <span class='soft'>({escape(', '.join(genes.methods))})</span></h3>"
        )
        for table in genes.tables:
            parts.append(_figure(f'<div class="scroll">{gene_map(table)}</div>', escape(table.parameter)))
    if not parts:
        return ""
    more = len(details.genes) - _MAX_GENES
    intro = (
        "Each merge's numbers by depth (columns) and parent and module (rows); the colour is the share of the largest."
    )
    told = f'<p class="soft">{more} more members of the front are not drawn.</p>' if more > 0 else ""
    return _section("Genes", intro, *parts, told)


def _failures(details: RunDetails) -> str:
    failed = [r for r in details.evaluations if r.failure is not None]
    if not failed:
        return _section("Failures", "None: every candidate was scored.")
    told = f"{len(failed)} of {len(details.evaluations)} candidates have no score."
    intro = f"{told} They count as infeasible, never as a number."
    return _section("Failures", intro, failure_table(failed))


def _cost(summary: RunSummary, details: RunDetails) -> str:
    return _section("Cost and throughput", "", timing_table(summary, details))


def _reproduce(summary: RunSummary, details: RunDetails) -> str:
    folder = details.run_folder or f"runs/{summary.name}"
    commands = what_next(summary, folder)
    parts = [f"<pre>{escape(commands)}</pre>"]
    if details.optimizer_why:
        parts.append(f"<p>Optimizer <b>{escape(details.optimizer)}</b>: {escape(details.optimizer_why)}</p>")
    if details.recipe:
        parts.append(
            f"<details open><summary>Recipe of the chosen merge</summary><pre>{escape(details.recipe)}</pre></details>"
        )
    if details.job:
        parts.append(f"<details><summary>The resolved job</summary><pre>{escape(details.job)}</pre></details>")
    if details.versions:
        parts.append(f"<details><summary>Versions</summary>{versions_table(details)}</details>")
    return _section("How to reproduce", "", *parts)
