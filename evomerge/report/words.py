"""Sentences about a run, the same in the report, on the card and in the terminal: plain, never more than is known."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from evomerge.report.summary import Counts, Difference, Losses, RunDetails, RunSummary

NOT_JUDGED: Final = "each model was timed at another moment, so differences may be nothing but the machine's load"
"""Why latency has no verdict."""


def duration(seconds: float) -> str:
    """Seconds for people: `8.2 s`, `4 min 05 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def asked_share(counts: Counts) -> str:
    """How much less than everything the candidates were asked; empty when they were asked everything."""
    if not 0 < counts.candidate_questions < counts.full_questions:
        return ""
    share = counts.candidate_questions / counts.full_questions
    return (
        f"candidates were asked {counts.candidate_questions:,} questions of the search set, {share:.0%} of the "
        f"{counts.full_questions:,} of full evaluations; search scores of those asked in part are estimates"
    )


def worker_losses(losses: Losses) -> str:
    """How many workers were lost or refused; empty when none was."""
    told = [f"{n} {what}" for n, what in ((losses.lost, "lost"), (losses.refused, "refused")) if n]
    return f"workers: {', '.join(told)}" if told else ""


def signed(value: float) -> str:
    """A difference for people: its sign and three decimals, or three digits where these would not do; counts whole."""
    if value == int(value) and value:
        return f"{value:+,.0f}"
    return f"{value:+.3f}" if value == 0 or 5e-4 <= abs(value) < 1e4 else f"{value:+.3g}"


def with_interval(value: float, low: float, high: float) -> str:
    """A difference with its interval; what is exact has none."""
    return signed(value) if low == value == high else f"{signed(value)} [{signed(low)}, {signed(high)}]"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def not_drawn(n: int) -> str:
    """That n members of the front have no drawing."""
    return f"{n} more member{'s' if n > 1 else ''} of the front {'are' if n > 1 else 'is'} not drawn."


def _parents(summary: RunSummary) -> set[str]:
    return {b.id for b in summary.baselines if b.kind == "parent"}


def recommendation(summary: RunSummary, details: RunDetails) -> str:
    """What the run says, in one or two sentences; "better than every parent" only when every interval says so."""
    if summary.state == "failed":
        return "The search has failed; the failures are listed below."
    if summary.chosen is None:
        if summary.state == "finished" or not summary.front:
            told = "No merge satisfies every constraint" if summary.constraints else "No merge has been scored"
            return f"{told}{' so far' if summary.state != 'finished' else ''}; nothing is recommended."
        return f"{len(summary.front)} merges are on the front so far; the choice is made when the budget is spent."
    chosen, parents = summary.chosen, _parents(summary)
    name = f"The chosen merge is {chosen.id}"
    if chosen.kind in ("parent", "soup", "task-arithmetic"):
        name = f"Nothing that the search found beats the baseline {chosen.id} on the select set: it is what to use"
        if len(summary.objectives) > 1:
            name = f"The choice among the front of the select set is the baseline {chosen.id}"
    by_words: dict[str, list[str]] = {}
    for objective in summary.objectives:
        mine = [d for d in _judged(details) if d.against in parents and d.what == objective.name]
        if mine:
            by_words.setdefault(_standing(mine), []).append(objective.name)
    return " ".join([f"{name}.", *(f"On {listed(names)} {words}." for words, names in by_words.items())])


def _judged(details: RunDetails) -> list[Difference]:
    """The differences that have a verdict."""
    return [d for d in details.differences if d.verdict != "not judged"]


def _standing(differences: list[Difference]) -> str:
    """How the chosen merge stands to the parents on one objective, as the end of a sentence."""
    worse = [d.against for d in differences if d.verdict == "worse"]
    even = [d.against for d in differences if d.verdict == "not separable"]
    if not worse and not even:
        return "it is better than every parent, by the report set's intervals"
    told = [f"it is worse than {listed(worse)}"] if worse else []
    told += [f"there is no significant gain over {listed(even)}"] if even else []
    return " and ".join(told)


def plainly(summary: RunSummary, details: RunDetails) -> tuple[str, ...]:
    """One sentence per objective: over which baselines the chosen merge gains, over which not, where it loses."""
    sentences = []
    for objective in summary.objectives:
        told = []
        for verdict, words in (
            ("better", "better than"),
            ("not separable", "no significant gain over"),
            ("worse", "worse than"),
        ):
            named = [d.against for d in details.differences if d.what == objective.name and d.verdict == verdict]
            if named:
                told.append(f"{words} {listed(named)}")
        if told:
            sentences.append(f"{objective.name}: {'; '.join(told)}.")
    return (*sentences, *_not_judged(details))


def _not_judged(details: RunDetails) -> tuple[str, ...]:
    """What has no verdict, and why."""
    names = list(dict.fromkeys(d.what for d in details.differences if d.verdict == "not judged"))
    return (f"{listed(names)}: no verdict; {NOT_JUDGED}.",) if names else ()


def separability(details: RunDetails) -> tuple[str, ...]:
    """One sentence per baseline: where the chosen merge is better, where worse, where nothing can be said."""
    sentences = []
    for against in dict.fromkeys(d.against for d in _judged(details)):
        mine = [d for d in _judged(details) if d.against == against]
        told = []
        for verdict, words in (
            ("better", "better on"),
            ("worse", "worse on"),
            ("not separable", "no significant gain on"),
        ):
            named = [f"{d.what} ({signed(d.mean)})" for d in mine if d.verdict == verdict]
            if named:
                told.append(f"{words} {listed(named)}")
        sentences.append(f"Against {against}: {'; '.join(told)}.")
    return (*sentences, *_not_judged(details))


def what_next(summary: RunSummary, folder: str) -> str:
    """The commands that make sense now, one a line."""
    quoted = shlex.quote(folder)
    if summary.state == "running":
        return f"evomerge status {quoted} --watch"
    if summary.state == "interrupted":
        return f"evomerge resume {quoted}"
    if summary.state == "failed":
        return f"evomerge resume {quoted} --set budget.failures=1"
    job, again = shlex.quote(f"{folder}/job.yaml"), shlex.quote(f"{folder}-again")
    if summary.chosen is None:
        loosened = " --set 'constraints=[]'" if summary.constraints else ""
        return f"evomerge search {job} --run-dir {again}{loosened}"
    pick = shlex.quote(f"id:{summary.chosen.id}")
    lines = [
        f"evomerge export {quoted} --pick {pick} --as checkpoint --to merged/",
        f"evomerge export {quoted} --pick {pick} --as recipe --to recipe.json",
        "evomerge merge recipe.json --to merged-again/",
        f"evomerge search {job} --run-dir {again}",
    ]
    return "\n".join(lines)
