"""The report of a run: one HTML file that needs nothing else, neither network nor script."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.report.blocks import captioned, legend, section
from evomerge.report.genes import constant_of, gene_map, largest, map_width
from evomerge.report.intervals import difference_rows, interval_rows
from evomerge.report.marks import FULL, HALF
from evomerge.report.overfit import overfit_section
from evomerge.report.path_plots import paths_section
from evomerge.report.plots import interval_scatter, outside_search_scatter, parallel_coordinates, search_scatter
from evomerge.report.progress import hypervolume_progress, objective_progress
from evomerge.report.questions import bank_section, questions_section
from evomerge.report.stages import stages_section
from evomerge.report.style import CSS, POLICY
from evomerge.report.summary import Difference, Entry, RunDetails, RunSummary
from evomerge.report.survey_plots import survey_section
from evomerge.report.svg import cross, escape, line, marker, number
from evomerge.report.tables import failure_table, front_table, split_table, task_table, timing_table, versions_table
from evomerge.report.window_plots import windows_section
from evomerge.report.words import duration, not_drawn, plainly, recommendation, what_next
from evomerge.types import SetName

LATER_SETS: tuple[SetName, ...] = ("select", "report")
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
        stages_section(summary, details.stages, details.hops),
        _tasks(summary, details),
        paths_section(details.paths, summary.chosen.id if summary.chosen else "", _n_more_paths(summary, details)),
        windows_section(details.windows),
        overfit_section(summary, details.selected, details.costs, "block" if details.asynchronous else "generation"),
        "" if details.asked is None else questions_section(summary, details.asked) + bank_section(details.asked),
        _genes(details),
        survey_section(details.survey),
        _failures(details),
        _cost(summary, details),
        _reproduce(summary, details),
    ]
    title = f"{escape(summary.name)} · evomerge"
    meta = f'<meta charset="utf-8">{POLICY}<meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f'<!doctype html><html lang="en"><head>{meta}<title>{title}</title><style>{CSS}</style></head>'
    foot = f"<footer>Written by evomerge. Result digest <code>{escape(summary.result_digest)}</code></footer>"
    return f"{head}<body><main>{''.join(sections)}{foot}</main></body></html>\n"


def _head(summary: RunSummary, details: RunDetails) -> str:
    c, t = summary.counts, summary.timing
    of = f" / {summary.budget}" if summary.budget else ""
    tiles = [
        (f"{c.evaluated + c.failed}{of}", "evaluations"),
        (str(len(summary.front)), "on the front"),
        (str(c.failed), "failed"),
        (f"{c.questions:,}", "questions answered"),
        (duration(t.wall_s), "wall time" if t.lives == 1 else f"wall time, {t.lives} lives"),
        (number(t.evaluations_per_min), "evaluations per minute"),
    ]
    drawn = "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)
    chip = f'<span class="chip">{escape(summary.state)}</span>'
    mode = ", asynchronous" if details.asynchronous else ""
    optimizer = f"optimizer {escape(details.optimizer)}{mode} · " if details.optimizer else ""
    goals = ", ".join(
        f"{'maximize' if o.direction == 'maximize' else 'minimize'} {escape(o.name)}" for o in summary.objectives
    )
    line_two = f'<p class="soft">{goals} · {optimizer}seed {escape(summary.seed)}</p>'
    verdict = f'<p class="verdict">{escape(recommendation(summary, details))}</p>'
    return f'<h1>{escape(summary.name)}{chip}</h1>{line_two}{verdict}<div class="tiles">{drawn}</div>'


def _notes(details: RunDetails) -> str:
    return "".join(f'<p class="note">{escape(note)}</p>' for note in details.notes)


def _differences(summary: RunSummary, details: RunDetails) -> str:
    if not details.differences:
        return ""
    goals = {o.name for o in summary.objectives}
    main = [d for d in details.differences if d.what in goals]
    tasks = [d for d in details.differences if d.what not in goals]
    sentences = "".join(f"<li>{escape(s)}</li>" for s in plainly(summary, details))
    parts = [f"<ul>{sentences}</ul>" if sentences else ""]
    for rows, unit in _by_unit(main, details):
        parts.append(captioned(difference_rows(rows), unit))
    if tasks:
        opened = "" if main else " open"
        parts.append(f"<details{opened}><summary>Task by task</summary>{captioned(difference_rows(tasks))}</details>")
    intro = "Paired differences over the same questions of the report set, with intervals."
    return section("Is it better than its parents?", f"{intro} {escape(details.selection)}", *parts)


def _by_unit(differences: Sequence[Difference], details: RunDetails) -> list[tuple[list[Difference], str]]:
    """Differences that share an axis, with a caption: scores together, every cost by itself."""
    scores = [d for d in differences if d.what not in details.costs]
    costs = [
        ([d for d in differences if d.what == name], f"{escape(name)}: {unit}") for name, unit in details.costs.items()
    ]
    return [(rows, unit) for rows, unit in [(scores, ""), *costs] if rows]


def _kinds_legend(summary: RunSummary) -> str:
    items = [
        (marker("candidate", 8, 8, "candidate", radius=4), "candidate"),
        (marker("candidate", 8, 8, "infeasible", radius=4), "infeasible"),
    ]
    if summary.front and len(summary.objectives) > 1:
        items.append((marker("candidate", 8, 8, "front", radius=5), "front"))
    kinds = dict.fromkeys(e.kind for e in summary.baselines)
    items += [(marker(k, 8, 8, "baseline", radius=5), escape(k.replace("-", " "))) for k in kinds]
    if summary.chosen:
        items.append((marker(summary.chosen.kind, 8, 8, "chosen", radius=5), "chosen"))
    return legend(*items)


def _front(summary: RunSummary, details: RunDetails) -> str:
    n = len(summary.objectives)
    parts = []
    if not summary.front:
        why = "No candidate satisfies every constraint" if summary.constraints else "Nothing has been scored"
        parts.append(f'<p class="bad-text">{why}: the front is empty.</p>')
    if n == 2:
        parts.append(_two_objectives(summary, details))
    elif n > 2:
        parts.append(captioned(parallel_coordinates(summary, details)))
    else:
        parts.append(captioned(objective_progress(summary, details, summary.objectives[0], wide=FULL, high=400)))
    parts += [_kinds_legend(summary), front_table(summary, details.hops)]
    constraints = "; ".join(
        c.rule + (f" (= {number(c.bound)})" if c.bound is not None and "parent" in c.rule else "")
        for c in summary.constraints
    )
    intro = f"Under the constraints: {escape(constraints)}." if constraints else ""
    return section("The front beside the baselines" if n > 1 else "Candidates beside the baselines", intro, *parts)


def _two_objectives(summary: RunSummary, details: RunDetails) -> str:
    """The search set large; the select and report sets small beside it, once something was scored there."""
    later = [s for s in LATER_SETS if any(e.scores(s) for e in summary.entries().values())]
    outside = outside_search_scatter(summary, details)
    caption = "Search set, all candidates"
    if outside:
        who = "1 candidate far from all others is" if outside == 1 else f"{outside} candidates far from all others are"
        caption += f"; {who} drawn at the edge"
    if not later:
        return captioned(search_scatter(summary, details, wide=FULL, high=520), caption)
    big = captioned(search_scatter(summary, details, wide=600, high=660), caption)
    small = [
        captioned(interval_scatter(summary, s, wide=410, high=318), f"{s.capitalize()} set, with intervals")
        for s in later
    ]
    return f'<div class="front-grid">{big}<div>{"".join(small)}</div></div>'


def _progress(summary: RunSummary, details: RunDetails) -> str:
    parts = []
    if len(summary.objectives) > 1:
        for o in summary.objectives:
            chart = objective_progress(summary, details, o, wide=HALF, high=300)
            parts.append(captioned(chart, f"{escape(o.name)}, search set"))
    if details.hypervolume:
        chart = hypervolume_progress(details, wide=HALF, high=300)
        parts.append(captioned(chart, "Hypervolume of the feasible front, search set"))
    if not parts:
        return ""
    items = [
        (line(1, 8, 15, 8, "best-line"), "best feasible so far"),
        (line(1, 8, 15, 8, "baseline-line"), "baselines"),
        (cross(8, 8, "failure", ""), "failed"),
    ]
    return section("Progress", "", f'<div class="pair">{"".join(parts)}</div>', legend(*items))


def _compared(summary: RunSummary) -> Sequence[Entry]:
    """Chosen first, then baselines: what the interval charts and the task table show."""
    return [e for e in summary.entries().values() if summary.chosen is not None and e.id == summary.chosen.id] + [
        b for b in summary.baselines if summary.chosen is None or b.id != summary.chosen.id
    ]


def _tasks(summary: RunSummary, details: RunDetails) -> str:
    compared = _compared(summary)
    if not compared:
        return ""
    wide = FULL if len(summary.objectives) == 1 else HALF
    charts = [captioned(interval_rows(summary, o, compared, wide=wide), escape(o.name)) for o in summary.objectives]
    items = [(marker("candidate", 8, 8, f"set-{s}", radius=4), f"{s} set") for s in ("search", "select", "report")]
    parts = [
        f'<div class="pair">{"".join(charts)}</div>' if len(charts) > 1 else charts[0],
        legend(*items),
        task_table(summary, compared),
        split_table(details),
    ]
    intro = (
        "The search was guided by the search set and the choice made on the select set; "
        "the report set was scored once, at the end."
    )
    return section("Scores with intervals", intro, *parts)


def _n_more_paths(summary: RunSummary, details: RunDetails) -> int:
    """Members of the front that have a path and no drawing."""
    drawn = {p.entry_id for p in details.paths}
    known = {b.id for b in summary.baselines}
    return sum(e.id in details.hops and e.id not in drawn | known for e in summary.front)


def _genes(details: RunDetails) -> str:
    shown = details.genes[:_MAX_GENES]
    if not shown:
        return ""
    names = dict.fromkeys(t.parameter for g in shown for t in g.tables)
    full = {name: largest(t for g in shown for t in g.tables if t.parameter == name) for name in names}
    blocks = []
    for genes in shown:
        methods = escape(", ".join(genes.methods))
        parts = [f"<h3>{escape(genes.entry_id)} <span class='soft'>{methods}</span></h3>"]
        constant = [(t, v) for t in genes.tables if (v := constant_of(t)) is not None]
        if constant:
            told = ", ".join(f"{escape(t.parameter)} {v:g}" for t, v in constant)
            parts.append(f'<p class="soft small">Everywhere: {told}</p>')
        for table in genes.tables:
            if constant_of(table) is None:
                parts.append(captioned(gene_map(table, full[table.parameter]), escape(table.parameter)))
        blocks.append(f"<div>{''.join(parts)}</div>")
    more = len(details.genes) - _MAX_GENES
    intro = (
        "Each merge's numbers by depth (columns), and by parent and module (rows). Full colour is the largest value of "
        "that parameter in all merges shown; negative values have the other colour."
    )
    told = f'<p class="soft">{escape(not_drawn(more))}</p>' if more > 0 else ""
    layout = "pair" if all(map_width(t) <= HALF for g in shown for t in g.tables) else "one"
    return section("Genes", intro, f'<div class="{layout}">{"".join(blocks)}</div>', told)


def _failures(details: RunDetails) -> str:
    failed = [r for r in details.evaluations if r.failure is not None]
    if not failed:
        return section("Failures", "None: every candidate was scored.")
    told = f"{len(failed)} of {len(details.evaluations)} candidates have no score."
    intro = f"{told} They count as infeasible, never as a number."
    return section("Failures", intro, failure_table(failed))


def _cost(summary: RunSummary, details: RunDetails) -> str:
    return section("Cost and throughput", "", timing_table(summary, details))


def _reproduce(summary: RunSummary, details: RunDetails) -> str:
    folder = details.run_folder or f"runs/{summary.name}"
    commands = what_next(summary, folder)
    parts = [f"<pre>{escape(commands)}</pre>"]
    if details.optimizer_why:
        parts.append(f"<p>Optimizer <b>{escape(details.optimizer)}</b>: {escape(details.optimizer_why)}</p>")
    if details.asynchronous:
        parts.append(
            "<p>The search was asynchronous: what was asked depended on the order in which results came in. Replaying "
            "this journal is exact; another run of the same job may ask for other candidates.</p>"
        )
    if details.recipe:
        parts.append(
            f"<details open><summary>Recipe of the chosen merge</summary><pre>{escape(details.recipe)}</pre></details>"
        )
    if details.job:
        parts.append(f"<details><summary>The resolved job</summary><pre>{escape(details.job)}</pre></details>")
    if details.versions:
        parts.append(f"<details><summary>Versions</summary>{versions_table(details)}</details>")
    return section("How to reproduce", "", *parts)
