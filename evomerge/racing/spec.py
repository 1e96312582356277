"""How many questions candidates are asked, and how they are chosen: `suite.questions` of a job as a plain value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from evomerge.errors import ConfigError, suggest
from evomerge.irt.estimators.registry import ESTIMATORS

Race = Literal["auto", "halving", "elimination", "none"]
Order = Literal["auto", "uncertainty", "information", "stratified", "random"]

RACES: Final[tuple[Race, ...]] = ("auto", "halving", "elimination", "none")
ORDERS: Final[tuple[Order, ...]] = ("auto", "uncertainty", "information", "stratified", "random")

SAMPLES: Final[tuple[Order, ...]] = ("auto", "stratified", "random")
"""Orders whose every beginning is a random sample of the items; `auto` is one of them beside elimination."""

AUTO: Final = "auto"
ALL: Final = "all"


@dataclass(frozen=True)
class QuestionsSpec:
    """See the module docstring.

    Attributes:
        number: questions per candidate and task, on average over a generation: a count (int), a share of the task's
            search set (float up to 1), `auto`, or `all`.
        race: `halving` (successive halving down to a quarter), `auto` (one halving; none with several objectives),
            `elimination` (paired, with sequential control of the error), `none`
            (every candidate is asked the same number).
        order: which items come first. `uncertainty`: at random, those on which candidates differ more likely, over
            all tasks together; `information`: the most informative ones of every task take turns with random ones;
            `stratified`: at random, every difficulty alike; `random`; `auto` is `uncertainty`, and `stratified` for
            paired elimination, which needs a random sample.
        estimator: name of an estimator of `evomerge.irt.estimators`, or `auto`.
        rotate: whether every generation draws its random items anew.
        calibrate: models that answer the whole search set before partial asking begins; None: the baselines, the first
            generation, and further ones until there are twenty.
        refit: generations between two fits of the bank.
        alpha: `elimination`: the chance to drop the best candidate of a generation, over all looks.
        banks: bank files (`evomerge calibrate`), used for tasks whose items they hold.
    """

    number: int | float | Literal["auto", "all"] = AUTO
    race: Race = "auto"
    order: Order = "auto"
    estimator: str = AUTO
    rotate: bool = True
    calibrate: int | None = None
    refit: int = 1
    alpha: float = 0.05
    banks: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.number, str) and not _is_amount(self.number):
            raise _refuse("number", self.number, "a count of at least 1, a share above 0 and up to 1.0, auto, or all")
        if isinstance(self.number, str) and self.number not in (AUTO, ALL):
            raise _refuse("number", self.number, suggest(self.number, [AUTO, ALL]) + ", a count, or a share")
        for name, known in (("race", RACES), ("order", ORDERS), ("estimator", (AUTO, *ESTIMATORS))):
            value = getattr(self, name)
            if value not in known:
                raise _refuse(name, value, suggest(str(value), known))
        if self.race == "elimination" and self.order not in SAMPLES:
            # items that were chosen for what they tell show who is better on such items only
            raise _refuse("order", self.order, f"with race: elimination, a random sample: {', '.join(SAMPLES)}")
        if self.calibrate is not None and self.calibrate < 0:
            raise _refuse("calibrate", self.calibrate, "a number of models, 0 or more")
        if self.refit < 1:
            raise _refuse("refit", self.refit, "a number of generations, 1 or more")
        if not 0 < self.alpha < 1:
            raise _refuse("alpha", self.alpha, "a probability strictly between 0 and 1")

    @property
    def whole(self) -> bool:
        """Whether every candidate is asked everything."""
        return self.number == ALL or (self.number == 1.0 and isinstance(self.number, float))

    def per_task(self, n_items: int) -> int:
        """Questions per candidate of a task with `n_items` search items; `n_items` when all are to be asked."""
        if self.whole:
            return n_items
        if self.number == AUTO:
            return n_items if n_items < SMALL_TASK else max(AUTO_LEAST, round(AUTO_SHARE * n_items))
        count = self.number if isinstance(self.number, int) else round(float(self.number) * n_items)
        return max(1, min(n_items, int(count)))


SMALL_TASK: Final = 40
"""Below so many search items `auto` asks them all: there is nothing to save, and too little to calibrate with."""

AUTO_SHARE: Final = 0.2
"""Of a task's search items that `auto` asks of a candidate. With .15 the toy zoos' searches ended 0.9 points below
those with all questions (5 searches), see `docs/benchmarks.md`."""

AUTO_LEAST: Final = 8


def _is_amount(number: Any) -> bool:
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        return False
    return number >= 1 if isinstance(number, int) else 0 < number <= 1


def _refuse(key: str, value: Any, allowed: str) -> ConfigError:
    return ConfigError(
        "The number and choice of questions is not usable.",
        got=f"suite.questions.{key}: {value!r}",
        allowed=allowed,
        fix=f"correct suite.questions.{key}, or leave suite.questions out.",
    )


def load_questions(value: Any, folder: Path | None = None) -> QuestionsSpec:
    """`suite.questions` as it stands in a job: a number, a share, `auto`, `all`, or a mapping of the attributes.

    Args:
        value: the parsed YAML value; None is `auto`.
        folder: what relative bank paths start from.

    Raises:
        ConfigError: for unknown keys and values that `QuestionsSpec` refuses.
    """
    if value is None:
        return QuestionsSpec()
    if not isinstance(value, Mapping):
        return QuestionsSpec(number=value)
    known = [f.name for f in fields(QuestionsSpec)]
    for key in value:
        if key not in known:
            raise _refuse(str(key), value[key], suggest(str(key), known))
    values = {k: v for k, v in value.items() if v is not None}
    home = folder or Path()
    values["banks"] = tuple(home / Path(str(p)).expanduser() for p in values.get("banks", ()))
    return QuestionsSpec(**values)
