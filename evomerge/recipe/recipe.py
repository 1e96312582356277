"""A merge as a value: which parents, and for every tensor the method and its numbers.

A recipe is self-contained: with the parents at hand it can be replayed by anybody, and equal recipes have equal
digests. Rules are matched by layer and role of a tensor; the first rule that matches decides, and a tensor that
no rule matches is an error, never a silent copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from evomerge.errors import RecipeError
from evomerge.layout import ROLES, Role, TensorInfo
from evomerge.recipe.path import Hops, check_hops
from evomerge.types import Digest

Number = float | bool
Compat = Literal["off", "mergekit"]
OutDtype = Literal["parent", "float32", "bfloat16", "float16"]
Arithmetic = Literal["stored", "float32", "bfloat16", "float16"]


def name_within(tensor: TensorInfo) -> str:
    """A tensor's name inside its layer (`self_attn.q_proj.weight`); outside the layers its whole name."""
    parts = tensor.name.split(".")
    number = str(tensor.layer)
    return ".".join(parts[parts.index(number) + 1 :]) if tensor.layer is not None and number in parts else tensor.name


def _invalid(what: str, got: str, allowed: str) -> RecipeError:
    return RecipeError(what, got=got, allowed=allowed, fix="correct the recipe, or export it again from its run.")


@dataclass(frozen=True)
class Making:
    """How a parent comes about that is no checkpoint of its own.

    Attributes:
        method: a maker's name: `adapter`, `transplant`, `aligned`, `tsv_m`, ... (`virtual.makers`).
        of: the parents that it is made from, in order; they need not be parents of the recipe.
        base: what their deltas are taken from, or what an adapter sits on; None where there is no such thing.
        settings: the maker's numbers, complete.
        data: digest of the prompts that it was made with; None for makers that need none.
    """

    method: str
    of: tuple[ParentRef, ...] = ()
    base: ParentRef | None = None
    settings: Mapping[str, Number] = field(default_factory=dict)
    data: Digest | None = None

    def __post_init__(self) -> None:
        for name, value in self.settings.items():
            if not isinstance(value, bool) and not math.isfinite(value):
                what = f"A setting of a parent made by {self.method!r} is not finite."
                raise _invalid(what, f"{name} = {value}", "finite numbers")
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    def __reduce__(self) -> tuple[object, ...]:
        """Mapping proxies do not cross process borders; their contents do."""
        return (Making, (self.method, self.of, self.base, dict(self.settings), self.data))

    def __hash__(self) -> int:
        return hash((self.method, self.of, self.base, tuple(sorted(self.settings.items())), self.data))


@dataclass(frozen=True)
class ParentRef:
    """One parent as the recipe names it.

    Attributes:
        name: short name used by the rules; unique in the recipe.
        source: the original folder or hub id, as the user wrote it; of a parent that is made without files of its own
            a word for people.
        revision: hub revision, None for a folder.
        content: digest of the parent's weights, or of all that it is made from; None where it is not known (an imported
            mergekit file).
        made: how it is made from other parents; None for a checkpoint.
    """

    name: str
    source: str
    revision: str | None = None
    content: Digest | None = None
    made: Making | None = None


