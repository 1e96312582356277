"""A parent's rows in the order of a vocabulary that several parents make together: mergekit's tokenizer sources.

`recipe.retokenizing.retokenized` builds the references that name this maker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Final, final

from evomerge.checkpoints.architecture import language_config
from evomerge.checkpoints.dtypes import safetensors_name, torch_dtype
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.token_rows import TOKEN_IDS, TokenTensor, language_changes
from evomerge.checkpoints.tokenizer_files import NewVocabulary, build_vocabulary, usable
from evomerge.checkpoints.tokenizers import Vocabulary
from evomerge.checkpoints.vocabulary import content_of, rows_of, vocabulary_of
from evomerge.errors import ModelError
from evomerge.layout import TensorInfo
from evomerge.recipe.method_spec import count, flag
from evomerge.recipe.retokenizing import MAX_MULTIPLE, NONE, ROW_DTYPES, TokenRule, token_rules
from evomerge.virtual.aligned import common_dtype, token_pairs
from evomerge.virtual.maker import Ingredients, MadePlan, Maker, MakerSpec, Report, silent

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Work:
    """What the rows of a retokenized parent are taken from.

    Attributes:
        vocabulary: of the result.
        rows: of the result, padding included.
        own: new id -> the parent's id, where its own row stays.
        given: (model, its id) by new id: rows that come from one model.
        means: new id -> (model, its id) of every owner: rows that are their mean.
        padded: new ids without a token -> the donor's row, or -1 for the mean of all rows.
        donor: index of the model whose padding rows are kept.
    """

    vocabulary: NewVocabulary
    rows: int
    own: Mapping[int, int]
    given: Mapping[int, tuple[int, int]]
    means: Mapping[int, tuple[tuple[int, int], ...]]
    padded: Mapping[int, int]
    donor: int


@final
class _Settings:
    """The maker's settings with their types."""

    def __init__(self, ingredients: Ingredients) -> None:
        values, n = ingredients.settings, len(ingredients.of)
        self.member, self.base, self.source = (int(values[k]) for k in ("member", "base", "source"))
        self.multiple = int(values["pad_to_multiple_of"])
        self.wide, self.keep_rows, self.full = (bool(values[k]) for k in ("wide", "keep_rows", "full"))
        self.arithmetic = int(values["arithmetic"])
        self.rules = token_rules(ingredients.ref.source)
        named = [self.member, self.base, self.source, *(r.model for r in self.rules.values())]
        if not all(NONE <= i < n for i in named) or self.member == NONE:
            raise ModelError(
                "A retokenized parent names a model that it is not made from.",
                got=f"models {', '.join(map(str, named))}",
                allowed=f"0 to {n - 1}, in the order of its models",
                fix="make the recipe again.",
            )

    @property
    def dtype(self) -> str | None:
        """What rows are stored in, safetensors spelling; None for the narrowest dtype that holds all models' values."""
        if self.arithmetic:
            return safetensors_name(ROW_DTYPES[self.arithmetic - 1])
        return "F32" if self.full else None

    @property
    def donor(self) -> int:
        """Whose tokenizer is extended, or taken as it is."""
        return self.source if self.source != NONE else max(self.base, 0)


def _vocabulary(models: Sequence[OpenParent], settings: _Settings) -> NewVocabulary:
    others = [m for i, m in enumerate(models) if i != settings.donor] if settings.source == NONE else []
    return build_vocabulary(models[settings.donor], others, settings.rules)


