"""Closed-form probes against theory, brute force and scikit-learn, and through scikit-learn's own checks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from headlens._errors import DataError, StoreMismatch
from headlens.probes import linear
from headlens.probes.evaluation.baselines import permuted_labels
from headlens.probes.linear import LDA, DifferenceOfMeans, Logistic, Ridge, RidgeRegression, pooled
from headlens.probes.paths import held_out_losses, logistic_path, ridge_path, split_folds
from headlens.store.rows import ArrayRows, Chosen

PROBES = (DifferenceOfMeans, LDA, Ridge, Logistic)
PENALTIES = np.array([1e3, 10.0, 0.1])


@parametrize_with_checks([DifferenceOfMeans(), LDA(), Ridge(), RidgeRegression(), Logistic()])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def two_gaussians(n, d=5, *, apart=2.0, seed=0):
    """Classes of one covariance whose means are `apart` standard deviations from each other along the best line."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(d, d))
    direction = rng.normal(size=d)
    y = rng.integers(0, 2, n)
    z = rng.normal(size=(n, d)) + np.outer(y, apart * direction / np.linalg.norm(direction))
    return z @ root + rng.normal(size=d), y


def blobs(n=120, d=6, classes=2, seed=0, apart=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return rng.normal(size=(n, d)) + apart * rng.normal(size=(classes, d))[y], y


# --- against theory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", [LDA(shrinkage=None), LDA(), Ridge(), Logistic()], ids=repr)
@pytest.mark.parametrize("apart", [0.5, 2.0])
def test_two_gaussians_are_told_apart_as_well_as_theory_allows(probe, apart):
    X, y = two_gaussians(13_000, apart=apart)
    scores = probe.fit(X[:3000], y[:3000]).decision_function(X[3000:])
    assert roc_auc_score(y[3000:], scores) == pytest.approx(norm.cdf(apart / np.sqrt(2)), abs=0.008)


@pytest.mark.parametrize("make", PROBES)
@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_log_odds(make, classes):
    rng = np.random.default_rng(0)
    means = rng.normal(size=(classes, 4))
    y = rng.choice(classes, 8000, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    X = means[y] + rng.normal(size=(8000, 4))
    probe = make().fit(X[:4000], y[:4000])
    truth = -((X[4000:, None] - means) ** 2).sum(2) / 2 + np.log(np.arange(1, classes + 1))
    best = log_loss(y[4000:], np.exp(truth) / np.exp(truth).sum(1, keepdims=True))
    slack = 0.05 if make is Ridge else 0.01  # least squares knows no spread that grows
    assert log_loss(y[4000:], probe.predict_proba(X[4000:])) < best + slack


def test_the_difference_of_means_points_along_it_and_splits_midway():
    X, y = blobs(100, 4)
    probe = DifferenceOfMeans().fit(X, y)
    gap, middle = X[y == 1].mean(0) - X[y == 0].mean(0), (X[y == 1].mean(0) + X[y == 0].mean(0)) / 2
    assert np.allclose(probe.coef_[0] / np.linalg.norm(probe.coef_), gap / np.linalg.norm(gap))
    assert probe.decision_function([middle])[0] == pytest.approx(0, abs=1e-12)  # classes of one size
    centred = X - np.stack([X[y == k].mean(0) for k in (0, 1)])[y]
    assert np.allclose(probe.coef_[0], gap / ((centred @ gap) ** 2).mean() * (gap @ gap))


def test_classes_without_spread_have_finite_scores():
    probe = DifferenceOfMeans().fit(np.array([[0.0], [0.0], [1.0], [1.0]]), [0, 0, 1, 1])
    assert probe.predict([[0.1], [0.9]]).tolist() == [0, 1]
    same = DifferenceOfMeans().fit(np.ones((4, 2)), [0, 0, 0, 1])
    assert np.allclose(same.predict_proba([[5.0, 5.0]]), [[0.75, 0.25]])


def test_random_labels_are_fitted_exactly_up_to_the_dimension_and_half_of_them_at_twice_that():
    d, rng = 12, np.random.default_rng(0)
    weak = {"penalties": (1e-6,), "standardize": False}
    for n, low, high in ((d + 1, 1.0, 1.0), (2 * (d + 1), 0.3, 0.7)):  # Cover 1965
        fitted = 0
        for _ in range(100):
            X, y = rng.normal(size=(n, d)), np.r_[0, 1, rng.integers(0, 2, n - 2)]
            fitted += Logistic(**weak).fit(X, y).score(X, y) == 1
        assert low <= fitted / 100 <= high


CLOSED = [(make, classes) for make in (DifferenceOfMeans, LDA, Ridge) for classes in (2, 3)]


@pytest.mark.parametrize(("make", "classes"), [*CLOSED, (lambda: Logistic(penalties=(1e3, 1.0), folds=2), 2)])
def test_permuted_labels_teach_nothing(make, classes):
    """Through the whole choice of a penalty; classes of one size, where leaving out is biased against them."""
    X, y = blobs(660, 20, classes, apart=2.0)
    area = []
    for seed in range(200):
        shuffled = permuted_labels(y, seed=seed)
        scores = make().fit(X[:60], shuffled[:60]).predict_proba(X[60:])
        area.append(roc_auc_score(shuffled[60:], scores[:, 1] if classes == 2 else scores, multi_class="ovr"))
    assert np.mean(area) == pytest.approx(0.5, abs=0.01)


# --- ridge ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 14), st.integers(1, 16), st.integers(1, 3), st.integers(0, 10_000), st.booleans())
def test_what_ridge_leaves_out_equals_brute_force(n, d, targets, seed, grouped):
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(n, d)) * 3 + 5, rng.normal(size=(n, targets))
    groups = np.r_[0, 1, rng.integers(0, n // 2, n - 2)] if grouped else np.arange(n)
    path = ridge_path(X, Y, PENALTIES, groups if grouped else None)
    for i, penalty in enumerate(PENALTIES):
        whole = SklearnRidge(alpha=penalty, solver="svd").fit(X, Y)
        assert np.allclose(path.coef[i], whole.coef_.reshape(targets, d), atol=1e-10)
        assert np.allclose(path.intercept[i], whole.intercept_, atol=1e-9)
        for train, test in LeaveOneGroupOut().split(X, groups=groups):
            left = SklearnRidge(alpha=penalty, solver="svd").fit(X[train], Y[train]).predict(X[test])
            assert np.abs(path.left_out[i][test] - left.reshape(len(test), targets)).max() <= 1e-8


def test_ridge_regression_is_scikit_learns():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 8))
    y = X @ rng.normal(size=8) + rng.normal(size=60)
    ours = RidgeRegression(penalties=tuple(PENALTIES), standardize=False).fit(X, y)
    theirs = RidgeCV(alphas=PENALTIES, store_cv_results=True).fit(X, y)
    assert ours.penalty_ == theirs.alpha_
    assert np.allclose(ours.losses_, theirs.cv_results_.mean(0))
    assert np.allclose(ours.predict(X), theirs.predict(X))
    both = RidgeRegression(standardize=False).fit(X, np.stack([y, -2 * y + 1], 1))
    assert np.allclose(both.predict(X)[:, 1], -2 * both.predict(X)[:, 0] + 1)


def test_groups_that_repeat_a_document_do_not_help_to_predict_it():
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(30, 40)), 4, axis=0)
    y = np.repeat(np.arange(30) % 2, 4)
    alone, grouped = Ridge().fit(X, y), Ridge().fit(X, y, groups=np.repeat(np.arange(30), 4))
    assert alone.losses_.min() < 0.1  # each document is seen three times more
    assert grouped.losses_.min() > 0.9 and grouped.penalty_ > alone.penalty_
    assert Logistic().fit(X, y, groups=np.repeat(np.arange(30), 4)).losses_.min() > 0.6


