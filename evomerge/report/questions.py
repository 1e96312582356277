"""The report's sections on questions: who was asked how many, the race, the item banks, and what was saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from evomerge.irt.axis import AbilityAxis
from evomerge.report.asked import AskedQuestions, BankTold, RaceTold
from evomerge.report.blocks import captioned, folded, legend, section
from evomerge.report.item_curves import characteristic_curves, information_curve, shown_items
from evomerge.report.race_plots import MAX_ROWS, questions_over_time, race_chart
from evomerge.report.summary import RunSummary
from evomerge.report.svg import escape, line, marker, number
from evomerge.report.tables import NOT_SCORED, table
from evomerge.report.words import duration

_CURVES: Final = 48
"""Items of a task whose curves are drawn."""

_MANY_RACES: Final = 12
_MANY_TASKS: Final = 6


def questions_section(summary: RunSummary, asked: AskedQuestions) -> str:
    """Who was asked how many questions; one sentence when everybody was asked everything."""
    if not asked.candidates:
        return ""
    if not asked.partial:
        told = f"Every candidate was asked all {asked.full:,} questions of the search set."
        return section("Questions asked", told)
    chosen = summary.chosen.id if summary.chosen else ""
    raced = any(len(race.rungs) > 1 for race in asked.races)
    chart = captioned(questions_over_time(asked, chosen), "Questions of the search set that each model answered")
    parts = [f"<p>{escape(saving(asked))}</p>", chart, _legend(raced, bool(chosen))]
    parts += [_generation(summary, asked), _races(asked)]
    return section("Questions asked", escape(_intro(asked, raced)), *parts)


def _intro(asked: AskedQuestions, raced: bool) -> str:
    first = asked.races[0].batch
    before = "baselines"
    if first:
        before += " and generation 0" if first == 1 else f" and generations 0 to {first - 1}"
    told = f"The {before} answered everything, so that it is known what each question tells. "
    if not raced:
        return told + "From then on every candidate was asked a part, the same for a whole generation."
    return told + (
        "From then on each generation ran a race: all candidates were asked the same few questions, the better ones "
        "more, and those that were still ahead more again. What is believed of a candidate counts all its answers."
    )


def saving(asked: AskedQuestions) -> str:
    """What was asked, what the full evaluation would have asked, and the seconds of both."""
    n = len(asked.candidates)
    mean = asked.n_asked / n
    told = (
        f"{n} candidates were asked {asked.n_asked:,} questions, {mean:.0f} of {asked.full:,} each on average. "
        f"Asking them everything would have taken {asked.n_full:,}, {asked.n_full / max(1, asked.n_asked):.1f} times "
        "as many"
    )
    seconds = asked.second_per_question
    if not seconds:
        return f"{told}."
    spent = sum(m.score_s for m in asked.candidates)
    return (
        f"{told}: {duration(asked.n_full * seconds)} of scoring, at the {1000 * seconds:.3g} ms a question that full "
        f"evaluations took here, in place of {duration(spent)}."
    )


def _legend(raced: bool, is_chosen: bool) -> str:
    names = [("baseline", "baseline or mean")]
    names += (
        [("candidate", "left the race early"), ("front", "asked to the end")] if raced else [("candidate", "candidate")]
    )
    names += [("chosen", "chosen")] if is_chosen else []
    items = [(marker("candidate", 8, 8, role, radius=4), name) for role, name in names]
    items += [
        (line(1, 8, 15, 8, "best-line"), "mean of a generation"),
        (line(1, 8, 15, 8, "zero"), "the full evaluation"),
    ]
    return legend(*items)


def _generation(summary: RunSummary, asked: AskedQuestions) -> str:
    """One race in detail: the latest that had several rungs and is judged."""
    race = next((r for r in reversed(asked.races) if len(r.rungs) > 1 and r.told), None)
    if race is None:
        return ""
    hidden = len(race.rungs[0].alive) - MAX_ROWS
    more = f"; {hidden} that left early are not drawn" if hidden > 0 else ""
    intro = (
        f"Generation {race.batch}, candidate by candidate: few answers give a wide interval, and only those that may "
        f"be among the best are worth more of them{more}."
    )
    drawn = captioned(race_chart(race, summary.objectives))
    return f'<h3>The race of generation {race.batch}</h3><p class="soft">{intro}</p>{drawn}'


def _races(asked: AskedQuestions) -> str:
    tasks = list(asked.sizes) if len(asked.sizes) <= _MANY_TASKS else []
    head = ["generation", "candidates", "questions", "each on average", "share", *tasks]
    rows = [_race_row(race, asked, tasks) for race in asked.races]
    told = table(head, rows)
    if tasks:
        told += '<p class="soft small">Task columns: questions of each task that those asked most had answered.</p>'
    if len(rows) <= _MANY_RACES:
        return f"<h3>Generations that were asked in part</h3>{told}"
    return folded(f"All {len(rows)} generations that were asked in part", told)


def _race_row(race: RaceTold, asked: AskedQuestions, tasks: Sequence[str]) -> list[str]:
    arrow = " &rarr; "
    return [
        str(race.batch),
        arrow.join(str(len(r.alive)) for r in race.rungs),
        arrow.join(str(r.questions) for r in race.rungs),
        f"{race.mean_questions:.0f}",
        f"{race.mean_questions / max(1, asked.full):.0%}",
        *(str(race.rungs[-1].tasks.get(t, 0)) for t in tasks),
    ]


# -- banks ----------------------------------------------------------------------------------------------------------


def bank_section(asked: AskedQuestions) -> str:
    """What the run knows of its questions; empty without a bank."""
    if not asked.banks or not asked.partial:
        return ""
    rows = [_bank_row(bank) for bank in asked.banks]
    head = ["task", "estimator", "its error", "error of others", "questions", "models", "dimensions", "fits"]
    if not any(bank.errors for bank in asked.banks):
        head, rows = [*head[:2], *head[4:]], [[*row[:2], *row[4:]] for row in rows]
    parts = [table(head, rows, text=2)]
    drawn = [bank for bank in asked.banks if bank.bank is not None]
    parts += [folded(f"Questions of {escape(b.task)}", _curves(b), shown=k == 0) for k, b in enumerate(drawn)]
    imported = [b.task for b in asked.banks if b.imported]
    intro = (
        "For every task an item bank was fitted to the answers of this run: how hard each question is, and how "
        "sharply it separates good models from bad ones. With it a score on all questions is estimated from a few."
    )
    if any(bank.errors for bank in asked.banks):
        intro += " Errors are mean absolute ones, on models that were held out of the fit."
    if imported:
        intro += (
            f" For {', '.join(imported)} a bank from elsewhere was used; drawn is one fitted to this run's answers."
        )
    return section("The item bank", escape(intro), *parts)


def _bank_row(bank: BankTold) -> list[str]:
    share = bank.bank is None or bank.bank.link == "logistic"
    errors = {name: f"{100 * e:.1f} points" if share else number(e) for name, e in bank.errors.items()}
    others = ", ".join(f"{escape(n)} {e.removesuffix(' points')}" for n, e in errors.items() if n != bank.estimator)
    source = f"{bank.n_models}{' (imported)' if bank.imported else ''}"
    return [
        escape(bank.task),
        escape(bank.estimator) or NOT_SCORED,
        errors.get(bank.estimator, NOT_SCORED),
        others or NOT_SCORED,
        str(bank.n_items),
        source,
        str(bank.dimensions) if bank.dimensions else NOT_SCORED,
        str(bank.fits),
    ]


def _curves(bank: BankTold) -> str:
    if bank.bank is None or bank.positions is None:
        return ""
    axis = AbilityAxis.of(bank.bank)
    shown = shown_items(axis) if bank.bank.link == "logistic" else ()
    curves = characteristic_curves(axis, shown, most=_CURVES)
    drawn = captioned(curves, "Item characteristic curves, one per question; A to E from easy to hard")
    if bank.bank.link == "logistic":
        title = "Where the questions separate models; bars: the models of this run"
        drawn += captioned(information_curve(axis, bank.positions), title)
    return f'<div class="pair">{drawn}</div>'
