"""How a recipe says that parents get the rows of a common vocabulary: the maker `retokenized`, as values.

Settings are numbers; the rules for single tokens stand as JSON in the reference's `source`, which names no files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from evomerge.digest import canonical_json
from evomerge.errors import RecipeError
from evomerge.recipe.recipe import Making, ParentRef

RETOKENIZED: Final = "retokenized"
NONE: Final = -1
"""In place of a model's number: none; in place of a row's: not said."""


@dataclass(frozen=True)
class TokenRule:
    """Where a token's row comes from in parents that lack it.

    Attributes:
        model: number of the model that gives it; NONE for zeros.
        token: the token of that model whose row it is; None for the same string.
        row: the row of that model by number; NONE where the token says it.
        force: parents that have the token get that row too.
        is_default: nothing is said but that the token exists (mergekit's `tokens: {TOKEN: {}}`).
    """

    model: int = NONE
    token: str | None = None
    row: int = NONE
    force: bool = False
    is_default: bool = False


def token_rules(source: str) -> dict[str, TokenRule]:
    """The rules in a reference's `source`; none where it is a word for people.

    Raises:
        RecipeError: when it begins like rules and is damaged.
    """
    if not source.startswith("{"):
        return {}
    try:
        content = json.loads(source)
        return {str(token): TokenRule(**rule) for token, rule in content["tokens"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecipeError(
            "The rules for tokens of a retokenized parent are damaged.",
            got=source[:200],
            allowed='{"tokens": [[TOKEN, {"model", "token", "row", "force"}], ...]}',
            fix="make the recipe again.",
        ) from error


def _text(rules: Mapping[str, TokenRule]) -> str:
    return canonical_json({"tokens": [[token, asdict(rule)] for token, rule in rules.items()]})


def retokenized(
    models: Sequence[ParentRef],
    *,
    base: int | None,
    source: int | None,
    tokens: Mapping[str, TokenRule] | None = None,
    pad_to_multiple_of: int = 1,
    wide: bool = True,
    keep_rows: bool = True,
    full: bool = False,
) -> tuple[ParentRef, ...]:
    """All models of a merge with the rows of one vocabulary.

    Args:
        models: in the order of the merge; the base may be among them.
        base: number of the base among them; None without.
        source: number of the model whose tokenizer the result has; None for the union of all.
        tokens: where single tokens' rows come from; tokens that the vocabulary lacks are added.
        pad_to_multiple_of: rows of the result.
        wide: means are summed in fp32 and rounded once, else summed in the stored dtype (mergekit).
        keep_rows: the padding rows of the tokenizer's model are kept (mergekit cuts them off).
        full: rows are stored in fp32, else in the narrowest dtype that holds all models' values; mergekit's rows where
            its `dtype` is float32 and the models are narrower.

    Returns:
        One reference per model, under its name.
    """
    rules = dict(tokens or {})
    settings = {
        "base": NONE if base is None else base,
        "source": NONE if source is None else source,
        "pad_to_multiple_of": pad_to_multiple_of,
        "wide": wide,
        "keep_rows": keep_rows,
        "full": full,
    }
    return tuple(
        ParentRef(
            ref.name,
            _text(rules) if rules else ref.source,
            made=Making(RETOKENIZED, tuple(models), settings={**_real(settings), "member": float(i)}),
        )
        for i, ref in enumerate(models)
    )


def _real(settings: Mapping[str, int | bool]) -> dict[str, float | bool]:
    return {k: v if isinstance(v, bool) else float(v) for k, v in settings.items()}
