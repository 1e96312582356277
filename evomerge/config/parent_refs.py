"""The parents of a job as recipes name them: checkpoints, adapters, models with a base of their own, made parents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, final

from evomerge.config.schema import Parent, Parents
from evomerge.errors import ConfigError, suggest
from evomerge.recipe.recipe import Making, ParentRef
from evomerge.strict_yaml import Document
from evomerge.types import Digest
from evomerge.virtual.maker import MakerSpec
from evomerge.virtual.makers import MAKERS, load_maker

BASE: Final = "base"
_COMPANIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "model": ("base", "scale"),
    "adapter": ("on", "weight"),
    "make": ("of", "settings", "prompts"),
}
"""What says which kind of parent it is -> the keys that go with it."""


def source_ref(name: str, source: str) -> ParentRef:
    """A checkpoint or adapter; the revision of a hub id stands in its source until it is opened."""
    return ParentRef(name, source)


_BY_OTHER_KEYS: Final = ("adapter", "aligned", "untied", "retokenized")
"""Makers that a job asks for in another way (`adapter:`, `tokens:`), or that it needs no asking for."""


@final
class ParentRefs:
    """Turns the parents of a job into references, those first that others are made of.

    Args:
        parents: the job's, with absolute sources.
        document: for the lines of messages.
        draw: gives the digest of so many prompts (None: the usual number), for makers that need data; without it such
            parents are refused.
    """

    def __init__(
        self, parents: Parents, document: Document, draw: Callable[[int | None], Digest] | None = None
    ) -> None:
        self._parents = parents
        self._document = document
        self._draw = draw
        self._found: dict[str, ParentRef] = {}
        self._under_way: list[str] = []

    def all(self) -> dict[str, ParentRef]:
        """What is merged: the base first under `base`, then the models in the job's order.

        Raises:
            ConfigError: for a parent of no kind or of two, keys that do not go with its kind, unknown names in `of`,
                unknown makers, and parents that are made of each other.
        """
        for name in self._parents.ingredients:
            if name in self._parents.models:
                with self._document.placing("parents", "ingredients", name):
                    raise ConfigError(
                        "A model and an ingredient have one name.",
                        got=repr(name),
                        allowed="unique names",
                        fix="models may be ingredients, too: name it once, under models.",
                    )
        base = self._base()
        return ({} if base is None else {BASE: base}) | {name: self._ref(name) for name in self._parents.models}

    def _base(self) -> ParentRef | None:
        return None if self._parents.base is None else source_ref(BASE, self._parents.base)

    def _ref(self, name: str) -> ParentRef:
        if name not in self._found:
            part = "models" if name in self._parents.models else "ingredients"
            with self._document.placing("parents", part, name):
                if name in self._under_way:
                    raise ConfigError(
                        "Parents are made of each other.",
                        got=" -> ".join([*self._under_way, name]),
                        allowed="parents that are made of checkpoints in the end",
                        fix="break the circle.",
                    )
                self._under_way.append(name)
                parent = (self._parents.models | self._parents.ingredients)[name]
                self._found[name] = source_ref(name, parent) if isinstance(parent, str) else self._made(name, parent)
                self._under_way.pop()
        return self._found[name]

    def _made(self, name: str, parent: Parent) -> ParentRef:
        kind = _kind_of(parent)
        if kind == "adapter" and parent.adapter is not None:
            on = self._base() if parent.on is None else source_ref("on", parent.on)
            weight = {} if parent.weight is None else {"weight": float(parent.weight)}
            return ParentRef(name, parent.adapter, made=Making("adapter", (), _needed(on, kind), weight))
        if kind == "model" and parent.model is not None and parent.base is not None:
            of = (source_ref(name, parent.model), source_ref("own-base", parent.base))
            scale = {} if parent.scale is None else {"scale": float(parent.scale)}
            return ParentRef(name, name, made=Making("transplant", of, _needed(self._base(), kind), scale))
        return self._by_maker(name, parent)

    def _by_maker(self, name: str, parent: Parent) -> ParentRef:
        names = [n for n in MAKERS.names() if n not in _BY_OTHER_KEYS]
        if parent.make is None or parent.make not in names:
            raise ConfigError(
                f"There is no method {parent.make!r} that makes parents.",
                got=repr(parent.make),
                allowed=suggest(str(parent.make), names),
                fix="use one of these names; `evomerge ls makers` says what each does.",
            )
        known = self._parents.models | self._parents.ingredients
        for other in parent.of or ():
            if other not in known and other != BASE:
                raise ConfigError(
                    "A parent is made of one that the job does not have.",
                    got=repr(other),
                    allowed=suggest(other, [*known, BASE]),
                    fix="add it to parents.models, or to parents.ingredients if it is not to be merged itself.",
                )
        base = self._base()
        of = tuple(_needed(base, "make") if other == BASE else self._ref(other) for other in parent.of or ())
        settings = {k: v if isinstance(v, bool) else float(v) for k, v in (parent.settings or {}).items()}
        spec = load_maker(parent.make).spec
        data = self._data(parent, spec)
        return ParentRef(
            name, name, made=Making(parent.make, of, _needed(base, "make") if spec.needs_base else None, settings, data)
        )

    def _data(self, parent: Parent, spec: MakerSpec) -> Digest | None:
        """The digest of the prompts that a maker is shown; None for makers that need none."""
        if spec.needs_prompts and self._draw is not None:
            return self._draw(parent.prompts)
        if not spec.needs_prompts and parent.prompts is None:
            return None
        raise ConfigError(
            f"The parent by {spec.name!r} and its prompts do not fit.",
            got=f"prompts: {parent.prompts}",
            allowed="a job with a suite to draw prompts from" if spec.needs_prompts else "no prompts, it needs none",
            fix="search with it: the prompts are drawn from the search set."
            if spec.needs_prompts
            else "remove prompts.",
        )


def _needed(base: ParentRef | None, kind: str) -> ParentRef:
    if base is None:
        raise ConfigError(
            "A parent is made with the help of the base, and there is none.",
            got=f"a parent by `{kind}` and no parents.base",
            allowed="a job with parents.base",
            fix="name the common ancestor in parents.base.",
        )
    return base


def _kind_of(parent: Parent) -> str:
    """Which kind of parent it is.

    Raises:
        ConfigError: when it is of none or of two, or has keys of another.
    """
    kinds = [kind for kind in _COMPANIONS if getattr(parent, kind) is not None]
    if len(kinds) != 1:
        raise ConfigError(
            "A parent is of one kind.",
            got=f"keys {', '.join(kinds)}" if kinds else "none of model, adapter and make",
            allowed="a folder or hub id, or a mapping with exactly one of model, adapter and make",
            fix="keep one of them.",
        )
    (kind,) = kinds
    wanted = {"model": ("base",), "make": ("of",)}.get(kind, ())
    others = [key for other, keys in _COMPANIONS.items() if other != kind for key in keys]
    odd = [key for key in others if getattr(parent, key) is not None]
    lacking = [key for key in wanted if getattr(parent, key) is None]
    if odd or lacking:
        raise ConfigError(
            f"The keys of a parent by `{kind}` do not fit.",
            got=", ".join([*(f"{key} given" for key in odd), *(f"no {key}" for key in lacking)]),
            allowed=f"{kind} with {', '.join(_COMPANIONS[kind])}",
            fix=f"remove {', '.join(odd)}."
            if odd
            else f"add {', '.join(lacking)}; without it, write the folder alone.",
        )
    return kind
