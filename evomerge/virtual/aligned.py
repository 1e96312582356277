"""A parent with another vocabulary, its rows put in the order of a reference's by token string."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from evomerge.checkpoints.architecture import language_config
from evomerge.checkpoints.dtypes import FLOATING, safetensors_name, torch_dtype
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.token_rows import TOKEN_IDS, TokenTensor, language_changes, token_tensors
from evomerge.checkpoints.vocabulary import align, content_of, vocabulary_of
from evomerge.errors import ModelError
from evomerge.layout import TensorInfo
from evomerge.virtual.maker import Ingredients, MadePlan, Maker, MakerSpec, Report, silent

if TYPE_CHECKING:
    import torch


class TokenPair(NamedTuple):
    """The same tensor of a parent and of the reference; both have one slice per token."""

    own: TokenTensor
    wanted: TokenTensor


def common_dtype(left: TensorInfo, right: TensorInfo) -> str:
    """The narrowest dtype that holds the values of both, safetensors spelling."""
    import torch

    return safetensors_name(torch.promote_types(torch_dtype(left.dtype), torch_dtype(right.dtype)))


def token_pairs(parent: OpenParent, reference: OpenParent) -> tuple[TokenPair, ...]:
    """The tensors of two parents with one slice per token.

    Raises:
        ModelError: when the two have other such tensors, or ones that differ in more than the number of tokens.
    """
    own = {t.info.name: t for t in token_tensors(parent)}
    wanted = {t.info.name: t for t in token_tensors(reference)}
    faults = [f"{n} is in only one of them" for n in sorted(own.keys() ^ wanted.keys())]
    pairs = [TokenPair(own[n], wanted[n]) for n in sorted(own.keys() & wanted.keys())]
    faults += [
        f"{a.info.name}: {list(a.info.shape)} and {list(b.info.shape)}" for a, b in pairs if _rest(a) != _rest(b)
    ]
    if faults:
        raise ModelError(
            "Token rows of two parents do not line up.",
            got=f"{parent.source} and {reference.source}: {'; '.join(faults[:5])}",
            allowed="embeddings and heads of the same width, both tied or both untied",
            fix="use parents of one architecture; `untied` gives a tied parent a head of its own.",
        )
    return tuple(pairs)


def _rest(tensor: TokenTensor) -> tuple[object, ...]:
    shape = tensor.info.shape
    return (tensor.axis, shape[: tensor.axis], shape[tensor.axis + 1 :], tensor.info.dtype in FLOATING)


@final
class Aligned(Maker):
    """The parent with the reference's vocabulary: row i is the parent's row for the token that i is in the reference.

    `of` is the parent, `base` the reference. A token that the parent lacks, and a row that no token has, keep the
    reference's row, so that the parent's delta is zero there; tokens of its own are dropped (`cost` tells which). Rows
    are copied, not computed with: a permuted vocabulary gives exactly what the unpermuted one does.
    """

    spec = MakerSpec(name="aligned", needs_base=True, min_models=1, max_models=1)

    def plan(self, ingredients: Ingredients) -> MadePlan:
        """See `Maker.plan`."""
        (parent,), reference = ingredients.of, ingredients.origin
        alignment, pairs = align(parent, reference), token_pairs(parent, reference)
        same_rows = all(p.own.rows == p.wanted.rows for p in pairs)
        changed = [replace(p.wanted.info, dtype=common_dtype(p.own.info, p.wanted.info)) for p in pairs]
        config = language_changes(parent.config, _token_config(reference))
        done = same_rows and alignment.source == tuple(range(alignment.rows))
        return MadePlan(parent, () if done else tuple(changed), {}, config, reference.tokenizer_folder)

    def tensors(
        self, ingredients: Ingredients, plan: MadePlan, report: Report = silent
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Maker.tensors`."""
        import torch

        (parent,), reference = ingredients.of, ingredients.origin
        source = torch.tensor(align(parent, reference).source)
        pairs = {p.wanted.info.name: p for p in token_pairs(parent, reference)}
        for done, info in enumerate(plan.changed):
            report(done, len(plan.changed))
            pair, dtype = pairs[info.name], torch_dtype(info.dtype)
            known = source[: pair.wanted.rows]
            here = ((known >= 0) & (known < pair.own.rows)).nonzero().view(-1)
            out = reference.tensor(info.name).to(dtype, copy=True)
            picked = parent.tensor(info.name).index_select(pair.own.axis, known[here])
            yield info.name, out.index_copy_(pair.wanted.axis, here, picked.to(dtype))

    def extra_content(self, ingredients: Ingredients) -> Any:
        """See `Maker.extra_content`: the two vocabularies."""
        return [content_of(vocabulary_of(p)) for p in (*ingredients.of, ingredients.origin)]

    def cost(self, ingredients: Ingredients) -> str:
        """See `Maker.cost`: what is lost."""
        (parent,) = ingredients.of
        return "; ".join(align(parent, ingredients.origin).words())


def _token_config(reference: OpenParent) -> dict[str, Any]:
    """What the reference's config says about tokens: their number, and the ids of the special ones."""
    inner = language_config(reference.config)
    return {key: inner[key] for key in ("vocab_size", *TOKEN_IDS) if key in inner}


ALIGNED: Final = Aligned()
