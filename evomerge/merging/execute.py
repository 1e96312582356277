"""One tensor of a plan, merged into memory that the caller owns: the one path of resident and exported merges."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial, reduce
from typing import NamedTuple

import torch

from evomerge.checkpoints.dtypes import safetensors_name, torch_dtype
from evomerge.checkpoints.parts import TensorPart
from evomerge.errors import MergeError, NonFinite
from evomerge.merging.compat import merge_compat
from evomerge.merging.eager import all_finite
from evomerge.merging.kernels import Kernels
from evomerge.merging.methods import KernelMethod
from evomerge.merging.parents import ParentPool, PoolFacts
from evomerge.merging.plan import MergePlan, TensorPlan
from evomerge.merging.settings import Setting, ranked_inputs


class Work(NamedTuple):
    """A tensor's merge, ready to run.

    Attributes:
        key: equal keys write equal bits, so a tensor whose key did not change needs no merge.
        run: writes a flat tensor `(n,)` of the planned dtype and says whether it is finite.
        part: writes the elements from an index on, as many as it is given memory for, and says whether they are
            finite; None where the whole tensor has to be merged at once.
    """

    key: Hashable
    run: Callable[[torch.Tensor], bool]
    part: Callable[[int, torch.Tensor], bool] | None = None


def prepare(plan: MergePlan, tensor: TensorPlan, pool: ParentPool, kernels: Kernels) -> Work:
    """Compile one tensor of a plan to work; reads parents only for thresholds and inner products."""
    rule = tensor.rule
    where = (tensor.sources, tensor.dtype, pool.packs)
    if tensor.copied:
        return Work(("copy", *where), partial(_copy, tensor, pool, 0), partial(_copy, tensor, pool))
    parameters = tensor.parameters
    if plan.compat == "mergekit":
        key = ("mergekit", rule.name, plan.recipe.dtype, plan.recipe.arithmetic, where, parameters.key())
        return Work(key, lambda out: _merge_compat(plan, tensor, pool, out))
    if isinstance(rule.method, KernelMethod):
        facts = PoolFacts(
            pool, tensor.info.name, tensor.info.shape, base=rule.base, parents=rule.inputs, kernels=kernels
        )
        setting = rule.method.compile(parameters, facts)

        def part(start: int, out: torch.Tensor) -> bool:
            return _merge_part(tensor, setting, facts, kernels, Span(start, out))

        return Work(("kernel", setting, where), partial(part, 0), part)
    return Work(("plain", rule.name, where, parameters.key()), lambda out: _merge_plain(tensor, pool, out))


class Span(NamedTuple):
    """Elements of a tensor that are to be written.

    Attributes:
        start: index of the first.
        out: flat memory for them.
    """

    start: int
    out: torch.Tensor


def _merge_part(tensor: TensorPlan, setting: Setting, facts: PoolFacts, kernels: Kernels, span: Span) -> bool:
    """Merge some elements of a tensor by a kernel; whether they are finite."""
    finite, ranked = True, ranked_inputs(setting)
    # ranks of a whole tensor are kept for the next candidate, those of parts would fill the memory of a stream
    ranks_of = facts.ranks_between if span.out.numel() < facts.numel else facts.ranks_within
    for part in facts.pool.feed(tensor.sources, tensor.info.name, span.start, span.start + span.out.numel()):
        base, inputs = (None, part.values) if tensor.rule.base is None else (part.values[0], part.values[1:])
        target = span.out[part.start - span.start :][: part.values[0].numel()]
        ranks = {i: ranks_of(i, part.start, part.start + target.numel()) for i in ranked}
        finite = kernels.merge(setting, base, inputs, target, ranks=ranks, first=part.start) and finite
    return finite


def merge_into(tensor: TensorPlan, work: Work, out: torch.Tensor) -> None:
    """Run work and refuse results that are not finite.

    Raises:
        NonFinite: naming the tensor; `out` is then undefined.
    """
    if not work.run(out):
        raise _not_finite(tensor)


def merge_parts(tensor: TensorPlan, work: Work, size: int) -> Iterator[TensorPart]:
    """Run work part by part, with the bits of `merge_into`, and refuse results that are not finite.

    Args:
        tensor: what is merged.
        work: of the same tensor.
        size: elements of a part; a tensor that has to be merged at once is one part.

    Yields:
        The parts in order, at least one; each is good until the next is asked for.

    Raises:
        NonFinite: naming the tensor.
    """
    numel = math.prod(tensor.info.shape)
    step = numel if work.part is None else min(size, numel)
    memory = torch.empty(step, dtype=torch_dtype(tensor.dtype))
    for start in range(0, max(numel, 1), max(step, 1)):
        values = memory[: numel - start]
        if not (work.run(values) if work.part is None else work.part(start, values)):
            raise _not_finite(tensor)
        yield TensorPart(start, values, numel)


def _not_finite(tensor: TensorPlan) -> NonFinite:
    return NonFinite(
        "A merged tensor holds NaN or infinity.",
        got=f"{tensor.info.name} ({tensor.rule.name}, {tensor.dtype})",
        allowed="finite values",
        fix="use smaller weights, or a wider dtype.",
    )


def new_tensor(tensor: TensorPlan) -> torch.Tensor:
    """Memory for a planned tensor, uninitialised, in its shape and dtype."""
    return torch.empty(tensor.info.shape, dtype=torch_dtype(tensor.dtype))


def _copy(tensor: TensorPlan, pool: ParentPool, start: int, out: torch.Tensor) -> bool:
    """Copy what cannot be averaged: the elements from `start` on, as many as `out` has.

    Raises:
        MergeError: when the parents disagree.
    """
    part = slice(start, start + out.numel())
    first, *others = (pool.flat(p, tensor.info.name)[part] for p in tensor.sources)
    for parent, other in zip(tensor.sources[1:], others, strict=True):
        if first.dtype != other.dtype or not torch.equal(first, other):
            raise MergeError(
                "Parents disagree in a tensor that cannot be merged.",
                got=f"{tensor.info.name} ({tensor.info.dtype}) in {parent} and {tensor.sources[0]}",
                allowed="equal integers and flags in all parents",
                fix="leave one of them out.",
            )
    out.copy_(first)
    return True


def _shaped(tensor: TensorPlan, pool: ParentPool, parent: str, dtype: torch.dtype) -> torch.Tensor:
    """A parent's tensor in its shape, on the CPU, in `dtype`; not to be written to."""
    return pool.read(parent, tensor.info.name).cpu().to(dtype).view(tensor.info.shape)


