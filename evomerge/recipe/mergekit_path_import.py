"""mergekit's passthrough files as recipes with a path: slices in any order, scales as branch gains or as rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from evomerge.errors import RecipeError
from evomerge.layout import Layout
from evomerge.recipe.mergekit_file import MERGEKIT, File
from evomerge.recipe.mergekit_import import Use, check_parameters, uses_of
from evomerge.recipe.mergekit_models import Model
from evomerge.recipe.mergekit_path import PASSTHROUGH, Ends
from evomerge.recipe.mergekit_settings import number_of, resolve
from evomerge.recipe.mergekit_text import refused
from evomerge.recipe.path import Hop, Hops, plain_path
from evomerge.recipe.recipe import Compat, Rule, name_within

_SCALE: Final = "scale"


class _Taken(NamedTuple):
    """One layer of the result.

    Attributes:
        model: whose it is.
        layer: of that model.
        scales: name inside the layer -> factor.
        ends: those of these names that end a branch.
    """

    model: Model
    layer: int
    scales: Mapping[str, float]
    ends: frozenset[str]

    def gain(self) -> float | None:
        """The branch gain that the scales amount to; None when they amount to none."""
        gains = {self.scales[name] for name in self.ends} or {1.0}
        odd = any(factor != 1.0 for name, factor in self.scales.items() if name not in self.ends)
        return None if odd or len(gains) > 1 else next(iter(gains))


class Passed(NamedTuple):
    """What a passthrough file makes.

    Attributes:
        rules: of tensors outside the layers, and of layers whose scales are no gains.
        path: None when it is one whole model.
    """

    rules: tuple[Rule, ...]
    path: Hops | None

    @property
    def is_gained(self) -> bool:
        """Whether hops have gains."""
        return any(hop.gain != 1.0 for hop in self.path or ())

    @property
    def is_ruled(self) -> bool:
        """Whether rules multiply."""
        return any(v[_SCALE] != 1.0 for r in self.rules if r.method == PASSTHROUGH for v in r.per_parent.values())

    @property
    def is_scaled(self) -> bool:
        """Whether anything is multiplied."""
        return self.is_gained or self.is_ruled


def read_passthrough(
    file: File, layout: Layout, names: Mapping[Model, str], is_end: Ends | None, *, folds: bool, compat: Compat
) -> Passed:
    """The rules and the path of a passthrough file.

    Args:
        file: each slice has one source.
        layout: of the models.
        names: of the parents.
        is_end: which tensors end the branches of a layer; None when nobody knows.
        folds: whether a gain may be multiplied into a layer's weights.
        compat: whose arithmetic the recipe has.

    Raises:
        RecipeError: for unknown parameters and illegal scales, and when a layer whose scales are no gain runs several
            times, each time otherwise.
    """
    check_parameters(file)
    first, last = (piece.inputs[0].model for piece in (file.slices[0], file.slices[-1]))
    taken, outside = _taken(file, layout, is_end)
    hops: list[Hop] = []
    ruled: dict[int, _Taken] = {}
    for place in taken:
        gain = place.gain()
        if gain is not None and (folds or gain == 1.0):
            hops.append(Hop(place.layer, names[place.model], gain))
            continue
        if ruled.setdefault(place.layer, place) != place:
            raise _no_gain(place, len(hops))
        hops.append(Hop(place.layer))
    scaled = [_scaled(names[t.model], t.layer, t.scales) for t in ruled.values()]
    beyond = {n: f for n, f in outside.items() if f != 1.0}
    embedding = {t.name for t in layout.tensors if t.layer is None and t.role == "embedding"}
    for model, own in ((first, beyond.keys() & embedding), (last, beyond.keys() - embedding)):
        if own:
            scaled.append(_scaled(names[model], None, {n: beyond[n] for n in sorted(own)}))
    rules = (*(rule for group in scaled for rule in group), *_plain(names[first], names[last], compat))
    path = tuple(hops)
    plain = first == last and path == plain_path(layout.n_layers, names[first])
    return Passed(rules, None if plain else path)


def _plain(first: str, last: str, compat: Compat) -> tuple[Rule, ...]:
    """What stands outside the layers; the rule of the last slice's parent also covers the layers that do not run."""

    def own(parent: str, *where: Any) -> Rule:
        if compat == "mergekit":  # its linear loses the sign of zeros
            return Rule(PASSTHROUGH, {}, {parent: {_SCALE: 1.0}}, *where)
        return Rule("linear", {"normalize": True}, {parent: {"weight": 1.0}}, *where)

    return (own(last),) if first == last else (own(first, (), ("embedding",)), own(last))


def _scaled(parent: str, layer: int | None, scales: Mapping[str, float]) -> list[Rule]:
    """Rules for the tensors of one layer, or outside the layers: one for each factor."""
    by_factor: dict[float, list[str]] = {}
    for name, factor in scales.items():
        by_factor.setdefault(factor, []).append(name)
    layers = () if layer is None else (layer,)
    return [
        Rule(PASSTHROUGH, {}, {parent: {_SCALE: factor}}, layers, None, tuple(sorted(names)))
        for factor, names in by_factor.items()
    ]


def _taken(file: File, layout: Layout, is_end: Ends | None) -> tuple[list[_Taken], dict[str, float]]:
    """The layers of the result in order, and the factors of the tensors outside them."""
    outside: dict[str, float] = {}
    uses: dict[int, list[Use]] = {}
    for use in uses_of(file, layout):
        if use.layer is None:
            outside[use.tensor.name] = _factor(use)
        else:
            uses.setdefault(use.layer, []).append(use)
    found: list[_Taken] = []
    for layer in uses.values():
        scales = {name_within(use.tensor): _factor(use) for use in layer}
        ends = {name_within(use.tensor) for use in layer if is_end is not None and is_end(use.tensor.name)}
        found.append(_Taken(layer[0].piece.inputs[0].model, layer[0].tensor.layer or 0, scales, frozenset(ends)))
    return found, outside


def _factor(use: Use) -> float:
    own = use.piece.inputs[0]
    value = resolve(use.tensor.name, (own.parameters, *use.piece.levels), _SCALE, use.t)
    spec = MERGEKIT[PASSTHROUGH].parameters[_SCALE]
    return 1.0 if value is None else float(number_of(value, spec, _SCALE, f"scale of {use.tensor.name}"))


def _no_gain(place: _Taken, hop: int) -> RecipeError:
    odd = [name for name in place.scales if name not in place.ends and place.scales[name] != 1.0]
    shown = [*odd, *sorted(place.ends)][:4]
    ends = ", ".join(sorted(place.ends))
    return refused(
        "A layer runs several times, and its scales are no gain of the layer.",
        f"layer {place.layer}, as layer {hop}: " + ", ".join(f"{n} by {place.scales[n]:g}" for n in shown),
        f"one factor on {ends}, and on nothing else" if ends else "equal scales wherever the layer stands",
    )
