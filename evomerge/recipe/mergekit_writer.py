"""The models or slices of a mergekit file of merged layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, final

from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.equivalence import number
from evomerge.recipe.mergekit_export import inexpressible
from evomerge.recipe.mergekit_models import model_text
from evomerge.recipe.mergekit_settings import filters_for
from evomerge.recipe.method_spec import MethodSpec
from evomerge.recipe.path import Hop, Hops
from evomerge.recipe.recipe import Number, Recipe, Rule, name_within

_COPY: Final = Rule("linear", {"normalize": True}, {})


class _Entry(NamedTuple):
    """A tensor that a slice decides.

    Attributes:
        tensor: of the parents.
        output: its name in the result, which filters of shared parameters see.
        rule: its rule.
    """

    tensor: TensorInfo
    output: str
    rule: Rule


class _Piece(NamedTuple):
    """A slice: layers [start, end) and every tensor that it decides."""

    start: int
    end: int
    entries: tuple[_Entry, ...]


@final
class Writer:
    """The body of one file.

    Args:
        recipe: of one method.
        layout: of its parents.
        method: of all rules that are used.
    """

    def __init__(self, recipe: Recipe, layout: Layout, method: MethodSpec) -> None:
        self._recipe = recipe
        self._layout = layout
        self._method = method
        self._base = method.base_of(recipe.base)
        self._template = recipe.base or recipe.parents[0].name
        self._refs = {p.name: p for p in recipe.parents}
        hops: Hops = recipe.path or tuple(Hop(layer) for layer in range(layout.n_layers))
        self._pieces = self._cut(hops)

    def config(self) -> dict[str, Any]:
        """`base_model`, and `models` where all layers are alike and mergekit merges nothing else, or `slices`.

        Raises:
            RecipeError: when tensors of one slice merge different models by a method without weights, or the last
                slice merges more models than the first.
        """
        donor = self._donor()
        top = {} if donor is None else {"base_model": model_text(self._refs[donor])}
        if len(self._pieces) == 1 and self._recipe.path is None:
            everything = self._pieces[0].entries
            models = self._models(everything)
            if donor == self._first(models) and (donor in models or donor == self._base):
                listed = [self._source(m, everything) for m in models]
                return {**top, **self._shared(everything), "models": listed}
        first, last = self._models(self._pieces[0].entries), self._models(self._pieces[-1].entries)
        if len(last) > len(first):
            raise inexpressible(
                "its last layers merge more models than its first, and mergekit would leave some out of norm and head.",
                f"{', '.join(first)}; {', '.join(last)}",
                "as many models at the beginning as at the end",
            )
        return {**top, "slices": [self._slice(piece, donor) for piece in self._pieces]}

    def notes(self) -> tuple[str, ...]:
        """What the file cannot say."""
        if self._donor() is not None:
            return ()
        return (f"mergekit takes config and tokenizer from any of the models, evomerge from {self._template}.",)

    def _donor(self) -> str | None:
        """`base_model`: the base, or where config and tokenizer come from, unless that would make it the base."""
        return self._base if self._method.takes_base or self._base is not None else self._template

    def _first(self, models: Sequence[str]) -> str | None:
        """The `base_model` that the form with `models` needs: for slerp the model at t = 0."""
        return models[0] if self._method.name == "slerp" else self._donor()

    def _inputs(self, rule: Rule) -> list[str]:
        """The models that a rule merges, in the recipe's order."""
        named = rule.per_parent or {p.name: {} for p in self._recipe.parents if p.name != self._base}
        found = [p.name for p in self._recipe.parents if p.name in named]
        most = self._method.max_models
        if most is not None and len(found) > most and not rule.per_parent:
            found = [name for name in found if name != self._recipe.base]
        return found

    def _models(self, entries: Sequence[_Entry]) -> list[str]:
        """The models of a slice; by a method with weights, one that a tensor does not merge has weight 0 there.

        Raises:
            RecipeError: when the method has no weights, and tensors merge different models.
        """
        sets = {tuple(self._inputs(entry.rule)) for entry in entries}
        if len(sets) > 1 and "weight" not in self._method.parameters:
            raise inexpressible(
                f"{self._method.name} has no weights, and tensors of one slice merge different models.",
                "; ".join(", ".join(names) for names in sorted(sets)),
                "the same models in all tensors of a layer",
            )
        merged = {name for names in sets for name in names}
        return [p.name for p in self._recipe.parents if p.name in merged]

    def _cut(self, hops: Hops) -> list[_Piece]:
        """The slices: neighbouring layers with equal rules, and empty ones for what has models of its own."""
        pieces: list[_Piece] = []
        for k, hop in enumerate(hops):
            entries = tuple(
                _Entry(t, _renumbered(t, k), self._rule(t, hop)) for t in self._layout.tensors if t.layer == hop.layer
            )
            if pieces and pieces[-1].end == hop.layer and _alike(pieces[-1].entries, entries):
                last = pieces[-1]
                pieces[-1] = _Piece(last.start, hop.layer + 1, (*last.entries, *entries))
            else:
                pieces.append(_Piece(hop.layer, hop.layer + 1, entries))
        outside = [_Entry(t, t.name, self._recipe.rule_for(t)) for t in self._layout.tensors if t.layer is None]
        before = tuple(e for e in outside if e.tensor.role == "embedding")
        behind = tuple(e for e in outside if e.tensor.role != "embedding")
        if before and not self._joins(before, pieces[0]):
            pieces.insert(0, _Piece(0, 0, ()))
        pieces[0] = pieces[0]._replace(entries=(*before, *pieces[0].entries))
        if behind and not self._joins(behind, pieces[-1]):
            pieces.append(_Piece(0, 0, ()))
        pieces[-1] = pieces[-1]._replace(entries=(*pieces[-1].entries, *behind))
        return pieces

    def _joins(self, outside: Sequence[_Entry], piece: _Piece) -> bool:
        models = {name for e in piece.entries for name in self._inputs(e.rule)}
        return all(set(self._inputs(e.rule)) == models for e in outside)

    def _rule(self, tensor: TensorInfo, hop: Hop) -> Rule:
        if hop.parent is None:
            return self._recipe.rule_for(tensor)
        return Rule(_COPY.method, _COPY.shared, {hop.parent: {"weight": 1.0}})

    def _number(self, entry: _Entry, parameter: str, parent: str | None) -> Number:
        value = number(entry.rule, parameter, parent)
        if parameter == "density" and value and len(entry.tensor.shape) <= 1 and self._recipe.compat == "off":
            return 1.0  # the default arithmetic never thins out norm gains and biases
        return value if isinstance(value, bool) else float(value)

    def _shared(self, entries: Sequence[_Entry]) -> dict[str, Any]:
        wanted = self._method.shared()
        found = {p: filters_for({e.output: self._number(e, p, None) for e in entries}) for p in wanted}
        return {"parameters": found} if found else {}

    def _source(self, parent: str, entries: Sequence[_Entry]) -> dict[str, Any]:
        wanted = self._method.per_parent()
        found = {p: filters_for({e.tensor.name: self._number(e, p, parent) for e in entries}) for p in wanted}
        return {"model": model_text(self._refs[parent]), **({"parameters": found} if found else {})}

    def _slice(self, piece: _Piece, donor: str | None) -> dict[str, Any]:
        models = self._models(piece.entries)
        reach = {"layer_range": [piece.start, piece.end]}
        sources = []
        for name in models:
            source = self._source(name, piece.entries)
            sources.append({"model": source.pop("model"), **reach, **source})
        if self._base is not None:
            sources.append({"model": model_text(self._refs[self._base]), **reach})
        is_own = self._method.name == "slerp" and models[0] != donor
        own = {"base_model": model_text(self._refs[models[0]])} if is_own else {}
        return {"sources": sources, **own, **self._shared(piece.entries)}


def _renumbered(tensor: TensorInfo, layer: int) -> str:
    rest = name_within(tensor)
    return f"{tensor.name[: -len(rest)].removesuffix(f'{tensor.layer}.')}{layer}.{rest}"


def _alike(last: Sequence[_Entry], entries: Sequence[_Entry]) -> bool:
    """Whether a layer's tensors have the rules of the layer before it."""
    before = {name_within(e.tensor): _numbers(e.rule) for e in last if e.tensor.layer == last[-1].tensor.layer}
    return before == {name_within(e.tensor): _numbers(e.rule) for e in entries}


def _numbers(rule: Rule) -> tuple[Mapping[str, Number], Mapping[str, Mapping[str, Number]]]:
    return rule.shared, rule.per_parent
