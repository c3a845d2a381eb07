"""Calibration undoes what was done to log-odds, and never more than that."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from headlens._errors import DataError
from headlens.probes.evaluation.calibrate import Platt, Temperature, from_parameters

FACTORS = st.floats(0.01, 100)


def logits(classes, n=200, seed=0):
    z = 2 * np.random.default_rng(seed).normal(size=(n, classes))
    return z[:, 1] - z[:, 0] if classes == 2 else z


def chance(z):
    return expit(z) if z.ndim == 1 else softmax(z, axis=1)


def drawn(z, seed=1):
    p = np.stack([1 - expit(z), expit(z)], 1) if z.ndim == 1 else softmax(z, axis=1)
    return (p.cumsum(1) < np.random.default_rng(seed).random(len(z))[:, None]).sum(1)


@settings(max_examples=50, deadline=None)
@given(FACTORS, st.integers(2, 5), st.integers(0, 1000))
def test_multiplied_log_odds_are_divided_again(factor, classes, seed):
    z = logits(classes, seed=seed)
    fitted = Temperature().fit(factor * z, chance(z))
    assert fitted.temperature_ == pytest.approx(factor, rel=1e-6)
    assert np.allclose(fitted.transform(factor * z), z, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(FACTORS, st.integers(2, 4), st.integers(0, 1000))
def test_multiplying_scores_multiplies_the_temperature_whatever_the_labels(factor, classes, seed):
    z = logits(classes, n=40, seed=seed)
    y = np.random.default_rng(seed).integers(0, classes, 40)
    one, other = (Temperature().fit(scores, y).temperature_ for scores in (z, factor * z))
    assert other == pytest.approx(factor * one, rel=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_temperature_of_drawn_labels_is_near_one_and_loses_least(classes):
    z = logits(classes, n=20_000)
    y = drawn(z)
    fitted = Temperature().fit(3 * z, y)
    assert fitted.temperature_ == pytest.approx(3, rel=0.03)
    losses = [log_loss(y, chance(3 * z / t)) for t in fitted.temperature_ * np.array([0.99, 1, 1.01])]
    assert np.argmin(losses) == 1


def test_scores_that_tell_nothing_or_all_have_a_finite_temperature():
    z = np.array([-1.0, 1, -2, 2])
    assert Temperature().fit(z, (z > 0).astype(int)).temperature_ == pytest.approx(np.sqrt(2.5) / 1000)
    assert Temperature().fit(z, (z < 0).astype(int)).temperature_ == pytest.approx(np.sqrt(2.5) * 1000)
    assert np.isfinite(Temperature().fit(np.zeros(4), [0, 1, 0, 1]).temperature_)


@settings(max_examples=40, deadline=None)
@given(FACTORS, st.floats(-5, 5), st.integers(0, 1000), st.sampled_from([1, -1]))
def test_platt_undoes_any_line(factor, offset, seed, sign):
    z = logits(2, seed=seed)
    scores = sign * factor * z + offset
    fitted = Platt().fit(scores, expit(z))
    assert np.allclose(fitted.transform(scores), z, atol=1e-5)


def test_platt_is_logistic_regression_on_platts_smoothed_labels():
    z = logits(2)
    y = drawn(z)
    wanted = np.where(y == 1, (y.sum() + 1) / (y.sum() + 2), 1 / ((1 - y).sum() + 2))
    both = LogisticRegression(C=1e12, tol=1e-10).fit(
        np.r_[z, z][:, None], np.r_[np.ones(200), np.zeros(200)], sample_weight=np.r_[wanted, 1 - wanted]
    )
    fitted = Platt().fit(z, y)
    assert (fitted.slope_, fitted.offset_) == pytest.approx((both.coef_[0, 0], both.intercept_[0]), rel=1e-3)


def test_platt_of_separable_scores_and_of_one_class_is_finite():
    for y in ([0, 0, 1, 1], [1, 1, 1, 1]):
        fitted = Platt().fit([-2.0, -1, 1, 2], y)
        assert np.isfinite([fitted.slope_, fitted.offset_]).all()


def test_parameters_make_the_same_calibration_again():
    z = logits(2)
    for fitted in (Temperature().fit(z, drawn(z)), Platt().fit(z, drawn(z))):
        again = from_parameters(fitted.parameters())
        assert type(again) is type(fitted) and again.parameters() == fitted.parameters()
        assert np.array_equal(again.transform(z), fitted.transform(z))
    for bad in ({}, {"kind": "isotonic"}, {"kind": "platt", "slope": 1.0}):
        with pytest.raises(DataError, match="not the parameters of a calibration"):
            from_parameters(bad)


@pytest.mark.parametrize(
    ("scores", "y", "says"),
    [
        ([0.0, np.nan], [0, 1], "finite"),
        ([0.0, 1.0], [0, 1, 1], "as many labels"),
        ([], [], "as many labels"),
        ([0.0, 1.0], [0, 2], "probabilities"),
        ([[0.0, 1, 2], [1, 0, 2]], [0, 3], "columns of the scores, 0 to 2"),
        ([[0.0, 1], [1, 0]], [[0.5, 0.6], [1, 0]], "sum to one"),
        ([0.0, 1.0], ["a", "b"], "must be numbers"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(scores, y, says):
    with pytest.raises(DataError, match=says):
        Temperature().fit(scores, y)


def test_platt_is_for_one_score():
    with pytest.raises(DataError, match="use Temperature"):
        Platt().fit(logits(3), np.zeros(200, int))
    with pytest.raises(DataError, match="one score a document"):
        Platt().fit(logits(2), drawn(logits(2))).transform(logits(3))
