"""A LoRA adapter on its base as a parent: `W + weight scale B A`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, final

from evomerge.checkpoints.adapters import Adapter, Factors, open_adapter
from evomerge.recipe.method_spec import shared
from evomerge.virtual.adapter_plan import Change, plan_changes
from evomerge.virtual.maker import Ingredients, MadePlan, Maker, MakerSpec, Report, silent

if TYPE_CHECKING:
    import torch


def _adapter(ingredients: Ingredients) -> Adapter:
    return open_adapter(ingredients.ref.source, ingredients.ref.revision)


@final
class OnBase(Maker):
    """`W + weight s B A` in fp32 (Hu et al. 2022, arXiv 2106.09685, eq. 3), `s` = alpha / rank.

    rsLoRA has `s` = alpha / sqrt(rank) (arXiv 2312.03732). DoRA's modules (arXiv 2402.09353, eq. 5:
    `m (W + s B A) / |W + s B A|`, a norm per output) and tensors that were trained whole move by `weight` from
    the base's values to theirs. A base whose head is its embedding gets a head of its own where only one of the two was
    trained: that is the model that the adapter was trained as (PEFT's merging changes both).

    Sums over ranks are element-wise in a fixed order, so that every machine makes the same bits.
    """

    spec = MakerSpec(
        name="adapter",
        needs_base=True,
        min_models=0,
        max_models=0,
        parameters={"weight": shared(1.0)},
        needs_files=True,
        source="LoRA, arXiv 2106.09685, eq. 3; rsLoRA, arXiv 2312.03732; DoRA, arXiv 2402.09353, eq. 5",
    )

    def plan(self, ingredients: Ingredients) -> MadePlan:
        """See `Maker.plan`; `ref.source` is the adapter."""
        found = plan_changes(_adapter(ingredients), ingredients.origin)
        changed = tuple(c.info for c in found.tensors)
        return MadePlan(ingredients.origin, changed, found.aliases, found.config, found.tokenizer)

    def tensors(
        self, ingredients: Ingredients, plan: MadePlan, report: Report = silent
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Maker.tensors`."""
        adapter, weight = _adapter(ingredients), float(ingredients.settings["weight"])
        changes = plan_changes(adapter, ingredients.origin).tensors
        for done, change in enumerate(changes):
            report(done, len(changes))
            under = ingredients.origin.tensor(change.under).float()
            yield change.info.name, _changed(adapter, change, under, weight)

    def extra_content(self, ingredients: Ingredients) -> Any:
        """See `Maker.extra_content`: the adapter's files."""
        return _adapter(ingredients).content

    def revision(self, ingredients: Ingredients) -> str | None:
        """See `Maker.revision`."""
        return _adapter(ingredients).revision


def _changed(adapter: Adapter, change: Change, under: torch.Tensor, weight: float) -> torch.Tensor:
    if change.factors is None:
        return _moved(under, adapter.tensor(change.whole or "").float(), weight)
    if change.is_bias:
        return adapter.tensor(change.factors.bias or "").float().mul(weight * change.factors.scale).add_(under)
    start = under if change.factors.base is None else adapter.tensor(change.factors.base).float()
    if change.factors.magnitude is None:
        return _moved(under, start, weight) + low_rank(adapter, change.factors, change.transposed).mul_(
            weight * change.factors.scale
        )
    return _moved(under, _dora(adapter, change.factors, change.transposed, start), weight)


def low_rank(adapter: Adapter, factors: Factors, transposed: bool) -> torch.Tensor:
    """`B A`, or its transpose, fp32."""
    from evomerge.virtual.factors import product

    a, b = adapter.tensor(factors.a).float(), adapter.tensor(factors.b).float()
    return product(a.T, b.T) if transposed else product(b, a)


def _dora(adapter: Adapter, factors: Factors, transposed: bool, start: torch.Tensor) -> torch.Tensor:
    """`m V / |V|` with `V = W + s B A`, norms over the inputs of each output."""
    from evomerge.virtual.factors import norms

    direction = low_rank(adapter, factors, transposed).mul_(factors.scale).add_(start)
    magnitude = adapter.tensor(factors.magnitude or "").float()
    axis = 0 if transposed else 1
    return direction.mul_(magnitude.unsqueeze(axis).div(norms(direction, axis)))


def _moved(start: torch.Tensor, end: torch.Tensor, weight: float) -> torch.Tensor:
    """`start + weight (end - start)`; rows that only `end` has are its own."""
    if weight == 1.0 or start is end:
        return end
    rows = min(start.shape[0], end.shape[0])
    moved = end.clone()
    moved[:rows] = (end[:rows] - start[:rows]).mul_(weight).add_(start[:rows])
    return moved


ADAPTER: Final = OnBase()
