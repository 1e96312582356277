"""The marks of the plots: text that cannot escape, scales, ticks, labels that do not overlap."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.report.marks import held, inlier_scale, n_outside
from evomerge.report.plots import stacked_labels
from evomerge.report.svg import Box, Scale, escape, label, nice_ticks, number, place_labels, shorten, text_width

numbers = st.floats(-1e6, 1e6, allow_nan=False)


class Text(HTMLParser):
    """Collects the text of a fragment and its tags."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.tags = "", []

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@given(st.text())
@settings(deadline=None, max_examples=200)
def test_escaped_text_is_only_text(text: str) -> None:
    parser = Text()
    parser.feed(f'<p title="{escape(text)}">{escape(text)}</p>')
    parser.close()
    ((tag, attributes),) = parser.tags
    assert tag == "p"
    assert set(attributes) == {"title"}
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    assert parser.text == shown
    assert escape(text).encode("utf-8").decode("utf-8") == escape(text)


def test_lone_surrogates_do_not_break_the_file() -> None:
    assert escape("a\udcff") == "a\ufffd"


@given(numbers, st.floats(1e-6, 1e6), st.integers(2, 12))
@settings(deadline=None, max_examples=300)
def test_ticks_are_round_evenly_spaced_and_inside(low: float, width: float, n: int) -> None:
    high = low + width
    ticks = nice_ticks(low, high, n)
    assert len(ticks) <= 2 * n + 1
    slack = 1e-6 * max(abs(low), abs(high), width)
    assert all(low - slack <= t <= high + slack for t in ticks)
    gaps = [b - a for a, b in pairwise(ticks)]
    assert all(g == pytest.approx(gaps[0], rel=1e-6, abs=1e-9) for g in gaps)


def test_ticks_by_hand() -> None:
    assert nice_ticks(0.0, 1.0, 5) == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert nice_ticks(-0.13, 0.41, 5) == (-0.1, 0.0, 0.1, 0.2, 0.3, 0.4)
    assert nice_ticks(3.0, 3.0) == (3.0,)


def test_a_scale_maps_its_ends_to_its_pixels() -> None:
    scale = Scale(0.2, 0.8, 300, 20)
    assert (scale(0.2), scale(0.8), scale(0.5)) == (300, 20, pytest.approx(160))


@given(st.lists(numbers, max_size=20))
@settings(deadline=None, max_examples=100)
def test_a_scale_around_values_holds_them(values: list[float]) -> None:
    scale = Scale.around(values, 0, 100)
    assert scale.low < scale.high
    assert all(0 <= scale(v) <= 100 for v in values)


@given(st.lists(numbers, max_size=30), st.lists(numbers, max_size=5))
@settings(deadline=None, max_examples=100)
def test_far_values_are_held_at_the_edge_and_counted(cloud: list[float], shown: list[float]) -> None:
    scale = inlier_scale(cloud, shown, 0, 100)
    assert all(scale.low <= v <= scale.high for v in shown)
    assert all(-1e-6 <= held(scale, v) <= 100 + 1e-6 for v in cloud)
    assert n_outside(scale, cloud) == sum(v < scale.low or v > scale.high for v in cloud)


def test_one_broken_merge_does_not_squeeze_the_others() -> None:
    cloud = [0.70 + 0.01 * k for k in range(10)]
    assert inlier_scale([*cloud, 0.0], [], 0, 100).low > 0.6
    assert inlier_scale([*cloud, 0.0], [0.0], 0, 100).low < 0.0  # what is named is always drawn where it is


def test_numbers_for_people() -> None:
    found = [number(v) for v in (0, 0.5, -0.1234, 12.345, 1234.5, 54321.5, 1.5e9, 1e-5, 1e20 / 3)]
    assert found == ["0", "0.500", "-0.123", "12.35", "1234", "54322", "1.5 G", "1e-05", "3.333e+10 G"]
    counts = [number(v) for v in (1.0, 2.0, 12.0, 1234567.0, 7_241_732_096.0)]
    assert counts == ["1.000", "2", "12", "1.235 M", "7.242 G"]


def test_long_names_lose_their_middle() -> None:
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghijk", 7) == "abc…ijk"
    assert text_width("日本") == 2 * text_width("ab")


def boxes(svg: str) -> list[Box]:
    """Boxes of the labels in a drawing, as their text is estimated."""
    found = re.findall(r'<text class="[^"]*" x="([-\d.]+)" y="([-\d.]+)"[^>]*>([^<]*)<', svg)
    return [Box(float(x), float(y) - 9.5, float(x) + text_width(t) - 0.5, float(y) + 2.5) for x, y, t in found]


@given(st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200)), max_size=12))
@settings(deadline=None, max_examples=100)
def test_labels_never_overlap_and_stay_inside(spots: list[tuple[float, float]]) -> None:
    area = Box(0, 0, 300, 200)
    svg = place_labels([(x, y, f"name{k}") for k, (x, y) in enumerate(spots)], area, [])
    placed = boxes(svg)
    assert all(b.left >= -0.1 and b.right <= 300.1 and b.top >= -0.1 and b.bottom <= 200.1 for b in placed)
    assert not any(a.overlaps(b) for k, a in enumerate(placed) for b in placed[:k])


def test_a_label_avoids_marks_when_it_can() -> None:
    taken = [Box(100, 80, 200, 120)]
    (found,) = boxes(place_labels([(100, 100, "soup")], Box(0, 0, 300, 200), taken))
    assert not found.overlaps(taken[0])


def test_labels_of_points_on_one_row_find_free_places() -> None:
    """As on a front where all baselines have one depth; far labels are joined to their points."""
    spots = [(150.0 + 22 * k, 60.0) for k in range(9)]
    marks = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    svg = place_labels([(*s, f"task-arithmetic-0.{k}") for k, s in enumerate(spots)], Box(0, 0, 400, 300), marks)
    placed = boxes(svg)
    assert len(placed) == 9
    assert not any(a.overlaps(b) for a in placed for b in marks)
    leaders = re.findall(r'class="leader" x1="([\d.]+)" y1="60.0"', svg)
    assert 4 <= len(leaders) < 9
    assert {float(x) for x in leaders} <= {x for x, _ in spots}
    assert "leader" not in place_labels([(100, 100, "soup")], Box(0, 0, 300, 200), [])


@given(st.lists(st.floats(0, 200), max_size=12))
@settings(deadline=None, max_examples=100)
def test_stacked_labels_keep_their_order_and_distance(heights: list[float]) -> None:
    svg = stacked_labels([(h, f"n{k}") for k, h in enumerate(heights)], 0, 100, 0, 200)
    found = [float(y) for y in re.findall(r'y="([-\d.]+)"', svg)]
    assert len(found) == len(heights)
    assert found == sorted(found)
    assert all(y <= 200.1 for y in found)
    assert all(b - a > 13.8 for a, b in pairwise(found))


def test_labels_escape_their_text() -> None:
    assert "<b>" not in label(0, 0, "<b>bold</b>")
