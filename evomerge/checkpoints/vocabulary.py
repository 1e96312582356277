"""Rows of embeddings by token string: which row of which parent stands for a token of another vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.checkpoints.architecture import language_config
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.token_rows import TOKEN_IDS, token_embedding, token_tensors
from evomerge.checkpoints.tokenizers import TOKENIZER, ReadVocabulary, Vocabulary, listed_tokens, read_vocabulary
from evomerge.digest import digest_text
from evomerge.errors import ModelError
from evomerge.types import Digest


@dataclass(frozen=True)
class Alignment:
    """How the rows of a parent's embedding become those of a reference's.

    Attributes:
        rows: of the reference's embedding.
        source: for every row of the reference the parent's row that becomes it, or -1 where the reference's own row
            stands: tokens that the parent lacks, and rows that no token has (padding).
        lacking: tokens of the reference that the parent lacks.
        dropped: tokens that only the parent has; the merge does not know them.
        beyond: the parent's tokens whose id has no row; taken for lacking.
        clashes: special tokens that mean something else in the two, in words.
    """

    rows: int
    source: tuple[int, ...]
    lacking: tuple[str, ...]
    dropped: tuple[str, ...]
    beyond: tuple[str, ...]
    clashes: tuple[str, ...]

    def words(self) -> tuple[str, ...]:
        """What is lost or mended, one line each; empty for a mere reordering."""
        kinds = (
            (self.lacking, "tokens that it lacks have the reference's rows"),
            (self.dropped, "tokens of its own are dropped"),
            (self.beyond, "tokens whose id has no row in its embedding count as lacking"),
        )
        lines = [f"{len(tokens)} {text}: {listed_tokens(tokens)}" for tokens, text in kinds if tokens]
        return (*lines, *self.clashes)


def rows_of(parent: OpenParent) -> int:
    """How many rows the token embedding has.

    Raises:
        ModelError: when none is recognised.
    """
    embedding = token_embedding(parent.layout)
    if embedding is None:
        raise ModelError(
            "A parent has no embedding of tokens that evomerge recognises.",
            got=parent.source,
            allowed="a causal language model with a matrix of token embeddings",
            fix="use parents with one vocabulary; their tokens then need no alignment.",
        )
    return embedding.shape[0]


def vocabulary_of(parent: OpenParent) -> Vocabulary:
    """A parent's tokens.

    Raises:
        ModelError: when its tokenizer's file is damaged, or not in a format that names tokens.
    """
    vocabulary = read_vocabulary(parent.tokenizer_folder)
    if vocabulary is None:
        raise ModelError(
            "A parent's tokens are not known by their strings.",
            got=f"no {TOKENIZER} in {parent.tokenizer_folder}",
            allowed=f"a {TOKENIZER} in every parent whose tokens are to be aligned",
            fix="load the tokenizer with transformers (AutoTokenizer) and save it there with save_pretrained.",
        )
    return vocabulary


def content_of(vocabulary: Vocabulary) -> Digest:
    """Digest of a vocabulary: tokens, ids, and which are special."""
    return digest_text(json.dumps([sorted(vocabulary.ids.items()), sorted(vocabulary.special)], separators=(",", ":")))


def strings_by_id(vocabulary: Vocabulary) -> dict[int, tuple[str, ...]]:
    """The token strings of every id, special ones first: added tokens may share the id of an unused one."""
    found: dict[int, list[str]] = {}
    for token, i in vocabulary.ids.items():
        found.setdefault(i, []).append(token)
    return {i: tuple(sorted(found[i], key=lambda t: (t not in vocabulary.special, t))) for i in sorted(found)}


def align(parent: OpenParent, reference: OpenParent) -> Alignment:
    """Match a parent's rows with a reference's by token string.

    Raises:
        ModelError: when a tokenizer's file is damaged or missing, when an embedding is not recognised, or when the
            reference has tokens without rows.
    """
    own, wanted = vocabulary_of(parent), vocabulary_of(reference)
    n_own, n_wanted = rows_of(parent), rows_of(reference)
    if wanted.max_id >= n_wanted:
        beyond = tuple(sorted(t for t, i in wanted.ids.items() if i >= n_wanted))
        raise ModelError(
            "The vocabulary that others are aligned to has tokens without rows.",
            got=f"{reference.source}: {len(beyond)} tokens beyond its {n_wanted} rows: {listed_tokens(beyond)}",
            allowed="ids below the number of rows",
            fix="resize the embeddings with transformers (resize_token_embeddings), or repair the tokenizer.",
        )
    source, lacking = [-1] * n_wanted, []
    for row, strings in strings_by_id(wanted).items():
        known = next((own.ids[t] for t in strings if own.ids.get(t, n_own) < n_own), None)
        if known is None:
            lacking.append(strings[0])
        else:
            source[row] = known
    return Alignment(
        n_wanted,
        tuple(source),
        tuple(lacking),
        tuple(sorted(t for t, i in own.ids.items() if t not in wanted.ids and i < n_own)),
        tuple(sorted(t for t, i in own.ids.items() if i >= n_own)),
        tuple(_clashes(parent, reference, own, wanted)),
    )


def _clashes(parent: OpenParent, reference: OpenParent, own: Vocabulary, wanted: Vocabulary) -> list[str]:
    """Special tokens that the two use differently."""
    common = own.ids.keys() & wanted.ids.keys()
    odd = tuple(sorted((own.special ^ wanted.special) & common))
    found = [f"{len(odd)} tokens are special in only one of the two: {listed_tokens(odd)}"] if odd else []
    for key in TOKEN_IDS:
        theirs, ours = _named(parent.config, key, own), _named(reference.config, key, wanted)
        if theirs and ours and theirs != ours:
            found.append(f"{key} is {', '.join(map(repr, theirs))}, and {', '.join(map(repr, ours))} in the reference")
    return found


def _named(config: Mapping[str, object], key: str, vocabulary: Vocabulary) -> list[str]:
    """The strings of the ids that a config states under `key`."""
    value = language_config(config).get(key, config.get(key))
    ids = value if isinstance(value, list) else [value]
    wanted = {i for i in ids if isinstance(i, int) and not isinstance(i, bool)}
    few = {t: i for t, i in vocabulary.ids.items() if i in wanted}
    return sorted(strings[0] for strings in strings_by_id(Vocabulary(few, vocabulary.special)).values())


def needs_alignment(parent: OpenParent, reference: OpenParent, read: ReadVocabulary = read_vocabulary) -> bool:
    """Whether a parent's rows stand for other tokens than the reference's, or are of another number.

    Args:
        parent: what is compared.
        reference: what is compared with.
        read: how vocabularies are read, for a cache.

    Raises:
        ModelError: when a tokenizer's file is damaged.
    """
    left, right = read(reference.tokenizer_folder), read(parent.tokenizer_folder)
    if (
        left is not right
        and left is not None
        and right is not None
        and (dict(left.ids), left.special) != (dict(right.ids), right.special)
    ):
        return True
    ours, theirs = ({t.info.name: t.rows for t in token_tensors(p)} for p in (reference, parent))
    return any(ours[name] != theirs[name] for name in ours.keys() & theirs.keys())
