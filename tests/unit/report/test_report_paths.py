"""Paths and windows of layers in the report: read off recipes, put into words, drawn."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.recipe.path import Hop, plain_path
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.report.book import Book, Model
from evomerge.report.collect import summary_of
from evomerge.report.details import details_of
from evomerge.report.html import render_report
from evomerge.report.path_plots import path_figure, paths_section
from evomerge.report.path_values import DrawnPath, drawn_path, path_sentence, ranges
from evomerge.report.paths import runs_merged_layers
from evomerge.report.tables import front_table
from evomerge.report.window_plots import window_panel, windows_section
from evomerge.report.window_values import Window, WindowMap, WindowScore, window_map, window_of
from evomerge.testing.sample_journal import CHOSEN, PARENTS, sample_recipe_of, write_sample_run

REFS = tuple(ParentRef(p, p) for p in ("math", "lang"))
ALONE = Rule("linear", {"normalize": True}, {"math": {"weight": 1.0}})
MIX = Rule("linear", {"normalize": True}, {"math": {"weight": 0.5}, "lang": {"weight": 0.5}})


def recipe(*hops: Hop, rule: Rule = ALONE) -> Recipe:
    return Recipe(REFS, None, (rule,), path=hops or None)


def of_layers(layers: list[int], n_layers: int = 4, parent: str = "math") -> DrawnPath:
    return drawn_path("x", recipe(*(Hop(layer, parent) for layer in layers)), n_layers)


# -- paths ------------------------------------------------------------------------------------------------------------


def test_lanes_are_sources_in_the_order_of_parents_and_merged_last() -> None:
    path = drawn_path("x", recipe(Hop(0), Hop(1, "lang"), Hop(0), Hop(1, "math", 0.5), rule=MIX), 2)
    assert path.lanes == ("math", "lang", "merged")
    assert [(path.lanes[h.lane], h.layer, h.gain, h.again) for h in path.hops] == [
        ("merged", 0, 1.0, 0),
        ("lang", 1, 1.0, 0),
        ("merged", 0, 1.0, 1),
        ("math", 1, 0.5, 0),
    ]
    assert (set(path.outside), path.has_gains, path.switches) == ({"merged"}, True, 3)


def test_merged_layers_of_one_parent_are_its_own() -> None:
    path = drawn_path("x", recipe(Hop(0), Hop(0, "math"), Hop(1, "lang")), 2)
    assert path.lanes == ("math", "lang")
    assert [h.again for h in path.hops] == [0, 1, 0]
    assert path.outside == ("math", "math", "math")


def test_embeddings_and_head_of_two_parents_are_told_apart() -> None:
    """What a passthrough file from one model's beginning to another's end amounts to."""
    ends = (replace(ALONE, layers=(), roles=("embedding",)), Rule("linear", {}, {"lang": {"weight": 1.0}}))
    path = drawn_path("x", Recipe(REFS, None, ends, path=(Hop(0, "math"), Hop(1, "lang"))), 2)
    assert path.outside == ("math", "lang", "lang")
    assert path_sentence(path).endswith("Embeddings: math; final norm and head: lang.")
    three = (replace(MIX, layers=(), roles=("norm",)), *ends)
    path = drawn_path("x", Recipe(REFS, None, three), 2)
    assert path.outside == ("math", "merged", "lang")
    assert path_sentence(path).endswith("Embeddings: math; final norm: merged; head: lang.")


def test_a_recipe_without_a_path_is_the_plain_stack() -> None:
    path = drawn_path("x", recipe(rule=MIX), 3)
    assert [(path.lanes[h.lane], h.layer) for h in path.hops] == [("merged", k) for k in range(3)]
    assert path_sentence(path) == "3 hops for 3 layers. Embeddings, final norm and head: merged."


def test_a_path_in_words() -> None:
    hops = [Hop(0, "math"), Hop(1, "math"), Hop(2, "math"), Hop(1, "math"), Hop(2, "math"), Hop(5, "lang")]
    assert path_sentence(drawn_path("x", recipe(*hops), 6)) == (
        "6 hops for 6 layers; math's layers 1 to 2 run twice; layers 3 to 4 never run; 1 change of parent. "
        "Embeddings, final norm and head: math."
    )
    thrice = of_layers([0, 0, 0, 1, 2, 3])
    assert "math's layer 0 runs 3 times;" in path_sentence(thrice).replace(".", ";")
    assert ranges((1, 2, 3, 5, 7, 8)) == "1 to 3, 5, 7 to 8"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["math", "lang", None])), min_size=1, max_size=110))
def test_every_hop_is_drawn_once_and_inside_the_picture(steps: list[tuple[int, str | None]]) -> None:
    hops = [Hop(layer, parent, -0.5 if layer == 3 else 1.0) for layer, parent in steps]
    path = drawn_path("x", recipe(*hops, rule=MIX), 10)
    svg = path_figure(path, 1.0)
    assert len(re.findall(r'class="hop(?:-again)?"', svg)) == len(steps)
    assert len(re.findall(r'class="hop-again"', svg)) == len(steps) - len(set(steps))
    wide, high = map(float, re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    for x, y, w, h in re.findall(r'<rect[^>]* x="([-\d.]+)" y="([-\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg):
        assert float(x) >= 0
        assert float(y) >= 0
        assert float(x) + float(w) <= wide + 1
        assert float(y) + float(h) <= high + 1
    assert ("gain-one" in svg) == path.has_gains


def test_the_section_tells_what_its_marks_mean_and_nothing_else() -> None:
    plain, jumpy = of_layers([0, 1, 2, 3]), of_layers([0, 1, 1, 3])
    assert paths_section([], "x", 0) == ""
    section = paths_section([plain], "x", 0)
    assert "runs again" not in section
    assert "a jump" not in section
    assert "chosen" in section
    section = paths_section([jumpy, plain], "", 3)
    assert "runs again" in section
    assert "a jump" in section
    assert "3 more members" in section


# -- windows ----------------------------------------------------------------------------------------------------------


def layers_of(start: int, end: int, times: int, n: int) -> list[int]:
    middle = list(range(start, end + 1)) * times
    return [*range(start), *middle, *range(end + 1, n)]


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 8), st.data())
def test_windows_are_found_again(n: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n - 1))
    end = data.draw(st.integers(start, n - 1))
    times = data.draw(st.sampled_from([0, 2, 3]))
    layers = layers_of(start, end, times, n)
    if layers:
        assert window_of(of_layers(layers, n)) == Window("math", start, end, times)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_a_window_is_found_where_there_is_one_and_nowhere_else(layers: list[int]) -> None:
    """Against every window there is."""
    every = {tuple(layers_of(s, e, t, 4)): (s, e, t) for s in range(4) for e in range(s, 4) for t in (0, 2, 3, 4, 5, 6)}
    found = window_of(of_layers(layers))
    expected = every.get(tuple(layers))
    assert (None if found is None else found[1:]) == expected


def test_the_plain_stack_is_no_window() -> None:
    assert window_of(of_layers([0, 1, 2, 3])) is None


def scan(n: int = 4) -> list[tuple[DrawnPath, float]]:
    windows = [(s, e, t) for s in range(n) for e in range(s, n) for t in (0, 2)]
    paths = [of_layers(layers_of(*w, n), n) for w in windows if layers_of(*w, n)]
    return [(path, k / len(paths)) for k, path in enumerate(paths)]


def test_a_map_has_the_best_score_of_every_window() -> None:
    models = scan()
    again = [(replace(path, entry_id="again"), value + (0.5 if k else -0.5)) for k, (path, value) in enumerate(models)]
    plain = (of_layers([0, 1, 2, 3]), 0.4)
    found = window_map("skill", maximize=True, models=[*models, plain, *again])
    assert found is not None
    assert len(found.scores) == len(models) == 19
    assert found.scores[(0, 0, 0)] == WindowScore(0.0, "x")
    assert found.scores[(0, 0, 2)].entry_id == "again"
    assert (found.reference, found.n_others) == (0.4, 0)
    assert found.best[1] == max(found.scores.values())
    lowest = window_map("loss", maximize=False, models=[*models, *again])
    assert lowest is not None
    assert lowest.scores[(0, 0, 0)] == WindowScore(-0.5, "again")
    assert lowest.best[1] == min(lowest.scores.values())


def test_other_searches_have_no_map() -> None:
    others = [(of_layers([0, k, 2, 1, k, 3]), 0.5) for k in range(4)] * 10
    assert window_map("skill", maximize=True, models=[*scan()[:2]]) is None
    assert window_map("skill", maximize=True, models=[*scan(), *others]) is None
    some = window_map("skill", maximize=True, models=[*scan(), *others[:8], (of_layers([0, 1, 2, 3]), 1)])
    assert some is not None
    assert some.n_others == 8


@pytest.mark.parametrize(
    "hops",
    [
        "math0 lang1 math2 math1*0.25 lang2*4 math3",
        "math0 math1 lang2 math1 math2 math3",
        "math0 math1 math2 math1*0.5 math2 math3",
        "math0 math1*2 math2 math3",
        "math0 lang1 math2 math3",
    ],
)
def test_a_window_has_one_source_and_no_gains(hops: str) -> None:
    """Layer numbers alone make windows of these, or plain stacks."""
    read = [re.fullmatch(r"([a-z]+)(\d)(?:\*(.*))?", hop) for hop in hops.split()]
    path = drawn_path("x", recipe(*(Hop(int(m[2]), m[1], float(m[3] or 1)) for m in read if m)), 4)
    assert window_of(path) is None
    others = [(path, 0.9)] * 3
    assert window_map("skill", maximize=True, models=others) is None
    drawn = window_map("skill", maximize=True, models=[*scan(), *others])
    assert drawn is not None
    assert (drawn.n_others, drawn.reference) == (3, None)


def merged(weight: float, *layers: int) -> DrawnPath:
    """Layers of a merge."""
    rule = Rule("linear", {"normalize": True}, {"math": {"weight": weight}, "lang": {"weight": 1 - weight}})
    return drawn_path(f"{weight}", recipe(*(Hop(layer) for layer in layers), rule=rule), 4)


def test_a_map_is_of_one_merge() -> None:
    """In a stage that moves weights and path at once every window is another merge's."""
    every = [layers_of(s, e, 2, 4) for s in range(4) for e in range(s, 4)]
    apart = [(merged(0.1 + 0.05 * k, *layers), 0.9) for k, layers in enumerate(every)]
    assert window_map("skill", maximize=True, models=apart) is None
    one = [(merged(0.5, *layers), 0.1 * k) for k, layers in enumerate(every[:4])]
    stacks = [(merged(0.5, 0, 1, 2, 3), 0.3), (merged(0.25, 0, 1, 2, 3), 0.8)]
    found = window_map("skill", maximize=True, models=[*apart[:4], *one, *stacks])
    assert found is not None
    assert {s.entry_id for s in found.scores.values()} == {"0.5"}
    assert (found.source, found.reference, found.n_others, len(found.scores)) == ("merged", 0.3, 4, 4)
    assert "the merge itself scores 0.300" in windows_section([found])


