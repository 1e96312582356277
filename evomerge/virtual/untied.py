"""A parent whose head is its embedding, given a head of its own that repeats it; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final, final

from evomerge.checkpoints.token_rows import head_of, token_embedding, untied_config
from evomerge.errors import ModelError
from evomerge.virtual.maker import Ingredients, MadePlan, Maker, MakerSpec, Report, silent

if TYPE_CHECKING:
    import torch


@final
class Untied(Maker):
    """The parent with `head = embedding` as two tensors, so that it can be merged with parents whose heads differ.

    `of` is the tied parent; `base` is one that has a head, which gives the tensor's name. The head is an alias: it
    takes no memory and no disk. The config says that the two are no longer tied.
    """

    spec = MakerSpec(name="untied", needs_base=True, min_models=1, max_models=1)

    def plan(self, ingredients: Ingredients) -> MadePlan:
        """See `Maker.plan`."""
        (tied,) = ingredients.of
        embedding, head = token_embedding(tied.layout), head_of(ingredients.origin.layout)
        if not tied.tied_embeddings or embedding is None or head is None:
            got = f"{tied.source} and {ingredients.origin.source}"
            raise ModelError(
                "A head can be split off from an embedding only as another model has it.",
                got=f"{got}: {'a head' if not tied.tied_embeddings else 'tied'}, {'a head' if head else 'tied'}",
                allowed="a parent with tied embeddings, and one with a head of its own",
                fix="leave out `untied`; evomerge adds it where it is needed.",
            )
        own = replace(head, shape=embedding.shape, dtype=embedding.dtype)
        return MadePlan(tied, aliases={embedding.name: own}, config=untied_config(tied.config))

    def tensors(
        self, ingredients: Ingredients, plan: MadePlan, report: Report = silent
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Maker.tensors`; there are none."""
        del ingredients, plan, report
        yield from ()


UNTIED: Final = Untied()
