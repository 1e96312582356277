"""The YAML language of path spaces (docs/spaces.md), from a parsed mapping to a `PathSpace`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

from evomerge.errors import suggest
from evomerge.recipe.path import MAX_HOPS
from evomerge.space.at import At, check_keys, mapping_at
from evomerge.space.gain_language import parse_gains
from evomerge.space.path_plan import GenotypeName, PathPlan
from evomerge.space.path_space import PathSpace
from evomerge.space.steps import MERGED
from evomerge.space.windows import ANY

GENOTYPES: Final[tuple[GenotypeName, ...]] = get_args(GenotypeName)
COMMON: Final = ("kind", "about", "genotype", "sources", "embeddings", "fixed_ends", "max_hops", "gains", "scales")
OWN: Final[Mapping[str, tuple[str, ...]]] = {
    "slots": ("repeats",),
    "windows": ("windows", "times", "from"),
    "skips": (),
    "free": ("length", "reach"),
}
MAX_GENES: Final = 8192
"""A path space with more genes is refused: no search of a few thousand candidates can learn them."""


@dataclass(frozen=True)
class Cast:
    """The models that a path space may name.

    Attributes:
        models: in order.
        base: the base, or None.
        n_layers: of each.
        default: the sources of a space that names none.
    """

    models: tuple[str, ...]
    base: str | None
    n_layers: int
    default: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that may be a source."""
        return (*self.models, *([] if self.base is None else [self.base]), MERGED)


def parse_path(mapping: Mapping[str, Any], cast: Cast, at: At) -> PathSpace:
    """The path space that a mapping describes.

    Args:
        mapping: what the YAML says.
        cast: the models.
        at: where the mapping stands.

    Raises:
        SpaceError: for anything that is not understood, naming its path; in this order: the genotype, unknown keys,
            the description, sources, embeddings, ends and limits, the genotype's own keys, gains, too many genes.
    """
    genotype = mapping.get("genotype")
    if genotype not in GENOTYPES:
        state = "the genotype is missing." if genotype is None else "the genotype is unknown."
        raise (at / "genotype").problem(state, repr(genotype), suggest(str(genotype), GENOTYPES))
    check_keys(mapping, (*COMMON, *OWN[genotype]), at)
    check_about(mapping, at)
    sources, embeddings = _sources(mapping, cast, at)
    fixed_ends = _flag(mapping.get("fixed_ends", genotype == "slots"), at / "fixed_ends")
    if fixed_ends and cast.n_layers < 2:
        raise (at / "fixed_ends").problem("one layer cannot be both ends.", "true", "false, for a model of one layer")
    gains, range_ = parse_gains(mapping, at)
    plan = PathPlan(
        genotype,
        sources,
        embeddings,
        fixed_ends,
        _hops(mapping.get("max_hops", MAX_HOPS), at / "max_hops", cast.n_layers),
        gains=gains,
        range=range_,
        **_own(genotype, mapping, cast, sources, at),
    )
    return _checked(plan, cast, at)


def _checked(plan: PathPlan, cast: Cast, at: At) -> PathSpace:
    """The space, once its limits and the number of its genes are known to be legal."""
    inner = cast.n_layers - (2 if plan.fixed_ends else 0)
    if plan.genotype == "windows" and inner < 2:
        raise (at / "genotype").problem(
            "windows have no room.", f"{inner} layers", "models with at least two layers between the fixed ends"
        )
    if plan.genotype == "free":
        _check_free(plan, cast.n_layers, at)
    n_sources = len(plan.sources or (*cast.models, MERGED))
    n_genes = _at_most(plan, n_sources, cast.n_layers)
    if n_genes > MAX_GENES:
        raise at.problem(
            "the path has too many genes.",
            f"{n_genes} genes with {n_sources} sources of {cast.n_layers} layers",
            f"at most {MAX_GENES}",
            "use fewer repeats or sources, or `per: hop` instead of `per: transition`.",
        )
    space = PathSpace(plan, cast.models, cast.base, cast.n_layers)
    if not space.genes:
        raise at.problem("there is nothing to search.", "no genes", "a model with layers between its fixed ends")
    return space


