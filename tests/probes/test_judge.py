"""A probe is judged by documents that neither it, its threshold, its calibration nor its rivals have met."""

import json

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import accuracy_score, roc_auc_score

from headlens._errors import DataError
from headlens.data.labelled import Labelled
from headlens.probes import LDA, AttentionProbe, entropy_ratio, permuted_labels
from headlens.probes.experiments.controls import rare_words
from headlens.probes.experiments.judge import fit_and_judge, judge, with_splits
from headlens.store.rows import ArrayRows, as_rows

SPLITS = np.array(["train", "train", "validation", "test", "test"])


def planted(n: int = 300, gap: float = 1.0, classes: int = 2, seed: int = 0) -> tuple[ArrayRows, Labelled]:
    """Rows whose mean says the class; texts that say nothing."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    rows = [rng.normal(size=(k, 5)).astype(np.float32) / 2 for k in rng.integers(1, 9, n)]
    for own, label in zip(rows, y, strict=True):
        own[:, label] += gap
    texts = tuple(f"w{rng.integers(40)} w{rng.integers(40)}" for _ in range(n))
    return as_rows(rows), Labelled(texts, y, SPLITS[np.arange(n) % 5], None, "planted")


def at(data: Labelled, split: str) -> np.ndarray:
    return np.flatnonzero(data.splits == split)


def changed(data: Labelled, split: str, labels: np.ndarray) -> Labelled:
    new = data.labels.copy()
    new[at(data, split)] = labels
    return Labelled(data.texts, new, data.splits, data.groups, data.source)


def learned(judged) -> tuple:
    probe = judged.probe
    return probe.coef_.tolist(), probe.threshold_, vars(probe.calibration_)


@pytest.mark.parametrize("calibration", ["temperature", "platt"])
def test_test_documents_change_no_probe_and_validation_documents_no_weight(calibration):
    rows, data = planted()
    options = {"fpr": 0.1, "calibration": calibration, "controls": False}
    first = fit_and_judge(LDA(), rows, data, **options)
    turned = changed(data, "test", 1 - data.labels[at(data, "test")])
    other = fit_and_judge(LDA(), rows, turned, **options)
    assert learned(first) == learned(other)
    assert other.evaluation.value("auroc") == pytest.approx(1 - first.evaluation.value("auroc"))
    noisy = data.labels[at(data, "validation")].copy()
    noisy[::3] = 1 - noisy[::3]
    third = fit_and_judge(LDA(), rows, changed(data, "validation", noisy), **options)
    np.testing.assert_array_equal(third.probe.coef_, first.probe.coef_)
    assert third.probe.threshold_ != first.probe.threshold_
    assert third.probe.calibration_.slope_ < first.probe.calibration_.slope_ if calibration == "platt" else True
    assert third.evaluation.value("auroc") == first.evaluation.value("auroc")  # of ranks, which neither can change


def test_the_figures_are_those_of_the_test_documents_alone():
    rows, data = planted()
    judged = fit_and_judge(LDA(), rows, data, fpr=0.05, controls=False)
    probe, tested, held = judged.probe, at(data, "test"), at(data, "validation")
    every = probe.decision_function(rows)
    y = data.labels[tested]
    assert judged.evaluation.value("auroc") == pytest.approx(roc_auc_score(y, every[tested]))
    assert judged.evaluation.value("accuracy") == pytest.approx(accuracy_score(y, every[tested] > probe.threshold_))
    of_first = every[held][data.labels[held] == 0]
    assert (of_first > probe.threshold_).sum() == int(0.05 * len(of_first))
    assert probe.threshold_set_["on"] == probe.calibration_set_["on"] == "planted: validation"
    assert judged.evaluation.provenance.data["split"] == "test"
    assert {row["n"] for row in judged.evaluation.table.to_pylist() if row["metric"] == "auroc"} == {len(tested)}
    json.dumps(judged.evaluation.provenance.data)


@pytest.mark.parametrize("calibration", ["temperature", "platt", "none"])
def test_without_a_rate_the_likelier_class_is_said(calibration):
    rows, data = planted(gap=0.4)
    judged = fit_and_judge(LDA(), rows, data, calibration=calibration, controls=False)
    tested = at(data, "test")
    likelier = judged.probe.predict_proba(rows)[tested, 1] > 0.5
    np.testing.assert_array_equal(judged.probe.predict(rows)[tested] == 1, likelier)
    assert judged.evaluation.value("accuracy") == pytest.approx(accuracy_score(data.labels[tested], likelier))
    assert judged.probe.threshold_set_ is None


def test_rivals_are_cut_at_their_own_threshold_on_the_same_documents():
    rows, data = planted(600)
    judged = fit_and_judge(LDA(), rows, data, fpr=0.1)
    assert list(judged.baselines) == ["majority", "bag of words", "random direction", "permuted labels"]
    for name, one in judged.baselines.items():
        fpr = next(row["value"] for row in one.table.to_pylist() if row["metric"] == "fpr")
        assert fpr <= 0.25, name  # a tenth on others, give or take
        assert one.value("auroc") == pytest.approx(0.5, abs=0.15) or name == "random direction"
    assert judged.evaluation.value("auroc") > 0.95
    beside = judged.evaluation.provenance.data["beside"]
    assert list(beside) == list(judged.baselines)


def test_controls_are_the_same_kind_of_probe_on_labels_of_nothing():
    rows, data = planted(gap=0.5)
    judged = fit_and_judge(LDA(), rows, data, calibration="none", seed=4)
    train, tested = at(data, "train"), at(data, "test")
    y = permuted_labels(data.labels, seed=4)
    probe = clone(LDA()).fit([rows.read(np.array([i])).numpy() for i in train], y[train])
    scores = probe.decision_function([rows.read(np.array([i])).numpy() for i in tested])
    assert judged.baselines["permuted labels"].value("auroc") == pytest.approx(roc_auc_score(y[tested], scores))
    found = judged.selectivity
    assert found.task == pytest.approx(judged.evaluation.value("accuracy"))
    assert found.value == pytest.approx(found.task - found.control) and found.low < found.value < found.high
    assert judged.evaluation.provenance.data["selectivity"]["value"] == found.value


def test_a_probe_that_knows_words_by_heart_is_found_out():
    """Rows that say which word it is and nothing else: as good on the control task as it can be."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 30, 300)
    eye = np.eye(30, dtype=np.float32)
    data = Labelled(
        tuple(f"word{w}" for w in words), rng.integers(0, 2, 300), SPLITS[np.arange(300) % 5], None, "words"
    )
    judged = fit_and_judge(LDA(), as_rows([eye[[w]] for w in words]), data)
    assert judged.selectivity.control > 0.95 and judged.selectivity.high < -0.2
    assert len(set(rare_words(data.texts))) == 30


