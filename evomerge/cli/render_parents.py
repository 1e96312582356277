"""What a plan says of parents besides their headers: what will be made first, what aligning loses, what looks wrong."""

from __future__ import annotations

from collections.abc import Iterator

from evomerge.config.assemble import Assembled
from evomerge.survey.hazards import hazards_of
from evomerge.virtual.fitting import token_words


def parent_notes(assembled: Assembled) -> Iterator[tuple[str, str]]:
    """Rows for the plan's table: a word and a sentence each."""
    parents = assembled.parents
    for pending in parents.opener.pending():
        cost = pending.maker.cost(pending.ingredients)
        name = pending.ingredients.ref.name
        yield "to be made", f"{name}, by {pending.maker.spec.name}{f': {cost}' if cost else ''}"
    if assembled.resolved.job.parents.tokens == "align":
        given = {name: parents.opener.open(ref) for name, ref in assembled.parents.given.items()}
        for name, words in token_words(given).items():
            yield "tokens", f"{name}: {'; '.join(words)}"
    if assembled.survey is not None:
        for hazard in hazards_of(assembled.survey):
            yield hazard.severity, hazard.text
