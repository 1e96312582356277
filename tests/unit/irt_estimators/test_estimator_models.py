"""Estimators that predict what was not asked: degenerate equalities, slow implementations, coverage, few models."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from evomerge.errors import ConfigError
from evomerge.irt.ability import abilities
from evomerge.irt.estimators.anchors import anchor_items, masses
from evomerge.irt.estimators.base import Calibration
from evomerge.irt.estimators.choice import choose_estimator, stacked
from evomerge.irt.estimators.parental import lattice
from evomerge.irt.estimators.registry import ESTIMATORS, NEED_PARENTS, make_estimator
from evomerge.irt.estimators.ridge import PENALTIES, regress
from evomerge.irt.fit import FitSettings, fit
from evomerge.irt.responses import Responses
from evomerge.irt.select import mixed_design

EVERY = (*ESTIMATORS, "auto")


def table(scores: np.ndarray, parents: tuple[int, ...] = (), dimensions: int = 1) -> Calibration:
    k, n = scores.shape
    responses = Responses(scores, tuple(f"m{i}" for i in range(k)), tuple(f"i{j}" for j in range(n)))
    return Calibration(responses, fit(responses, FitSettings(dimensions=dimensions)).bank, parents)


def two_parameter(rng: np.random.Generator, m: int, n: int, link: str = "logistic") -> np.ndarray:
    """Answers of m models to n items of one dimension; `normal`: margins."""
    slopes, difficulty = np.exp(rng.normal(0, 0.3, n)), rng.normal(0, 1.3, n)
    z = slopes * (rng.normal(0, 1, (m, 1)) - difficulty)
    if link == "normal":
        return 5 * z + rng.normal(0, 4, (m, n))
    return (rng.random((m, n)) < expit(1.5 * z)).astype(float)


def merges(rng: np.random.Generator, m: int, n: int, parents: int = 3) -> np.ndarray:
    """The parents, then merges between them that are a little better; skills are the parents' own."""
    difficulty = rng.normal(0, 1.2, n)
    skill = rng.normal(0.3, 0.5, (parents, 1)) + rng.normal(0, 1, (parents, n))
    mixed = rng.dirichlet(np.ones(parents), m) @ skill + rng.normal(0.2, 0.3, (m, 1))
    return (rng.random((parents + m, n)) < expit(1.5 * (np.vstack([skill, mixed]) - difficulty))).astype(float)


def masked(scores: np.ndarray, rng: np.random.Generator, r: int) -> np.ndarray:
    return np.where(np.isin(np.arange(scores.shape[1]), rng.choice(scores.shape[1], r, replace=False)), scores, np.nan)


@pytest.fixture(scope="module")
def family() -> tuple[Calibration, np.ndarray]:
    """A calibration with parents, and new merges of theirs."""
    scores = merges(np.random.default_rng(0), 42, 40)
    return table(scores[:30], (0, 1, 2)), scores[30:]


@pytest.mark.parametrize("name", EVERY)
def test_full_answers_are_exact(name, family):
    known, new = family
    target = np.linspace(-1, 2, 40)
    found = make_estimator(name, known).estimate(new, target=target)
    assert found.value == pytest.approx(new @ target)
    assert np.all(found.se == 0)


@pytest.mark.parametrize("name", EVERY)
def test_rows_do_not_depend_on_each_other(name, family):
    known, new = family
    rng = np.random.default_rng(1)
    mixed = np.vstack([masked(new[:4], rng, 8), masked(new[4:8], rng, 12), np.full((1, 40), np.nan), new[:1]])
    estimator = make_estimator(name, known)
    together = estimator.estimate(mixed)
    alone = [estimator.estimate(row[None]) for row in mixed]
    assert together.value == pytest.approx(np.concatenate([one.value for one in alone]), abs=1e-7)
    assert together.se == pytest.approx(np.concatenate([one.se for one in alone]), abs=1e-7)
    assert np.all(together.se[:-1] > 0)


