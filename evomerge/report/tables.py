"""The report's tables, as HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from evomerge.report.summary import Entry, EvaluationRow, ObjectiveScore, RunDetails, RunSummary
from evomerge.report.svg import escape, number
from evomerge.report.words import duration
from evomerge.types import SET_NAMES, SetName

_MAX_FAILURES = 20
NOT_SCORED = "&ndash;"


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, marked: frozenset[int] = frozenset(), text: int = 1
) -> str:
    """A table of finished HTML cells.

    Args:
        head: column titles, plain text.
        rows: cells, already escaped.
        marked: row numbers to emphasise.
        text: how many leading columns hold text (left-aligned).
    """
    top = "".join(f"<th{' class=l' if k < text else ''}>{escape(h)}</th>" for k, h in enumerate(head))
    body = []
    for r, row in enumerate(rows):
        cells = "".join(f"<td{' class=l' if k < text else ''}>{c}</td>" for k, c in enumerate(row))
        body.append(f"<tr{' class=chosen' if r in marked else ''}>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def scored(value: float, low: float, high: float) -> str:
    """A value with its interval below it, as a cell; what is exact has none."""
    if low == value == high:
        return f"{value:.0f}" if value == int(value) and abs(value) < 1e4 else number(value)
    return f'{number(value)}<span class="pm below">{number(low)} to {number(high)}</span>'


def merge_name(entry: Entry) -> str:
    """An entry's id as a cell, with a word when it breaks a constraint."""
    return escape(entry.id) + ("" if entry.feasible else ' <span class="bad-text small">infeasible</span>')


def front_table(summary: RunSummary, hops: Mapping[str, int]) -> str:
    """Front and baselines: every objective on every set, with its interval; and how many layers run.

    Args:
        summary: of the run.
        hops: entry id -> number of layers that run; empty where no paths were searched.
    """
    sets: list[SetName] = [
        s for s in SET_NAMES if s == "search" or any(e.scores(s) for e in summary.entries().values())
    ]
    if len(summary.objectives) > 2:
        sets = [
            "select" if "select" in sets else "search"
        ]  # nine columns of intervals would not fit; the charts have all
    head = ["merge", *(f"{o.name}, {s}" for o in summary.objectives for s in sets), *(["hops"] if hops else [])]
    chosen = summary.chosen.id if summary.chosen else None
    entries = sorted(summary.entries().values(), key=lambda e: e.id != chosen)
    rows = []
    for e in entries:
        scores = [(o.name, e.scores(s)) for o in summary.objectives for s in sets]
        cells = [NOT_SCORED if s is None else _objective(s.objectives[n]) for n, s in scores]
        n_hops = [str(hops.get(e.id, NOT_SCORED))] if hops else []
        rows.append([merge_name(e), *cells, *n_hops])
    return table(head, rows, marked=frozenset(k for k, e in enumerate(entries) if e.id == chosen))


def _objective(score: ObjectiveScore) -> str:
    return scored(score.value, score.low, score.high)


def task_table(summary: RunSummary, compared: Sequence[Entry]) -> str:
    """Per task: the best-tested score of the chosen merge and the baselines, with standard errors."""
    tasks = list(dict.fromkeys(t for e in compared for t in e.search.tasks))
    blocks = []
    for set_name in ("report", "select"):
        here = [e for e in compared if e.scores(set_name) is not None]
        if not here:
            continue
        rows = []
        for e in here:
            scores = e.scores(set_name)
            known = scores.tasks if scores is not None else {}
            cells = [
                f'{number(s.value)} <span class="pm">± {number(s.se)}</span>' if (s := known.get(t)) else NOT_SCORED
                for t in tasks
            ]
            rows.append([merge_name(e), *cells])
        chosen = summary.chosen.id if summary.chosen else None
        marked = frozenset(k for k, e in enumerate(here) if e.id == chosen)
        title = f"<h3>Tasks on the {set_name} set <span class='soft small'>(± one standard error)</span></h3>"
        blocks.append(title + table(["merge", *tasks], rows, marked=marked))
    return "".join(blocks)


def split_table(details: RunDetails) -> str:
    """Items per task and set."""
    if not details.splits:
        return ""
    rows = [[escape(t), *(str(sizes.get(s, 0)) for s in SET_NAMES)] for t, sizes in details.splits.items()]
    return f'<h3>Items per task</h3><div class="narrow">{table(["task", *SET_NAMES], rows)}</div>'


def failure_table(failed: Sequence[EvaluationRow]) -> str:
    """Failed candidates by message, then one by one."""
    by_message = Counter(r.failure or "" for r in failed)
    rows = [[f'<span class="long">{escape(m)}</span>', str(n)] for m, n in by_message.most_common(_MAX_FAILURES)]
    listed = ", ".join(escape(r.id) for r in failed[:_MAX_FAILURES])
    more = f" and {len(failed) - _MAX_FAILURES} more" if len(failed) > _MAX_FAILURES else ""
    return table(["what happened", "candidates"], rows) + f'<p class="soft small">{listed}{more}</p>'


def timing_table(summary: RunSummary, details: RunDetails) -> str:
    """Where the time went."""
    scored_rows = [r for r in details.evaluations if r.objectives is not None and not r.reused]
    merge_s, score_s = sum(r.merge_s for r in scored_rows), sum(r.score_s for r in scored_rows)
    n, c = len(scored_rows), summary.counts
    rows = [
        ["wall time, all lives", duration(summary.timing.wall_s)],
        ["times started", str(summary.timing.lives)],
        ["candidates asked", str(c.asked)],
        ["scored", str(c.evaluated)],
        ["reused (same recipe, no question asked)", str(c.reused)],
        ["failed", str(c.failed)],
        ["questions answered", f"{c.questions:,}"],
        ["evaluations per minute", number(summary.timing.evaluations_per_min)],
        ["workers lost", str(summary.losses.lost)],
        ["workers refused", str(summary.losses.refused)],
    ]
    if n and merge_s + score_s > 0:
        rows.append(["worker time merging", f"{duration(merge_s)} ({merge_s / n:.3f} s per candidate)"])
        rows.append(["worker time scoring", f"{duration(score_s)} ({score_s / n:.3f} s per candidate)"])
        if details.workers and summary.timing.wall_s:
            busy = (merge_s + score_s) / (summary.timing.wall_s * details.workers)
            rows.append([f"share of the wall time that {details.workers} workers were busy", f"{busy:.0%}"])
    if details.host:
        rows.append(["machine", escape(details.host)])
    return f'<div class="narrow">{table(["what", "how much"], rows)}</div>'


def versions_table(details: RunDetails) -> str:
    """Package versions."""
    rows = [[escape(k), escape(v)] for k, v in details.versions.items()]
    return f'<div class="narrow">{table(["package", "version"], rows, text=2)}</div>'
