"""Unlabelled prompts for makers that need data: taken from the search set alone, told by a digest, kept in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from evomerge.checkpoints.architecture import language_config
from evomerge.digest import canonical_json, digest_json
from evomerge.errors import RecipeError
from evomerge.evaluation.plan import EvalPlan, Item, Scored, TaskPlan, unpack
from evomerge.evaluation.tokens import LENGTH_KEYS
from evomerge.types import Digest
from evomerge.virtual.maker import Prompts

FORMAT: Final = "evomerge.prompts"
VERSION: Final = 1
MAX_TOKENS: Final = 32_768
"""Of a prompt, whatever the models could see at once: the work grows with the square."""
_MOST_IDS: Final = 2**31
MAX_BYTES: Final = 500_000_000
"""Of a file of prompts."""
DEFAULT_PROMPTS: Final = 32
"""Prompts that a maker is shown where the job does not say how many."""


def prompts_of(plan: EvalPlan, number: int) -> Prompts:
    """Prompts of the search set: the tasks in turn, each task's items in the order of their hashes, no prompt twice.

    Nothing of an answer is in them: of a scored request only the context, except for texts that are scored as a whole
    (rolling log-likelihood), which have no answer.

    Args:
        plan: the compiled questions.
        number: how many at most; fewer when the search set has fewer.

    Returns:
        The prompts; of one that is longer than the models see, or than `MAX_TOKENS`, the last tokens.
    """
    limit = min(plan.max_length, MAX_TOKENS)
    queues = [[_ids(item, task)[-limit:] for item in _by_hash(task)] for task in plan.tasks if task.kind != "plugin"]
    found: dict[tuple[int, ...], None] = {}
    for turn in range(max((len(q) for q in queues), default=0)):
        for queue in queues:
            if turn < len(queue) and len(found) < number:
                found.setdefault(queue[turn])
    return tuple(found)


def _by_hash(task: TaskPlan) -> list[Item]:
    return sorted((task.items[i] for i in task.sets["search"]), key=lambda item: item.hash)


def _ids(item: Item, task: TaskPlan) -> tuple[int, ...]:
    request = item.requests[0]
    if not isinstance(request, Scored):
        return tuple(int(i) for i in unpack(request.prompt))
    text = request.context + (request.continuation if task.kind == "loglikelihood_rolling" else b"")
    return tuple(int(i) for i in unpack(text))


def longest_prompt(config: Mapping[str, Any]) -> int:
    """How many tokens a prompt for a model may have: the positions that its config states, at most `MAX_TOKENS`."""
    inner = language_config(config)
    stated = [inner.get(key) for key in LENGTH_KEYS]
    limits = [n for n in stated if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    return min([*limits[:1], MAX_TOKENS])


def prompts_digest(prompts: Prompts) -> Digest:
    """What names prompts in recipes."""
    return digest_json([list(p) for p in prompts])


def prompts_text(book: Mapping[Digest, Prompts]) -> str:
    """The text of a file of prompts."""
    return canonical_json(
        {"format": FORMAT, "version": VERSION, "prompts": [list(map(list, p)) for p in book.values()]}
    )


def read_prompts(path: Path) -> dict[Digest, Prompts]:
    """The prompts of a file by digest; empty when there is no file.

    Raises:
        RecipeError: when the file holds something else, or a prompt of more than `MAX_TOKENS` tokens.
    """
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        whole = json.loads(path.read_text(encoding="utf-8"))
        if whole["format"] != FORMAT or whole["version"] != VERSION:
            raise ValueError(f"format {whole['format']!r}, version {whole['version']!r}")
        books = [tuple(_prompt(prompt) for prompt in prompts) for prompts in whole["prompts"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecipeError(
            "A file of prompts cannot be read.",
            got=f"{path}: {type(error).__name__}: {error}"[:300],
            allowed=f"{FORMAT}, version {VERSION}: token ids, at most {MAX_TOKENS} in a prompt",
            fix="export the recipe again from its run.",
        ) from error
    return {prompts_digest(p): p for p in books}


def _prompt(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_TOKENS:
        raise ValueError(f"a prompt of {len(value)} tokens" if isinstance(value, list) else f"{value!r} as a prompt")
    for token in value:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < _MOST_IDS:
            raise ValueError(f"the token {str(token)[:40]}")
    return tuple(value)
