"""Baselines know what they should and nothing else; labels of nothing say nothing."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss, roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from headlens._errors import DataError
from headlens.probes.evaluation.baselines import (
    BagOfWords,
    Majority,
    RandomDirection,
    content_words,
    control_labels,
    permuted_labels,
    selectivity,
)
from headlens.probes.linear import Logistic
from headlens.probes.paths import split_folds

TWEETS = Path(__file__).parents[3] / "shared" / "data" / "tweet_stance_abortion"


@parametrize_with_checks([RandomDirection()])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# --- products ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_the_majority_is_scikit_learns_dummy(classes):
    y = np.array(["c", "a", "b"])[np.arange(50) ** 2 % 7 % classes]
    ours, theirs = Majority().fit(np.zeros((50, 2)), y), DummyClassifier().fit(np.zeros((50, 2)), y)
    X = ["three", "texts", "here"]
    assert ours.predict(X).tolist() == theirs.predict(X).tolist()
    assert np.allclose(ours.predict_proba(X), theirs.predict_proba(X))
    assert ours.decision_function(X).shape == ((3,) if classes == 2 else (3, 3))


def lines(name):
    return (TWEETS / name).read_text(encoding="utf-8").splitlines()


def test_a_bag_of_words_reads_what_tweets_say():
    texts, y = lines("train_text.txt"), np.array(lines("train_labels.txt"), dtype=int)
    unseen, truth = lines("test_text.txt"), np.array(lines("test_labels.txt"), dtype=int)
    bag = BagOfWords(penalties=(100.0, 10.0, 1.0, 0.1, 0.01)).fit(texts, y)
    assert 0.01 < bag.penalty_ < 100
    assert f1_score(truth, bag.predict(unseen), average="macro") > 0.45
    assert roc_auc_score(truth, bag.predict_proba(unseen), multi_class="ovr") > 0.65
    assert np.array_equal(bag.predict_proba(unseen), clone(bag).fit(texts, y).predict_proba(unseen))


def test_folds_learn_their_own_words():
    """A vocabulary and a fit of each fold alone find the same losses."""
    texts = np.array([f"{'yes' if i % 3 else 'no'} own{i} {'odd' if i % 2 else 'even'}" for i in range(60)])
    y = np.arange(60) % 2 ^ (np.arange(60) % 7 == 0)
    cold = np.zeros(2)
    for train, test in split_folds(y, None, folds=5, seed=0):
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        features, unseen = words.fit_transform(texts[train]), words.transform(texts[test])
        for i, penalty in enumerate((10.0, 1.0)):
            one = LogisticRegression(C=1 / penalty, tol=1e-9).fit(features, y[train])
            cold[i] += log_loss(y[test], one.predict_proba(unseen), normalize=False) / 60
    assert np.allclose(BagOfWords(penalties=(1.0, 10.0)).fit(texts.tolist(), y).losses_, cold, rtol=1e-5)


def test_a_bag_of_words_uses_groups_and_pairs_of_words():
    texts = ["not good", "good not", "!", "?"] * 10
    y = np.array([0, 1, 0, 1] * 10)
    assert BagOfWords().fit(texts, y).score(texts, y) == 1
    assert BagOfWords(n_words=1).fit(texts, y).score(texts, y) == 0.75
    copies = BagOfWords().fit([f"a{i // 4}" for i in range(80)], np.arange(80) // 4 % 2, groups=np.arange(80) // 4)
    assert copies.losses_.min() > 0.68


def test_a_bag_of_words_refuses_what_is_no_text():
    for texts, says in (([1, 2, 3], "list of strings"), ("one text", "list of strings"), (["", " ", ""], "has a word")):
        with pytest.raises(DataError, match=says):
            BagOfWords(penalties=(1.0,)).fit(texts, [0, 1, 0])
    with pytest.raises(DataError, match="y has 2 labels and X has 3"):
        BagOfWords().fit(["a", "b", "c"], [0, 1])


def test_a_random_direction_reads_along_one_line_alone():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 2
    X = rng.normal(size=(300, 20)) + 1.5 * y[:, None] * rng.normal(size=20)
    probe = RandomDirection(seed=1).fit(X, y)
    assert np.allclose(np.abs(probe.coef_[0] / np.linalg.norm(probe.coef_)), np.abs(probe.direction_))
    assert np.array_equal(probe.direction_, RandomDirection(seed=1).fit(-3 * X, 1 - y).direction_)
    assert not np.allclose(probe.direction_, RandomDirection(seed=2).fit(X, y).direction_)
    along = X @ probe.direction_
    best = max(roc_auc_score(y, along), roc_auc_score(y, -along))
    assert roc_auc_score(y, probe.decision_function(X)) == pytest.approx(best)
    far = RandomDirection(seed=1).fit(X + 50, y)
    assert np.allclose(far.decision_function(X + 50), probe.decision_function(X), atol=1e-6)
    many = np.arange(300) % 3
    assert RandomDirection().fit(X, many).predict_proba(X).shape == (300, 3)


# --- permuted labels --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 100), st.booleans())
def test_permuting_keeps_counts_and_the_seed_decides(y, seed, grouped):
    groups = np.arange(len(y)) // 3 if grouped else None
    one, same = (permuted_labels(y, groups=groups, seed=seed) for _ in range(2))
    assert sorted(one.tolist()) == sorted(y) and np.array_equal(one, same)


def test_groups_of_one_size_trade_labels_whole():
    groups = np.tile(np.arange(20), 4)
    one_label = np.arange(20)[groups] % 2
    for seed in range(10):
        dealt = permuted_labels(one_label, groups=groups, seed=seed)
        assert all(len(set(dealt[groups == g])) == 1 for g in range(20))
        assert not np.array_equal(dealt, one_label)
    pairs = np.arange(40) // 2
    dealt = [permuted_labels(np.arange(40) % 2, groups=pairs, seed=seed) for seed in range(400)]
    assert all((one.reshape(20, 2).sum(1) == 1).all() for one in dealt)  # a true and a false statement each
    assert np.allclose(np.mean(dealt, axis=0), 0.5, atol=0.1)  # and either may come first


@pytest.mark.parametrize("grouped", [False, True])
def test_every_place_gets_every_label_alike(grouped):
    y = np.array([0, 0, 0, 1, 1, 0, 0, 1, 0, 0])
    groups = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, 3]) if grouped else None
    mean = np.mean([permuted_labels(y, groups=groups, seed=seed) for seed in range(3000)], axis=0)
    assert np.allclose(mean, 0.3, atol=0.04)


# --- control tasks ----------------------------------------------------------------------------------------


def test_a_words_label_is_its_own_and_classes_keep_their_shares():
    y = np.array(["yes"] * 3 + ["no"] * 7)[np.arange(20_000) % 10]
    words = np.arange(20_000) // 2
    labels = control_labels(words, y, seed=0)
    assert (labels[::2] == labels[1::2]).all()
    assert np.mean(labels == "yes") == pytest.approx(0.3, abs=0.015)
    order = np.random.default_rng(0).permutation(20_000)
    assert np.array_equal(control_labels(words[order], y, seed=0), labels[order])  # not of the order, nor of y's
    half = np.arange(2000)
    assert np.array_equal(control_labels(words[half], y[half], seed=0), labels[half])  # nor of the other words
    assert not np.array_equal(control_labels(words, y, seed=1), labels)
    assert np.mean(labels == y) == pytest.approx(0.58, abs=0.02)  # chance: .3^2 + .7^2


def test_control_labels_are_golden():
    """Drawn by a hash, they are alike on every machine and in every process."""
    words = ["the", "cat", "sat", "mat", "dog", "ran"]
    assert control_labels(words, [0, 1, 0, 1, 0, 1], seed=0).tolist() == [1, 1, 1, 1, 0, 0]


def test_control_labels_of_one_word_are_refused():
    with pytest.raises(DataError, match="1 words drew one label all"):
        control_labels(["a"] * 4, [0, 1, 0, 1], seed=0)
    with pytest.raises(DataError, match="y has 3 labels"):
        control_labels(["a"] * 4, [0, 1, 0], seed=0)


def test_content_words():
    texts = ["The Cat sat", "it was of THE", "", "@user so Happy", "  ...  "]
    assert content_words(texts) == ["cat", "it", "", "user", ""]


def test_a_probe_of_word_identity_is_not_selective_and_one_of_meaning_is():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 40, 2000)
    y = rng.integers(0, 2, 2000)
    control = control_labels(words, y, seed=1)
    train, test = slice(0, 1000), slice(1000, 2000)

    def accurate(X):
        answers = [Logistic(penalties=(1.0,)).fit(X[train], one[train]).predict(X[test]) for one in (y, control)]
        return selectivity(y[test], answers[0], control[test], answers[1])

    identity = np.eye(40)[words]
    meaning = 3.0 * y[:, None] + rng.normal(size=(2000, 1))
    only_words, only_meaning = accurate(identity), accurate(meaning)
    assert only_words.control == 1.0 and only_words.value < -0.4
    assert only_meaning.task > 0.9 and only_meaning.value > 0.25
    assert only_meaning.low < only_meaning.value < only_meaning.high


def test_selectivity_pairs_the_documents():
    found = selectivity([1, 1, 0, 0], [1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0])
    assert (found.task, found.control, found.value) == (0.75, 0.5, 0.25)
    same = selectivity([0, 1] * 10, [0, 0] * 10, [0, 1] * 10, [0, 0] * 10)
    assert (same.low, same.high) == (0, 0)  # right and wrong on the same documents
    with pytest.raises(DataError, match="one a document"):
        selectivity([0, 1], [0, 1], [0], [0])