# --- logistic ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_the_logistic_path_is_scikit_learns_fit_at_every_penalty(classes):
    X, y = blobs(150, 8, classes)
    probe = Logistic(penalties=PENALTIES).fit(X, y)
    scaler = StandardScaler()
    for i, penalty in enumerate(PENALTIES):
        one = make_pipeline(scaler, LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=1000)).fit(X, y)
        scores = X @ probe.coef_path_[i].T + probe.intercept_path_[i]
        assert np.allclose(scores[:, 0] if classes == 2 else scores, one.decision_function(X), atol=2e-3)


def test_folds_learn_from_their_own_documents_alone():
    """A cold fit of each fold and penalty alone, scaled by the fold, finds the same losses."""
    X, y = blobs(60, 30)
    X[:, 0] *= 100
    probe = Logistic(penalties=PENALTIES, folds=4, seed=3).fit(X, y)
    cold = np.zeros(3)
    for train, test in split_folds(y, None, folds=4, seed=3):
        scaler = StandardScaler().fit(X[train])
        for i, penalty in enumerate(PENALTIES):
            one = LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=5000).fit(scaler.transform(X[train]), y[train])
            cold[i] += log_loss(y[test], one.predict_proba(scaler.transform(X[test])), normalize=False)
    assert np.allclose(probe.losses_, cold / 60, rtol=2e-3)
    assert probe.penalty_ == PENALTIES[probe.losses_.argmin()]


