"""Tokenizers of many parents as one: the union of their tokens as the text of a `tokenizer.json`.

The base's tokenizer keeps its ids. What it lacks is appended as added tokens: first the plain tokens of the others,
parent by parent in the order of their ids, then the others' added tokens. That is mergekit 0.1.5's rule but for the
order of the plain ones, which in mergekit changes from run to run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from evomerge.checkpoints.bundle import tokenizer_files
from evomerge.checkpoints.folder import find_file, read_bytes
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.reader import CONFIG
from evomerge.checkpoints.strict_json import damaged, quoted, read_object
from evomerge.checkpoints.tokenizer_bombs import check_tokenizer
from evomerge.checkpoints.tokenizers import TOKENIZER, Vocabulary, vocabulary_in
from evomerge.checkpoints.vocabulary import rows_of, vocabulary_of
from evomerge.errors import ModelError

_STALE: Final = (
    "tokenizer.model",
    "tokenizer.model.v*",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
)
"""Other spellings of a vocabulary, which a changed one no longer agrees with; transformers reads tokenizer.json."""
_PLAIN: Final = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


@dataclass(frozen=True)
class NewVocabulary:
    """A tokenizer that is not yet in any folder.

    Attributes:
        ids: token string -> id.
        content: of its `tokenizer.json`.
        donor: the parent that gives all other files.
    """

    ids: Mapping[str, int]
    content: Mapping[str, Any]
    donor: OpenParent

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", MappingProxyType(dict(self.ids)))
        object.__setattr__(self, "content", MappingProxyType(dict(self.content)))

    @property
    def order(self) -> tuple[str, ...]:
        """The tokens by id; where two share an id, by string."""
        return tuple(sorted(self.ids, key=lambda t: (self.ids[t], t)))

    def files(self) -> dict[str, bytes]:
        """Name -> content of all files, `tokenizer.json` among them.

        Raises:
            ModelError: when one of the donor's files cannot be read.
        """
        found = tokenizer_files(self.donor.tokenizer_folder)
        kept = {n: read_bytes(p) for n, p in found.items() if n != TOKENIZER and not _is_stale(n)}
        kept[CONFIG] = read_bytes(self.donor.folder / CONFIG)  # transformers may look there for the tokenizer's class
        return {**kept, TOKENIZER: json.dumps(dict(self.content), ensure_ascii=False).encode()}


def _is_stale(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _STALE)


class _Tokenizer(NamedTuple):
    """A parent's tokenizer.json, and its tokens that have a row."""

    content: dict[str, Any]
    usable: Vocabulary


def usable(parent: OpenParent) -> Vocabulary:
    """A parent's tokens that have a row in its embedding.

    Raises:
        ModelError: when its tokenizer's file is damaged or does not name tokens, or no embedding is recognised.
    """
    return _with_rows(vocabulary_of(parent), rows_of(parent))


def _with_rows(vocabulary: Vocabulary, rows: int) -> Vocabulary:
    if vocabulary.max_id < rows:
        return vocabulary
    ids = {t: i for t, i in vocabulary.ids.items() if i < rows}
    return Vocabulary(MappingProxyType(ids), vocabulary.special & ids.keys())


def _read(parent: OpenParent) -> _Tokenizer:
    path = find_file(parent.tokenizer_folder, TOKENIZER)
    if path is None:
        raise ModelError(
            "A tokenizer cannot be extended.",
            got=f"no {TOKENIZER} in {parent.tokenizer_folder}",
            allowed=f"a {TOKENIZER} in the parent that gives the tokenizer",
            fix="load the tokenizer with transformers (AutoTokenizer) and save it there with save_pretrained.",
        )
    content = read_object(path)
    check_tokenizer(path, content)
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise damaged(path, "a model without vocab", "a tokenizer with a vocabulary")
    merges, prefix = model.get("merges") or [], model.get("continuing_subword_prefix")
    if not isinstance(merges, list) or not all(_is_merge(m) for m in merges):
        odd = next((m for m in merges if not _is_merge(m)), merges) if isinstance(merges, list) else merges
        raise damaged(path, f"the merge {quoted(odd)}", "merges of two texts each")
    if not isinstance(prefix, str | None):
        raise damaged(path, f"continuing_subword_prefix = {quoted(prefix)}", "a text")
    return _Tokenizer(content, _with_rows(vocabulary_in(content, path), rows_of(parent)))


