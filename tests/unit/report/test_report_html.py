"""The report as a file: well-formed, self-contained, safe against names, and complete."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evomerge.report.html import render_report
from evomerge.report.summary import ConstraintInfo, Difference, RunDetails, RunSummary
from evomerge.report.write import write_report
from evomerge.testing.sample_journal import write_sample_run
from evomerge.testing.sample_runs import sample_run

VOID = {"meta", "br", "hr", "img", "link", "input"}
EVIL = '<script>alert("1")</script>'


class Page(HTMLParser):
    """Checks that every tag is closed in order, and keeps tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            raise AssertionError(f"</{tag}> closes another tag")

    def handle_data(self, data: str) -> None:
        self.text += data


CASES = {
    "one objective": sample_run(("skills",), n=40),
    "two objectives with failures": sample_run(n=60, failures=9, feasible_share=0.6),
    "three objectives": sample_run(("a", "b", "c"), n=40),
    "nothing feasible": sample_run(n=30, failures=5, feasible_share=0.0),
    "everything failed": sample_run(n=5, failures=5, feasible_share=0.0, state="failed"),
    "running": sample_run(n=20, state="running"),
    "evil names": sample_run((EVIL, "数学 $x_1$ & co"), n=30, parents=(EVIL, "日本"), name=EVIL),
}


@pytest.mark.parametrize("case", list(CASES))
def test_the_page_is_well_formed_and_needs_nothing_else(case: str) -> None:
    html = render_report(*CASES[case])
    page = Page(html)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "action"} & set(attributes), tag
        assert not [a for a in attributes if a.startswith("on")], tag
    style = html.split("<style>")[1].split("</style>")[0]
    assert not re.search(r"url\(|@import|http", style)
    assert len(html) < 600_000


@pytest.mark.parametrize("case", list(CASES))
def test_no_number_is_missing(case: str) -> None:
    html = render_report(*CASES[case])
    drawings = "".join(re.findall(r"<svg.*?</svg>", html))
    assert not re.search(r"\b(nan|inf|None)\b", drawings)


def test_names_are_text_and_not_markup() -> None:
    html = render_report(*CASES["evil names"])
    assert "<script" not in html
    assert EVIL in Page(html).text
    assert "日本" in html


def test_the_same_run_gives_the_same_bytes() -> None:
    assert render_report(*CASES["one objective"]) == render_report(*sample_run(("skills",), n=40))


def section(html: str, title: str) -> str:
    begun = html.index(f"<h2>{title}</h2>")
    return Page(html[begun : html.index("</section>", begun)]).text


def test_sections_of_a_finished_run() -> None:
    summary, details = CASES["two objectives with failures"]
    html = render_report(summary, details)
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == [
        "Is it better than its parents?", "The front beside the baselines", "Progress", "Scores with intervals",
        "Genes", "Failures", "Cost and throughput", "How to reproduce",
    ]  # fmt: skip
    front = section(html, "The front beside the baselines")
    assert all(e.id in front for e in summary.entries().values())
    assert "evomerge export runs/sample --pick" in section(html, "How to reproduce")
    assert "evomerge.recipe" in section(html, "How to reproduce")


def test_failures_are_counted_by_cause() -> None:
    html = render_report(*CASES["two objectives with failures"])
    failures = section(html, "Failures")
    assert failures.count("nan: logits of task srt are not finite") == 1
    assert "9 of 60 candidates have no score" in failures
    assert "None: every candidate was scored." in section(render_report(*CASES["one objective"]), "Failures")


def test_nothing_feasible_is_said() -> None:
    text = Page(render_report(*CASES["nothing feasible"])).text
    assert "No merge satisfies every constraint; nothing is recommended." in text
    assert "No candidate satisfies every constraint: the front is empty." in text


def test_negative_results_are_told() -> None:
    summary, details = CASES["one objective"]
    even = Difference("math", "skills", 0.01, -0.02, 0.04, "not separable")
    worse = Difference("lang", "skills", -0.1, -0.2, -0.05, "worse")
    told = section(
        render_report(summary, replace(details, differences=(even, worse))), "Is it better than its parents?"
    )
    assert "no significant gain over math; worse than lang." in told
    assert "+0.010 [-0.020, +0.040]" in told


def test_a_candidate_at_the_edge_is_told_in_the_singular() -> None:
    summary, details = CASES["two objectives with failures"]
    rows = [r for r in details.evaluations if r.objectives is not None]
    far = {o.name: -1000.0 for o in summary.objectives}
    for n, told in ((1, "1 candidate far from all others is drawn"), (2, "2 candidates far from all others are drawn")):
        lost = [replace(r, id=f"lost{k}", objectives=far) for k, r in enumerate(rows[:n])]
        html = render_report(summary, replace(details, evaluations=(*rows, *lost)))
        assert f"{told} at the edge" in html


def test_notes_stand_at_the_top() -> None:
    summary, details = CASES["one objective"]
    html = render_report(summary, replace(details, notes=("The search used a public test split.",)))
    assert html.index("public test split") < html.index("<h2>")


def test_bounds_that_came_from_a_parent_are_shown() -> None:
    summary, details = CASES["one objective"]
    bound = ConstraintInfo("objective", "skills", 0.4321, "skills >= best_parent - 0.01")
    html = render_report(replace(summary, constraints=(bound,)), details)
    assert "Under the constraints: skills &gt;= best_parent - 0.01 (= 0.432)." in html


def test_lower_is_better_is_said_on_the_axis() -> None:
    summary, details = CASES["one objective"]
    minimised = tuple(replace(o, direction="minimize") for o in summary.objectives)
    html = render_report(replace(summary, objectives=minimised), details)
    assert "skills (lower is better)" in html
    assert "minimize skills" in html


def test_a_run_without_details_still_renders() -> None:
    summary: RunSummary = CASES["two objectives with failures"][0]
    assert Page(render_report(summary, RunDetails())).open == []


def test_the_report_of_a_run_directory(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    path = write_report(run)
    assert path == run / "report.html"
    html = path.read_text(encoding="utf-8")
    assert Page(html).open == []
    assert "The chosen merge is g0001-i00." in html
    write_report(run)
    assert path.read_text(encoding="utf-8") == html
    hidden = {p.name for p in run.iterdir() if p.name.startswith(".")}
    assert hidden <= {".lock", ".epochs", ".sha256"}
