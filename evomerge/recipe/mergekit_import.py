"""From the structure of a mergekit file to a recipe's parents and rules: gradients and filters resolved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.mergekit_file import MERGEKIT, File, Input, Slice, check_known
from evomerge.recipe.mergekit_models import Model
from evomerge.recipe.mergekit_settings import number_of, resolve
from evomerge.recipe.mergekit_text import refused
from evomerge.recipe.method_spec import bounds_of
from evomerge.recipe.recipe import Compat, Number, name_within
from evomerge.recipe.rules import Assignment

WITHOUT_EFFECT: Final = ("int8_mask",)
KNOWN: Final = tuple(dict.fromkeys([*(p for spec in MERGEKIT.values() for p in spec.parameters), *WITHOUT_EFFECT]))
"""Parameters of any method: where a method has no use for one, mergekit ignores it and we say so."""


@dataclass(frozen=True)
class Order:
    """The parents of a recipe.

    Attributes:
        models: in order.
        base: what deltas are taken from, or where config and tokenizer come from when the first model does not give
            them; None else.
    """

    models: tuple[Model, ...]
    base: Model | None


def order_of(file: File) -> Order:
    """The parents in one order that agrees with every slice, since sums depend on it; slerp's t = 0 comes first.

    Raises:
        RecipeError: when slices order their sources differently, or config and tokenizer come from another model than
            the base.
    """
    if file.method.name == "passthrough":  # nothing is summed
        first = () if file.donor is None else (file.donor,)
        return Order(tuple(dict.fromkeys([*first, *(i.model for piece in file.slices for i in piece.inputs)])), None)
    merged = _sorted([_chain(piece, file) for piece in file.slices])
    if file.base is not None:
        if file.donor not in (None, file.base):
            raise refused(
                "Slices take deltas from another base than the file's, which gives config and tokenizer.",
                f"{file.base} and {file.donor}",
                "one base_model, at the top of the file",
            )
        return Order((file.base, *merged), file.base)
    if file.donor is None or file.donor == merged[0]:
        return Order(tuple(merged), None)
    if file.donor in merged:
        return Order(tuple(merged), file.donor)
    return Order((file.donor, *merged), None)


def _chain(piece: Slice, file: File) -> list[Model]:
    models = list(piece.merged(file.method))
    if file.method.name == "slerp" and piece.base is not None:
        models.sort(key=lambda m: m != piece.base)
    return models


def _sorted(chains: Sequence[Sequence[Model]]) -> list[Model]:
    """The first order that all chains agree with."""
    left = list(dict.fromkeys(m for chain in chains for m in chain))
    found: list[Model] = []
    while left:
        ready = next((m for m in left if not any(_waits(m, chain, found) for chain in chains)), None)
        if ready is None:
            shown = "; ".join(", ".join(map(str, chain)) for chain in dict.fromkeys(map(tuple, chains)))
            raise refused("Slices order their sources differently.", shown, "one order in all slices")
        found.append(ready)
        left.remove(ready)
    return found


def _waits(model: Model, chain: Sequence[Model], found: Sequence[Model]) -> bool:
    return model in chain and any(m not in found for m in chain[: chain.index(model)])


class Use(NamedTuple):
    """One tensor of the result: which of the parents' it is, and where its parameters are read.

    Attributes:
        tensor: of the parents.
        output: its name in the result.
        piece: the slice that makes it.
        t: depth inside the slice at which gradients are read.
        layer: of the result; None outside the layers.
    """

    tensor: TensorInfo
    output: str
    piece: Slice
    t: float
    layer: int | None = None


def uses_of(file: File, layout: Layout) -> Iterator[Use]:
    """Every tensor of the result.

    The embedding belongs to the first slice, what follows the layers to the last, both at t = 0; a slice of one layer
    reads the end of its gradients.
    """
    inside: dict[int, list[TensorInfo]] = {}
    for tensor in layout.tensors:
        if tensor.layer is None:
            piece = file.slices[0] if tensor.role == "embedding" else file.slices[-1]
            yield Use(tensor, tensor.name, piece, 0.0)
        else:
            inside.setdefault(tensor.layer, []).append(tensor)
    k = 0
    for piece in file.slices:
        length = piece.end - piece.start
        for i in range(length):
            t = i / (length - 1) if length > 1 else 1.0
            for tensor in inside[piece.start + i]:
                yield Use(tensor, _renumbered(tensor, k), piece, t, k)
            k += 1


def _renumbered(tensor: TensorInfo, layer: int) -> str:
    rest = name_within(tensor)
    return f"{tensor.name[: -len(rest)].removesuffix(f'{tensor.layer}.')}{layer}.{rest}"


def check_parameters(file: File) -> None:
    """Refuse parameters that no method has.

    Raises:
        RecipeError: for the first.
    """
    own = tuple(dict.fromkeys([*file.method.parameters, *KNOWN]))
    for piece in file.slices:
        for level in (*piece.levels, *(i.parameters for i in piece.inputs)):
            check_known(level, own, f"the parameters of {file.method.name}", tuple(file.method.parameters))


def assignment_of(use: Use, file: File, names: Mapping[Model, str], merges_all: bool, compat: Compat) -> Assignment:
    """The parameters of one tensor of the result.

    Args:
        use: which tensor.
        file: the file.
        names: the parents' names, in order.
        merges_all: whether a rule that names no parent merges the slice's.
        compat: whose arithmetic.

    Raises:
        RecipeError: for missing or illegal values.
    """
    method = file.method
    shared = {name: _value(use, name, file, None, compat) for name in method.shared()}
    merged = set(use.piece.merged(method))
    inputs = sorted((i for i in use.piece.inputs if i.model in merged), key=lambda i: list(names).index(i.model))
    own = {names[i.model]: {name: _value(use, name, file, i, compat) for name in method.per_parent()} for i in inputs}
    named = () if merges_all and not method.per_parent() else tuple((p, tuple(v.items())) for p, v in own.items())
    return Assignment(tuple(shared.items()), named)


def _value(use: Use, name: str, file: File, of: Input | None, compat: Compat) -> Number:
    """A parameter's number for one tensor.

    Args:
        use: which tensor; filters see the source's name for a source's own parameters, the result's for shared ones.
        name: the parameter's.
        file: the file.
        of: the source whose it is, None for a shared one.
        compat: whose arithmetic.
    """
    spec = bounds_of(file.method, name, compat=compat == "mergekit")
    tensor = use.output if of is None else use.tensor.name
    levels = use.piece.levels if of is None else (of.parameters, *use.piece.levels)
    value = resolve(tensor, levels, name, use.t, is_flag=spec.kind == "flag")
    where = f"{name} of {tensor}" + ("" if of is None else f" in {of.model}")
    if value is None and spec.default is None:
        added = ", the base_model, which mergekit merges although it is not listed" if of and not of.is_listed else ""
        raise refused("A parameter has no value.", where + added, spec.allowed)
    return number_of(spec.default if value is None else value, spec, name, where)


def assignments_of(file: File, layout: Layout, names: Mapping[Model, str], compat: Compat) -> dict[str, Assignment]:
    """The parameters of every tensor of the parents.

    Raises:
        RecipeError: for unknown parameters, for missing or illegal values, then when a layer that runs several times
            has other numbers each time.
    """
    check_parameters(file)
    everyone = set(names) - {file.base}
    found: dict[str, Assignment] = {}
    for use in uses_of(file, layout):
        merges_all = set(use.piece.merged(file.method)) == everyone
        assignment = assignment_of(use, file, names, merges_all, compat)
        if found.setdefault(use.tensor.name, assignment) != assignment:
            raise refused(
                "A layer runs several times, with other numbers each time, which a recipe cannot say.",
                f"{use.tensor.name}, the second time as {use.output}",
                "equal parameters and sources wherever a layer stands",
                "use passthrough slices, or merge the file with mergekit itself.",
            )
    _fill(found, layout)
    return _plain_vectors(found, layout) if compat == "off" else found


def _fill(found: dict[str, Assignment], layout: Layout) -> None:
    """Layers that do not run have no numbers: they are given those of the first layer that does."""
    used = next(t.layer for t in layout.tensors if t.layer is not None and t.name in found)
    like = {name_within(t): found[t.name] for t in layout.tensors if t.layer == used}
    for tensor in layout.tensors:
        if tensor.name not in found:
            found[tensor.name] = like.get(name_within(tensor)) or next(iter(like.values()))


def _plain_vectors(found: Mapping[str, Assignment], layout: Layout) -> dict[str, Assignment]:
    """Norm gains and biases with the numbers of the matrices beside them, where only their density differs.

    The default arithmetic never thins them out, and a file says so by a density of 1.
    """
    beside: dict[int | None, list[Assignment]] = {}
    for tensor in layout.tensors:
        if len(tensor.shape) > 1:
            beside.setdefault(tensor.layer, []).append(found[tensor.name])
    changed = dict(found)
    for tensor in layout.tensors:
        if len(tensor.shape) <= 1:
            own = _dense(found[tensor.name])
            changed[tensor.name] = next(
                (a for a in beside.get(tensor.layer, []) if _dense(a) == own), found[tensor.name]
            )
    return changed


def _dense(assignment: Assignment) -> Assignment:
    """With every density but 0 as 1."""
    inner = tuple(
        (parent, tuple((k, 1.0 if k == "density" and v else v) for k, v in values))
        for parent, values in assignment.per_parent
    )
    return Assignment(assignment.shared, inner)
