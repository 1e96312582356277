"""The contract between the search and a space of recipes, whatever the space looks like inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.space.dimension import Value
from evomerge.space.space import SearchSpace
from evomerge.types import Digest, Vector


@dataclass(frozen=True)
class Gene:
    """What one dimension of a space of recipes governs; for reports.

    Attributes:
        name: the dimension's name: parameter, parent, place and module joined by dots.
        parameter: of the merge method (`weight`, `density`, `t`, ...).
        parent: whose parameter; None when all parents share it.
        place: where in depth: `model`, `embedding`, `layer3`, `block1`, `knot2` or `head`.
        module: the modules it governs, joined by `+`; empty when it governs all of them.
    """

    name: str
    parameter: str
    parent: str | None
    place: str
    module: str


class CandidateSpace(ABC):
    """A search space whose every vector is a recipe.

    Immutable and picklable. `build(space.decode(x))` is legal for every x in [0, 1]^d, and is a function of its
    arguments alone.
    """

    @property
    @abstractmethod
    def space(self) -> SearchSpace:
        """The dimensions."""

    @property
    @abstractmethod
    def genes(self) -> tuple[Gene, ...]:
        """What each dimension governs, aligned with `space.dimensions`."""

    @property
    @abstractmethod
    def starts(self) -> tuple[float, ...]:
        """Strengths of the task-arithmetic recipes that generation 0 holds; empty without a base."""

    @property
    @abstractmethod
    def digest(self) -> Digest:
        """Equal for spaces that build the same recipes from the same vectors."""

    @property
    def runs_paths(self) -> bool:
        """Whether recipes may have a path."""
        return False

    @property
    def hop_parents(self) -> tuple[str, ...]:
        """The parents that hops may name, each once: so many models a worker may hold beside the merged one."""
        return ()

    @abstractmethod
    def build(
        self, values: Mapping[str, Value], *, parents: tuple[ParentRef, ...], base: str | None, seed: int
    ) -> Recipe:
        """The recipe of these values.

        Args:
            values: one per dimension, as `space.decode` gives them.
            parents: the job's parents, base included, in any order.
            base: name of the base among them, or None.
            seed: of random masks; recipes of deterministic methods do not depend on it.

        Raises:
            SpaceError: when the values or parents are not this space's.
        """

    @abstractmethod
    def encode_recipe(self, recipe: Recipe, *, seed: int) -> Vector | None:
        """The vector whose recipe makes the same model; None when the space does not hold it.

        "The same" is equality of parameters, or, where the method amounts to a weighted sum of parents, equality
        of its coefficients to 1e-9 (below any dtype that is merged).

        Args:
            recipe: parents are matched by name.
            seed: as in `build`.
        """

    def around(self, elites: Sequence[Recipe]) -> CandidateSpace:
        """The space that a later stage of a search opens around the best merges so far.

        Args:
            elites: recipes over the same parents, at least one, the best first.

        Returns:
            A space whose genes may be others. Most spaces do not depend on elites and return themselves.
        """
        del elites
        return self