def _merge_compat(plan: MergePlan, tensor: TensorPlan, pool: ParentPool, out: torch.Tensor) -> bool:
    dtype = _arithmetic(plan, tensor, [pool.flat(p, tensor.info.name).dtype for p in tensor.sources])
    base = _shaped(tensor, pool, tensor.rule.base, dtype) if tensor.rule.base is not None else None
    inputs = [_shaped(tensor, pool, p, dtype) for p in tensor.rule.inputs]
    out.copy_(merge_compat(tensor.rule.name, base, inputs, tensor.parameters).reshape(-1))
    return all_finite(out)


def _arithmetic(plan: MergePlan, tensor: TensorPlan, stored: Sequence[torch.dtype]) -> torch.dtype:
    """The dtype that mergekit's arithmetic computes in."""
    if plan.recipe.arithmetic != "stored":
        return torch_dtype(safetensors_name(plan.recipe.arithmetic))
    return reduce(torch.promote_types, stored) if plan.recipe.dtype == "parent" else torch_dtype(tensor.dtype)


def _merge_plain(tensor: TensorPlan, pool: ParentPool, out: torch.Tensor) -> bool:
    """A plug-in's method, on fp32 copies, so that it cannot write into a parent.

    Raises:
        MergeError: when it returns another shape.
    """
    fp32 = torch.float32
    base = _shaped(tensor, pool, tensor.rule.base, fp32).clone() if tensor.rule.base is not None else None
    inputs = [_shaped(tensor, pool, p, fp32).clone() for p in tensor.rule.inputs]
    merged = tensor.rule.method.merge(base, inputs, tensor.parameters)
    if merged.shape != tensor.info.shape:
        raise MergeError(
            f"The merge method {tensor.rule.name!r} returned another shape.",
            got=f"{list(merged.shape)} for {tensor.info.name}",
            allowed=str(list(tensor.info.shape)),
            fix="ask the method's authors for a correction.",
        )
    out.copy_(merged.reshape(-1))
    return all_finite(out)
