"""From the structure of a mergekit file to a recipe: gradients and filters resolved, tensors sorted by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.mergekit_file import OUT_DTYPES, File, Slice, Source, check_known
from evomerge.recipe.mergekit_settings import number_of, resolve
from evomerge.recipe.mergekit_text import DTYPES, refused
from evomerge.recipe.method_spec import ParameterSpec
from evomerge.recipe.recipe import Compat, Number, OutDtype, ParentRef
from evomerge.recipe.rules import Assignment, Kind, kinds_of

_WITHOUT_EFFECT: Final = ("int8_mask",)


def named_parents(sources: Sequence[Source], names: Mapping[str, str]) -> tuple[ParentRef, ...]:
    """Sources with short names: the given ones, else the last part of the path, made unique."""
    taken: dict[str, Source] = {}
    refs = []
    for source, revision in sources:
        stem = names.get(source) or PurePath(source).name or "model"
        name, count = stem, 2
        while name in taken:
            name, count = f"{stem}-{count}", count + 1
        taken[name] = (source, revision)
        refs.append(ParentRef(name, source, revision))
    return tuple(refs)


def sources_in_order(file: File) -> list[Source]:
    """All sources: slerp's base first (its t = 0), a base of deltas first, the others as the file has them.

    Raises:
        RecipeError: when slices order their sources differently, since sums depend on it.
    """
    found = list(dict.fromkeys(i.model for piece in file.slices for i in piece.inputs))
    if file.base is not None and (file.method.needs_base or file.method.name == "slerp"):
        found = [file.base, *(s for s in found if s != file.base)]
    for piece in file.slices:
        ranks = [found.index(i.model) for i in piece.inputs if i.model != file.base]
        if ranks != sorted(ranks):
            raise refused("Slices order their sources differently.", repr(ranks), "one order in all slices")
    return found


def assignments_of(file: File, layout: Layout, names: Mapping[Source, str], compat: Compat) -> dict[Kind, Assignment]:
    """The parameters of every kind of tensor.

    Raises:
        RecipeError: for unknown parameters, for missing or illegal values, then when tensors of one kind differ.
    """
    known = (*file.method.parameters, *_WITHOUT_EFFECT)
    for piece in file.slices:
        for level in (*piece.levels, *(i.parameters for i in piece.inputs)):
            check_known(level, known, f"the parameters of {file.method.name}")
    found: dict[Kind, tuple[TensorInfo, Assignment]] = {}
    for tensor in sorted(layout.tensors, key=lambda t: -len(t.shape)):  # matrices decide, vectors follow
        assignment = _of_tensor(tensor, file, names)
        first, decided = found.setdefault(Kind(tensor.layer, tensor.role), (tensor, assignment))
        is_dense = compat == "off" and len(tensor.shape) <= 1 < len(first.shape)
        if assignment != decided and not (is_dense and _dense(assignment) == _dense(decided)):
            raise refused(
                "A filter tells tensors of one role apart, which a recipe cannot.",
                f"{first.name} and {tensor.name}, both {tensor.role}",
                "filters that separate layers, attention, mlp, norms, embedding and head",
            )
    return {kind: found[kind][1] for kind in kinds_of(layout)}


def _dense(assignment: Assignment) -> Assignment:
    """The default arithmetic never thins out norm gains and biases: any density but 0 is 1 to them."""
    inner = tuple(
        (parent, tuple((k, 1.0 if k == "density" and v else v) for k, v in values))
        for parent, values in assignment.per_parent
    )
    return Assignment(assignment.shared, inner)


def _of_tensor(tensor: TensorInfo, file: File, names: Mapping[Source, str]) -> Assignment:
    piece, t = _place(tensor, file.slices)
    shared: dict[str, Number] = {}
    for name in file.method.shared():
        shared[name] = _value(tensor, file.method.parameters[name], name, piece.levels, t)
    per_parent: dict[str, dict[str, Number]] = {}
    for source in sorted(piece.inputs, key=lambda i: list(names).index(i.model)):
        if file.method.needs_base and source.model == file.base:
            continue
        levels = (source.parameters, *piece.levels)
        per_parent[names[source.model]] = {
            name: _value(tensor, file.method.parameters[name], name, levels, t) for name in file.method.per_parent()
        }
    return Assignment.of(shared, per_parent)


def _place(tensor: TensorInfo, slices: tuple[Slice, ...]) -> tuple[Slice, float]:
    """The slice that decides a tensor, and the depth t inside it at which gradients are read.

    Outside the layers t is 0; a slice of one layer reads the end of its gradients.
    """
    if tensor.layer is None:
        return (slices[0] if tensor.role == "embedding" else slices[-1]), 0.0
    piece = next(p for p in slices if p.start <= tensor.layer < p.end)
    length = piece.end - piece.start
    return piece, (tensor.layer - piece.start) / (length - 1) if length > 1 else 1.0


def _value(tensor: TensorInfo, spec: ParameterSpec, name: str, levels: Sequence[Mapping[str, Any]], t: float) -> Number:
    value = resolve(tensor.name, levels, name, t)
    where = f"{name} of {tensor.name}"
    if value is None and spec.default is None:
        raise refused("A parameter has no value.", where, spec.allowed)
    return number_of(spec.default if value is None else value, spec, where)


def recipe_dtype(
    arithmetic: str | None, stored_as: str | None, layout: Layout, compat: Compat | None
) -> tuple[OutDtype, Compat]:
    """The recipe's stored dtype, and whose arithmetic makes it.

    Args:
        arithmetic: the file's `dtype`.
        stored_as: the file's `out_dtype`.
        layout: of the models.
        compat: whose arithmetic is asked for; None leaves it to the file.

    Raises:
        RecipeError: when mergekit's arithmetic is asked for in another dtype than the stored one.
    """
    stored = {DTYPES[t.dtype] for t in layout.tensors if t.dtype in DTYPES}
    name = stored_as or arithmetic
    out: OutDtype = "parent" if name is None else OUT_DTYPES[name]
    same = stored_as is None or stored_as == arithmetic or (arithmetic is None and stored == {stored_as})
    if compat == "off" or (compat is None and not same and arithmetic == "float32"):
        return out, "off"
    if not same:
        raise refused(
            "mergekit's arithmetic is reproduced in the stored dtype only.",
            f"dtype {arithmetic}, out_dtype {stored_as}",
            "dtype alone, or an equal out_dtype",
            "merge it with --compat off (evomerge's own arithmetic, in fp32), or remove out_dtype.",
        )
    return out, "mergekit"
