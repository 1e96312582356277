"""mergekit 0.1.5's methods that are neither spherical nor on sums of task vectors."""

from __future__ import annotations

from itertools import combinations

import torch
from torch.linalg import vector_norm

from evomerge.merging.compat_case import Case

SAMPLED = 1_000_000
"""Up to this many entries arcee_fusion's quantiles are exact; of a larger tensor it looks at this many at random."""


def linear(case: Case) -> torch.Tensor:
    """`sum_i w_i x_i` by fused multiply-add in fp32, then divided by the fp32 sum of the weights."""
    weights = torch.tensor(case.parameters.column("weight"), dtype=case.wide)
    merged = torch.zeros(case.models[0].shape, dtype=case.wide)
    for x, weight in zip(case.models, weights, strict=True):
        merged.addcmul_(x, weight)
    if case.flag("normalize"):
        merged.div_(weights.sum())
    return merged.to(case.dtype)


def passthrough(case: Case) -> torch.Tensor:
    """The model, times `scale`."""
    return case.models[0] * case.parameters.column("scale")[0]


def nearswap(case: Case) -> torch.Tensor:
    """From the base towards the model by `t / distance`, at most all the way."""
    base, model = case.origin, case.models[0]
    share = (case.number("t") / (base - model).abs().clamp(min=1e-6)).clamp(min=0, max=1)
    return share * model + (1 - share) * base


def model_stock(case: Case) -> torch.Tensor:
    """Between the base and the mean by `t = N c / (1 + (N - 1) c)`, c the mean cosine of the deltas; t is not clamped.

    One t per tensor, or per vector of the last axis when `filter_wise`. Norms below 1e-3 count as larger than they are.
    """
    shape, count = case.origin.shape, len(case.models)
    base, models = case.origin, list(case.models)
    if not case.flag("filter_wise"):
        base, models = base.reshape(-1), [x.reshape(-1) for x in models]
    elif base.dim() == 1:
        base, models = base.unsqueeze(0), [x.unsqueeze(0) for x in models]
    cosines = []
    for a, b in combinations([x - base for x in models], 2):
        norms = vector_norm(a, dim=-1) * vector_norm(b, dim=-1)
        cosines.append(((a * b).sum(dim=-1) / norms.clamp(min=1e-6)).clamp(-1, 1))
    cosine = torch.stack(cosines).mean(dim=0).unsqueeze(-1)
    divisor = 1 + (count - 1) * cosine
    singular = divisor.abs() < 1e-6
    t = torch.where(singular, 0, count * cosine / torch.where(singular, 1, divisor))
    mean = 0 + models[0]
    for x in models[1:]:
        mean = mean + x
    merged: torch.Tensor = t * (mean / count) + (1 - t) * base
    return merged.reshape(shape)


def arcee_fusion(case: Case) -> torch.Tensor:
    """The base with those entries of the model whose importance reaches median + 1.5 interquartile ranges.

    Importance is the distance times the Kullback-Leibler divergence between the softmaxes of the two rows. The mask is
    fp32, and so is the result, whatever the dtype of the tensors.
    """
    base, model = case.origin, case.models[0]
    ours, theirs = (torch.softmax(x, dim=-1) + 1e-8 for x in (model, base))
    divergence = (ours * torch.log(ours / theirs)).sum(dim=-1, keepdim=True)
    importance = (model - base).abs() * divergence
    first, median, third = _quartiles(case, importance.reshape(-1))
    kept = (importance >= median + 1.5 * (third - first)).float()
    fused: torch.Tensor = base + (model - base) * kept
    return fused


def _quartiles(case: Case, values: torch.Tensor) -> torch.Tensor:
    """The lower order statistics at 1/4, 1/2 and 3/4; shape `(3,)`."""
    if values.numel() > SAMPLED:
        values = values[case.draws.sample(values.numel(), SAMPLED)]
    places = (torch.tensor([0.25, 0.5, 0.75]) * (values.numel() - 1)).long()
    return values.sort().values[places]
