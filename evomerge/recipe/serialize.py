"""Recipes as canonical, versioned JSON, and the digest that names them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, NoReturn, get_args

from evomerge.digest import canonical_json, digest_json
from evomerge.errors import RecipeError, suggest
from evomerge.layout import ROLES, Role
from evomerge.recipe.path import Hop
from evomerge.recipe.recipe import Arithmetic, Compat, Making, Number, OutDtype, ParentRef, Recipe, Rule
from evomerge.types import Digest

FORMAT: Final = "evomerge.recipe"
VERSION: Final = 3
"""Of recipes with parents that are made from others, rules for named tensors, an arithmetic of its own or a chat
template; 2 has a path; what has none of these is written as version 1."""
MAX_CHARACTERS: Final = 4_000_000

_TOP: Final = ("format", "version", "parents", "base", "rules", "dtype", "compat", "seed")
_PARENT: Final = ("name", "source", "revision", "content")
_MAKING: Final = ("method", "of", "base", "settings", "data")
MOST_NESTED: Final = 8
"""Parents that are made from made parents that are made from ...: no deeper than this."""
_RULE: Final = ("method", "shared", "per_parent", "layers", "roles")
_NEWER: Final = ("path", "arithmetic", "chat_template")


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a JSON object; `recipe_from_json` gives an equal recipe back."""
    more: dict[str, Any] = {}
    if recipe.path is not None:
        more["path"] = [[h.parent, h.layer, h.gain] for h in recipe.path]
    if recipe.arithmetic != "stored":
        more["arithmetic"] = recipe.arithmetic
    if recipe.chat_template is not None:
        more["chat_template"] = recipe.chat_template
    return {
        "format": FORMAT,
        "version": _version(recipe),
        "parents": [parent_to_json(p) for p in recipe.parents],
        "base": recipe.base,
        "rules": [_rule_to_json(rule) for rule in recipe.rules],
        "dtype": recipe.dtype,
        "compat": recipe.compat,
        "seed": recipe.seed,
        **more,
    }


def _version(recipe: Recipe) -> int:
    """The oldest version that can say the recipe."""
    if any(p.made is not None for p in recipe.parents) or any(rule.names is not None for rule in recipe.rules):
        return VERSION
    if recipe.arithmetic != "stored" or recipe.chat_template is not None:
        return VERSION
    return 1 if recipe.path is None else 2


def parent_to_json(parent: ParentRef) -> dict[str, Any]:
    """A parent as a recipe holds it; `parent_from_json` gives it back."""
    plain = {"name": parent.name, "source": parent.source, "revision": parent.revision, "content": parent.content}
    if parent.made is None:
        return plain
    made = {
        "method": parent.made.method,
        "of": [parent_to_json(p) for p in parent.made.of],
        "base": None if parent.made.base is None else parent_to_json(parent.made.base),
        "settings": {k: _plain(v) for k, v in parent.made.settings.items()},
        "data": parent.made.data,
    }
    return {**plain, "made": made}


def recipe_to_text(recipe: Recipe) -> str:
    """The text of a recipe file: canonical JSON and a line feed."""
    return canonical_json(recipe_to_json(recipe)) + "\n"


def recipe_digest(recipe: Recipe) -> Digest:
    """What names a merge: equal recipes have equal digests.

    It is the sha256 of the recipe's canonical JSON, in which a parent whose content hash is known stands by that hash
    alone: a folder that was moved, or a hub model that was downloaded, is still the same parent.
    """
    whole = recipe_to_json(recipe)
    for parent in whole["parents"]:
        if parent["content"] is not None:
            del parent["source"], parent["revision"]
            parent.pop("made", None)  # a made parent's content stands for all that it is made from
    return digest_json(whole)


