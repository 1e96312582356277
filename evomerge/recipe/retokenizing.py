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
ROW_DTYPES: Final = ("float32", "bfloat16", "float16")
"""What the setting `arithmetic` counts from 1 on."""
NONE: Final = -1
"""In place of a model's number: none; in place of a row's: not said."""
MAX_MULTIPLE: Final = 65_536
"""Of the rows of a vocabulary: more than any hardware asks for, and no more rows than a machine has room for."""
_ALLOWED: Final = '{"tokens": [[TOKEN, {"model", "token", "row", "force"}], ...]}'


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

    def __post_init__(self) -> None:
        numbers = [n for n in (self.model, self.row) if not isinstance(n, int) or isinstance(n, bool) or n < NONE]
        flags = [f for f in (self.force, self.is_default) if not isinstance(f, bool)]
        if numbers or flags or not isinstance(self.token, str | None):
            raise _damaged(repr(self))


def token_rules(source: str) -> dict[str, TokenRule]:
    """The rules in a reference's `source`; none where it is a word for people.

    Raises:
        RecipeError: when it begins like rules and is damaged.
    """
    if not source.startswith("{"):
        return {}
    try:
        pairs = [(token, TokenRule(**rule)) for token, rule in json.loads(source)["tokens"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(source) from error
    odd = [token for token, _ in pairs if not isinstance(token, str)]
    if odd or len(dict(pairs)) < len(pairs):
        raise _damaged(source)
    return dict(pairs)


def _damaged(got: str) -> RecipeError:
    return RecipeError(
        "The rules for tokens of a retokenized parent are damaged.",
        got=got[:200],
        allowed=_ALLOWED,
        fix="make the recipe again.",
    )


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
    arithmetic: str | None = None,
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
        arithmetic: float32, bfloat16 or float16 in which rows are stored, and means taken unless `wide`: mergekit's
            `dtype`, into which it casts rows before it takes means; None for what `full` says.

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
        **({} if arithmetic is None else {"arithmetic": 1 + ROW_DTYPES.index(arithmetic)}),
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