def test_parents_layers_between_other_ends_are_another_model() -> None:
    """Whose embeddings they are counts, too."""
    ends = (replace(MIX, layers=()), ALONE)
    other = [
        (drawn_path("x", Recipe(REFS, None, ends, path=tuple(Hop(h.layer, "math") for h in path.hops)), 4), 1.0)
        for path, _ in scan()[:5]
    ]
    found = window_map("skill", maximize=True, models=[*scan(), *other])
    assert found is not None
    assert (found.n_others, max(s.value for s in found.scores.values()) < 1.0) == (5, True)


def test_panels_draw_every_window_once() -> None:
    found = window_map("skill", maximize=True, models=[*scan(), (of_layers([0, 1, 2, 3]), 0.5)])
    assert found is not None
    panel = window_panel(found, 0, wide=340)
    assert len(re.findall(r'class="heat(?:-minus)?"', panel)) == 9
    assert panel.count('class="heat-none"') == 1
    section = windows_section([found])
    assert section.count("<figure>") == 2
    assert "math itself scores 0.500" in section
    assert windows_section([]) == ""


def test_better_and_worse_have_their_own_colours() -> None:
    scores = {(0, 0, 2): WindowScore(0.9, "a"), (1, 1, 2): WindowScore(0.1, "b"), (2, 2, 2): WindowScore(0.5, "c")}
    for maximize in (True, False):
        panel = window_panel(WindowMap("s", maximize, "math", 3, 0.5, scores), 2, wide=340)
        best = "a" if maximize else "b"
        assert re.search(rf'class="heat"[^>]*fill-opacity="0.960"><title>[^<]*\({best}\)', panel)
        worst = "b" if maximize else "a"
        assert re.search(rf'class="heat-minus"[^>]*fill-opacity="0.960"><title>[^<]*\({worst}\)', panel)


