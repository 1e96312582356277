"""Charts of what was asked: every model's questions over time, and one generation's race."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from evomerge.evaluation.statistics import CONFIDENCE, normal_quantile
from evomerge.report.asked import AskedModel, AskedQuestions, RaceTold
from evomerge.report.intervals import grid
from evomerge.report.marks import FULL, axis_name
from evomerge.report.progress import steps
from evomerge.report.summary import ObjectiveInfo
from evomerge.report.svg import Box, Scale, axes, cross, figure, label, line, marker, number, path, rect, shorten

MAX_ROWS: Final = 32
"""Candidates of a generation that are drawn."""

_ROW: Final = 20.0
_DRAWN_OBJECTIVES: Final = 3


def questions_over_time(asked: AskedQuestions, chosen: str) -> str:
    """Every model a stem from nothing to all that it answered, a mark at each rung; the full evaluation is a line.

    Args:
        asked: of the run.
        chosen: id of the chosen merge, empty before the choice.
    """
    x = Scale(0, max(len(asked.models), 1) + 1, 62, FULL - 112)
    y = Scale(0, max([asked.full, *(m.questions for m in asked.models)]) * 1.06, 274, 14)
    parts = [axes(x, y, "models, in the order in which they were asked for", "questions answered", whole_x=True)]
    parts.append(line(x.start, y(asked.full), x.end, y(asked.full), "zero"))
    parts.append(label(x.end + 8, y(asked.full) + 4, f"everything: {asked.full:,}"))
    parts.append(path(steps(_means(asked), x, y), "best-line"))
    last = {race.batch: {*race.rungs[-1].alive} for race in asked.races if len(race.rungs) > 1}
    for k, model in enumerate(asked.models, start=1):
        role = "chosen" if model.id == chosen else _role(model, last)
        parts.append(_stem(model, x(k), y, role))
    return figure(FULL, 320, "Questions that each model answered", *parts)


def _role(model: AskedModel, last: dict[int, set[str]]) -> str:
    if model.kind != "candidate":
        return "baseline"
    return "front" if model.id in last.get(model.batch, ()) else "candidate"


def _stem(model: AskedModel, at: float, y: Scale, role: str) -> str:
    title = f"{model.id}: {' + '.join(str(b - a) for a, b in pairwise((0, *model.steps)))} questions"
    if model.failed:
        return cross(at, y(model.questions) - 6, "failure", f"{model.id}: failed after {model.questions} questions")
    inner = [marker("candidate", at, y(step), role, radius=1.5) for step in model.steps[:-1]]
    stem = line(at, y(0), at, y(model.questions), f"stem {role}")
    return stem + "".join(inner) + marker(model.kind, at, y(model.questions), role, radius=3.2, title=title)


def _means(asked: AskedQuestions) -> list[tuple[int, float]]:
    """(place of a generation's last new candidate, mean questions of its candidates)."""
    found: list[tuple[int, float]] = []
    batches = dict.fromkeys(m.batch for m in asked.candidates)
    places = {m.id: k for k, m in enumerate(asked.models, start=1)}
    for batch in batches:
        here = [m for m in asked.candidates if m.batch == batch]
        mean = sum(m.questions for m in here) / len(here)
        found += [(places[here[0].id], mean), (places[here[-1].id], mean)]
    return found


def shown_racers(race: RaceTold, objective: ObjectiveInfo) -> list[str]:
    """The candidates of a race, those that came farthest first, then the better ones; at most `MAX_ROWS`."""
    sign = -1.0 if objective.direction == "maximize" else 1.0

    def key(id_: str) -> tuple[int, float, str]:
        scores = race.scores.get(id_)
        return -race.reached(id_), float("inf") if scores is None else sign * scores[objective.name][0], id_

    return sorted(race.rungs[0].alive, key=key)[:MAX_ROWS]


def race_chart(race: RaceTold, objectives: Sequence[ObjectiveInfo]) -> str:
    """One generation: how much each candidate was asked, rung by rung, and what was believed of it in the end."""
    ids = shown_racers(race, objectives[0])
    bottom = 30 + _ROW * len(ids)
    bars = Scale(0, race.rungs[-1].questions, 96, 440)
    parts = grid(bars, 30, bottom, "g")
    for row, id_ in enumerate(ids):
        top = 30 + _ROW * row
        parts.append(label(bars.start - 8, top + 14, shorten(id_, 14), anchor="end"))
        for k, (before, rung) in enumerate(zip((None, *race.rungs), race.rungs, strict=False)):
            if id_ in rung.alive:
                begin = 0 if before is None else before.questions
                box = Box(bars(begin) + 0.5, top + 4, bars(rung.questions) - 0.5, top + 17)
                title = f"{id_}, rung {k + 1}: {rung.questions - begin} questions"
                parts.append(rect(box, "heat", opacity=0.35 + 0.6 * (k + 1) / len(race.rungs), title=title))
    parts.append(
        label((bars.start + bars.end) / 2, bottom + 36, "questions, rung by rung", "axis-label", anchor="middle")
    )
    shown = objectives[:_DRAWN_OBJECTIVES]
    width = (FULL - 510) / len(shown)
    for k, objective in enumerate(shown):
        left = 510 + width * k
        parts.append(_beliefs(race, ids, objective, Box(left, 30, left + width - 30, bottom)))
    return figure(FULL, bottom + 46, f"The race of generation {race.batch}", *parts)


def _beliefs(race: RaceTold, ids: Sequence[str], objective: ObjectiveInfo, area: Box) -> str:
    """Scores with intervals, a row per candidate."""
    z = normal_quantile(CONFIDENCE)
    known = {id_: race.scores[id_][objective.name] for id_ in ids if id_ in race.scores}
    x = Scale.around([v + s * z * se for v, se in known.values() for s in (-1, 1)], area.left, area.right)
    parts = grid(x, area.top, area.bottom, "g")
    for row, id_ in enumerate(ids):
        middle = area.top + _ROW * (row + 0.5)
        if id_ not in known:
            parts.append(label((area.left + area.right) / 2, middle + 4, "failed", "label bad", anchor="middle"))
            continue
        value, se = known[id_]
        role = "front" if race.reached(id_) == len(race.rungs) - 1 else "candidate"
        parts.append(line(x(value - z * se), middle, x(value + z * se), middle, f"whisker {role}"))
        title = f"{id_}: {number(value)} ± {number(se)}"
        parts.append(marker("candidate", x(value), middle, role, radius=3.6, title=title))
    name = shorten(f"{axis_name(objective)}, as the search believed", 48)
    parts.append(label((area.left + area.right) / 2, area.bottom + 36, name, "axis-label", anchor="middle"))
    return "".join(parts)
