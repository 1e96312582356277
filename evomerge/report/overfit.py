"""How much the search set was learned by heart: search scores beside select scores, over the time of the search.

Whatever a search selects by its scores on the search set is partly lucky there, and may be good at those questions
alone. The baselines were selected by nothing: what they gain or lose between the sets is how much easier one set is.
What the candidates lose beyond that is the price of selection.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from evomerge.evaluation.statistics import CONFIDENCE, normal_quantile
from evomerge.report.blocks import captioned, legend, section
from evomerge.report.book import Book
from evomerge.report.collect import entry
from evomerge.report.marks import FULL, HALF, axis_name
from evomerge.report.summary import Entry, ObjectiveInfo, ObjectiveScore, RunSummary, Selected
from evomerge.report.svg import (
    Scale,
    escape,
    figure,
    label,
    line,
    marker,
    nice_ticks,
    number,
    path,
    shorten,
    text_width,
)
from evomerge.types import CandidateId

MAX_COLUMNS: Final = 26
"""Models that a chart shows; of a larger front every k-th."""

_SPLIT: Final = 240.0
_END: Final = 392.0
"""Pixels at which the upper and the lower part of a chart end; the names of its columns stand below."""

_NAME: Final = 20
"""Characters of a name."""


class Gap(NamedTuple):
    """Search score minus select score in the direction of the objective: positive when the search set flatters.

    Attributes:
        mean: over some models.
        se: an upper bound of its standard error: models err together, because they answer the same questions.
        n: how many models.
    """

    mean: float
    se: float
    n: int


def selected_models(book: Book) -> tuple[Selected, ...]:
    """Every model with a score on the select set, baselines first, then in the order of the search."""
    batches = {c.recipe: batch.number for batch in reversed(book.history.batches) for c in batch.candidates}
    last = len(book.history.batches)
    found = []
    for model in book.models.values():
        if book.record(model.recipe, "select") is None:
            continue
        batch = {"candidate": batches.get(model.recipe, -1), "mean": last}.get(model.kind, -1)
        found.append(Selected(entry(book, book.models[CandidateId(model.id)]), batch))
    return tuple(sorted(found, key=lambda s: s.batch))


def gap(models: Sequence[Selected], objective: ObjectiveInfo) -> Gap | None:
    """The mean gap of some models; None without any."""
    pairs = [p for s in models if (p := _pair(s.entry, objective)) is not None]
    if not pairs:
        return None
    sign = 1.0 if objective.direction == "maximize" else -1.0
    differences = [sign * (a.value - b.value) for a, b in pairs]
    errors = [math.hypot(a.se, b.se) for a, b in pairs]
    return Gap(sum(differences) / len(pairs), sum(errors) / len(pairs), len(pairs))


def _pair(entry_: Entry, objective: ObjectiveInfo) -> tuple[ObjectiveScore, ObjectiveScore] | None:
    if entry_.select is None:
        return None
    return entry_.search.objectives[objective.name], entry_.select.objectives[objective.name]


def _split(models: Sequence[Selected]) -> tuple[list[Selected], list[Selected]]:
    """What nothing selected, and what the search selected."""
    return [s for s in models if s.batch < 0], [s for s in models if s.batch >= 0]


def amount(value: float, values: Sequence[float], form: str = ".1f") -> str:
    """A difference in words: in points where all scores are shares, else as a number."""
    if values and all(0 <= v <= 1 for v in values):
        told = format(100 * value, form)
        return f"{told} point{'' if told.lstrip('+-') == '1.0' else 's'}"
    return number(value)


def gap_sentence(models: Sequence[Selected], objective: ObjectiveInfo) -> str:
    """How much the search set flatters, in a few sentences; empty when nothing was selected yet."""
    baselines, candidates = _split(models)
    ours, theirs = gap(candidates, objective), gap(baselines, objective)
    if ours is None:
        return ""
    values = [v.value for s in models if (p := _pair(s.entry, objective)) is not None for v in p]
    many = f"{ours.n} candidates do" if ours.n > 1 else "One candidate does"
    told = f"{many} {_flattered(ours.mean, values)} on the search set than on the select set"
    if theirs is None:
        return f"{told}; no baseline tells how much easier one of the sets is."
    rivals = f"{theirs.n} baselines" if theirs.n > 1 else "one baseline"
    told += f"; {rivals}, which nothing selected, {_flattered(theirs.mean, values)}."
    excess = ours.mean - theirs.mean
    half = normal_quantile(CONFIDENCE) * math.hypot(ours.se, theirs.se)
    if excess <= 0:
        return f"{told} What was selected by its search scores gains no more than that: nothing was learned by heart."
    size = f"{amount(excess, values)} (± {amount(half, values)} at most)"
    if excess <= half:
        return f"{told} So the search scores of what was selected by them are too high by {size}, which may be chance."
    return (
        f"{told} So the search scores of what was selected by them are too high by {size}: luck, or learned by heart."
    )


def _flattered(mean: float, values: Sequence[float]) -> str:
    """`2.1 points better`, `0.4 points worse`."""
    return f"{amount(abs(mean), values)} {'better' if mean >= 0 else 'worse'}"


def over_time(models: Sequence[Selected], objective: ObjectiveInfo, unit: str = "generation") -> str:
    """How the gap moved from the first milestone to the latest candidates; empty with a single generation.

    Args:
        models: what was scored on the select set.
        objective: whose scores.
        unit: what batches are called.
    """
    candidates = [s for s in models if s.entry.kind == "candidate" and s.batch >= 0]
    batches = sorted({s.batch for s in candidates})
    if len(batches) < 2:
        return ""
    values = [v.value for s in models if (p := _pair(s.entry, objective)) is not None for v in p]
    early = gap([s for s in candidates if s.batch == batches[0]], objective)
    late = gap([s for s in candidates if s.batch == batches[-1]], objective)
    if early is None or late is None:
        return ""
    return (
        f"From {unit} {batches[0]} to {unit} {batches[-1]} the gap went from "
        f"{amount(early.mean, values, '+.1f')} to {amount(late.mean, values, '+.1f')}."
    )


def _thinned(models: Sequence[Selected], chosen: str) -> list[Selected]:
    """At most `MAX_COLUMNS` models: baselines and the chosen one, and evenly from the others."""
    fixed = [s for s in models if s.batch < 0 or s.entry.id == chosen]
    others = [s for s in models if s not in fixed]
    room = max(1, MAX_COLUMNS - len(fixed))
    step = max(1, math.ceil(len(others) / room))
    kept = {id(s) for s in [*fixed, *others[::-1][::step]]}
    return [s for s in models if id(s) in kept]


def gap_chart(models: Sequence[Selected], objective: ObjectiveInfo, *, chosen: str, wide: float) -> str:
    """A column per model: search and select score with intervals, and below them their difference."""
    columns = [(s, p) for s in _thinned(models, chosen) if (p := _pair(s.entry, objective)) is not None]
    y = Scale.around([v for _, p in columns for s in p for v in (s.low, s.high)], _SPLIT, 14)
    z = normal_quantile(CONFIDENCE)
    gaps = [(a.value - b.value, z * math.hypot(a.se, b.se)) for _, (a, b) in columns]
    low = Scale.around([0.0, *(g + s * half for g, half in gaps for s in (-1, 1))], _END, _SPLIT + 22)
    pitch = (wide - 76) / max(1, len(columns))
    shift = min(5.0, pitch / 5)
    parts = [_frame(y, wide, axis_name(objective)), _frame(low, wide, "difference")]
    parts.append(line(62, low(0), wide - 14, low(0), "zero"))
    tracks: dict[str, list[tuple[float, float]]] = {"search": [], "select": [], "gap": []}
    marks = []
    for k, ((model, pair), (gap_, half)) in enumerate(zip(columns, gaps, strict=True)):
        at = 62 + pitch * (k + 0.5)
        for set_name, score, px in zip(("search", "select"), pair, (at - shift, at + shift), strict=True):
            marks += _scored(model.entry, set_name, score, px, y)
            tracks[set_name] += [(px, y(score.value))] * (model.batch >= 0)
        tracks["gap"] += [(at, low(gap_))] * (model.batch >= 0)
        marks.append(line(at, low(gap_ - half), at, low(gap_ + half), "whisker neutral"))
        title = f"{model.entry.id}: search minus select {gap_:+.3f} ± {half:.3f}"
        marks.append(marker(model.entry.kind, at, low(gap_), "neutral", radius=3.8, title=title))
        css = "tick strong" if model.entry.id == chosen else "tick"
        parts.append(label(at + 4, _END + 10, shorten(model.entry.id, _NAME), css, anchor="end", turn=True))
    parts += [path(points, f"joined set-{name}") for name, points in tracks.items()]
    told = f"{objective.name} on the search and the select set, over the search"
    room = 18 + max((text_width(shorten(s.entry.id, _NAME)) for s, _ in columns), default=0.0)
    return figure(wide, _END + room, told, *parts, *marks)


def _scored(entry_: Entry, set_name: str, score: ObjectiveScore, at: float, y: Scale) -> list[str]:
    told = f"{number(score.value)} [{number(score.low)}, {number(score.high)}]"
    return [
        line(at, y(score.low), at, y(score.high), f"whisker set-{set_name}"),
        marker(
            entry_.kind, at, y(score.value), f"set-{set_name}", radius=3.8, title=f"{entry_.id}, {set_name} set: {told}"
        ),
    ]


def _frame(y: Scale, wide: float, name: str) -> str:
    parts = []
    for t in nice_ticks(y.low, y.high, max(2, int((y.start - y.end) / 45))):
        parts += [line(62, y(t), wide - 14, y(t), "grid"), label(55, y(t) + 4, f"{t:g}", "tick", anchor="end")]
    parts.append(line(62, y.start, wide - 14, y.start, "axis"))
    parts.append(label(14, (y.start + y.end) / 2, name, "axis-label", anchor="middle", turn=True))
    return "".join(parts)


def overfit_section(
    summary: RunSummary, models: Sequence[Selected], costs: Collection[str] = (), unit: str = "generation"
) -> str:
    """The section of the report; empty until candidates were scored on the select set.

    Args:
        summary: of the run.
        models: what was scored on the select set.
        costs: names of objectives that no question tells: they are left out.
        unit: what batches are called.
    """
    if not any(s.batch >= 0 for s in models):
        return ""
    chosen = summary.chosen.id if summary.chosen else ""
    objectives = [o for o in summary.objectives if o.name not in costs]
    wide = FULL if len(objectives) == 1 else HALF
    parts = []
    for objective in objectives:
        told = " ".join(s for s in (gap_sentence(models, objective), over_time(models, objective, unit)) if s)
        drawn = captioned(gap_chart(models, objective, chosen=chosen, wide=wide), escape(objective.name))
        parts.append(f"<div><p>{escape(told)}</p>{drawn}</div>")
    charts = f'<div class="pair">{"".join(parts)}</div>' if len(parts) > 1 else parts[0]
    marks = [(marker("candidate", 8, 8, f"set-{s}", radius=4), f"{s} set") for s in ("search", "select")]
    marks.append((marker("candidate", 8, 8, "neutral", radius=4), "search minus select"))
    intro = (
        f"Baselines, then the best of earlier {unit}s and the finalists, in the order of the search. Where search "
        "scores go on to rise and select scores do not, the search learns its questions and not the task."
    )
    return section("Was the search set learned by heart?", intro, charts, legend(*marks))