def test_entropy_is_told_against_the_tokens_there_are():
    rows, data = planted(120)
    judged = fit_and_judge(AttentionProbe(2, steps=20), rows, data, controls=False)
    tested = at(data, "test")
    ratios = []
    for i in tested:
        (weights,) = judged.probe.attention([rows.read(np.array([i]))])
        if len(weights) > 1:
            p = np.asarray(weights, dtype=float)
            ratios.append((-(p * np.log(p)).sum(0) / np.log(len(p))).mean())
    assert judged.evaluation.provenance.data["entropy_ratio"] == pytest.approx(np.mean(ratios), abs=1e-5)
    assert entropy_ratio(np.ones((1, 1)), [0, 1])[0, 0] != 0  # one token is no certainty
    assert fit_and_judge(LDA(), rows, data, controls=False).evaluation.provenance.data["entropy_ratio"] is None


def test_more_than_two_classes_have_no_threshold():
    rows, data = planted(400, classes=3)
    judged = fit_and_judge(LDA(), rows, data, fpr=0.01)
    assert judged.probe.threshold_set_ is None and judged.evaluation.classes == [0, 1, 2]
    assert judged.evaluation.value("accuracy") > 0.8 > judged.baselines["majority"].value("accuracy")


# --- splits -----------------------------------------------------------------------------------------------


def test_what_is_missing_is_dealt_out_by_class_and_group():
    n = 200
    data = Labelled(("a",) * n, np.arange(n) % 4 == 0, None, np.array([f"g{i // 4}" for i in range(n)]), "x")
    found = with_splits(data, seed=1)
    for group in set(data.groups.tolist()):
        assert len(set(found.splits[data.groups == group])) == 1
    shares = {name: (found.splits == name).mean() for name in ("test", "validation", "train")}
    assert shares == pytest.approx({"test": 0.2, "validation": 0.16, "train": 0.64}, abs=0.03)
    for name in shares:
        assert data.labels[found.splits == name].mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(with_splits(data, seed=1).splits, found.splits)
    assert (with_splits(data, seed=2).splits != found.splits).any()


def test_splits_that_are_given_are_kept():
    _, data = planted()
    assert with_splits(data) is data or np.array_equal(with_splits(data).splits, data.splits)
    two = Labelled(data.texts, data.labels, np.where(data.splits == "validation", "train", data.splits), None, "x")
    found = with_splits(two)
    np.testing.assert_array_equal(found.splits == "test", two.splits == "test")
    assert (found.splits == "validation").sum() == pytest.approx((two.splits == "train").sum() / 5, abs=2)


def test_what_cannot_be_judged_is_refused():
    rows, data = planted(60)
    one = Labelled(data.texts, np.zeros(60, int), data.splits, None, "one.csv")
    with pytest.raises(DataError, match=r"one.csv has documents of one class only to learn from \(train\)"):
        with_splits(one)
    with pytest.raises(DataError, match="documents of one class only to be judged on"):
        with_splits(changed(data, "test", np.zeros(len(at(data, "test")), int)))
    tests = Labelled(data.texts, data.labels, np.full(60, "test"), None, "only.csv")
    with pytest.raises(DataError, match=r"no document to learn from \(train\)"):
        with_splits(tests)
    with pytest.raises(DataError, match="labels that are numbers, not classes"):
        with_splits(Labelled(data.texts, np.linspace(0, 1, 60), None, None, "n.csv"))
    with pytest.raises(DataError, match="60 documents and 59 labels"):
        fit_and_judge(LDA(), rows, data.take(np.arange(59)))
    with pytest.raises(DataError, match="names no splits"):
        fit_and_judge(LDA(), rows, Labelled(data.texts, data.labels, None, None, "x"))
    probe = LDA().fit([torch.randn(2, 5) for _ in range(8)], [0, 1] * 4)
    strange = Labelled(data.texts, np.array(["0", "1", "7"])[np.arange(60) % 3], None, None, "x")
    with pytest.raises(DataError, match="7|class"):
        judge(probe, rows, strange)
