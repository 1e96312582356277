"""The page that shows a bank: what it predicts, its items' curves, and where its answers came from. One HTML file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.calibration.bank import Calibrated
from evomerge.calibration.curves import calibration_chart
from evomerge.calibration.quality import Quality
from evomerge.calibration.words import KINDS, verdict
from evomerge.irt.axis import AbilityAxis
from evomerge.report.item_curves import characteristic_curves, information_curve, item_map, shown_items
from evomerge.report.style import CSS, POLICY
from evomerge.report.svg import escape, marker, number
from evomerge.report.tables import table


def render_page(banks: Sequence[Calibrated]) -> str:
    """The whole page as text; needs neither network nor script."""
    title = f"{', '.join(b.pool.task for b in banks[:3])} · item bank"
    meta = f'<meta charset="utf-8">{POLICY}<meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f"<!doctype html><html lang='en'><head>{meta}<title>{escape(title)}</title><style>{CSS}</style></head>"
    body = "".join(_bank(bank) for bank in banks)
    return f"{head}<body><main>{body}<footer>Written by evomerge calibrate.</footer></main></body></html>\n"


def _bank(bank: Calibrated) -> str:
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in bank.pool.notes)
    return "".join((_head(bank), notes, _predictions(bank.quality, bank), _items(bank), _sources(bank)))


def _head(bank: Calibrated) -> str:
    responses, fitted = bank.pool.responses, bank.fit.bank
    d = fitted.dimensions
    tiles = [
        (f"{len(responses.models):,}", "models"),
        (f"{len(responses.items):,}", "items"),
        (f"{int((~fitted.fitted).sum()):,}", "of them answered alike by all"),
        (f"{int(responses.seen.sum()):,}", "answers"),
        (f"{responses.seen.mean():.0%}", "of the matrix is filled"),
        (str(d), "dimension" if d == 1 else "dimensions"),
    ]
    drawn = "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)
    metric = f"metric {escape(bank.pool.metric)} · " if bank.pool.metric else ""
    line = f'<p class="soft">{metric}{fitted.link} items</p>'
    told = f'<p class="verdict">{escape(verdict(bank.quality))}</p>'
    title = f'<h1>{escape(bank.pool.task)}<span class="chip">item bank</span></h1>'
    return f'{title}{line}{told}<div class="tiles">{drawn}</div>'


def _section(title: str, intro: str, *parts: str) -> str:
    return f'<section><h2>{title}</h2><p class="soft">{intro}</p>{"".join(parts)}</section>'


def _figure(svg: str, caption: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def _predictions(quality: Quality, bank: Calibrated) -> str:
    intro = (
        "Measured on models and answers that a fit did not see. A model that was held out is asked a few random items; "
        "what it would score on all of them is predicted by the bank, and by the plain mean of its answers."
    )
    if not quality.errors:
        return _section("How well it predicts", f"Not measured: {escape(quality.why_not)}.")
    rows = [[str(e.asked), number(e.bank), number(e.mean)] for e in quality.errors]
    errors = table(["questions asked", "error of the bank", "error of the plain mean"], rows)
    title = f"<h3>Mean absolute error over {quality.n_models} held-out models</h3>"
    kinds = [
        (quality.new_models, "models that were held out", "front"),
        (quality.new_answers, "answers that were held out", "baseline"),
    ]
    known = [(p, name, role) for p, name, role in kinds if p is not None]
    told = [[name, f"{p.n:,}", number(p.log_likelihood), number(p.baseline)] for p, name, _ in known]
    likelihood = table(["single answers of", "answers", "bank", "item means"], told)
    chart = calibration_chart([(p, role) for p, _, role in known], logistic=bank.fit.bank.link == "logistic")
    marks = [(marker("candidate", 8, 8, role, radius=5), name) for _, name, role in known]
    legend = "".join(f'<span><svg viewBox="0 0 16 16" aria-hidden="true">{m}</svg>{name}</span>' for m, name in marks)
    left = f"<div>{title}{errors}<h3>Log-likelihood per answer</h3>{likelihood}</div>"
    right = _figure(chart, "Observed against predicted; larger circles hold more answers")
    return _section(
        "How well it predicts",
        intro,
        f'<div class="pair">{left}<div>{right}<div class="legend">{legend}</div></div></div>',
    )


def _items(bank: Calibrated) -> str:
    fitted = bank.fit.bank
    axis = AbilityAxis.of(fitted)
    logistic = fitted.link == "logistic"
    shown = shown_items(axis) if logistic else ()
    parts = [_figure(characteristic_curves(axis, shown), "Item characteristic curves: expected score over the ability")]
    if logistic:
        positions = axis.positions(bank.fit.theta)
        parts.append(_figure(information_curve(axis, positions), "Where the items measure well; bars: the models"))
        parts.append(_figure(item_map(axis, shown), "The items by difficulty and slope"))
        parts.append(f"<div><h3>Items that are named in the charts</h3>{_named(bank, axis, shown)}</div>")
    intro = (
        "A steep curve separates models whose ability is near its middle, and tells nothing about those far from it."
        if logistic
        else "Scores that are no probabilities follow straight lines: an item tells as much about every ability."
    )
    if fitted.dimensions > 1:
        intro += f" The bank has {fitted.dimensions} dimensions; drawn is the direction in which its items agree most."
    return _section("The items", intro, f'<div class="pair">{"".join(parts)}</div>')


def _named(bank: Calibrated, axis: AbilityAxis, shown: Sequence[tuple[int, str]]) -> str:
    means = np.nanmean(bank.pool.responses.scores, axis=0)
    rows = [
        [
            name,
            f"<code>{escape(axis.bank.items[item][:16])}</code>",
            number(float(axis.difficulties[item])),
            number(float(axis.slopes[item])),
            f"{means[item]:.0%}",
        ]
        for item, name in shown
    ]
    return table(["", "item", "difficulty", "slope", "right"], rows)


def _sources(bank: Calibrated) -> str:
    rows = [[escape(s.name), KINDS[s.kind], f"{s.models:,}", f"{s.answers:,}"] for s in bank.pool.sources]
    parts = [f'<div class="narrow">{table(["source", "kind", "models", "answers"], rows, text=2)}</div>']
    if bank.chosen_by:
        best = max(bank.chosen_by, key=lambda d: bank.chosen_by[d])
        told = [[str(d), number(score)] for d, score in bank.chosen_by.items()]
        parts.append(
            f'<h3>Dimensions</h3><p class="soft">Log-likelihood per held-out answer; {best} is best, and the '
            f"fewest that come close are taken: {bank.fit.bank.dimensions}.</p>"
            f'<div class="narrow">{table(["dimensions", "log-likelihood"], told)}</div>'
        )
    digest = bank.fit.bank.provenance.get("digest", "")
    parts.append(f'<p class="soft small">Digest of all answers: <code>{escape(digest)}</code></p>')
    return _section("Where the answers come from", "Banks are used for items with equal hashes.", *parts)
