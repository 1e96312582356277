"""Response matrices and item banks as values: what they refuse, and what a bank predicts."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.irt.bank import ItemBank
from evomerge.irt.responses import Responses, link_of

GOOD = {
    "items": ("a", "b", "c"),
    "slopes": np.array([[1.0], [2.0], [0.0]]),
    "intercepts": np.array([0.0, -1.0, 0.0]),
    "noise": np.ones(3),
    "constants": np.array([np.nan, np.nan, 1.0]),
    "mean": np.zeros(1),
    "covariance": np.eye(1),
    "link": "logistic",
    "n_models": 4,
}


def bank(**changes):
    return ItemBank(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"slopes": np.zeros((2, 1))}, "slopes has shape"),
        ({"slopes": np.zeros((3, 2))}, "slopes has shape"),
        ({"constants": np.zeros(2)}, "constants has shape"),
        ({"covariance": np.eye(2)}, "covariance has shape"),
        ({"items": ("a", "b", "b")}, "each once"),
        ({"intercepts": np.array([0.0, np.nan, 0.0])}, "not finite"),
        ({"noise": np.array([1.0, 0.0, 1.0])}, "noise must be positive"),
        ({"constants": np.array([np.inf, np.nan, 1.0])}, "constants finite"),
        ({"mean": np.zeros(6), "slopes": np.zeros((3, 6)), "covariance": np.eye(6)}, "1 to 5 dimensions"),
    ],
)
def test_banks_refuse_bad_members(changes, match):
    with pytest.raises(ValueError, match=match):
        bank(**changes)


def test_bank_arrays_are_private_and_read_only():
    slopes = np.array([[1.0], [2.0], [0.0]])
    value = bank(slopes=slopes)
    slopes[0] = 9.0
    assert value.slopes[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        value.slopes[0] = 2.0


def test_logistic_predictions_by_hand():
    value = bank()
    theta = np.array([[1.0]])
    p = [1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(-1.0))]
    assert value.predict(theta) == pytest.approx(np.array([[*p, 1.0]]))
    assert value.variance(theta) == pytest.approx(np.array([[*(x * (1 - x) for x in p), 0.0]]))
    assert value.information(theta)[0] == pytest.approx([p[0] * (1 - p[0]), 4 * p[1] * (1 - p[1]), 0.0])


@pytest.mark.parametrize("link", ["logistic", "normal"])
def test_sensitivity_is_the_derivative_of_the_prediction(link):
    value = bank(link=link, noise=np.array([0.5, 2.0, 1.0]))
    theta, step = np.array([[0.3], [-2.0]]), 1e-6
    numerical = (value.predict(theta + step) - value.predict(theta - step)) / (2 * step)
    assert value.sensitivity(theta) * value.slopes[:, 0] == pytest.approx(numerical, abs=1e-7)
    assert value.weight(theta)[:, 2] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("scores", "models", "items", "match"),
    [
        (np.zeros((2, 2)), ("a",), ("x", "y"), "scores of shape"),
        (np.zeros((2, 2)), ("a", "a"), ("x", "y"), "occurs twice"),
        (np.zeros((2, 2)), ("a", "b"), ("x", "x"), "occurs twice"),
        (np.full((1, 1), np.inf), ("a",), ("x",), "infinite"),
    ],
)
def test_responses_refuse_bad_members(scores, models, items, match):
    with pytest.raises(ValueError, match=match):
        Responses(scores, models, items)


def test_rows_and_columns():
    value = Responses(np.array([[1.0, np.nan], [0.0, 1.0]]), ("a", "b"), ("x", "y"))
    assert value.rows([1]).models == ("b",)
    assert value.columns([1, 0]).items == ("y", "x")
    assert value.seen.tolist() == [[True, False], [True, True]]
    assert value.columns([0]).scores.tolist() == [[1.0], [0.0]]


def test_link():
    assert link_of(np.array([0.0, 0.5, np.nan])) == "logistic"
    assert link_of(np.array([0.0, 1.5])) == "normal"
    assert link_of(np.array([-0.1])) == "normal"
    assert link_of(np.array([np.nan])) == "logistic"
