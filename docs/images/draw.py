"""Draws the pictures of the documentation: `python docs/images/draw.py` writes them beside this file.

The curves are those of `evomerge.irt`, the race is one that `evomerge.irt` and `evomerge.racing` run on simulated
answers with a fixed seed, the path is the recipe `found-path.json` that a search has found, drawn as reports draw it:
nothing is sketched by hand but the boxes of the item sets. Each picture brings its own ground, so that it can be read
on light and on dark pages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from evomerge.irt.axis import AbilityAxis
from evomerge.irt.bank import ItemBank
from evomerge.irt.estimators.modelled import posterior, predicted
from evomerge.irt.race import halving_schedule, survivors
from evomerge.irt.ranks import expected_ranks
from evomerge.irt.responses import Bools, Floats, Indices
from evomerge.irt.weighted import inclusion_probabilities, sizes_of, uncertainty
from evomerge.racing.asking import PooledAsking
from evomerge.racing.race import SHARED
from evomerge.recipe.serialize import recipe_from_json
from evomerge.report.path_plots import path_marks
from evomerge.report.path_values import drawn_path, path_sentence
from evomerge.report.svg import Scale, nice_ticks

WIDE: Final = 820.0
STYLE: Final = """
text{font:13px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:#1f2328}
.ground{fill:#fff;stroke:#d1d9e0}.box{fill:#f6f8fa;stroke:#818b98}.grid{stroke:#e3e8ed}.axis{stroke:#818b98}
.tick,.small{font-size:12px;fill:#59636e}.strong{font-weight:600;font-size:14px}
.a,.b,.c,.d,.lost,.dash,.arrow{fill:none;stroke-width:2.2}
.a{stroke:#0969da}.b{stroke:#bc4c00}.c{stroke:#1a7f37}.d{stroke:#8250df}.lost{stroke:#8c959f;stroke-width:1.4}
.dash{stroke:#59636e;stroke-width:1.2;stroke-dasharray:4 4}.arrow{stroke:#59636e;stroke-width:1.6}
.fa{fill:#0969da}.fb{fill:#bc4c00}.fc{fill:#1a7f37}.fd{fill:#8250df}.flost{fill:#8c959f}.head{fill:#59636e}
.band{fill:#0969da;fill-opacity:.13}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ground{fill:#0d1117;stroke:#3d444d}
.box{fill:#161b22;stroke:#656d76}.grid{stroke:#262c34}.axis{stroke:#656d76}.tick,.small{fill:#9aa4af}
.a{stroke:#58a6ff}.b{stroke:#f0883e}.c{stroke:#3fb950}.d{stroke:#bc8cff}.lost{stroke:#6e7681}
.dash,.arrow{stroke:#9aa4af}.fa{fill:#58a6ff}.fb{fill:#f0883e}.fc{fill:#3fb950}.fd{fill:#bc8cff}
.flost{fill:#6e7681}.head{fill:#9aa4af}.band{fill:#58a6ff;fill-opacity:.2}}
"""
PATH_STYLE: Final = """
.heat{fill-opacity:.75}.hop,.heat{fill:#0969da}.hop-again,.heat-minus{fill:#bc4c00}text.cell{fill:#fff;font-size:11px}text.label{font-size:12px}
.hop-line{stroke:#818b98;stroke-width:1.2}.hop-jump{stroke:#cf222e;stroke-width:1.8}
.gain-one{stroke:#1f2328;stroke-width:1;stroke-dasharray:2 2}
@media(prefers-color-scheme:dark){.hop,.heat{fill:#1f6feb}.hop-again,.heat-minus{fill:#bd561d}
.hop-jump{stroke:#f85149}.gain-one{stroke:#e6edf3}}
"""


class Item(NamedTuple):
    """An example item.

    Attributes:
        name: what it is called in the picture.
        difficulty: ability at which half of the answers are right.
        slope: how sharply it separates.
        css: its colour.
    """

    name: str
    difficulty: float
    slope: float
    css: str


ITEMS: Final = (
    Item("A: easy", -1.8, 1.3, "a"),
    Item("B: hard", 1.5, 1.3, "b"),
    Item("C: sharp", 0.2, 2.8, "c"),
    Item("D: dull", -0.2, 0.35, "d"),
)

# -- marks -------------------------------------------------------------------------------------------------------------


def picture(high: float, said: str, *parts: str, style: str = "") -> str:
    """A whole file; `said` is read aloud by screen readers, `style` stands behind the common one."""
    frame = f'<rect class="ground" x=".5" y=".5" width="{WIDE - 1:g}" height="{high - 1:g}" rx="8"/>'
    size = f'viewBox="0 0 {WIDE:g} {high:g}" width="{WIDE:g}" height="{high:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(said)}">'
    return "\n".join([head, f"<style>{STYLE}{style}</style>", frame, *parts, "</svg>", ""])


def text(x: float, y: float, words: str, css: str = "", anchor: str = "start") -> str:
    """Words at a point."""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def stroke(points: Sequence[tuple[float, float]], css: str) -> str:
    """A line through points."""
    return f'<path class="{css}" d="M{" L".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def block(left: float, top: float, right: float, bottom: float, css: str, *, rx: float = 0) -> str:
    """A rectangle."""
    size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
    return f'<rect class="{css}" x="{left:.1f}" y="{top:.1f}" {size} rx="{rx:g}"/>'


def dot(x: float, y: float, css: str, radius: float = 4) -> str:
    """A filled circle."""
    return f'<circle class="f{css}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def arrow(x: float, y: float, to: float) -> str:
    """An arrow to the right."""
    tip = f'<path class="head" d="M{to:.1f},{y:.1f} l-9,-5 l0,10 z"/>'
    return stroke([(x, y), (to - 8, y)], "arrow") + tip


def frame(x: Scale, y: Scale, below: str, above: str, *, x_ticks: bool = True) -> str:
    """Grid, ticks and titles of a plot; the title of the y axis stands above it."""
    parts = []
    for at in nice_ticks(y.low, y.high, 5):
        parts += [
            stroke([(x.start, y(at)), (x.end, y(at))], "grid"),
            text(x.start - 8, y(at) + 4, f"{at:g}", "tick", "end"),
        ]
    for at in nice_ticks(x.low, x.high, 6) if x_ticks else ():
        parts += [
            stroke([(x(at), y.start), (x(at), y.end)], "grid"),
            text(x(at), y.start + 18, f"{at:g}", "tick", "middle"),
        ]
    parts += [stroke([(x.start, y.start), (x.end, y.start)], "axis"), text(x.start - 30, y.end - 14, above, "small")]
    return "".join([*parts, text((x.start + x.end) / 2, y.start + 38, below, "small", "middle")])


def curve(x: Scale, y: Scale, positions: Floats, values: Floats, css: str) -> str:
    """A plotted function."""
    return stroke([(x(float(p)), y(float(v))) for p, v in zip(positions, values, strict=True)], css)


# -- items -------------------------------------------------------------------------------------------------------------


def bank_of(difficulties: Floats, slopes: Floats) -> ItemBank:
    """A one-dimensional logistic bank with a standard normal population."""
    n = difficulties.size
    names = tuple(f"item-{i}" for i in range(n))
    plain = (np.ones(n), np.full(n, np.nan), np.zeros(1), np.eye(1))
    return ItemBank(names, slopes[:, None], -slopes * difficulties, *plain, "logistic", 100)


EXAMPLES: Final = bank_of(np.array([i.difficulty for i in ITEMS]), np.array([i.slope for i in ITEMS]))
GRID: Final = np.linspace(-3.0, 3.0, 121)
ABILITY: Final = "ability (0: the average model; 1: one standard deviation better)"
GENERATION: Final = (0.0, 0.7)
"""Abilities between which the candidates of the example lie."""


def item_curves() -> str:
    """Item characteristic curves of the four examples."""
    x, y = Scale(-3.0, 3.0, 60, 670), Scale(0.0, 1.0, 320, 50)
    axis = AbilityAxis.of(EXAMPLES)
    values = EXAMPLES.predict(axis.thetas(GRID))
    parts = [frame(x, y, ABILITY, "chance of a right answer")]
    hard = float(axis.difficulties[1])
    parts += [stroke([(x.start, y(0.5)), (x(hard), y(0.5)), (x(hard), y.start)], "dash")]
    parts.append(text(x(hard) + 8, y.start - 10, f"difficulty of B: {hard:g}", "small"))
    for k, item in enumerate(ITEMS):
        parts.append(curve(x, y, GRID, values[:, k], item.css))
    for k, lift in ((0, -6), (2, 14), (1, 4), (3, 4)):
        parts.append(text(x.end + 8, y(float(values[-1, k])) + lift, f"{ITEMS[k].name}", f"f{ITEMS[k].css}"))
        parts.append(text(x.end + 72, y(float(values[-1, k])) + lift, f"slope {ITEMS[k].slope:g}", "small"))
    return picture(375, "Chance of a right answer over ability for four items", *parts)


def information() -> str:
    """What the examples tell about an ability, and which of forty items a generation is asked."""
    x, y = Scale(-3.0, 3.0, 50, 390), Scale(0.0, 2.5, 300, 60)
    axis = AbilityAxis.of(EXAMPLES)
    values = EXAMPLES.information(axis.thetas(GRID))
    band = block(x(GENERATION[0]), y.end, x(GENERATION[1]), y.start, "band")
    parts = [
        band,
        frame(x, y, "ability", "information of one answer"),
        text(x(0.35), y.end + 14, "candidates", "small", "middle"),
    ]
    for k, item in enumerate(ITEMS):
        parts.append(curve(x, y, GRID, values[:, k], item.css))
    for k, at, lift in ((0, -2.0, -8), (1, 1.9, -8), (2, 0.75, 0), (3, -2.9, -7)):
        height = float(np.interp(at, GRID, values[:, k]))
        parts.append(text(x(at) + (10 if k == 2 else 0), y(height) + lift, ITEMS[k].name, f"f{ITEMS[k].css}"))
    return picture(
        355, "Information of four items over ability, and chances of forty items to be asked", *parts, chances()
    )


def chances() -> str:
    """Chances of forty items, from easy to hard, to be among the first six questions of a generation."""
    bank = bank_of(np.linspace(-3.2, 3.2, 40), np.full(40, 1.8))
    sizes = sizes_of(uncertainty(bank, np.linspace(*GENERATION, 12)[:, None]))
    chance = inclusion_probabilities(sizes, 6)
    x, y = Scale(0.0, 40.0, 480, 800), Scale(0.0, 0.8, 300, 60)
    parts = [frame(x, y, "40 items, from easy to hard", "chance to be among the first 6 questions", x_ticks=False)]
    bars = (block(x(i) + 1, y(float(c)), x(i + 1) - 1, y.start, "fa") for i, c in enumerate(chance))
    level = stroke([(x.start, y(6 / 40)), (x.end, y(6 / 40))], "dash")
    return "".join([*parts, *bars, level, text(x.end, y(6 / 40) - 6, "if all were alike", "small", "end")])


# -- a race ------------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One rung of the example.

    Attributes:
        questions: answers per candidate so far.
        alive: who was asked.
        value: shape `(12,)`, estimated scores; NaN for those who were not asked.
        se: shape `(12,)`.
    """

    questions: int
    alive: Indices
    value: Floats
    se: Floats


CANDIDATES: Final = 12
POOL: Final = 400
MEAN: Final = 60


def simulated_race(seed: int = 0) -> tuple[list[Step], Floats]:
    """Twelve siblings race over 400 items, 60 questions on average; also their scores on all items."""
    rng = np.random.default_rng(seed)
    bank = bank_of(rng.normal(0.0, 1.5, POOL), np.exp(rng.normal(0.4, 0.3, POOL)))
    abilities = np.linspace(-0.4, 1.0, CANDIDATES)
    scores = (rng.random((CANDIDATES, POOL)) < bank.predict(abilities[:, None])).astype(np.float64)
    asking = PooledAsking({"task": uncertainty(bank, abilities[:, None])}, {"task": 1.0}, rng)
    steps: list[Step] = []
    alive = np.arange(CANDIDATES)
    for rung in halving_schedule(CANDIDATES, POOL, mean_questions=MEAN, final=3):
        if steps:
            ranks = expected_ranks(-steps[-1].value, np.nan_to_num(steps[-1].se), rng, shared=SHARED)
            alive = survivors(np.where(np.isnan(steps[-1].value), np.nan, ranks), rung.keep)
        asked: Bools = np.zeros(POOL, dtype=np.bool_)
        asked[list(asking.upto(rung.questions).items["task"])] = True
        some = np.where(asked, scores[alive], np.nan)
        said = predicted(bank, posterior(bank, some), some, np.full(POOL, 1 / POOL))
        value, se = np.full(CANDIDATES, np.nan), np.full(CANDIDATES, np.nan)
        value[alive], se[alive] = said.value, said.se
        steps.append(Step(rung.questions, alive, value, se))
    return steps, scores.mean(axis=1)


def race() -> str:
    """The rungs of the simulated race, and the true scores."""
    steps, truth = simulated_race()
    ends = np.array([v for s in steps for v in (s.value - s.se, s.value + s.se)] + [truth])
    y = Scale(np.floor(np.nanmin(ends) * 20) / 20, np.ceil(np.nanmax(ends) * 20) / 20, 300, 64)
    x = Scale(0.0, len(steps) + 1.0, 56, 800)
    parts = [frame(x, y, "", "score over all 400 items: estimate and standard error", x_ticks=False)]
    last = set(steps[-1].alive.tolist())
    for column, (step, after) in enumerate(zip(steps, [*steps[1:], None], strict=True)):
        parts += _heading(x(column + 0.5), y, f"rung {column + 1}", step.alive.size, step.questions)
        for c in step.alive.tolist():
            at, css = x(column + _place(c)), "a" if c in last else "lost"
            value, se = float(step.value[c]), float(step.se[c])
            parts.append(stroke([(at, y(value - se)), (at, y(value + se))], css))
            parts.append(dot(at, y(value), css))
            if after is not None and c in after.alive:
                parts.append(stroke([(at, y(value)), (x(column + 1 + _place(c)), y(float(after.value[c])))], "dash"))
    parts += _heading(x(len(steps) + 0.5), y, "for comparison", CANDIDATES, POOL)
    for c in range(CANDIDATES):
        parts.append(dot(x(len(steps) + _place(c)), y(float(truth[c])), "a" if c in last else "lost"))
    return picture(370, "A race of twelve candidates in three rungs", *parts)


def _heading(at: float, y: Scale, name: str, candidates: int, questions: int) -> list[str]:
    """What stands below a column."""
    lines = ((name, "strong"), (f"{candidates} candidates", "small"), (f"{questions} questions each", "small"))
    return [text(at, y.start + 20 + 18 * i, words, css, "middle") for i, (words, css) in enumerate(lines)]


def _place(candidate: int) -> float:
    """Where in a column a candidate stands, 0 to 1."""
    return 0.14 + 0.72 * candidate / (CANDIDATES - 1)


# -- item sets ---------------------------------------------------------------------------------------------------------

SETS: Final[Sequence[tuple[str, str, Sequence[str]]]] = (
    (
        "search set",
        "every candidate",
        (
            "baselines, first generation:",
            "all questions; they make the bank",
            "",
            "later generations: few questions,",
            "new ones each time; a race;",
            "scores are estimates",
        ),
    ),
    (
        "select set",
        "the finalists",
        (
            "the best on the search set (or the",
            "front), the distribution's mean,",
            "baselines, some earlier leaders",
            "",
            "all questions;",
            "decides which merge is chosen",
        ),
    ),
    (
        "report set",
        "the choice and its rivals",
        (
            "the chosen merge, the parents,",
            "the soup, the best task arithmetic",
            "",
            "all questions, once;",
            "decides nothing: it is what",
            "is reported",
        ),
    ),
)


def item_sets() -> str:
    """Who answers which of the three item sets."""
    parts = [text(22, 32, "The items of a task are divided once, by hash. No item is in two sets.", "small")]
    wide, gap = 230.0, 43.0
    for k, (name, who, lines) in enumerate(SETS):
        left = 22 + k * (wide + gap)
        parts.append(block(left, 48, left + wide, 262, "box", rx=6))
        parts.append(block(left, 48, left + wide, 53, f"f{'acb'[k]}", rx=2))
        parts += [text(left + 14, 80, name, "strong"), text(left + 14, 102, f"asked: {who}")]
        parts += [text(left + 14, 132 + 20 * i, words, "small") for i, words in enumerate(lines) if words]
        if k < 2:
            parts.append(arrow(left + wide + 4, 150, left + wide + gap - 4))
    parts.append(
        text(22, 290, "From left to right fewer models, whole sets, and nothing that was seen before.", "small")
    )
    return picture(310, "Search set, select set and report set, and who is asked what", *parts)


# -- a path ------------------------------------------------------------------------------------------------------------


def found_path() -> str:
    """The path of a recipe that a search has found."""
    found = json.loads(Path(__file__).with_name("found-path.json").read_text(encoding="utf-8"))
    path = drawn_path("path", recipe_from_json(found["recipe"]), found["n_layers"])
    drawn = path_marks(path, max(1.0, *(abs(hop.gain) for hop in path.hops)), WIDE - 24)
    marks = f'<g transform="translate(8 14)">{drawn.marks}</g>'
    top = 14 + drawn.high
    keys = [("hop", "a layer, with its number")]
    keys += [("hop-again", "it runs again")] if any(hop.again for hop in path.hops) else []
    keys += [("heat", "gain; the dotted line is 1")] if path.has_gains else []
    parts = [marks, *(_key(22 + 200 * k, top, css, words) for k, (css, words) in enumerate(keys))]
    at = 22 + 200 * len(keys)
    parts.append(
        stroke([(at, top), (at, top + 14)], "hop-jump") + text(at + 10, top + 11, "not the next layer", "small")
    )
    return picture(top + 32, path_sentence(path), *parts, style=PATH_STYLE)


def _key(x: float, y: float, css: str, words: str) -> str:
    """A coloured square with its meaning."""
    return block(x, y, x + 14, y + 14, css) + text(x + 22, y + 11, words, "small")


PICTURES: Final[Mapping[str, Callable[[], str]]] = {
    "item-curves.svg": item_curves,
    "information.svg": information,
    "race.svg": race,
    "item-sets.svg": item_sets,
    "found-path.svg": found_path,
}


def main() -> None:
    """Write all pictures."""
    for name, draw in PICTURES.items():
        Path(__file__).with_name(name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