def _is_merge(merge: Any) -> bool:
    return isinstance(merge, str) or (isinstance(merge, list) and all(isinstance(p, str) for p in merge))


def _added(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return sorted(content.get("added_tokens") or [], key=lambda t: int(t["id"]))


def _stripped(content: dict[str, Any], rows: int) -> dict[str, Any]:
    """A tokenizer.json without the tokens whose id has no row."""
    model = dict(content["model"])
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = vocab[:rows]
    else:
        model["vocab"] = {t: i for t, i in vocab.items() if i < rows}
        if isinstance(model.get("merges"), list):
            model["merges"] = [m for m in model["merges"] if _is_whole(m, model["vocab"], model)]
    return {**content, "model": model, "added_tokens": [t for t in _added(content) if t["id"] < rows]}


def _is_whole(merge: Any, vocab: Mapping[str, int], model: Mapping[str, Any]) -> bool:
    """Whether both parts of a merge, and what they make, are tokens."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    prefix = model.get("continuing_subword_prefix") or ""
    made = parts[0] + parts[1].removeprefix(prefix) if len(parts) == 2 else ""
    return len(parts) == 2 and all(t in vocab for t in (*parts, made))


def build_vocabulary(donor: OpenParent, others: Sequence[OpenParent] = (), added: Iterable[str] = ()) -> NewVocabulary:
    """The donor's tokenizer, extended by what others have and it lacks.

    Args:
        donor: keeps its ids, its special tokens, templates and settings; tokens without a row are left out.
        others: whose tokens are appended, in order; tokens without a row are left out.
        added: more tokens, appended last where they are new.

    Raises:
        ModelError: when a tokenizer's file is missing, damaged or does not name tokens.
    """
    first, *rest = (_read(p) for p in (donor, *others))
    content = _stripped(first.content, rows_of(donor))
    tokens, known = _added(content), dict(first.usable.ids)
    is_added = {str(t["content"]) for t in tokens}
    marked = [[t for t in _added(r.content) if t["content"] in r.usable.ids] for r in rest]
    special = {str(t["content"]) for group in marked for t in group}
    fresh: list[dict[str, Any]] = []
    for ids in (r.usable.ids for r in rest):
        plain = sorted(ids.keys() - special - known.keys(), key=lambda t: (ids[t], t))
        fresh += [{"content": t, **_PLAIN} for t in plain]
    fresh += [t for group in marked for t in group if t["content"] not in is_added]
    fresh += [{"content": t, **_PLAIN} for t in added if t not in known]
    last = max(known.values(), default=-1)
    for token in fresh:
        text = str(token["content"])
        if text in is_added or (text in known and token.items() >= _PLAIN.items()):
            continue
        if text not in known:
            known[text], last = last + 1, last + 1
        is_added.add(text)
        tokens.append({**token, "id": known[text]})
    content["added_tokens"] = [{"id": t["id"], **{k: v for k, v in t.items() if k != "id"}} for t in tokens]
    content["added_tokens"].sort(key=lambda t: int(t["id"]))
    return NewVocabulary(known, content, donor)


def union_vocabulary(parents: Sequence[OpenParent]) -> NewVocabulary:
    """The union of the parents' tokens; the first parent's keep their ids.

    Raises:
        ModelError: as `build_vocabulary`.
    """
    donor, *others = parents
    return build_vocabulary(donor, others)
