"""The model card of an exported merge: where it comes from, what it scored, and under which licences it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from evomerge.recipe.equivalence import the_only_parent
from evomerge.recipe.path_words import path_summary, path_table
from evomerge.recipe.recipe import ParentRef, Recipe

_REPLAY = "evomerge merge evomerge_recipe.json --to merged"


@dataclass(frozen=True)
class ScoreLine:
    """One row of the card's score table, on the report set: a value with its interval."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CardFacts:
    """What the run knows about the merge.

    Attributes:
        id: the merge's id in its run.
        run: the run's name.
        scores: on the report set; empty when this merge was not scored there.
        n_tried: candidates that were scored before this one was chosen.
        n_questions: questions of the report set, over all tasks.
        verdicts: sentences about the comparison with the parents.
        public_test_tasks: tasks whose search used a public test split.
        mergekit: whether a mergekit file stands beside the card.
        version: of evomerge.
        engine: what wrote answers, where it was not transformers.
    """

    id: str
    run: str
    scores: tuple[ScoreLine, ...]
    n_tried: int
    n_questions: int
    verdicts: tuple[str, ...]
    public_test_tasks: tuple[str, ...]
    mergekit: bool
    version: str
    engine: str = ""


def licence_situation(licences: Mapping[str, str | None]) -> tuple[str | None, str]:
    """The `license` of the front matter and a sentence for people; never guessed.

    Args:
        licences: parent's name -> the licence its card states, None when it states none.

    Returns:
        The common licence when every parent states the same one; `other` when they differ; None when one is unknown.
    """
    listed = "; ".join(f"{name}: {licence or 'not stated'}" for name, licence in licences.items())
    stated = set(licences.values())
    if None in stated:
        return None, f"Not every parent states a licence ({listed}). Find out before you publish this merge."
    if len(stated) == 1:
        return next(iter(stated)), f"All parents state the same licence ({listed})."
    return "other", f"The parents have different licences ({listed}); this merge must satisfy all of them."


def model_card(recipe: Recipe, facts: CardFacts, licences: Mapping[str, str | None]) -> str:
    """The text of `README.md`: YAML front matter as the hub reads it, then what people need to know.

    Args:
        recipe: the merge.
        facts: what the run knows.
        licences: parent's name -> the licence its card states, None when it states none.
    """
    parents = recipe.parents
    licence, situation = licence_situation({p.name: licences.get(p.name) for p in parents})
    front: dict[str, Any] = {
        "base_model": [p.source for p in parents],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "evomerge"],
    }
    if licence is not None:
        front["license"] = licence
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {_one_line(facts.run)}: merge {_one_line(facts.id)}",
        "",
        f"{_kind(recipe)}, found by evomerge {facts.version}. Nothing was trained.",
        "",
        *_path(recipe),
        "## Parents",
        "",
        *[_parent_line(p, is_base=p.name == recipe.base) for p in parents],
        "",
        "## Licence",
        "",
        _one_line(situation),
        "",
        *_scores(facts),
        "## Recipe",
        "",
        "`evomerge_recipe.json` holds the whole recipe, and so does the metadata of the weight files. With the parents",
        f"at hand, anybody replays it: `{_REPLAY}`."
        + (" `mergekit.yaml` is the same recipe for mergekit." if facts.mergekit else " mergekit cannot express it."),
        "",
    ]
    return "\n".join(lines)


def _kind(recipe: Recipe) -> str:
    """What the model is, in half a sentence."""
    methods = ", ".join(dict.fromkeys(rule.method for rule in recipe.rules))
    count = len(recipe.parents)
    number = f"{count} checkpoint" if count == 1 else f"{count} checkpoints"
    if recipe.path is None:
        return f"A merge of {number} by {methods}"
    merged = f", some of them merged by {methods}" if any(hop.parent is None for hop in recipe.path) else ""
    return f"A path through the layers of {number}{merged}: {path_summary(recipe.path)}"


def _path(recipe: Recipe) -> Sequence[str]:
    if recipe.path is None:
        return ()
    gains = [
        "",
        "A gain multiplies what a layer's attention and feed-forward network add to the hidden state. Here it is part",
        "of the weights: nothing but the architecture's own code is needed.",
    ]
    return (
        "## Path",
        "",
        "The layers of this model in order, each a copy of a parent's layer or of a merged one:",
        "",
        *path_table(recipe.path),
        *(gains if any(hop.gain != 1.0 for hop in recipe.path) else []),
        "",
        _outside(recipe),
        "",
    )


def _outside(recipe: Recipe) -> str:
    """Where embeddings, final norm and head come from."""
    parent = the_only_parent(recipe)
    if parent is not None:
        return _one_line(f"Embeddings, final norm and head are those of `{parent}`.")
    methods = dict.fromkeys(rule.method for rule in recipe.rules)
    return _one_line(f"Embeddings, final norm and head follow the recipe's rules ({', '.join(methods)}).")


def _parent_line(parent: ParentRef, *, is_base: bool) -> str:
    where = f"{parent.source} at revision {parent.revision}" if parent.revision else parent.source
    return _one_line(f"- `{parent.name}`{' (base)' if is_base else ''}: {where}")


def _one_line(text: str) -> str:
    """Names come from folders and job files: whatever is in them, they stay within their line."""
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def _number(value: float) -> str:
    """Four decimals; what is too small or too large for them (a latency, a number of parameters) in six digits."""
    return f"{value:.4f}" if value == 0 or 1e-2 <= abs(value) < 1e4 else f"{value:.6g}"


def _interval(score: ScoreLine) -> str:
    return "exact" if score.low == score.value == score.high else f"{_number(score.low)} to {_number(score.high)}"


def _scores(facts: CardFacts) -> Sequence[str]:
    if not facts.scores:
        return (
            "## Scores",
            "",
            "This merge was not scored on the report set: it was not the run's choice.",
            "",
        )
    rows = [f"| {_cell(s.name)} | {_number(s.value)} | {_interval(s)} |" for s in facts.scores]
    warning = []
    if facts.public_test_tasks:
        names = ", ".join(facts.public_test_tasks)
        warning = ["", f"The search used a public test split ({names}): its scores say nothing about unseen data."]
    return (
        "## Scores",
        "",
        f"On the report set ({facts.n_questions} questions that took no part in searching or choosing), with 95 %",
        f"intervals. {facts.n_tried} candidates were tried on other questions before this one was chosen.",
        "",
        "| | score | interval |",
        "|---|---|---|",
        *rows,
        "",
        *[f"- {_one_line(v)}" for v in facts.verdicts],
        *warning,
        *([f"\nAnswers were written by {facts.engine}, held against transformers."] if facts.engine else []),
        "",
    )