def _work(ingredients: Ingredients) -> _Work:
    models, settings = ingredients.of, _Settings(ingredients)
    vocabulary, own_tokens = _vocabulary(models, settings), [usable(m) for m in models]
    own, given = dict[int, int](), dict[int, tuple[int, int]]()
    means = dict[int, tuple[tuple[int, int], ...]]()
    for token in vocabulary.order:
        row, rule = vocabulary.ids[token], settings.rules.get(token)
        owners = tuple((i, v.ids[token]) for i, v in enumerate(own_tokens) if token in v.ids)
        mine = own_tokens[settings.member].ids.get(token)
        if mine is not None and not (rule is not None and rule.force):
            own[row] = mine
        elif rule is not None and not rule.is_default:
            given |= _ruled(token, row, rule, own_tokens, models)
        elif len(owners) == 1 or settings.base in dict(owners):
            given[row] = next((o for o in owners if o[0] == settings.base), owners[0])
        elif owners:
            means[row] = owners
    needed = 1 + max(vocabulary.ids.values())
    kept = rows_of(models[settings.donor]) if settings.keep_rows else 0
    rows = -(-max(needed, kept) // settings.multiple) * settings.multiple
    taken = set(vocabulary.ids.values())
    padded = {i: i if i < kept else -1 for i in range(rows) if i not in taken}
    return _Work(vocabulary, rows, own, given, means, padded, settings.donor)


def _ruled(
    token: str, row: int, rule: TokenRule, tokens: Sequence[Vocabulary], models: Sequence[OpenParent]
) -> dict[int, tuple[int, int]]:
    """The row that a rule gives a token; none for zeros.

    Raises:
        ModelError: when the model that is named lacks the token.
    """
    if rule.model == NONE:
        return {}
    wanted = rule.token if rule.token is not None else token
    found = rule.row if rule.row != NONE else tokens[rule.model].ids.get(wanted, NONE)
    if not 0 <= found < rows_of(models[rule.model]):
        raise ModelError(
            "A token's row is to come from a model that does not have it.",
            got=f"{token!r} from {models[rule.model].source}: {f'row {found}' if rule.row != NONE else repr(wanted)}",
            allowed="tokens and rows of that model",
            fix="correct the file's `tokens`.",
        )
    return {row: (rule.model, found)}


@final
class Retokenized(Maker):
    """The parent with the rows of a new vocabulary, by mergekit 0.1.5's rule for each token.

    Its own row where it has the token; else what `tokens` says (a model's row for it or for another token, a row by
    number, zeros; with `force` for owners too); else the base's row; else the only owner's; else the mean of the
    owners' rows, in the models' order; zeros where nobody has the token.

    `of` are all models of the merge in its order. Settings: `member`, the place of this parent among them; `base`, of
    the base, -1 without; `source`, of the model whose tokenizer the result has, -1 for the union; `pad_to_multiple_of`;
    `full`, whether rows are stored in fp32, else in the narrowest dtype that holds all models' values; `arithmetic`, a
    dtype for them instead (1 to 3: fp32, bf16, fp16; 0: none); `wide`, whether
    means are summed in fp32 and rounded once, else in the stored dtype (mergekit); `keep_rows`, whether padding rows of
    the tokenizer's model are kept (mergekit cuts them off). Rows that have no token and are not kept are the mean of
    all others. `tokens` stands in `ref.source` (`recipe.retokenizing`).
    """

    spec = MakerSpec(
        name="retokenized",
        needs_base=False,
        min_models=1,
        max_models=None,
        parameters={
            "member": count(0, 0),
            "base": count(NONE, NONE),
            "source": count(NONE, NONE),
            "pad_to_multiple_of": count(1, 1, MAX_MULTIPLE),
            "wide": flag(default=True),
            "keep_rows": flag(default=True),
            "full": flag(default=False),
            "arithmetic": count(0, 0, len(ROW_DTYPES)),
        },
        source="mergekit 0.1.5, tokenizer source and tokens",
    )

    def plan(self, ingredients: Ingredients) -> MadePlan:
        """See `Maker.plan`."""
        settings, work = _Settings(ingredients), _work(ingredients)
        member, donor = ingredients.of[settings.member], ingredients.of[settings.donor]
        changed = [_resized(group, work.rows, settings.dtype) for group in _groups(ingredients, settings.member)]
        special = {k: v for k, v in language_config(donor.config).items() if k in TOKEN_IDS}
        config = language_changes(member.config, {**special, "vocab_size": work.rows})
        return MadePlan(member, tuple(changed), {}, config, work.vocabulary.files())

    def tensors(
        self, ingredients: Ingredients, plan: MadePlan, report: Report = silent
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Maker.tensors`."""
        import torch

        settings, work = _Settings(ingredients), _work(ingredients)
        for done, (info, group) in enumerate(zip(plan.changed, _groups(ingredients, settings.member), strict=True)):
            report(done, len(plan.changed))
            views = [m.tensor(info.name).movedim(t.axis, 0) for m, t in zip(ingredients.of, group, strict=True)]
            sums = torch.float32 if settings.wide else torch_dtype(info.dtype)
            rows = _rows(views, settings.member, work, torch_dtype(info.dtype), sums)
            yield info.name, rows.movedim(0, group[0].axis).contiguous()

    def extra_content(self, ingredients: Ingredients) -> Any:
        """See `Maker.extra_content`: the vocabularies and the rules."""
        rules = [[token, asdict(rule)] for token, rule in token_rules(ingredients.ref.source).items()]
        return [[content_of(vocabulary_of(m)) for m in ingredients.of], rules]


def _groups(ingredients: Ingredients, member: int) -> list[tuple[TokenTensor, ...]]:
    """Every tensor with one slice per token, as all models have it, in their order.

    Raises:
        ModelError: when they do not line up.
    """
    of = [token_pairs(m, ingredients.of[member]) for m in ingredients.of]
    return [tuple(pair.own for pair in group) for group in zip(*of, strict=True)]


def _resized(group: Sequence[TokenTensor], rows: int, dtype: str | None) -> TensorInfo:
    first = group[0]
    shape = (*first.info.shape[: first.axis], rows, *first.info.shape[first.axis + 1 :])
    infos = [t.info for t in group]
    narrowest = reduce(lambda a, b: replace(a, dtype=common_dtype(a, b)), infos).dtype
    return replace(first.info, shape=shape, dtype=dtype or narrowest)


def _rows(
    views: Sequence[torch.Tensor], member: int, work: _Work, dtype: torch.dtype, sums: torch.dtype
) -> torch.Tensor:
    """The new rows of one tensor, tokens first, then padding; means are summed in `sums`."""
    import torch

    from evomerge.virtual.factors import tree_sum

    out = torch.zeros((work.rows, *views[member].shape[1:]), dtype=dtype)
    _copy(out, views[member], work.own)
    for model, view in enumerate(views):
        _copy(out, view, {row: i for row, (m, i) in work.given.items() if m == model})
        _copy(out, view, {row: i for row, i in work.padded.items() if i >= 0 and model == work.donor})
    for row, owners in work.means.items():
        total = torch.zeros_like(out[0], dtype=sums)
        for model, i in owners:
            total = total + views[model][i].to(sums)
        out[row] = (total / len(owners)).to(dtype)
    left = [row for row, i in work.padded.items() if i < 0]
    if left:
        tokens = torch.tensor([i for i in range(work.rows) if work.padded.get(i, 0) >= 0])
        out[left] = (tree_sum(out[tokens].float(), 0)[0] / len(tokens)).to(dtype)
    return out


def _copy(out: torch.Tensor, view: torch.Tensor, rows: Mapping[int, int]) -> None:
    """Row `i` of `view` to row `row` of `out` for every `row: i`."""
    import torch

    if rows:
        out[torch.tensor(list(rows))] = view[torch.tensor(list(rows.values()))].to(out.dtype)


RETOKENIZED: Final = Retokenized()