def test_folds_keep_groups_whole_and_every_document_is_left_out_once():
    codes, groups = np.arange(60) % 3, np.arange(60) // 6
    folds = split_folds(codes, groups, folds=4, seed=0)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(60))
    assert all(not set(groups[train]) & set(groups[test]) for train, test in folds)


def test_a_class_that_only_one_fold_holds_is_not_counted_there():
    X, y = blobs(40, 4, 3)
    y[y == 2] = 0
    y[0] = 2  # a single document of its class
    assert np.isfinite(Logistic(penalties=PENALTIES).fit(X, y).losses_).all()
    with pytest.raises(DataError, match="every class needs documents in two groups"):
        Logistic().fit(X, (np.arange(40) < 20).astype(int), groups=np.arange(40) < 20)


def test_one_penalty_needs_no_folds():
    X, y = blobs(3, 2)
    probe = Logistic(penalties=(1.0,)).fit(X, y)
    assert probe.penalty_ == 1.0 and np.isnan(probe.losses_).all()
    calls = []
    held_out_losses(lambda *a: calls.append(a), y, np.ones(1), folds=5, groups=None, seed=0)
    assert not calls


def test_equal_losses_choose_the_strongest_penalty():
    assert linear.least(np.array([0.5, 0.5, 0.7])) == 0
    assert linear.check_penalties((1, 100, 10)).tolist() == [100, 10, 1]


# --- what all share ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", PROBES)
@pytest.mark.parametrize("classes", [2, 3])
def test_weights_are_on_activations_as_they_come(make, classes):
    X, y = blobs(90, 5, classes)
    X = X * np.array([1e-3, 1, 1e3, 1, 1]) + np.array([0, 50, 0, 0, -3])
    names = np.array(["never", "often", "always"])[y]
    probe = make().fit(X, names)
    scores = X @ probe.coef_.T + probe.intercept_
    assert np.allclose(probe.decision_function(X), scores[:, 0] if classes == 2 else scores)
    assert (probe.predict(X) == probe.classes_[probe.predict_proba(X).argmax(1)]).all()
    assert make is DifferenceOfMeans or probe.score(X, names) > 0.6
    if classes == 2:
        assert np.allclose(probe.predict_proba(X)[:, 1], expit(probe.decision_function(X)))