@dataclass(frozen=True)
class Rule:
    """How the tensors it selects are merged.

    Attributes:
        method: name of a registered merge method.
        shared: parameters common to all parents (`t`, `lambda`, `normalize`, ...).
        per_parent: parent name -> its parameters (`weight`, `density`, ...).
        layers: the layers it selects; None selects everything, `()` only the tensors outside the layers.
        roles: the roles it selects; None selects every role.
        names: the tensors it selects by their names inside a layer, or outside the layers (`name_within`); None selects
            every name.
    """

    method: str
    shared: Mapping[str, Number] = field(default_factory=dict)
    per_parent: Mapping[str, Mapping[str, Number]] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    roles: tuple[Role, ...] | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        numbers = {f"shared.{k}": v for k, v in self.shared.items()}
        numbers |= {f"{p}.{k}": v for p, values in self.per_parent.items() for k, v in values.items()}
        for where, value in numbers.items():
            if not isinstance(value, bool) and not math.isfinite(value):
                raise _invalid(
                    f"A rule of method {self.method!r} is not finite.", f"{where} = {value}", "finite numbers"
                )
        for role in self.roles or ():
            if role not in ROLES:
                raise _invalid("A rule selects an unknown role.", repr(role), ", ".join(ROLES))
        object.__setattr__(self, "shared", MappingProxyType(dict(self.shared)))
        frozen = {p: MappingProxyType(dict(v)) for p, v in self.per_parent.items()}
        object.__setattr__(self, "per_parent", MappingProxyType(frozen))

    def __reduce__(self) -> tuple[object, ...]:
        """Mapping proxies do not cross process borders; their contents do."""
        per_parent = {p: dict(v) for p, v in self.per_parent.items()}
        return (Rule, (self.method, dict(self.shared), per_parent, self.layers, self.roles, self.names))

    def selects(self, tensor: TensorInfo) -> bool:
        """Whether the rule applies to `tensor`."""
        layer_matches = self.layers is None or (
            tensor.layer in self.layers if tensor.layer is not None else self.layers == ()
        )
        role_matches = self.roles is None or tensor.role in self.roles
        return layer_matches and role_matches and (self.names is None or name_within(tensor) in self.names)


@dataclass(frozen=True)
class Recipe:
    """One merge.

    Attributes:
        parents: in order; the order matters for floating-point sums and for nothing else.
        base: name of the parent that deltas are taken from; None for methods without one.
        rules: the first that selects a tensor decides.
        dtype: the stored dtype of the result; `parent` keeps each tensor's dtype in the base or first parent, and with
            `compat` stores what mergekit stores without `out_dtype`: what it computed in, fp32 from two methods.
        compat: `mergekit` reproduces mergekit 0.1.5's arithmetic, `off` is evomerge's own.
        seed: of the random masks (DARE); irrelevant without them.
        path: the layers that run, in order; None runs every merged layer once. What stands outside the layers follows
            the rules either way.
        arithmetic: the dtype that `compat: mergekit` computes in, before the result is stored as `dtype`; `stored`
            computes in what is stored, and where that is `parent` in the dtype that the parents' dtypes promote to.
            Without compat it says nothing: the default arithmetic is fp32.
        chat_template: Jinja text that the merge's tokenizer gets; None leaves it the template's own.
    """

    parents: tuple[ParentRef, ...]
    base: str | None
    rules: tuple[Rule, ...]
    dtype: OutDtype = "parent"
    compat: Compat = "off"
    seed: int = 0
    path: Hops | None = None
    arithmetic: Arithmetic = "stored"
    chat_template: str | None = None

    def __post_init__(self) -> None:
        names = [p.name for p in self.parents]
        if not names or len(set(names)) != len(names):
            raise _invalid(
                "The parents of a recipe must have distinct names.", ", ".join(names) or "none", "at least one"
            )
        if self.base is not None and self.base not in names:
            raise _invalid("The base is not among the parents.", repr(self.base), ", ".join(names))
        if not self.rules:
            raise _invalid("A recipe needs at least one rule.", "none", "one rule or more")
        for rule in self.rules:
            for name in rule.per_parent:
                if name not in names:
                    raise _invalid(
                        f"A rule of method {rule.method!r} names an unknown parent.", repr(name), ", ".join(names)
                    )
        if self.path is not None:
            check_hops(self.path, names)

    def rule_for(self, tensor: TensorInfo) -> Rule:
        """The rule that decides `tensor`.

        Raises:
            RecipeError: when none selects it.
        """
        for rule in self.rules:
            if rule.selects(tensor):
                return rule
        raise _invalid(
            "A tensor is selected by no rule of the recipe.",
            f"{tensor.name} (layer {tensor.layer}, role {tensor.role})",
            "every tensor is selected by a rule",
        )