def recipe_from_json(value: object) -> Recipe:
    """The recipe of a JSON object.

    Raises:
        RecipeError: when it is no recipe, is of a newer version, has unknown or missing keys, or a value of the wrong
            type, in this order; then whatever `Recipe` itself refuses.
    """
    if not isinstance(value, Mapping) or value.get("format") != FORMAT:
        got = value.get("format") if isinstance(value, Mapping) else type(value).__name__
        _refuse("This is not a recipe.", f"format {got!r}", f'an object with "format": "{FORMAT}"')
    version = value.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        _refuse(
            "The recipe was written by a newer evomerge.",
            f"version {version}",
            f"version 1 to {VERSION}",
            "install a newer evomerge.",
        )
    if version not in (1, 2, VERSION) or isinstance(version, bool) or not isinstance(version, int):
        _refuse("The recipe has no usable version.", f"version {version!r}", f"version 1 to {VERSION}")
    present = ("path",) if version == 2 else tuple(k for k in _NEWER if version == VERSION and k in value)
    _keys(value, (*_TOP, *present), "")
    return Recipe(
        parents=tuple(
            _parent(p, f"parents.{i}", MOST_NESTED if version == VERSION else 0)
            for i, p in enumerate(_list(value["parents"], "parents"))
        ),
        base=_text_or_none(value["base"], "base"),
        rules=tuple(_rule(r, f"rules.{i}", version) for i, r in enumerate(_list(value["rules"], "rules"))),
        dtype=_one_of(value["dtype"], get_args(OutDtype), "dtype"),
        compat=_one_of(value["compat"], get_args(Compat), "compat"),
        seed=_whole(value["seed"], "seed"),
        path=tuple(_hop(h, f"path.{i}") for i, h in enumerate(_list(value["path"], "path")))
        if "path" in present
        else None,
        arithmetic=_one_of(value.get("arithmetic", "stored"), get_args(Arithmetic), "arithmetic"),
        chat_template=_text_or_none(value.get("chat_template"), "chat_template"),
    )


def recorded_recipe_from_json(value: object, digest: Digest) -> Recipe:
    """The recipe of a JSON object that was kept beside its digest.

    Raises:
        RecipeError: as `recipe_from_json`; then when the recipe is another one than the digest names.
    """
    recipe = recipe_from_json(value)
    if recipe_digest(recipe) != digest:
        _refuse("A recorded recipe is not the one that was recorded.", f"digest {recipe_digest(recipe)}", str(digest))
    return recipe


def recipe_from_text(text: str) -> Recipe:
    """The recipe of a file's text.

    Raises:
        RecipeError: when the text is too long, is no JSON, or has a key twice; then as `recipe_from_json`.
    """
    if len(text) > MAX_CHARACTERS:
        _refuse("The recipe is too long.", f"{len(text)} characters", f"at most {MAX_CHARACTERS}")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _refuse("The recipe is not JSON.", str(error) or "nested too deeply", "one JSON object")
    return recipe_from_json(value)


def _rule_to_json(rule: Rule) -> dict[str, Any]:
    return {
        "method": rule.method,
        "shared": {k: _plain(v) for k, v in rule.shared.items()},
        "per_parent": {p: {k: _plain(v) for k, v in values.items()} for p, values in rule.per_parent.items()},
        "layers": None if rule.layers is None else list(rule.layers),
        "roles": None if rule.roles is None else list(rule.roles),
        **({} if rule.names is None else {"names": list(rule.names)}),
    }


def _plain(value: Number) -> Number:
    """1 and 1.0 are one number and must have one text."""
    return value if isinstance(value, bool) else float(value)


def _refuse(
    what: str, got: str, allowed: str, fix: str = "correct the recipe, or export it again from its run."
) -> NoReturn:
    raise RecipeError(what, got=got, allowed=allowed, fix=fix)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        counts = Counter(k for k, _ in pairs)
        twice = next(k for k, n in counts.items() if n > 1)
        _refuse("A key of the recipe stands twice.", repr(twice), "each key once in an object")
    return result


def _no_constant(name: str) -> NoReturn:
    _refuse("A number of the recipe is not finite.", name, "finite numbers")


