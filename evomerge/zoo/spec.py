"""Everything that decides a zoo's bits: the seed, the sizes, the schedule, and the version of the recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from evomerge.zoo.variants import SKILLS, VARIANTS, Variant

FORMAT = "evomerge.zoo"
VERSION = 1


@dataclass(frozen=True)
class ModelSize:
    """Width and depth of a zoo's models.

    Attributes:
        hidden: width of the residual stream, a multiple of `2 * heads`.
        intermediate: width of the gated feed-forward layer.
        layers: number of transformer layers.
        heads: number of attention heads.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int

    def __post_init__(self) -> None:
        if min(self.hidden, self.intermediate, self.layers, self.heads) < 1 or self.hidden % (2 * self.heads):
            raise ValueError(f"a model of {self} cannot be built")


@dataclass(frozen=True)
class Schedule:
    """How long a zoo's models are trained.

    Attributes:
        first_check: the base is checked from this step on, every `check_every` steps.
        check_every: steps between two checks.
        target: the base stops when its mean validation accuracy over the judged skills reaches this, in (0, 1].
        base_most_steps: and here at the latest.
        expert_steps: steps of every expert.
        validation_items: problems per skill and check.
    """

    first_check: int
    check_every: int
    target: float
    base_most_steps: int
    expert_steps: int
    validation_items: int

    def __post_init__(self) -> None:
        counts = (self.check_every, self.expert_steps, self.validation_items)
        if min(counts) < 1 or not 0 < self.target <= 1 or not 0 < self.first_check <= self.base_most_steps:
            raise ValueError(f"a zoo cannot be trained by {self}")

    def is_check(self, step: int) -> bool:
        """Whether the base is judged after `step` (from 1)."""
        return step >= self.first_check and (step - self.first_check) % self.check_every == 0


@dataclass(frozen=True)
class ZooSpec:
    """One zoo.

    Attributes:
        seed: of the initial weights and all training batches; items do not depend on it.
        size: of the models.
        schedule: of the training.
        items: number of items of every task.
        variant: which kind of zoo, a name of `VARIANTS`.
    """

    seed: int
    size: ModelSize
    schedule: Schedule
    items: int
    variant: str = SKILLS

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"there is no zoo {self.variant!r}, only {', '.join(VARIANTS)}")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative")
        if self.items < 1:
            raise ValueError(f"a zoo needs items, got {self.items}")

    @property
    def kind(self) -> Variant:
        """Names and words of this kind of zoo."""
        return VARIANTS[self.variant]

    def to_json(self) -> dict[str, Any]:
        """What `zoo.json` holds: equal specs of equal versions build equal zoos."""
        content = asdict(self)
        if self.variant == SKILLS:  # as every zoo was before there were others
            del content["variant"]
        return {"format": FORMAT, "version": VERSION, **content}


def full_spec(seed: int, variant: str = SKILLS) -> ZooSpec:
    """The zoos of the demo and the benchmarks: 672,896 parameters, half a minute on two cores; `steps` a minute.

    Raises:
        ValueError: for an unknown variant.
    """
    if variant != SKILLS:
        size = ModelSize(hidden=96, intermediate=192, layers=6, heads=4)
        return ZooSpec(seed, size, Schedule(140, 5, 0.4, 320, 80, 200), items=1400, variant=variant)
    size = ModelSize(hidden=128, intermediate=256, layers=4, heads=4)
    return ZooSpec(seed, size, Schedule(140, 20, 0.5, 400, 150, 200), items=1400)


def small_spec(seed: int, variant: str = SKILLS) -> ZooSpec:
    """A smaller cut of the same structure, for tests: 197,088 parameters, a quarter of the work.

    Raises:
        ValueError: for an unknown variant.
    """
    if variant != SKILLS:
        size = ModelSize(hidden=64, intermediate=128, layers=6, heads=4)
        return ZooSpec(seed, size, Schedule(120, 10, 0.3, 320, 60, 100), items=1200, variant=variant)
    size = ModelSize(hidden=96, intermediate=192, layers=2, heads=4)
    return ZooSpec(seed, size, Schedule(120, 20, 0.45, 320, 80, 100), items=1200)