# -- of a run ---------------------------------------------------------------------------------------------------------


def path_recipe(model: Model) -> Recipe:
    """Candidates run paths of two layers' parents; baselines are what they are."""
    found = sample_recipe_of(model.id)
    layers = {"g0000-i00": (0, 1, 1), "g0001-i00": (0, 0, 1), "g0001-i01": (1,)}.get(model.id)
    if layers is None:
        return Recipe(PARENTS, None, (ALONE,)) if model.name == "math" else found
    return Recipe(PARENTS, None, (ALONE,), path=tuple(Hop(layer, "math") for layer in layers))


def test_a_run_over_paths_shows_them(tmp_path: Path) -> None:
    book = Book(write_sample_run(tmp_path / "run"))
    summary = summary_of(book)
    details = details_of(book, summary, path_recipe)
    assert [p.entry_id for p in details.paths] == [CHOSEN, "g0000-i00"]
    assert details.hops == {CHOSEN: 3, "g0000-i00": 3, "parent-math": 2, "parent-lang": 2, "soup": 2}
    assert details.genes == ()
    (windows,) = details.windows[:1]
    assert set(windows.scores) == {(0, 0, 2), (1, 1, 2), (0, 0, 0)}
    assert (windows.objective, windows.reference) == ("add", 0.6)
    page = render_report(summary, details)
    assert "Paths through the layers" in page
    assert "Windows of layers" in page
    assert "<th>hops</th>" in page


def test_a_run_without_paths_shows_none(tmp_path: Path) -> None:
    book = Book(write_sample_run(tmp_path / "run"))
    summary = summary_of(book)
    details = details_of(book, summary, lambda model: sample_recipe_of(model.id))
    assert (details.paths, details.hops, details.windows) == ((), {}, ())
    assert len(details.genes) == 2
    assert "hops" not in front_table(summary, details.hops)
    assert "through the layers" not in render_report(summary, details)


@pytest.mark.parametrize(
    ("hops", "expected"), [((), True), ((Hop(0, "math"),), False), ((Hop(0, "math"), Hop(1)), True)]
)
def test_genes_are_drawn_where_merged_layers_run(hops: tuple[Hop, ...], expected: bool) -> None:
    assert runs_merged_layers(recipe(*hops)) is expected
    assert runs_merged_layers(recipe(*plain_path(2, "lang"))) is False
