"""mergekit 0.1.5's methods on task vectors: the family of task arithmetic and TIES, sce, ram and ramplus_tl.

All compute in the dtype of the tensors, weights included. An exact cancellation elects the positive sign.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from evomerge.merging.compat_case import Case

Sparsifier = Callable[[Case, torch.Tensor, int], torch.Tensor]


def _agreeing(stacked: torch.Tensor) -> torch.Tensor:
    """Which entries have the sign of the sum over the first axis; zeros agree with nobody. Bool, as `stacked`."""
    majority = (stacked.sum(dim=0) >= 0).to(stacked.dtype) * 2 - 1
    return stacked.sign() == majority


def arithmetic(sparsify: Sparsifier | None, *, elect: bool) -> Callable[[Case], torch.Tensor]:
    """A method of the family: deltas thinned out by `sparsify`, weighted, elected or not, summed, scaled by lambda."""

    def merge(case: Case) -> torch.Tensor:
        base = case.origin
        deltas = [x - base for x in case.models]
        if sparsify is not None:
            deltas = [sparsify(case, delta, i) for i, delta in enumerate(deltas)]
        weights = torch.tensor(case.parameters.column("weight"), dtype=base.dtype).view(-1, *[1] * base.dim())
        merged, divisor = _sums(torch.stack(deltas).mul_(weights), weights, elect)
        if case.flag("normalize"):
            merged /= divisor
        if case.number("lambda") != 1:
            merged *= case.number("lambda")
        return base + merged

    return merge


def _sums(stacked: torch.Tensor, weights: torch.Tensor, elect: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the weighted deltas and of the weights that took part; 1 for a divisor of zero."""
    if elect:
        mask = _agreeing(stacked)
        divisor = (weights * mask).sum(dim=0)
        divisor[divisor == 0] = 1
        return (stacked * mask).sum(dim=0), divisor
    divisor = weights.sum(dim=0)
    divisor[divisor.abs() < 1e-8] = 1
    return stacked.sum(dim=0), divisor


def sce(case: Case) -> torch.Tensor:
    """Select the entries that vary most, weigh models by mean squares, leave out minority signs.

    The weights are uniform where the mean squares sum to less than 1e-6, which those of fine-tuning usually do.
    """
    base = case.origin
    deltas = torch.stack([x - base for x in case.models])
    top = case.number("select_topk")
    if top < 1:
        deltas = deltas * _most_varying(deltas, top)
    agreeing = _agreeing(deltas)
    energy = deltas.square().reshape(len(deltas), -1).mean(dim=1)
    total = torch.sum(energy).item()
    shares = torch.ones_like(energy) / len(deltas) if abs(total) < 1e-6 else energy / total
    weights = shares.view(-1, *[1] * base.dim()) * agreeing
    merged = (deltas * weights).sum(dim=0)
    return base + merged / weights.sum(dim=0).clamp(min=1e-6)


def _most_varying(deltas: torch.Tensor, top: float) -> torch.Tensor:
    """Ones at the `top` share of the positions that vary at all; the shape of one delta."""
    variance = torch.var(deltas, dim=0, correction=0)
    mask = torch.zeros_like(variance)
    count = int(torch.count_nonzero(variance) * top) if top > 0 else 0
    if count:
        mask.view(-1)[torch.topk(variance.abs().view(-1), k=count).indices] = 1
    return mask


def _contributions(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Flat deltas with the inactive entries zeroed, which entries are active, and how many models are at each."""
    deltas = torch.stack([x - case.origin for x in case.models]).view(len(case.models), -1)
    active = deltas.abs() > case.number("epsilon")
    return deltas * active, active, active.sum(dim=0, keepdim=True)


def _onto(case: Case, own: torch.Tensor, common: torch.Tensor) -> torch.Tensor:
    merged = (own + common).sum(dim=0, keepdim=True)
    return case.origin + merged.reshape(case.origin.shape)


def ram(case: Case) -> torch.Tensor:
    """What one model alone changed by more than epsilon is kept, what several changed is averaged over these."""
    deltas, _, counts = _contributions(case)
    return _onto(case, deltas * (counts == 1), deltas * (counts > 1) / counts.clamp(min=1))


def ramplus_tl(case: Case) -> torch.Tensor:
    """RAM with a model's own changes scaled by 1 + r * min(common / own entries, alpha), per tensor.

    The scale is fp32, and so is the result, whatever the dtype of the tensors.
    """
    deltas, active, counts = _contributions(case)
    common, own = ((active & at).sum(dim=1) for at in (counts > 1, counts == 1))
    ratio = common / own.clamp(min=case.number("epsilon"))
    gain = 1 + case.number("r") * ratio.clamp(min=0, max=case.number("alpha"))
    return _onto(case, deltas * (counts == 1) * gain.unsqueeze(-1), deltas * (counts > 1) / counts.clamp(min=1))
