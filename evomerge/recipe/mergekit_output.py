"""What a mergekit file says about the result as a whole: its dtypes and its chat template."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import reduce
from typing import Any, Final, NamedTuple

from evomerge.errors import suggest
from evomerge.layout import Layout
from evomerge.recipe.mergekit_file import File
from evomerge.recipe.mergekit_import import uses_of
from evomerge.recipe.mergekit_models import Model
from evomerge.recipe.mergekit_text import DTYPES, refused
from evomerge.recipe.recipe import Arithmetic, Compat, OutDtype

OUT_DTYPES: Final[Mapping[str, OutDtype]] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
_ARITHMETIC: Final[Mapping[str, Arithmetic]] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
_FLOATING: Final = (*DTYPES, "F64")


class Dtypes(NamedTuple):
    """In what a recipe computes and stores.

    Attributes:
        stored: `Recipe.dtype`.
        arithmetic: `Recipe.arithmetic`.
    """

    stored: OutDtype
    arithmetic: Arithmetic


class Stated(NamedTuple):
    """`dtype` and `out_dtype` of a file; None where it says nothing."""

    arithmetic: str | None
    out: str | None

    @property
    def differ(self) -> bool:
        """Whether results are computed in one dtype and stored in another, as far as the file says."""
        return self.arithmetic is not None and self.out is not None and self.arithmetic != self.out


def stated_dtypes(config: Mapping[str, Any]) -> Stated:
    """The file's `dtype` and `out_dtype`, without torch's prefix.

    Raises:
        RecipeError: for a dtype that evomerge does not write.
    """
    found = []
    for key in ("dtype", "out_dtype"):
        name = config.get(key)
        short = name.removeprefix("torch.") if isinstance(name, str) else name
        if short is not None and (not isinstance(short, str) or short not in OUT_DTYPES):
            raise refused(
                "The mergekit file uses an unknown dtype.", f"{key}: {name!r}", suggest(str(name), OUT_DTYPES)
            )
        found.append(short)
    return Stated(*found)


def rules_alike(stated: Stated, kinds: Collection[str]) -> bool:
    """Whether evomerge's own arithmetic scales copies as mergekit does: in fp32, rounded once, or without any cast.

    mergekit casts a copy to `dtype`, multiplies, and casts to `out_dtype`.

    Args:
        stated: by the file.
        kinds: the dtypes of the models, safetensors spelling.
    """
    stored, computed, out = _chain(stated, kinds)
    return out is None or computed == {"float32"} or stored == computed == {out}


def gains_alike(stated: Stated, kinds: Collection[str]) -> bool:
    """The same for gains, which evomerge multiplies in fp32 into what is stored."""
    stored, computed, out = _chain(stated, kinds)
    return out is None or computed == {out} or (computed == {"float32"} and stored == {out})


def _chain(stated: Stated, kinds: Collection[str]) -> tuple[set[str | None], set[str | None], str | None]:
    """The dtypes of the models, of the arithmetic, and of the result."""
    stored = {DTYPES.get(kind) for kind in kinds}
    return stored, stored if stated.arithmetic is None else {stated.arithmetic}, stated.out or stated.arithmetic


def promoted(dtypes: Iterable[str]) -> str:
    """What several floating dtypes promote to, safetensors spelling; at least one."""

    def wider(a: str, b: str) -> str:
        if a == b:
            return a
        return "F64" if "F64" in (a, b) else "F32"  # BF16 and F16 hold neither one the other

    return reduce(wider, dtypes)


def dtypes_of_parents(file: File, layout: Layout, layouts: Mapping[Model, Layout]) -> dict[str, str]:
    """The dtype that mergekit computes each tensor in when the file names none: tensor -> safetensors spelling.

    Args:
        file: which parents take part where.
        layout: the tensors.
        layouts: of every model; the dtypes of a model with an adapter are the model's.
    """
    stored = {model: {t.name: t.dtype for t in found.tensors} for model, found in layouts.items()}
    used: dict[str, list[str]] = {}
    for use in uses_of(file, layout):
        if use.tensor.dtype in _FLOATING:
            name = use.tensor.name
            used.setdefault(name, []).extend(stored[i.model].get(name, use.tensor.dtype) for i in use.piece.inputs)
    return {name: promoted(dtypes) for name, dtypes in used.items()}


_WIDENED: Final = ("arcee_fusion", "ramplus_tl")
"""Methods that give fp32 whatever they are given."""


class Parents(NamedTuple):
    """The dtypes of a merge's parents, safetensors spelling, by tensor.

    Attributes:
        computed: what mergekit computes in where the file names nothing (`dtypes_of_parents`).
        own: what a recipe stores where it says nothing; None where a parent is made in another dtype than mergekit
            makes it.
    """

    computed: Mapping[str, str]
    own: Mapping[str, str] | None

    def are(self, dtype: str | None) -> bool:
        """Whether all of them have this one dtype, in mergekit's spelling."""
        return self.own is not None and {DTYPES.get(d) for d in (*self.own.values(), *self.computed.values())} == {
            dtype
        }


