"""The axis along which banks are drawn, their charts, and the page."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from evomerge.calibration.bank import Calibrated, calibrate
from evomerge.calibration.page import render_page
from evomerge.calibration.quality import Error, Quality
from evomerge.calibration.sheets import Pool, SourceFacts
from evomerge.calibration.words import verdict
from evomerge.irt.axis import AbilityAxis
from evomerge.irt.bank import ItemBank
from evomerge.irt.responses import Responses
from evomerge.report.item_curves import characteristic_curves, information_curve, item_map, shown_items

Simulate = Callable[..., Responses]
POSITIONS = np.linspace(-2, 2, 9)


class Silent:
    def begins(self, what: str, total: int) -> None:
        pass

    def step(self) -> None:
        pass


def bank_of(slopes: np.ndarray, mean: float = 0.0, covariance: np.ndarray | None = None) -> ItemBank:
    n, d = slopes.shape
    constants = np.full(n, np.nan)
    constants[-1] = 1.0
    intercepts = np.linspace(-1, 1, n)
    return ItemBank(
        tuple(f"item {i}" for i in range(n)),
        np.where(np.isnan(constants)[:, None], slopes, 0.0),
        np.where(np.isnan(constants), intercepts, 0.0),
        np.ones(n),
        constants,
        np.full(d, mean),
        np.eye(d) if covariance is None else covariance,
        "logistic",
        10,
    )


def calibrated(responses: Responses, task: str = "pick", dimensions: int = 1) -> Calibrated:
    pool = Pool(task, "acc,none", responses, (SourceFacts("a <b>.npz", "matrix", 9, 99),), ("A note & more.",))
    return calibrate(pool, Silent(), dimensions=dimensions)


def test_one_dimension_is_the_ability_in_standard_deviations() -> None:
    bank = bank_of(np.array([[1.0], [2.0], [0.5], [3.0]]), mean=0.5, covariance=np.array([[4.0]]))
    axis = AbilityAxis.of(bank)
    np.testing.assert_allclose(axis.thetas(POSITIONS)[:, 0], 0.5 + 2 * POSITIONS)
    np.testing.assert_allclose(axis.positions(axis.thetas(POSITIONS)), POSITIONS)
    halves = axis.difficulties[:3]
    np.testing.assert_allclose(np.diag(bank.predict(axis.thetas(halves))[:, :3]), 0.5)
    assert np.isnan(axis.difficulties[3])
    p = bank.predict(axis.thetas(POSITIONS))
    a = 2 * bank.slopes[:, 0]  # per standard deviation
    np.testing.assert_allclose(axis.information(POSITIONS), np.sum(a**2 * p * (1 - p), axis=1))


def test_a_rotation_of_the_abilities_changes_no_chart() -> None:
    slopes = np.abs(np.random.default_rng(0).normal(1, 0.4, size=(12, 3)))
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    one, other = AbilityAxis.of(bank_of(slopes)), AbilityAxis.of(bank_of(slopes @ turn))
    np.testing.assert_allclose(one.slopes, other.slopes)
    np.testing.assert_allclose(one.information(POSITIONS), other.information(POSITIONS))
    assert np.sum(one.slopes) > 0


def test_named_items_go_from_easy_to_hard() -> None:
    axis = AbilityAxis.of(bank_of(np.ones((21, 1))))
    shown = shown_items(axis)
    assert [s.name for s in shown] == list("ABCDE")
    assert np.all(np.diff([axis.difficulties[s.item] for s in shown]) > 0)


@pytest.mark.parametrize("n", [1, 2, 300])
def test_charts_are_well_formed(n: int) -> None:
    axis = AbilityAxis.of(bank_of(np.ones((n, 1))))
    shown = shown_items(axis)
    for svg in (
        characteristic_curves(axis, shown),
        item_map(axis, shown),
        information_curve(axis, np.array([-9.0, 0.0, 0.1])),
    ):
        ET.fromstring(svg)
        assert "nan" not in svg


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_page_is_whole_and_escapes_names(answers: Simulate, dimensions: int) -> None:
    page = render_page([calibrated(answers(30, 30), task="<pick>", dimensions=dimensions)])
    assert page.startswith("<!doctype html>")
    assert "&lt;pick&gt;" in page
    assert "a &lt;b&gt;.npz" in page
    assert "A note &amp; more." in page
    assert "<pick>" not in page
    assert page.count("<svg viewBox") >= 4
    assert ("2 dimensions" in page) == (dimensions == 2)
    assert "http" not in page.replace("http-equiv", "")
    HTMLParser().feed(page)


def test_a_page_of_scores_that_are_no_probabilities(answers: Simulate) -> None:
    responses = answers(30, 12)
    page = render_page([calibrated(replace(responses, scores=5 * responses.scores - 9))])
    assert "normal items" in page
    assert "nan" not in page


def test_a_page_without_figures_says_why(answers: Simulate) -> None:
    page = render_page([calibrated(answers(3, 8))])
    assert "Not measured: 3 models and 8 items are too few" in page


@pytest.mark.parametrize(
    ("errors", "match"),
    [
        ((), "could not be measured: why"),
        ((Error(10, 0.05, 0.1), Error(20, 0.04, 0.06)), "better than the plain mean: after 10 questions"),
        ((Error(10, 0.05, 0.1), Error(20, 0.07, 0.06)), "at 10 questions only"),
        ((Error(10, 0.2, 0.1),), "no better than the plain mean"),
    ],
)
def test_the_verdict(errors: tuple[Error, ...], match: str) -> None:
    assert match in verdict(Quality(5, errors, why_not="why"))
