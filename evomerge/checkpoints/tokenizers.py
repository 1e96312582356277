"""Do the parents mean the same tokens by the same numbers? Compared by token string; nothing is cut to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

from evomerge.checkpoints.bundle import tokenizer_files
from evomerge.checkpoints.folder import find_file
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.strict_json import damaged, quoted, read_object
from evomerge.checkpoints.token_rows import token_embedding
from evomerge.checkpoints.tokenizer_bombs import check_tokenizer
from evomerge.digest import digest_file
from evomerge.types import Digest

TOKENIZER = "tokenizer.json"
_LISTED = 5


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer's file says about its tokens.

    Attributes:
        ids: token string -> id, added tokens included.
        special: the strings of special tokens.
    """

    ids: Mapping[str, int]
    special: frozenset[str]

    @property
    def max_id(self) -> int:
        """The largest id; -1 without tokens."""
        return max(self.ids.values(), default=-1)


ReadVocabulary = Callable[[Path], Vocabulary | None]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _model_ids(model: Any) -> dict[str, Any]:
    """Token string -> id of a tokenizer model: a mapping, or for Unigram a list of (token, score)."""
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocab, list):
        return {str(pair[0]): i for i, pair in enumerate(vocab) if isinstance(pair, list) and pair}
    return dict(vocab) if isinstance(vocab, Mapping) else {}


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary in a folder's `tokenizer.json` (or GPT-2's `vocab.json`); None when there is neither.

    Raises:
        ModelError: when the file is damaged.
    """
    path = find_file(folder, TOKENIZER)
    plain = find_file(folder, "vocab.json")
    content: dict[str, Any]
    if path is not None:
        content = read_object(path)
        check_tokenizer(path, content)
    elif plain is not None:
        path, content = plain, {"model": {"vocab": read_object(plain)}}
    else:
        return None
    return vocabulary_in(content, path)


def vocabulary_in(content: Mapping[str, Any], path: Path) -> Vocabulary:
    """The vocabulary that the content of a `tokenizer.json` describes; `path` is for messages.

    Raises:
        ModelError: when it is damaged.
    """
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(
        isinstance(t, Mapping) and isinstance(t.get("content"), str) and _is_id(t.get("id")) for t in added
    ):
        raise damaged(path, "malformed added_tokens", "a list of tokens with id and content")
    ids = _model_ids(content.get("model")) | {t["content"]: t.get("id") for t in added}
    if not ids or not all(_is_id(i) for i in ids.values()):
        raise damaged(path, "no vocabulary, or ids that are not whole numbers", "a vocabulary of token strings and ids")
    special = frozenset(t["content"] for t in added if t.get("special"))
    return Vocabulary(MappingProxyType(ids), special)


@final
class VocabularyCache:
    """Reads vocabularies, equal files once: siblings mostly share a tokenizer of several megabytes."""

    def __init__(self) -> None:
        self._known: dict[tuple[Digest | None, ...], Vocabulary | None] = {}

    def read(self, folder: Path) -> Vocabulary | None:
        """What `read_vocabulary` says."""
        files = [find_file(folder, name) for name in (TOKENIZER, "vocab.json")]
        key = tuple(digest_file(file) if file is not None else None for file in files)
        if key not in self._known:
            self._known[key] = read_vocabulary(folder)
        return self._known[key]


def _unreadable(checkpoint: OpenParent) -> dict[str, Digest]:
    """Digests of vocabulary files in other formats, which are compared as a whole."""
    files = tokenizer_files(checkpoint.tokenizer_folder)
    return {n: digest_file(p) for n, p in files.items() if n.endswith((".model", ".tiktoken")) or n == "tekken.json"}


def listed_tokens(tokens: Sequence[str]) -> str:
    """For people: the first few tokens, and how many more there are."""
    listed = ", ".join(quoted(t, 60) for t in tokens[:_LISTED])
    return listed + (f" and {len(tokens) - _LISTED} more" if len(tokens) > _LISTED else "")


def vocabulary_differences(left: Vocabulary, right: Vocabulary) -> list[str]:
    """How two vocabularies differ, one line per kind; empty when every token has the same id and the same standing."""
    only_left, only_right = set(left.ids) - set(right.ids), set(right.ids) - set(left.ids)
    moved = {t for t in set(left.ids) & set(right.ids) if left.ids[t] != right.ids[t]}
    special = (left.special ^ right.special) - only_left - only_right
    kinds = [
        (only_left, "tokens it lacks"),
        (only_right, "tokens of its own"),
        (moved, "tokens with another id"),
        (special, "tokens special in only one of the two"),
    ]
    return [f"tokenizer: {len(tokens)} {text}: {listed_tokens(sorted(tokens))}" for tokens, text in kinds if tokens]


def tokenizer_differences(
    reference: OpenParent, other: OpenParent, read: ReadVocabulary = read_vocabulary
) -> list[str]:
    """How the tokenizer of `other` differs from the reference's where merging must care: tokens and their ids.

    Chat templates, padding and other settings may differ: an export carries those of one parent. A checkpoint
    without tokenizer differs from nothing.

    Args:
        reference: what is compared with.
        other: what is compared.
        read: how vocabularies are read, for a cache.

    Raises:
        ModelError: when a tokenizer's file is damaged.
    """
    left, right = read(reference.tokenizer_folder), read(other.tokenizer_folder)
    if left is not None and left is right:
        return []
    if left is not None and right is not None:
        return vocabulary_differences(left, right)
    left_files, right_files = _unreadable(reference), _unreadable(other)
    common = sorted(set(left_files) & set(right_files))
    if common:
        return [f"tokenizer: {name} differs" for name in common if left_files[name] != right_files[name]]
    if (left or left_files) and (right or right_files):
        return [f"tokenizer: no file in common to compare; save one with a {TOKENIZER}"]
    return []


def embedding_rows(checkpoint: OpenParent) -> int | None:
    """Rows of the token embedding, None when no tensor is recognised as one."""
    embedding = token_embedding(checkpoint.layout)
    return None if embedding is None else embedding.shape[0]


def token_id_faults(checkpoint: OpenParent, read: ReadVocabulary = read_vocabulary) -> list[str]:
    """Tokens whose id lies beyond the embedding, as one line; empty when all have a row.

    Raises:
        ModelError: when the tokenizer's file is damaged.
    """
    vocabulary, rows = read(checkpoint.tokenizer_folder), embedding_rows(checkpoint)
    if vocabulary is None or rows is None or vocabulary.max_id < rows:
        return []
    beyond = {t for t, i in vocabulary.ids.items() if i >= rows}
    return [f"tokenizer: {len(beyond)} tokens beyond the {rows} rows of the embedding: {listed_tokens(sorted(beyond))}"]
