"""Sentences about a run, the same in the report, on the card and in the terminal: plain, never more than is known."""

from __future__ import annotations

from evomerge.report.summary import Difference, RunDetails, RunSummary


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


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


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
    goals = {o.name for o in summary.objectives}
    against = [d for d in details.differences if d.against in parents and d.what in goals and d.against != chosen.id]
    if not against:
        return f"{name}."
    better = [o.name for o in summary.objectives if _all_better(against, o.name)]
    if len(better) == len(summary.objectives):
        return f"{name}: better than every parent on {_listed(better)}, by the report set's intervals."
    rest = [o.name for o in summary.objectives if o.name not in better]
    gain = f" better than every parent on {_listed(better)}, but" if better else ""
    return f"{name}:{gain} no significant gain over every parent on {_listed(rest)}."


def _all_better(differences: list[Difference], what: str) -> bool:
    mine = [d for d in differences if d.what == what]
    return bool(mine) and all(d.verdict == "better" for d in mine)


def separability(details: RunDetails) -> tuple[str, ...]:
    """One sentence per baseline: where the chosen merge is better, where worse, where nothing can be said."""
    sentences = []
    for against in dict.fromkeys(d.against for d in details.differences):
        mine = [d for d in details.differences if d.against == against]
        told = []
        for verdict, words in (
            ("better", "better on"),
            ("worse", "worse on"),
            ("not separable", "no significant gain on"),
        ):
            named = [f"{d.what} ({d.mean:+.3f})" for d in mine if d.verdict == verdict]
            if named:
                told.append(f"{words} {_listed(named)}")
        sentences.append(f"Against {against}: {'; '.join(told)}.")
    return tuple(sentences)


def what_next(summary: RunSummary, folder: str) -> str:
    """The commands that make sense now, one a line."""
    quoted = (
        folder
        if folder.replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum()
        else f"'{folder}'"
    )
    if summary.state == "running":
        return f"evomerge status {quoted} --watch"
    if summary.state in ("interrupted", "failed"):
        return f"evomerge resume {quoted}"
    if summary.chosen is None:
        return f"evomerge report {quoted}"
    lines = [
        f"evomerge export {quoted} --pick id:{summary.chosen.id} --as checkpoint --to merged/",
        f"evomerge export {quoted} --pick id:{summary.chosen.id} --as recipe --to recipe.json",
        "evomerge merge recipe.json --to merged/",
        f"evomerge search {quoted}/job.yaml --run-dir {quoted}-again",
    ]
    return "\n".join(lines)