@pytest.mark.parametrize("name", EVERY)
def test_functionals_add_up(name, family):
    """Items that do not count leave the estimate of the others alone: a functional of asked items only is known."""
    known, new = family
    scores = masked(new, np.random.default_rng(2), 10)
    asked = ~np.isnan(scores[0])
    found = make_estimator(name, known).estimate(scores, target=asked / 10.0)
    assert found.value == pytest.approx(new[:, asked].mean(axis=1))
    assert found.se == pytest.approx(np.zeros(len(new)), abs=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_margins_are_estimated_and_covered(name):
    rng = np.random.default_rng(3)
    scores = two_parameter(rng, 90, 60, "normal")
    known, new = table(scores[:40], (0, 1)), scores[40:]
    estimator = make_estimator(name, known)
    assert known.fitted_bank.link == "normal"
    hits, gaps = [], []
    for _ in range(6):
        found = estimator.estimate(masked(new, rng, 15))
        gaps.append(np.abs(found.value - new.mean(axis=1)))
        hits.append(gaps[-1] <= 1.645 * found.se)
    assert np.mean(hits) >= 0.75
    assert np.mean(gaps) < new.mean(axis=1).std()


@pytest.mark.parametrize("name", ["p-irt", "gp-irt", "ridge", "auto"])
def test_models_beat_the_mean_and_their_intervals_cover(name):
    """As few calibration models as a run has: 30 models, 100 items, 10 asked."""
    hits, gaps, plain = [], [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        scores = two_parameter(rng, 60, 100)
        known, new = table(scores[:30]), scores[30:]
        estimator = make_estimator(name, known)
        for _ in range(3):
            some = masked(new, rng, 10)
            found = estimator.estimate(some)
            gaps.append(np.abs(found.value - new.mean(axis=1)))
            plain.append(np.abs(np.nanmean(some, axis=1) - new.mean(axis=1)))
            hits.append(gaps[-1] <= 1.645 * found.se)
    assert np.mean(gaps) < 0.92 * np.mean(plain)
    assert 0.82 <= np.mean(hits) <= 0.97


def test_intervals_cover_where_half_of_the_items_were_chosen():
    """Items chosen by the bank of few models look better than they are, on the held-out models, too."""
    hits = []
    for seed in range(8):
        rng = np.random.default_rng(100 + seed)
        scores = merges(rng, 45, 100)
        known, new = table(scores[:24], (0, 1, 2)), scores[24:]
        design = mixed_design(known.fitted_bank, known.fitted_bank.mean, rng, share=0.5)
        some = np.where(design.asked(16), new, np.nan)
        found = make_estimator("auto", known).estimate(some, inclusion=design.inclusion(16))
        hits.append(np.abs(found.value - new.mean(axis=1)) <= 1.645 * found.se)
    assert 0.82 <= np.mean(hits) <= 0.98


@pytest.mark.parametrize("name", sorted(NEED_PARENTS))
def test_parents_are_needed(name):
    with pytest.raises(ConfigError, match="cannot be made"):
        make_estimator(name, table(two_parameter(np.random.default_rng(0), 8, 12)))


def test_unknown_names_are_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="Did you mean 'p-irt'"):
        make_estimator("p_irt", table(two_parameter(np.random.default_rng(0), 8, 12)))


def test_p_irt_is_close_to_a_numerical_posterior_mean(family):
    """One dimension: the posterior mean of the unasked items' sum by a fine grid over the ability."""
    known, new = family
    bank = known.fitted_bank
    scores = masked(new, np.random.default_rng(4), 12)
    asked = ~np.isnan(scores[0])
    grid = np.linspace(-6, 6, 2001)[:, None]
    p = np.clip(bank.predict(grid), 1e-9, 1 - 1e-9)
    use = asked & bank.fitted
    log_post = scores[:, use] @ np.log(p[:, use]).T + (1 - scores[:, use]) @ np.log(1 - p[:, use]).T
    log_post += -0.5 * grid[:, 0] ** 2
    share = np.exp(log_post - log_post.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    exact = (np.where(asked, scores, 0).sum(axis=1) + share @ p[:, ~asked].sum(axis=1)) / 40
    assert make_estimator("p-irt", known).estimate(scores).value == pytest.approx(exact, abs=0.006)


def test_mp_irt_is_the_likelihoods_maximum_over_free_combinations():
    rng = np.random.default_rng(5)
    scores = merges(rng, 40, 60)
    known = table(scores[:35], (0, 1), dimensions=3)
    bank = known.fitted_bank
    some = masked(scores[36:37], rng, 30)
    asked = ~np.isnan(some[0])
    use = asked & bank.fitted
    parents = abilities(bank, scores[:2]).theta

    def loss(lam):
        z = (lam @ parents) @ bank.slopes[use].T + bank.intercepts[use]
        return np.sum(np.logaddexp(0, z) - some[0, use] * z)

    best = minimize(loss, np.full(2, 0.5), tol=1e-12).x
    expected = np.where(asked, some[0], bank.predict(best @ parents)).mean()
    assert make_estimator("mp-irt", known).estimate(some).value == pytest.approx([expected], abs=2e-3)


def test_mp_irt_with_as_many_parents_as_dimensions_is_p_irt_without_a_prior(family):
    known, new = family
    scores = masked(new, np.random.default_rng(6), 20)
    bank = known.fitted_bank
    theta = abilities(bank, scores, covariance=1e4 * np.eye(1)).theta
    expected = np.where(np.isnan(scores), bank.predict(theta), scores).mean(axis=1)
    assert make_estimator("mp-irt", known).estimate(scores).value == pytest.approx(expected, abs=1e-6)


def test_gmp_irt_as_published_is_half_and_half(family):
    known, new = family
    scores = masked(new, np.random.default_rng(7), 15)
    parts = [make_estimator(name, known).estimate(scores).value for name in ("mean", "mp-irt")]
    assert make_estimator("gmp-irt", known).estimate(scores).value == pytest.approx(np.mean(parts, axis=0))


def test_one_parent_on_the_simplex_predicts_that_parent(family):
    known, new = family
    only = Calibration(known.responses, known.bank, (1,))
    scores = masked(new, np.random.default_rng(8), 15)
    bank = known.fitted_bank
    theta = abilities(bank, known.responses.scores[1:2]).theta
    expected = np.where(np.isnan(scores), bank.predict(theta), scores).mean(axis=1)
    assert make_estimator("mp-irt-simplex", only).estimate(scores).value == pytest.approx(expected)


@given(st.integers(1, 8))
@settings(deadline=None, max_examples=8)
def test_the_lattice_covers_the_simplex(parents):
    points = lattice(parents)
    assert np.all(points >= 0)
    assert points.sum(axis=1) == pytest.approx(np.ones(len(points)))
    assert len(np.unique(points, axis=0)) == len(points)
    assert points.mean(axis=0) == pytest.approx(np.full(parents, 1 / parents))
    assert np.isin(np.eye(parents), points).all()


def test_the_parents_prior_fades_as_answers_disagree():
    """All right: the estimate leaves the parents' level behind as answers add up, faster than a fixed narrow prior."""
    rng = np.random.default_rng(9)
    scores = two_parameter(rng, 60, 100)
    level = scores.mean(axis=1)
    weak = tuple(int(i) for i in np.argsort(level)[:2])
    known = table(scores, weak)
    estimator = make_estimator("parents-map", known)
    strong = scores[int(np.argmax(level))]
    order = rng.permutation(100)
    gaps = []
    for r in (2, 10, 40):
        row = np.full(100, np.nan)
        row[order[:r]] = strong[order[:r]]
        gaps.append(strong.mean() - estimator.estimate(row[None]).value[0])
    assert gaps[0] > 0.15
    assert gaps[2] < 0.06


def test_masses_sum_to_the_weights_and_items_stand_for_themselves():
    rng = np.random.default_rng(10)
    features, weights = rng.normal(size=(30, 4)), rng.random(30)
    asked = np.zeros(30, dtype=bool)
    asked[[3, 9, 20]] = True
    slow = np.zeros(3)
    places = [3, 9, 20]
    for i in range(30):
        gaps = [np.linalg.norm(features[i] - features[j]) for j in places]
        slow[places.index(i) if i in places else int(np.argmin(gaps))] += weights[i]
    assert masses(features, asked, weights) == pytest.approx(slow)


@pytest.mark.parametrize("kind", ["correctness", "parameters"])
def test_anchors_find_one_item_of_each_kind(kind):
    rng = np.random.default_rng(11)
    groups = (rng.random((50, 4)) < 0.5).astype(float)
    known = table(np.repeat(groups, 10, axis=1))
    chosen = anchor_items(known, 4, np.random.default_rng(0), kind=kind)
    assert chosen.size == 4
    if kind == "correctness":
        assert sorted(chosen // 10) == [0, 1, 2, 3]


def test_anchors_of_equal_items_are_still_different_items():
    known = table(np.tile([[1.0], [0.0], [1.0]], (1, 6)))
    assert anchor_items(known, 5, np.random.default_rng(0)).size == 5
    with pytest.raises(ValueError, match="7 anchors of 6 items"):
        anchor_items(known, 7, np.random.default_rng(0))


def test_ridge_is_the_textbook_solution_and_its_error_is_leave_one_out():
    rng = np.random.default_rng(12)
    x, y = rng.normal(size=(25, 4)), rng.normal(size=25)
    line = regress(x, y)
    unit = ((x - x.mean(axis=0)) ** 2).sum() / 25 / 4

    def slopes(a, b, penalty):
        centred = a - a.mean(axis=0)
        return np.linalg.solve(centred.T @ centred + penalty * unit * np.eye(4), centred.T @ (b - b.mean()))

    errors = []
    for penalty in PENALTIES:
        left = [np.delete(np.arange(25), i) for i in range(25)]
        gaps = [
            y[i] - y[k].mean() - (x[i] - x[k].mean(axis=0)) @ slopes(x[k], y[k], penalty) for i, k in enumerate(left)
        ]
        errors.append(np.mean(np.square(gaps)))
    best = PENALTIES[int(np.argmin(errors))]
    assert line.slopes == pytest.approx(slopes(x, y, best))
    assert line.se == pytest.approx(np.sqrt(min(errors)), rel=0.02)


def test_stacking_finds_the_better_and_shares_between_equals():
    rng = np.random.default_rng(13)
    good, bad = rng.normal(size=(400, 2)), 5 * rng.normal(size=(400, 1))
    share = stacked(np.hstack([good, bad]))
    assert share.sum() == pytest.approx(1)
    assert share[:2] == pytest.approx([0.5, 0.5], abs=0.1)
    assert share[2] < 0.05


def test_auto_is_about_as_good_as_the_best():
    rng = np.random.default_rng(14)
    scores = two_parameter(rng, 160, 80)
    known, new = table(scores[:60]), scores[60:]
    gaps: dict[str, list[float]] = {name: [] for name in EVERY if name not in NEED_PARENTS}
    for _ in range(6):
        some = masked(new, rng, 12)
        for name, so_far in gaps.items():
            so_far.append(float(np.abs(make_estimator(name, known).estimate(some).value - new.mean(axis=1)).mean()))
    mean = {name: float(np.mean(values)) for name, values in gaps.items()}
    assert mean["auto"] < 1.05 * min(mean.values())


def test_the_choice_tells_errors_and_weights():
    known = table(two_parameter(np.random.default_rng(15), 40, 50))
    asked = np.arange(50) < 12
    choice = choose_estimator(known, asked)
    assert choice.name == min(choice.errors, key=lambda name: choice.errors[name])
    assert sum(choice.weights.values()) == pytest.approx(1)
    assert choice.name in choice.why
    assert choose_estimator(known, asked, names=("mean",)).weights == {"mean": pytest.approx(1)}
    with pytest.raises(ConfigError, match="Did you mean 'mean'"):
        choose_estimator(known, asked, names=("meen",))
    with pytest.raises(ValueError, match="asked has shape"):
        choose_estimator(known, asked[:4])


def test_too_few_known_models_fall_back_to_the_strata():
    known = table(two_parameter(np.random.default_rng(16), 4, 30))
    choice = choose_estimator(known, np.arange(30) < 10)
    assert (choice.name, choice.errors) == ("stratified", {})
    found = make_estimator("auto", known).estimate(masked(known.responses.scores, np.random.default_rng(0), 10))
    assert np.all(found.se > 0)


def test_a_bank_of_many_models_is_believed_without_a_check():
    wide = table(two_parameter(np.random.default_rng(17), 60, 30))
    few = Calibration(wide.responses.rows([0, 1]), wide.bank)
    assert choose_estimator(few, np.arange(30) < 10).name == "p-irt"


def test_who_is_unlike_the_known_models_gets_the_plain_mean():
    rng = np.random.default_rng(18)
    scores = two_parameter(rng, 61, 120)
    known, usual = table(scores[:60]), scores[60:]
    reversed_model = (known.item_means < 0.5).astype(float)[None]  # right where the others are wrong
    some = masked(np.vstack([usual, reversed_model]), rng, 40)
    auto, mean = (make_estimator(name, known).estimate(some) for name in ("auto", "mean"))
    assert auto.value[1] == pytest.approx(mean.value[1])
    assert auto.se[1] == pytest.approx(mean.se[1])
    assert abs(auto.value[0] - mean.value[0]) > 1e-3


def test_holes_in_the_calibration_are_no_obstacle(family):
    known, new = family
    rng = np.random.default_rng(19)
    scores = np.array(known.responses.scores)
    scores[10:] = np.where(rng.random((20, 40)) < 0.5, scores[10:], np.nan)
    scores[:, 3] = np.nan
    holed = table(scores, (0, 1, 2))
    for name in EVERY:
        found = make_estimator(name, holed).estimate(masked(new, rng, 10))
        assert np.all(np.isfinite(found.value))
        assert np.all((found.se > 0) & np.isfinite(found.se))


@pytest.mark.parametrize("shape", [(1, 5), (6, 1), (2, 2)])
@pytest.mark.parametrize("name", EVERY)
def test_the_smallest_and_constant_tables_work(name, shape):
    for fill in (0.0, 1.0):
        known = table(np.full(shape, fill), (0,))
        row = np.full((1, shape[1]), np.nan)
        row[0, 0] = 1.0
        found = make_estimator(name, known).estimate(row)
        assert np.all(np.isfinite(found.value))
        assert np.all(np.isfinite(found.se))


def test_one_generation_takes_little_time():
    """30 known models, 100 items, 20 candidates: choice and estimates with the held-out fits at hand."""
    rng = np.random.default_rng(20)
    scores = merges(rng, 50, 100)
    known = table(scores[:30], (0, 1, 2))
    auto = make_estimator("auto", known)
    some = [masked(scores[33:53], rng, 20) for _ in range(6)]
    auto.estimate(some[0])
    begin = time.process_time()
    for one in some[1:]:
        auto.estimate(one)
    assert (time.process_time() - begin) / 5 < 0.15  # 0.035 s on an idle core


def test_parents_must_be_rows():
    responses = Responses(np.zeros((2, 2)), ("a", "b"), ("x", "y"))
    with pytest.raises(ValueError, match="not different rows"):
        Calibration(responses, None, (2,))
    other = fit(Responses(np.eye(2), ("a", "b"), ("p", "q"))).bank
    with pytest.raises(ValueError, match="bank's items"):
        Calibration(responses, other)
