"""One tensor of a plan, merged into memory that the caller owns: the one path of resident and exported merges."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import reduce
from typing import NamedTuple

import torch

from evomerge.checkpoints.dtypes import safetensors_name, torch_dtype
from evomerge.errors import MergeError, NonFinite
from evomerge.merging.compat import merge_compat
from evomerge.merging.eager import all_finite
from evomerge.merging.kernels import Kernels
from evomerge.merging.methods import KernelMethod
from evomerge.merging.parents import ParentPool, PoolFacts
from evomerge.merging.plan import MergePlan, TensorPlan


class Work(NamedTuple):
    """A tensor's merge, ready to run.

    Attributes:
        key: equal keys write equal bits, so a tensor whose key did not change needs no merge.
        run: writes a flat tensor `(n,)` of the planned dtype and says whether it is finite.
    """

    key: Hashable
    run: Callable[[torch.Tensor], bool]


def prepare(plan: MergePlan, tensor: TensorPlan, pool: ParentPool, kernels: Kernels) -> Work:
    """Compile one tensor of a plan to work; reads parents only for thresholds and inner products."""
    rule = tensor.rule
    where = (tensor.sources, tensor.dtype)
    if tensor.copied:
        return Work(("copy", *where), lambda out: _copy(tensor, pool, out))
    parameters = tensor.parameters
    if plan.compat == "mergekit":
        key = ("mergekit", rule.name, plan.recipe.dtype, plan.recipe.arithmetic, where, parameters.key())
        return Work(key, lambda out: _merge_compat(plan, tensor, pool, out))
    if isinstance(rule.method, KernelMethod):
        facts = PoolFacts(
            pool, tensor.info.name, tensor.info.shape, base=rule.base, parents=rule.inputs, kernels=kernels
        )
        setting = rule.method.compile(parameters, facts)

        def run(out: torch.Tensor) -> bool:
            base = pool.flat(rule.base, tensor.info.name) if rule.base is not None else None
            return kernels.merge(setting, base, [pool.flat(p, tensor.info.name) for p in rule.inputs], out)

        return Work(("kernel", setting, where), run)
    return Work(("plain", rule.name, where, parameters.key()), lambda out: _merge_plain(tensor, pool, out))


def merge_into(tensor: TensorPlan, work: Work, out: torch.Tensor) -> None:
    """Run work and refuse results that are not finite.

    Raises:
        NonFinite: naming the tensor; `out` is then undefined.
    """
    if not work.run(out):
        raise NonFinite(
            "A merged tensor holds NaN or infinity.",
            got=f"{tensor.info.name} ({tensor.rule.name}, {tensor.dtype})",
            allowed="finite values",
            fix="use smaller weights, or a wider dtype.",
        )


def new_tensor(tensor: TensorPlan) -> torch.Tensor:
    """Memory for a planned tensor, uninitialised, in its shape and dtype."""
    return torch.empty(tensor.info.shape, dtype=torch_dtype(tensor.dtype))


def _copy(tensor: TensorPlan, pool: ParentPool, out: torch.Tensor) -> bool:
    """Copy what cannot be averaged.

    Raises:
        MergeError: when the parents disagree.
    """
    first, *others = (pool.flat(p, tensor.info.name) for p in tensor.sources)
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
    return pool.flat(parent, tensor.info.name).cpu().to(dtype).view(tensor.info.shape)


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