def recipe_dtypes(stated: Stated, parents: Parents, method: str, compat: Compat) -> Dtypes:
    """The recipe's dtypes.

    Args:
        stated: by the file.
        parents: theirs.
        method: the file's.
        compat: whose arithmetic.

    Raises:
        RecipeError: when the parents' dtypes differ in a way that needs several dtypes at a time.
    """
    name = stated.out or stated.arithmetic
    if compat == "off" and parents.are(name):
        return Dtypes("parent", "stored")
    alike = parents.own is not None and all(parents.own[n] == d for n, d in parents.computed.items())
    if name is None and (alike or (compat == "mergekit" and parents.own is not None)):
        return Dtypes("parent", "stored")
    kinds = sorted(set(parents.computed.values()))
    only = DTYPES.get(kinds[0]) if len(kinds) == 1 else None
    arithmetic = stated.arithmetic or only
    if compat == "mergekit" and stated.out is None and method in _WIDENED and arithmetic is not None:
        return Dtypes("parent", _ARITHMETIC[arithmetic])
    stored = name or only
    if stored is None or (compat == "mergekit" and arithmetic is None):
        raise refused(
            "The models store their tensors in several dtypes, and the file does not say which to compute in.",
            f"{', '.join(DTYPES.get(k, k) for k in kinds)} in different tensors",
            "models of one dtype, or a `dtype`",
            "add `dtype: float32`, and `out_dtype` for what is to be stored.",
        )
    same = compat == "off" or arithmetic == stored or arithmetic is None
    return Dtypes(OUT_DTYPES[stored], "stored" if same or arithmetic is None else _ARITHMETIC[arithmetic])


NAMED_TEMPLATES: Final = ("alpaca", "exaone", "llama3", "mistral")
"""Templates whose texts are part of mergekit."""
CHATML: Final = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, with nothing said that the messages do not say."""
_SHORTEST: Final = 20


def chat_template_of(
    config: Mapping[str, Any], models: Iterable[Model], own: Callable[[Model], str | None]
) -> str | None:
    """The text of the chat template that a file asks for; None when it asks for none.

    Args:
        config: the whole file.
        models: in the order in which they are asked for their own templates.
        own: a model's chat template, None without one.

    Raises:
        RecipeError: for another of the templates that are part of mergekit, for text that is no template, and for
            `auto` when no model has one.
    """
    value = config.get("chat_template")
    if value is None or value == "":
        return None
    if value == "chatml":
        return CHATML
    if value == "auto":
        return _commonest([text.strip() for text in map(own, models) if text])
    if not isinstance(value, str) or "{" not in value or len(value) < _SHORTEST:
        named = value in NAMED_TEMPLATES
        raise refused(
            "The chat template's text is part of mergekit." if named else "The chat template is no template.",
            repr(value),
            "auto, chatml, or the text of a Jinja template",
            "write the template's text into the file." if named else "write Jinja text, or remove chat_template.",
        )
    return value


def _commonest(texts: list[str]) -> str:
    if not texts:
        raise refused("No model has a chat template to choose.", "chat_template: auto", "models with chat templates")
    return max(dict.fromkeys(texts), key=texts.count)


def is_expressible(template: str) -> bool:
    """Whether mergekit takes the text for a template."""
    return "{" in template and len(template) >= _SHORTEST