@pytest.mark.parametrize("make", [lambda: LDA(shrinkage=None), LDA, Ridge, Logistic])
def test_units_of_features_do_not_matter(make):
    X, y = blobs(80, 4)
    scale = np.array([1e-2, 1, 30, 1e3])
    one, other = (make().fit(x, y).decision_function(x) for x in (X, X * scale + 7))
    assert np.allclose(one, other, atol=1e-3)


def test_lda_is_scikit_learns():
    X, y = blobs(90, 5, 3)
    theirs = LinearDiscriminantAnalysis(solver="svd").fit(X, y)
    assert np.allclose(LDA(shrinkage=None).fit(X, y).predict_proba(X), theirs.predict_proba(X))
    wide = np.random.default_rng(0).normal(size=(20, 50))
    assert np.isfinite(LDA().fit(wide, np.arange(20) % 2).coef_).all()


def test_the_threshold_moves_what_is_predicted():
    X, y = blobs(40, 3)
    probe = DifferenceOfMeans().fit(X, y)
    probe.threshold_ = float(np.sort(probe.decision_function(X))[-3])
    assert probe.predict(X).sum() == 2


# --- documents --------------------------------------------------------------------------------------------


def documents(n=24, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(int(length), d)).astype(np.float32) for length in rng.integers(1, 9, n)]


NAIVE = {
    "mean": lambda rows: rows.mean(0),
    "last": lambda rows: rows[-1],
    "max": lambda rows: rows.max(0),
    "absmax": lambda rows: rows[np.abs(rows).argmax(0), np.arange(rows.shape[1])],
}


@pytest.mark.parametrize("pooling", NAIVE)
@pytest.mark.parametrize("at_once", [5, 60, 10**6])
def test_pooling_is_that_of_each_document_in_whatever_blocks(pooling, at_once, monkeypatch):
    monkeypatch.setattr(linear, "CHUNK", at_once)
    texts = documents()
    expected = np.stack([NAIVE[pooling](one.astype(float)) for one in texts])
    rows = linear.as_rows(texts)
    assert np.allclose(pooled(rows, pooling), expected, atol=1e-12)
    assert np.allclose(pooled(Chosen(rows, np.array([3, 3, 0])), pooling), expected[[3, 3, 0]], atol=1e-12)


@pytest.mark.parametrize("pooling", NAIVE)
def test_every_form_of_input_gives_one_probe(pooling):
    texts = documents()
    y = np.arange(len(texts)) % 2
    padded = np.full((len(texts), 10, 5), np.nan, dtype=np.float32)
    mask = np.zeros((len(texts), 10), dtype=bool)
    for i, one in enumerate(texts):
        padded[i, 10 - len(one) :], mask[i, 10 - len(one) :] = one, True
    probe = Ridge(pooling).fit(texts, y)
    scores = probe.decision_function(texts)
    again = clone(probe).fit(padded, y, mask=mask)
    assert np.array_equal(again.coef_, probe.coef_)
    assert np.array_equal(probe.decision_function(torch.as_tensor(padded), mask=mask), scores)
    one_row = np.stack([NAIVE[pooling](one.astype(float)) for one in texts])
    assert np.allclose(clone(probe).fit(one_row, y).decision_function(one_row), scores)
    assert np.allclose(probe.decision_function(torch.as_tensor(one_row)), scores)


def test_a_document_without_rows_scores_the_bias_and_cannot_be_fitted():
    texts = [*documents(), np.zeros((0, 5), dtype=np.float32)]
    y = np.arange(len(texts)) % 2
    with pytest.raises(DataError, match="Document 24 has no rows"):
        Ridge().fit(texts, y)
    probe = Ridge().fit(texts[:-1], y[:-1])
    assert probe.decision_function(texts)[-1] == pytest.approx(probe.intercept_[0])
    assert probe.decision_function(ArrayRows(torch.zeros(0, 5), np.zeros(1, np.int64))).shape == (0,)