def _keys(value: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    place = f" in {where}" if where else ""
    for key in value:
        if key not in known:
            _refuse(f"The recipe has an unknown key{place}.", repr(key), suggest(str(key), known))
    for key in known:
        if key not in value:
            _refuse(f"The recipe lacks a key{place}.", f"no {key!r}", f"all of {', '.join(known)}")


def _wrong(value: object, where: str, allowed: str) -> NoReturn:
    _refuse("A value of the recipe has the wrong type.", f"{where} = {value!r}"[:200], allowed)


def _list(value: object, where: str) -> list[Any]:
    return value if isinstance(value, list) else _wrong(value, where, "a list")


def _object(value: object, where: str) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else _wrong(value, where, "an object")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or any("\ud800" <= c <= "\udfff" for c in value):
        _wrong(value, where, "text")
    return value


def _text_or_none(value: object, where: str) -> str | None:
    return None if value is None else _text(value, where)


def _whole(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        _wrong(value, where, "a whole number >= 0")
    return value


def _one_of(value: object, allowed: tuple[Any, ...], where: str) -> Any:
    if not isinstance(value, str) or value not in allowed:
        _wrong(value, where, suggest(str(value), allowed))
    return value


def _number(value: object, where: str) -> Number:
    if isinstance(value, bool):
        return value
    if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        _wrong(value, where, "a finite number, true or false")
    return float(value)


def _numbers(value: object, where: str) -> dict[str, Number]:
    return {_text(k, where): _number(v, f"{where}.{k}") for k, v in _object(value, where).items()}


def _parent(value: object, where: str, depth: int) -> ParentRef:
    """A parent; `depth` says how deep it may be made from others."""
    parent = _object(value, where)
    is_made = depth > 0 and parent.get("made") is not None
    _keys(parent, (*_PARENT, "made") if is_made else _PARENT, where)
    content = _text_or_none(parent["content"], f"{where}.content")
    return ParentRef(
        name=_text(parent["name"], f"{where}.name"),
        source=_text(parent["source"], f"{where}.source"),
        revision=_text_or_none(parent["revision"], f"{where}.revision"),
        content=None if content is None else Digest(content),
        made=_making(parent["made"], f"{where}.made", depth - 1) if is_made else None,
    )


def parent_from_json(value: object) -> ParentRef:
    """The parent of a JSON object.

    Raises:
        RecipeError: when it has unknown or missing keys, or a value of the wrong type.
    """
    return _parent(value, "parent", MOST_NESTED)


def _making(value: object, where: str, depth: int) -> Making:
    made = _object(value, where)
    _keys(made, _MAKING, where)
    data = _text_or_none(made["data"], f"{where}.data")
    return Making(
        method=_text(made["method"], f"{where}.method"),
        of=tuple(_parent(p, f"{where}.of.{i}", depth) for i, p in enumerate(_list(made["of"], f"{where}.of"))),
        base=None if made["base"] is None else _parent(made["base"], f"{where}.base", depth),
        settings=_numbers(made["settings"], f"{where}.settings"),
        data=None if data is None else Digest(data),
    )


def _rule(value: object, where: str, version: int) -> Rule:
    rule = _object(value, where)
    is_named = version == VERSION and "names" in rule
    _keys(rule, (*_RULE, "names") if is_named else _RULE, where)
    per_parent = _object(rule["per_parent"], f"{where}.per_parent")
    return Rule(
        method=_text(rule["method"], f"{where}.method"),
        shared=_numbers(rule["shared"], f"{where}.shared"),
        per_parent={_text(p, where): _numbers(v, f"{where}.per_parent.{p}") for p, v in per_parent.items()},
        layers=_layers(rule["layers"], f"{where}.layers"),
        roles=_roles(rule["roles"], f"{where}.roles"),
        names=_names(rule["names"], f"{where}.names") if is_named else None,
    )


def _hop(value: object, where: str) -> Hop:
    row = _list(value, where)
    if len(row) != 3:
        _wrong(value, where, "[parent or null, layer, gain]")
    gain = _number(row[2], f"{where}.2")
    if isinstance(gain, bool):
        _wrong(gain, f"{where}.2", "a finite number")
    return Hop(_whole(row[1], f"{where}.1"), _text_or_none(row[0], f"{where}.0"), gain)


def _layers(value: object, where: str) -> tuple[int, ...] | None:
    return None if value is None else tuple(_whole(v, f"{where}.{i}") for i, v in enumerate(_list(value, where)))


def _roles(value: object, where: str) -> tuple[Role, ...] | None:
    if value is None:
        return None
    return tuple(_one_of(v, ROLES, f"{where}.{i}") for i, v in enumerate(_list(value, where)))


def _names(value: object, where: str) -> tuple[str, ...] | None:
    return None if value is None else tuple(_text(v, f"{where}.{i}") for i, v in enumerate(_list(value, where)))