def _at_most(plan: PathPlan, n_sources: int, n_layers: int) -> int:
    """A bound of the number of genes that needs no space to be made."""
    places = {
        "slots": n_sources * n_layers * plan.repeats + 2,
        "windows": n_layers * plan.max_times + 2,
        "skips": n_layers,
        "free": plan.length or n_layers,
    }[plan.genotype]
    layers = 4 * plan.windows if plan.genotype == "windows" else places
    pairs = (n_layers * (1 if plan.genotype == "skips" else n_sources)) ** 2
    return layers + {"none": 0, "transition scales": pairs}.get(plan.gains, places)


def _check_free(plan: PathPlan, n_layers: int, at: At) -> None:
    length, ends = plan.length or n_layers, 1 if plan.fixed_ends else 0
    if length > plan.max_hops:
        raise (at / "length").problem("more steps than hops.", f"{length} steps", f"at most max_hops = {plan.max_hops}")
    if plan.reach is not None and length - ends > n_layers + plan.reach:
        raise (at / "length").problem(
            f"steps behind layer {n_layers - 1} reach no layer.",
            f"{length} steps with reach {plan.reach}",
            f"at most {n_layers + plan.reach + ends} steps, or a larger reach",
        )


def check_about(mapping: Mapping[str, Any], at: At) -> None:
    """Refuse a description that is no text.

    Raises:
        SpaceError: when it is none.
    """
    about = mapping.get("about", "")
    if not isinstance(about, str):
        raise (at / "about").problem("the description is not text.", repr(about), "one line of text")


def _sources(mapping: Mapping[str, Any], cast: Cast, at: At) -> tuple[tuple[str, ...] | None, str | None]:
    """Sources and embeddings, as far as they are given."""
    if MERGED in (*cast.models, cast.base):
        raise at.problem(
            "a parent has a name that paths need.",
            f"a parent called {MERGED!r}",
            f"parents with other names: {MERGED!r} is what paths call the merge",
            "rename the parent in parents.models.",
        )
    value = mapping.get("sources")
    sources = cast.default
    if value is not None:
        if not isinstance(value, list) or not value:
            raise (at / "sources").problem("the sources are not understood.", repr(value), "a list of models")
        for i, name in enumerate(value):
            if name not in cast.names or name in value[:i]:
                state = "a source stands twice." if name in cast.names else "a source is unknown."
                raise (at / "sources" / i).problem(state, repr(name), suggest(str(name), cast.names))
        sources = tuple(value)
    embeddings = mapping.get("embeddings")
    allowed = sources if sources is not None else (*cast.models, MERGED)
    if embeddings is not None and embeddings not in allowed:
        raise (at / "embeddings").problem(
            "the embeddings are of no source.", repr(embeddings), suggest(str(embeddings), allowed)
        )
    return sources, embeddings


def _flag(value: object, at: At) -> bool:
    if not isinstance(value, bool):
        raise at.problem("a flag is expected.", repr(value), "true or false")
    return value


def _whole(value: object, at: At, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise at.problem("a number is not usable.", repr(value), f"a whole number from {low} to {high}")
    return value


def _hops(value: object, at: At, n_layers: int) -> int:
    """A number of hops, at least as many as there are layers: N, or `{extra: N}` more than there are."""
    if isinstance(value, Mapping):
        check_keys(mapping_at(value, at), ("extra",), at)
        return n_layers + _whole(value.get("extra"), at / "extra", 0, MAX_HOPS - n_layers)
    return _whole(value, at, n_layers, MAX_HOPS)


def _own(
    genotype: str, mapping: Mapping[str, Any], cast: Cast, sources: tuple[str, ...] | None, at: At
) -> dict[str, Any]:
    """The keys of one genotype, as fields of the plan."""

    def whole(key: str, default: int, low: int, high: int) -> int:
        return _whole(mapping.get(key, default), at / key, low, high)

    if genotype == "slots":
        return {"repeats": whole("repeats", 1, 1, 64)}
    if genotype == "windows":
        extra, known = mapping.get("from"), (ANY, *(sources or (*cast.models, MERGED)))
        if extra is not None and extra not in known:
            raise (at / "from").problem("the source is unknown.", repr(extra), suggest(str(extra), known))
        return {"windows": whole("windows", 1, 1, 64), "max_times": whole("times", 3, 2, 64), "extra": extra}
    if genotype == "free":
        length = _hops(mapping.get("length", cast.n_layers), at / "length", cast.n_layers)
        return {"length": length, "reach": None if mapping.get("reach") is None else whole("reach", 0, 0, MAX_HOPS)}
    return {}