def test_reading_is_bounded(monkeypatch):
    monkeypatch.setattr(linear, "CHUNK", 5 * 20)
    most = []

    class Watched(ArrayRows):
        def read(self, some):
            out = super().read(some)
            most.append(len(out))
            return out

    rows = linear.as_rows(documents(50))
    pooled(Watched(rows.rows, rows.offsets), "mean")
    assert len(most) > 5 and max(most) <= 20


def test_grid_search_and_half_precision():
    texts = documents(30)
    y = np.arange(30) % 2
    search = GridSearchCV(Ridge(), {"pooling": ["mean", "last"]}, cv=3).fit(texts, y)
    assert search.best_params_["pooling"] in ("mean", "last")
    half = [torch.as_tensor(one).bfloat16() for one in texts]
    assert Ridge().fit(half, y).predict(half).shape == (30,)


def test_inputs_are_left_alone():
    texts, y = documents(), np.arange(24) % 2
    before = [one.copy() for one in texts]
    for make in PROBES:
        for array in (texts, np.stack([one[0] for one in texts])):
            make().fit(array, y).predict(array)
    assert all(np.array_equal(a, b) for a, b in zip(texts, before, strict=True))
    assert y.tolist() == [0, 1] * 12


# --- what cannot be ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The number of unique classes")  # scikit-learn's, before the refusal
@pytest.mark.parametrize("make", PROBES)
def test_bad_labels_and_activations_are_refused(make):
    X, y = blobs(12, 3)
    for labels, says in (
        (np.zeros(12), "one class only"),
        (np.arange(12), "12 classes for 12 documents"),
        (y[:5], "y has 5 labels and X has 12 documents"),
    ):
        with pytest.raises(DataError, match=says):
            make().fit(X, labels)
    texts = documents(12)
    texts[7] = texts[7].copy()
    texts[7][0, 2] = np.inf
    with pytest.raises(DataError, match="Document 7 "):
        make().fit(texts, y)
    with pytest.raises(ValueError, match="NaN"):
        make().fit(np.where(X > 1, np.nan, X), y)


def test_activations_of_another_model_or_width_are_refused():
    texts, y = documents(), np.arange(24) % 2
    rows = linear.as_rows(texts)
    here = ArrayRows(rows.rows, rows.offsets, {"model": "a", "site": "blocks.3.hook_resid_post"})
    there = ArrayRows(rows.rows, rows.offsets, {"model": "a", "site": "blocks.4.hook_resid_post"})
    probe = Ridge().fit(here, y)
    assert probe.source_ == here.source
    assert np.array_equal(probe.predict(here), probe.predict(texts))
    with pytest.raises(StoreMismatch, match=r"site blocks.3.hook_resid_post and X has site blocks.4"):
        probe.predict(there)
    with pytest.raises(DataError, match="rows of 4 numbers; this probe was fitted to 5"):
        probe.predict([one[:, :4] for one in texts])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"penalties": ()}, "penalties must be"),
        ({"penalties": (1.0, 0.0)}, "above 0"),
        ({"folds": 1}, "folds must be at least 2"),
        ({"pooling": "attention"}, "pooling must be one of mean, last, max, absmax"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(DataError, match=says):
        Logistic(**options).fit(documents(12), np.arange(12) % 2)


def test_bad_groups_are_refused():
    X, y = blobs(12, 3)
    with pytest.raises(DataError, match="one group only"):
        Ridge().fit(X, y, groups=np.zeros(12))
    with pytest.raises(DataError, match="groups must be one name a document"):
        Ridge().fit(X, y, groups=np.zeros(5))
    with pytest.raises(DataError, match="at least 2 documents"):
        RidgeRegression().fit(X[:1], y[:1])


def test_a_path_starts_from_nothing_and_goes_to_the_weakest():
    X, y = blobs(50, 4)
    norms = [np.linalg.norm(coef) for coef, _ in logistic_path(X, y, PENALTIES)]
    assert norms == sorted(norms)
