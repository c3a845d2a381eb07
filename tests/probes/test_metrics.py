"""Metrics against scikit-learn, hand-computed curves and the laws that they obey."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn import metrics as theirs

from headlens._errors import DataError
from headlens._result import Provenance
from headlens.probes.evaluation.metrics import N_BINS, ROC_POINTS, Evaluation, entropy_ratio, evaluate, point_values
from headlens.probes.evaluation.roc import threshold_at_fpr, tpr_at_fpr

NAN = float("nan")


@st.composite
def scored(draw, both=True):
    """Labels, and scores of few values, so that many tie."""
    n = draw(st.integers(2, 40))
    y = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    if both:
        y[:2] = 0, 1
    return y, np.array(draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n)), dtype=float)


# --- TPR at FPR -------------------------------------------------------------------------------------------

# Best first: 5 |+|, 4 |+ -|, 3 |+ + -|, 1 |- +|, 0 |- -|. Hence (FPR, TPR): (0,0) (0,.2) (.2,.4) (.4,.8) (.6,1) (1,1).
TIED_SCORES = np.array([5, 4, 4, 3, 3, 3, 1, 1, 0, 0.0])
TIED_Y = np.array([1, 1, 0, 1, 1, 0, 0, 1, 0, 0])


@pytest.mark.parametrize(
    ("target", "tpr", "threshold"),
    [
        (0.0, 0.2, 4.5), (0.01, 0.2, 4.5), (0.199, 0.2, 4.5), (0.2, 0.4, 3.5), (0.3, 0.4, 3.5),
        (0.39, 0.4, 3.5), (0.4, 0.8, 2.0), (0.6, 1.0, 0.5), (0.99, 1.0, 0.5),
    ],
)  # fmt: skip
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1), [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]])
def test_a_tied_curve_computed_by_hand(target, tpr, threshold, order):
    y, scores = TIED_Y[order], TIED_SCORES[order]
    assert tpr_at_fpr(y, scores, target) == pytest.approx(tpr)
    assert threshold_at_fpr(y, scores, target) == threshold


def test_all_may_pass_or_none():
    assert tpr_at_fpr(TIED_Y, TIED_SCORES, 1.0) == 1
    assert (threshold_at_fpr(TIED_Y, TIED_SCORES, 1.0) < TIED_SCORES).all()
    assert tpr_at_fpr([1, 0, 1], [2.0, 2.0, 2.0], 0.5) == 0  # the nearest FPR would be 1
    assert threshold_at_fpr([1, 0, 1], [2.0, 2.0, 2.0], 0.5) == 2.0
    assert np.isnan(tpr_at_fpr([1, 1], [0.0, 1], 0.1)) and np.isnan(tpr_at_fpr([0, 0], [0.0, 1], 0.1))


@settings(max_examples=200)
@given(scored(), st.floats(0, 1))
def test_the_fpr_is_never_above_its_target_and_the_tpr_is_the_best_that_keeps_it(pair, target):
    y, scores = pair
    threshold = threshold_at_fpr(y, scores, target)
    above = scores > threshold
    assert above[y == 0].mean() <= target
    assert tpr_at_fpr(y, scores, target) == pytest.approx(above[y == 1].mean())
    others = [scores > cut for cut in np.append(np.unique(scores), -np.inf)]
    assert above[y == 1].mean() == max(o[y == 1].mean() for o in others if o[y == 0].mean() <= target)
    assert all(o.sum() <= above.sum() for o in others if o[y == 0].mean() <= target)  # the lowest threshold


@given(scored(both=False))
def test_positives_do_not_move_the_threshold_off_the_negatives(pair):
    _, scores = pair
    none = np.zeros(len(scores), dtype=int)
    assert (scores > threshold_at_fpr(none, scores, 0.25)).mean() <= 0.25
    with pytest.raises(DataError, match="documents of class 0"):
        threshold_at_fpr(none + 1, scores, 0.25)


def test_neighbouring_floats_are_told_apart():
    one, two, three = 1.0, 1.0 + 2.0**-52, 1.0 + 2.0**-51  # midway between the last two rounds up to the last
    for low, high in ((one, two), (two, three)):
        assert low <= threshold_at_fpr([0, 1], [low, high], 0.0) < high
    assert threshold_at_fpr([0, 1], [-1.7e308, 1.7e308], 0.0) == pytest.approx(0, abs=1e300)


def test_a_target_is_a_share():
    with pytest.raises(DataError, match="from 0 to 1"):
        tpr_at_fpr([0, 1], [0.0, 1], 1.5)
    with pytest.raises(DataError, match="one score a document"):
        tpr_at_fpr([0, 1, 2], np.zeros((3, 3)), 0.5)


# --- all metrics ------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(scored(), st.integers(-2, 2))
def test_two_classes_are_measured_as_scikit_learn_does(pair, threshold):
    y, scores = pair
    said = (scores > threshold).astype(int)
    ours = point_values(y, scores, threshold=float(threshold), targets=())
    assert ours == pytest.approx(
        {
            "accuracy": theirs.accuracy_score(y, said),
            "f1": theirs.f1_score(y, said, zero_division=0),
            "auroc": theirs.roc_auc_score(y, scores),
            "ap": theirs.average_precision_score(y, scores),
            "ece": ours["ece"],
            "brier": theirs.brier_score_loss(y, expit(scores)),
            "log_loss": theirs.log_loss(y, expit(scores)),
            "fnr": 1 - theirs.recall_score(y, said),
            "fpr": 1 - theirs.recall_score(y, said, pos_label=0),
        }
    )


def many(n=80, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return y, np.round(rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[y], 1)


def test_many_classes_are_measured_as_scikit_learn_does():
    y, scores = many()
    p = softmax(scores, axis=1)
    ours = point_values(y, scores)
    hot = np.eye(4)[y]
    assert ours == pytest.approx(
        {
            "accuracy": theirs.accuracy_score(y, scores.argmax(1)),
            "f1": theirs.f1_score(y, scores.argmax(1), average="macro"),
            "auroc": np.mean([theirs.roc_auc_score(hot[:, k], scores[:, k]) for k in range(4)]),
            "ap": np.mean([theirs.average_precision_score(hot[:, k], scores[:, k]) for k in range(4)]),
            "ece": ours["ece"],
            "brier": ((p - hot) ** 2).sum(1).mean(),
            "log_loss": theirs.log_loss(y, p),
        }
    )


@settings(max_examples=60, deadline=None)
@given(scored(), st.floats(0.1, 3), st.floats(-1, 1))
def test_what_ranks_alike_is_worth_the_same(pair, slope, shift):
    y, scores = pair
    bent = np.sinh(slope * scores) + shift
    one, other = point_values(y, scores), point_values(y, bent)
    for name in ("auroc", "ap", "tpr_at_fpr 0.05"):
        assert one[name] == pytest.approx(other[name])
    assert point_values(1 - y, -scores)["auroc"] == pytest.approx(one["auroc"])
    assert point_values(y, -scores)["auroc"] == pytest.approx(1 - one["auroc"])


def test_two_columns_are_their_difference():
    y, scores = many(classes=2)
    assert point_values(y, scores) == point_values(y, scores[:, 1] - scores[:, 0])
    assert point_values(y, scores[:, 1:]) == point_values(y, scores[:, 1])


@pytest.mark.parametrize("classes", [2, 4])
def test_calibration_error_and_its_table_bin_by_bin(classes):
    y, scores = many(500, classes)
    scores = scores[:, 1] - scores[:, 0] if classes == 2 else scores
    p = expit(scores) if classes == 2 else softmax(scores, axis=1).max(1)
    right = y if classes == 2 else scores.argmax(1) == y
    found = evaluate(y, scores, draws=0)
    error, counted = 0.0, 0
    for low, high, n, mean_p, share in found.reliability:
        inside = (p >= low) & ((p < high) | (high == 1))
        assert n == inside.sum()
        if n:
            assert (mean_p, share) == pytest.approx((p[inside].mean(), right[inside].mean()))
            error += abs(mean_p - share) * n / 500
        counted += n
    assert counted == 500 and len(found.reliability) == N_BINS
    assert found.value("ece") == pytest.approx(error)


def test_calibrated_scores_have_little_calibration_error():
    rng = np.random.default_rng(0)
    z = rng.normal(size=100_000) * 2
    y = (rng.random(100_000) < expit(z)).astype(int)
    assert evaluate(y, z, draws=0).value("ece") < 0.01
    assert evaluate(y, 3 * z, draws=0).value("ece") > 0.1


def test_the_curve_is_scikit_learns_and_stays_small():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    scores = np.round(rng.normal(size=300) + y, 1)
    fpr, tpr, cuts = theirs.roc_curve(y, scores, drop_intermediate=False)
    assert np.allclose(evaluate(y, scores, draws=0).roc[:, 1:], np.stack([fpr, tpr, cuts], 1))
    big = evaluate(rng.integers(0, 2, 50_000), rng.normal(size=50_000), draws=0).roc
    assert ROC_POINTS * 0.9 < len(big) <= ROC_POINTS + 2
    assert big[0, 1:3].tolist() == [0, 0] and big[-1, 1:3].tolist() == [1, 1]
    gaps = np.diff(big[:, 1] + big[:, 2])
    assert (gaps > 0).all() and gaps.max() < 2.5 * 2 / ROC_POINTS
    assert set(evaluate(*many(), draws=0).roc[:, 0]) == {0, 1, 2, 3}


# --- length -----------------------------------------------------------------------------------------------


def test_errors_by_length():
    lengths = np.array([0, 1, 2, 3, 3, 4, 7, 8])
    y = np.array([1, 0, 1, 1, 0, 1, 0, 0])
    scores = np.where([1, 1, 0, 1, 0, 1, 1, 0], 1.0, -1.0)
    rows = evaluate(y, scores, lengths=lengths, draws=0).table.to_pylist()
    found = {
        (r["metric"], r["tokens_from"], r["tokens_to"]): (r["value"], r["n"])
        for r in rows
        if r["tokens_to"] is not None
    }
    expected = {
        ("accuracy", 0, 0): (1, 1), ("fnr", 0, 0): (0, 1), ("fpr", 0, 0): (NAN, 0),
        ("accuracy", 1, 1): (0, 1), ("fnr", 1, 1): (NAN, 0), ("fpr", 1, 1): (1, 1),
        ("accuracy", 2, 3): (2 / 3, 3), ("fnr", 2, 3): (0.5, 2), ("fpr", 2, 3): (0, 1),
        ("accuracy", 4, 7): (0.5, 2), ("fnr", 4, 7): (0, 1), ("fpr", 4, 7): (1, 1),
        ("accuracy", 8, 15): (1, 1), ("fnr", 8, 15): (NAN, 0), ("fpr", 8, 15): (0, 1),
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for key, pair in expected.items():
        assert found[key] == pytest.approx(pair, nan_ok=True)


# --- intervals --------------------------------------------------------------------------------------------


def test_intervals_cover_the_truth_as_often_as_they_say():
    covered = np.zeros(2)
    truth = 0.7602499  # AUROC of normals one standard deviation apart: Phi(1 / sqrt 2)
    for seed in range(120):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 2, 200)
        rows = evaluate(y, rng.normal(size=200) + y, seed=seed, draws=200, targets=()).table.to_pylist()
        found = {row["metric"]: row for row in rows}
        covered += [found[m]["low"] <= t <= found[m]["high"] for m, t in (("auroc", truth), ("fpr", 0.5))]
    assert (covered / 120 > 0.88).all() and (covered / 120 < 0.99).all()


def test_groups_are_drawn_together():
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 2, 50), rng.normal(size=50)
    few = evaluate(y, scores, seed=1).table.to_pylist()
    often = evaluate(
        np.repeat(y, 9), np.repeat(scores, 9), groups=np.repeat([f"g{i:02}" for i in range(50)], 9), seed=1
    ).table.to_pylist()
    for a, b in zip(few, often, strict=True):
        assert [a["value"], a["low"], a["high"]] == pytest.approx([b["value"], b["low"], b["high"]], nan_ok=True)
    alone = evaluate(np.repeat(y, 9), np.repeat(scores, 9), seed=1).table.to_pylist()
    assert alone[0]["high"] - alone[0]["low"] < 0.5 * (few[0]["high"] - few[0]["low"])


@pytest.mark.parametrize(("n", "classes"), [(25, 2), (25, 3), (5, 2)])
def test_draws_are_explicit_resamplings(n, classes, monkeypatch):
    """Each drawn value is the metric of the documents repeated as often as drawn; without a class it does not count."""
    from headlens.probes.evaluation import metrics

    y, scores = many(n, classes)
    counts = metrics._counts(n, seed=4, draws=20)
    monkeypatch.setattr(metrics, "_NUMBERS", 60)  # several blocks
    low, high = (evaluate(y, scores, seed=4, draws=20).table.column(end).to_pylist() for end in ("low", "high"))
    again = [list(point_values(np.repeat(y, c), np.repeat(scores, c, axis=0)).values()) for c in counts]
    assert low == pytest.approx(np.nanquantile(again, 0.025, axis=0).tolist())
    assert high == pytest.approx(np.nanquantile(again, 0.975, axis=0).tolist())


def test_one_seed_one_answer_and_one_document_no_interval():
    y, scores = many(40)
    assert evaluate(y, scores, seed=3).table.equals(evaluate(y, scores, seed=3).table)
    assert not evaluate(y, scores, seed=3).table.equals(evaluate(y, scores, seed=4).table)
    alone = evaluate([1], [0.3])
    assert alone.value("accuracy") == 1 and np.isnan(alone.table.column("low").to_pylist()).all()
    assert np.isnan(evaluate([0, 1], [0.0, 1], groups=["a", "a"]).table.column("high").to_pylist()).all()


# --- results and bad input --------------------------------------------------------------------------------


def test_an_evaluation_is_saved_whole(tmp_path):
    y, scores = many()
    names = np.array(["a", "b", "c", "d"])
    found = evaluate(names[y], scores, classes=names, lengths=np.arange(80), provenance=Provenance(command="x"), seed=5)
    again = Evaluation.load(found.save(tmp_path / "e"))
    assert again.table.equals(found.table) and again.provenance == found.provenance
    assert np.array_equal(again.roc, found.roc) and np.array_equal(again.reliability, found.reliability, equal_nan=True)
    assert again.classes == ["a", "b", "c", "d"] and again.provenance.seed == 5 and again.provenance.command == "x"
    assert evaluate([0, 1], [0.0, 1]).value("tpr_at_fpr", at=0.01) == 1
    with pytest.raises(DataError, match="no metric 'auc'"):
        found.value("auc")


def test_what_cannot_be_told_is_nan_and_the_rest_is_told():
    found = point_values([1, 1, 1], [1.0, -1, 2], targets=(0.1,))
    assert [name for name, value in found.items() if np.isnan(value)] == ["auroc", "ap", "tpr_at_fpr 0.1", "fpr"]
    assert found["accuracy"] == pytest.approx(2 / 3)
    y, scores = many()
    lacks = y != 3
    assert point_values(y[lacks], scores[lacks])["auroc"] == pytest.approx(
        np.mean([theirs.roc_auc_score(y[lacks] == k, scores[lacks, k]) for k in range(3)])
    )


@pytest.mark.parametrize(
    ("y", "scores", "options", "says"),
    [
        ([0, 1], [0.0, NAN], {}, "document 1 is NaN or infinite"),
        ([0, 1], [[0.0, 1, 2], [np.inf, 0, 0]], {}, "document 1 is NaN or infinite"),
        ([0, 1, 1], [0.0, 1], {}, r"y must be one label a document, \(2,\)"),
        ([0, 2], [0.0, 1], {}, "Labels 2 are none of the classes"),
        (["a", "z"], [0.0, 1], {"classes": ["a", "b"]}, "Labels z are none of the classes"),
        ([0, 1], [0.0, 1], {"classes": ["a", "b", "c"]}, "scores of 2 classes but 3 names"),
        ([0, 1], np.zeros((2, 3)), {"threshold": 1.0}, "A threshold is for two classes"),
        ([0, 1], [0.0, 1], {"lengths": [3]}, "lengths must be one a document"),
        ([0, 1], [0.0, 1], {"groups": [3]}, "groups must be one a document"),
        ([], [], {}, "of some documents"),
    ],
)
def test_bad_input_is_refused(y, scores, options, says):
    with pytest.raises(DataError, match=says):
        evaluate(y, scores, **options)


# --- attention --------------------------------------------------------------------------------------------


def test_entropy_counts_real_tokens_not_those_that_are_looked_at():
    weights = np.array([[1, 0.25], [0, 0.25], [0, 0.25], [0, 0.25], [1, 1], [0.5, 0.5], [0.5, 0.0], [0, 0.5], [0, 0]])
    found = entropy_ratio(weights, [0, 4, 5, 5, 9])
    half = np.log(2) / np.log(4)  # of four tokens, two: not 1, as nonzero weights would have it
    assert np.allclose(found, [[0, 1], [NAN, NAN], [NAN, NAN], [half, half]], equal_nan=True)
    assert entropy_ratio(np.zeros((0, 3)), [0, 0]).shape == (1, 3)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 1000))
def test_entropy_of_packed_documents_is_that_of_each(lengths, seed):
    rng = np.random.default_rng(seed)
    each = [rng.dirichlet(np.ones(n), 3).T for n in lengths]
    found = entropy_ratio(np.concatenate(each), np.cumsum([0, *lengths]))
    for weights, ratio in zip(each, found, strict=True):
        n = len(weights)
        assert np.allclose(ratio, -(weights * np.log(weights)).sum(0) / np.log(n) if n > 1 else NAN, equal_nan=True)
        assert n == 1 or ((ratio >= 0) & (ratio <= 1 + 1e-12)).all()


@pytest.mark.parametrize(
    ("weights", "offsets", "says"),
    [
        ([[0.5], [0.4]], [0, 2], "sum to 1"),
        ([[1.5], [-0.5]], [0, 2], "at least 0"),
        ([[NAN], [0.5]], [0, 2], "sum to 1"),
        ([[1.0]], [0, 2], "offsets from 0 to the rows"),
        ([[0.5], [0.5]], [0, 2, 1, 2], "must not fall"),
        ([1.0], [0, 1], "must be"),
    ],
)
def test_what_is_no_attention_is_refused(weights, offsets, says):
    with pytest.raises(DataError, match=says):
        entropy_ratio(weights, offsets)
