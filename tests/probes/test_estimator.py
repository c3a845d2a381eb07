import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from headlens._errors import DataError, StoreMismatch
from headlens.probes import AttentionProbe, Probe
from headlens.probes.targets import deal, read_targets
from headlens.probes.training.pooling import POOLINGS
from tests.probes.documents import pack, padded, random_documents

N = 80
LENGTHS = np.random.default_rng(0).integers(1, 12, N).tolist()
DOCUMENTS = [one.numpy() for one in random_documents(LENGTHS, 5)]
MEANS = np.stack([one.mean(0) for one in DOCUMENTS])
Y = MEANS[:, 0] > 0
FAST = {"steps": 60, "batch": 40, "n_heads": 1}
DIRECT = {"optimizer": "lbfgs", "penalty": 0.001, "n_heads": 1}


# --- the contract ---


def test_constructing_only_stores_and_cloning_gives_the_same_again():
    probe = Probe("ema", penalty="cv", before=[3], seed=7)
    other = clone(probe)
    assert other is not probe and other.get_params() == probe.get_params()
    assert not [name for name in vars(probe) if name.endswith("_")]
    assert AttentionProbe(4).get_params()["n_heads"] == 4
    assert clone(AttentionProbe(4, seed=3)).get_params() == AttentionProbe(4, seed=3).get_params()
    assert probe.set_params(pooling="mean").pooling == "mean"
    assert is_classifier(probe) and is_regressor(Probe(task="regression"))


def test_fitting_returns_the_probe_and_changes_no_parameter():
    probe = Probe("attention", **FAST)
    before = copy.deepcopy(probe.get_params())
    assert probe.fit(DOCUMENTS, Y) is probe
    assert probe.get_params() == before


@pytest.mark.parametrize("optimizer", ["adamw", "lbfgs"])
def test_the_same_seed_gives_the_same_bytes(optimizer):
    scores = [
        Probe("attention", n_heads=2, optimizer=optimizer, steps=20, seed=5)
        .fit(DOCUMENTS, Y)
        .decision_function(DOCUMENTS)
        for _ in range(2)
    ]
    assert scores[0].tobytes() == scores[1].tobytes()


def test_it_works_in_searches_pipelines_and_cross_validation():
    pipeline = Pipeline([("scale", FunctionTransformer(_doubled)), ("probe", Probe(**DIRECT, steps=30))])
    search = GridSearchCV(pipeline, {"probe__pooling": ["last", "mean"], "probe__penalty": [0.001, 1.0]}, cv=3)
    search.fit(DOCUMENTS, Y)
    assert search.best_params_["probe__pooling"] == "mean"
    assert search.predict(DOCUMENTS).mean() == pytest.approx(Y.mean(), abs=0.1)
    groups = np.arange(N) // 2
    scores = cross_val_score(Probe("mean", **DIRECT), DOCUMENTS, Y, groups=groups, cv=GroupKFold(4), scoring="roc_auc")
    assert scores.min() > 0.85


def _doubled(documents):
    return [2 * one for one in documents]


def test_every_form_of_the_same_documents_gives_the_same_probe():
    rows = pack(torch.as_tensor(one) for one in DOCUMENTS)
    scores = []
    for X, mask in [
        (DOCUMENTS, None),
        (rows, None),
        *(padded([torch.as_tensor(d) for d in DOCUMENTS], s) for s in ("left", "right")),
    ]:
        probe = Probe("attention", n_heads=2, optimizer="lbfgs", steps=20).fit(X, Y, mask=mask)
        scores.append(probe.decision_function(X, mask=mask))
    for other in scores[1:]:
        np.testing.assert_array_equal(scores[0], other)


def test_an_array_of_one_row_a_document():
    probe = Probe("mean", **DIRECT).fit(MEANS, Y)
    assert probe.score(MEANS, Y) > 0.95


# --- tasks ---


def test_two_classes_of_any_kind():
    names = np.where(Y, "yes", "no")
    probe = Probe("mean", **DIRECT).fit(DOCUMENTS, names)
    assert probe.classes_.tolist() == ["no", "yes"] and probe.task_ == "binary"
    logits = probe.decision_function(DOCUMENTS)
    assert logits.shape == (N,)
    assert (probe.predict(DOCUMENTS) == np.where(logits > 0, "yes", "no")).all()
    np.testing.assert_allclose(probe.predict_proba(DOCUMENTS)[:, 1], 1 / (1 + np.exp(-logits)))
    assert probe.score(DOCUMENTS, names) > 0.95


def test_logits_are_cut_at_0_and_not_at_one_half():
    """The published code compares logits with 0.5, a probability of 0.62."""
    probe = Probe("mean", optimizer="lbfgs", penalty=0.1).fit(DOCUMENTS, Y)
    logits = probe.decision_function(DOCUMENTS)
    between = (logits > 0) & (logits < 0.5)
    assert between.any() and probe.predict(DOCUMENTS)[between].all()
    probe.threshold_ = 0.5
    assert not probe.predict(DOCUMENTS)[between].any()


def test_several_classes():
    y = np.array(["a", "b", "c"])[MEANS[:, :3].argmax(1)]
    probe = Probe("mean", **DIRECT).fit(DOCUMENTS, y)
    assert probe.decision_function(DOCUMENTS).shape == (N, 3)
    np.testing.assert_allclose(probe.predict_proba(DOCUMENTS).sum(1), 1)
    assert probe.score(DOCUMENTS, y) > 0.95


def test_several_labels():
    y = (MEANS[:, :2] > 0).astype(int)
    probe = Probe("mean", **DIRECT).fit(DOCUMENTS, y)
    assert probe.task_ == "multilabel" and not hasattr(probe, "classes_")
    assert probe.predict_proba(DOCUMENTS).shape == (N, 2)
    assert (probe.predict(DOCUMENTS) == y).mean() > 0.95


@pytest.mark.parametrize("columns", [1, 2])
def test_numbers(columns):
    y = MEANS[:, :columns] * 3 + 1
    y = y[:, 0] if columns == 1 else y
    probe = Probe("mean", task="regression", **DIRECT).fit(DOCUMENTS, y)
    assert probe.predict(DOCUMENTS).shape == y.shape
    assert probe.score(DOCUMENTS, y) > 0.99
    assert Probe("mean", **DIRECT).fit(DOCUMENTS, y).task_ == "regression"
    with pytest.raises(DataError, match="no probabilities"):
        probe.predict_proba(DOCUMENTS)


@pytest.mark.parametrize("options", [{}, {"before": (4,)}, {"after": (5,)}, {"pooling": "multimax", "n_heads": 2}])
@pytest.mark.parametrize("columns", [1, 2])
def test_units_of_numbers_do_not_matter(columns, options):
    documents = random_documents(np.random.default_rng(0).integers(2, 9, 80).tolist(), 4)
    y = np.stack([x[:, :columns].mean(0).numpy() for x in documents])
    scale, shift = np.array([300.0, 0.01])[:columns], np.array([5000.0, -2.0])[:columns]
    pooling = options.get("pooling", "mean")
    near, far = (
        Probe(**{"pooling": pooling, "steps": 60, **options}).fit(documents, numbers)
        for numbers in (y, y * scale + shift)
    )
    np.testing.assert_allclose(
        far.predict(documents).reshape(80, -1),
        near.predict(documents).reshape(80, -1) * scale + shift,
        rtol=1e-5,
        atol=1e-5,
    )
    assert far.loss_ == pytest.approx(near.loss_, rel=1e-4)
    contributions = far.score_tokens(documents)
    for own, said in zip(contributions, far.predict(documents).reshape(80, -1), strict=True):
        if not options.get("after"):
            np.testing.assert_allclose(
                own.reshape(len(own), -1).sum(0) + far.module_.bias.detach().numpy(), said, rtol=1e-4, atol=1e-4
            )


def test_soft_labels():
    soft = 1 / (1 + np.exp(-3 * MEANS[:, 0]))
    probe = Probe("mean", task="binary", optimizer="lbfgs", n_heads=1, tolerance=1e-8).fit(DOCUMENTS, soft)
    np.testing.assert_allclose(probe.predict_proba(DOCUMENTS)[:, 1], soft, atol=1e-4)
    rows = np.stack([soft / 2, soft / 2, 1 - soft], 1)
    probe = Probe("mean", task="multiclass", optimizer="lbfgs", n_heads=1, tolerance=1e-8).fit(DOCUMENTS, rows)
    np.testing.assert_allclose(probe.predict_proba(DOCUMENTS), rows, atol=1e-3)


def test_labels_of_spans():
    """Tokens without a label are not learned from, and get an answer like others."""
    y = [np.where(one[:, 1] > 0.2, np.nan, one[:, 0] > 0) for one in DOCUMENTS]
    probe = Probe("token", optimizer="lbfgs", penalty=0.001).fit(DOCUMENTS, y)
    assert [len(one) for one in probe.predict(DOCUMENTS)] == LENGTHS
    assert probe.score(DOCUMENTS, y) > 0.95
    whole = np.concatenate([one[:, 0] > 0 for one in DOCUMENTS])
    assert (np.concatenate(probe.predict(DOCUMENTS)) == whole).mean() > 0.95
    packed = Probe("token", optimizer="lbfgs", penalty=0.001).fit(DOCUMENTS, np.concatenate(y))
    np.testing.assert_array_equal(packed.decision_function(DOCUMENTS)[0], probe.decision_function(DOCUMENTS)[0])


# --- options ---


def test_balanced_classes_weigh_the_rare_one_up():
    rare = MEANS[:, 0] > np.quantile(MEANS[:, 0], 0.9)
    noisy = rare ^ (np.random.default_rng(0).random(N) < 0.1)
    plain, balanced, named = (
        Probe("last", **DIRECT, class_weight=w).fit(DOCUMENTS, noisy) for w in (None, "balanced", {True: 1e3})
    )
    shares = [one.predict(DOCUMENTS).mean() for one in (plain, balanced, named)]
    assert shares[0] < shares[1] < shares[2]


def test_a_document_counts_as_much_as_its_weight():
    weights = np.where(np.arange(N) < 40, 1.0, 0.0)
    one = Probe("mean", **DIRECT).fit(DOCUMENTS, Y, sample_weight=weights)
    other = Probe("mean", **DIRECT).fit(DOCUMENTS[:40], Y[:40])
    np.testing.assert_allclose(one.decision_function(DOCUMENTS), other.decision_function(DOCUMENTS), rtol=1e-4)


def test_the_penalty_is_chosen_on_documents_left_out():
    rng = np.random.default_rng(0)
    noise = rng.random(N) < 0.5
    probe = Probe("mean", optimizer="lbfgs", penalty="cv", penalties=(0.0, 0.01, 10.0)).fit(DOCUMENTS, noise)
    assert probe.penalty_ == 10.0  # of labels that say nothing, the less is learned the better
    assert probe.losses_.shape == (3,) and probe.losses_[2] == pytest.approx(np.log(2), abs=0.02)
    assert Probe("mean", optimizer="lbfgs", penalty="cv", penalties=(0.001, 10.0)).fit(DOCUMENTS, Y).penalty_ == 0.001
    best = Probe("mean", optimizer="lbfgs", penalty=10.0).fit(DOCUMENTS, noise)
    np.testing.assert_array_equal(best.decision_function(DOCUMENTS), probe.decision_function(DOCUMENTS))


def test_groups_are_on_one_side_of_every_split():
    """Copies of a document would otherwise make memorising look good."""
    rng = np.random.default_rng(1)
    base = [rng.normal(size=(4, 40)) for _ in range(30)]
    noise = rng.random(30) < 0.5
    copies, y, groups = base * 4, np.tile(noise, 4), np.tile(np.arange(30), 4)
    options = {"optimizer": "lbfgs", "penalty": "cv", "penalties": (0.001, 1.0)}
    assert Probe("mean", **options).fit(copies, y).penalty_ == 0.001
    assert Probe("mean", **options).fit(copies, y, groups=groups).penalty_ == 1.0


def test_folds_hold_alike_shares_and_whole_groups():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 30, 200)
    strata = (groups % 3 == 0).astype(int)
    fold = deal(200, 5, strata, groups, seed=0)
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    assert np.ptp(np.bincount(deal(200, 5, strata, None, 0))) <= 1
    assert np.ptp(np.bincount(deal(200, 5, strata, None, 0)[strata == 1])) <= 1


def test_attention_trained_may_be_used_as_a_maximum():
    probe = Probe("attention", **FAST).fit(DOCUMENTS, Y)
    other = probe.with_pooling("multimax")
    tokens = [one @ probe.module_.value[0].detach().numpy() for one in DOCUMENTS]
    wanted = np.array([one.max() for one in tokens])
    got = other.decision_function(DOCUMENTS)
    np.testing.assert_allclose(got - got[0], wanted - wanted[0], atol=1e-9)
    assert other.pooling == "multimax" and probe.pooling == "attention"


# --- inside ---


@pytest.mark.parametrize("pooling", POOLINGS)
def test_attention_and_token_scores_of_each_document(pooling):
    y = Y if pooling != "token" else [one[:, 0] > 0 for one in DOCUMENTS]
    probe = Probe(pooling, steps=10, batch=40).fit(DOCUMENTS, y)
    attention, tokens, logits = (f(DOCUMENTS) for f in (probe.attention, probe.score_tokens, probe.decision_function))
    assert [one.shape for one in attention] == [(n, probe.module_.shape.n_heads) for n in LENGTHS]
    assert [one.shape for one in tokens] == [(n,) for n in LENGTHS]
    bias = probe.module_.bias.item()
    for own, logit in zip(tokens, logits, strict=True):
        np.testing.assert_allclose((own if pooling == "token" else own.sum()) + bias, logit, atol=1e-9)
    if pooling in (
        "mean",
        "last",
        "max",
        "absmax",
        "softmax",
        "attention",
        "rolling_attention",
        "rolling_mean_max",
        "ema",
    ):
        np.testing.assert_allclose([one.sum(0) for one in attention], 1)  # weights of each head


def test_streaming_is_what_the_probe_says_of_the_prefix():
    probe = Probe("rolling_attention", n_heads=2, steps=20).fit(DOCUMENTS, Y)
    stream, document = probe.stream(), DOCUMENTS[int(np.argmax(LENGTHS))]
    for n, row in enumerate(document, 1):
        assert stream.update(row) == pytest.approx(probe.decision_function([document[:n]])[0], abs=1e-9)


# --- bad input ---


@pytest.mark.parametrize(
    "X, y, message",
    [
        (DOCUMENTS, Y[:-1], "79 labels and X has 80"),
        (DOCUMENTS, np.ones(N), "one class only"),
        (DOCUMENTS[:9], np.arange(9), "9 classes for 9 documents"),
        (DOCUMENTS, np.where(np.arange(N) == 3, np.nan, Y), "no label for document 3"),
        (DOCUMENTS, None, "requires y"),
        ([*DOCUMENTS[:-1], DOCUMENTS[0][:0]], Y, "Document 79 has no rows"),
        ([*DOCUMENTS[:-1], DOCUMENTS[0] * np.nan], Y, "Document 79 holds NaN"),
        ([*DOCUMENTS[:-1], DOCUMENTS[0][:, :2]], Y, "rows of one width"),
        (np.zeros((N, 3, 5)), Y, "needs mask="),
    ],
)
def test_what_cannot_be_learned_is_refused(X, y, message):
    with pytest.raises(DataError, match=message):
        Probe("attention", **FAST).fit(X, y)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pooling": "median"}, "pooling must be one of"),
        ({"pooling": "mean", "n_heads": 3}, "n_heads must be 1"),
        ({"task": "ranking"}, "task must be one of"),
        ({"validation_fraction": 1.0}, "validation_fraction must be"),
        ({"optimizer": "lbfgs", "validation_fraction": 0.2}, "does not stop early"),
        ({"penalty": "auto"}, "penalty must be"),
        ({"penalty": -1.0}, "penalty must be"),
        ({"class_weight": {"maybe": 2.0}}, "class_weight must be"),
        ({"task": "regression", "class_weight": "balanced"}, "goes with classes"),
        ({"penalty": "cv", "folds": 1}, "folds must be"),
        ({"setting": 3.0}, "has no setting"),
        ({"steps": 0}, "steps must be"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        Probe().set_params(**options).fit(DOCUMENTS, Y)


def test_a_document_without_rows_has_the_bias_as_its_score():
    for pooling in POOLINGS:
        if pooling == "token":
            continue
        probe = Probe(pooling, steps=5).fit(DOCUMENTS, Y)
        scores = probe.decision_function([DOCUMENTS[0], DOCUMENTS[0][:0], DOCUMENTS[1]])
        assert scores[1] == pytest.approx(probe.module_.bias.item())
        np.testing.assert_allclose(scores[[0, 2]], probe.decision_function(DOCUMENTS[:2]), atol=1e-9)


def test_rows_of_another_model_or_site_are_refused():
    source = {"model": "a", "revision": "1", "site": "blocks.3.hook_resid_post"}
    tensors = [torch.as_tensor(one) for one in DOCUMENTS]
    probe = Probe("mean", **DIRECT).fit(pack(tensors, source), Y)
    assert probe.source_ == source
    probe.predict(pack(tensors, source))
    for name, value in [("model", "b"), ("revision", "2"), ("site", "blocks.4.hook_resid_post")]:
        with pytest.raises(StoreMismatch, match=value):
            probe.predict(pack(tensors, source | {name: value}))
    with pytest.raises(DataError, match="rows of 4 numbers"):
        probe.predict([one[:, :4] for one in DOCUMENTS])


@pytest.mark.parametrize(
    "y, task, wanted",
    [
        (["a", "b", "a"], "auto", "binary"),
        ([0, 1, 0], "auto", "binary"),
        ([0.0, 1.0, 2.0, 2.0], "auto", "multiclass"),
        ([0.5, 1.5, 2.0], "auto", "regression"),
        ([1, 2, 2], "regression", "regression"),
        ([[0, 1], [1, 1]], "auto", "multilabel"),
        ([[0.5, 1], [1, 1]], "auto", "regression"),
        ([[0.5, 0.5], [0, 1]], "multiclass", "multiclass"),
        ([0, 1, 1], "multiclass", "multiclass"),
    ],
)
def test_a_task_is_what_labels_look_like(y, task, wanted):
    assert read_targets(y, task, len(y)).task == wanted


@pytest.mark.parametrize(
    "y, task, message",
    [
        ([0, 1, 2, 2], "binary", "3 classes"),
        ([0.2, 1.5, 0.1], "binary", "between 0 and 1"),
        ([[0.2, 0.2], [0, 1]], "multiclass", "sum to 1"),
        (["a", "b", "a"], "regression", "must be numbers"),
        ([np.inf, 0.5, 1.0], "regression", "infinite"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused(y, task, message):
    with pytest.raises(DataError, match=message):
        read_targets(y, task, len(y))


def test_what_is_handed_over_does_not_change():
    documents, y = copy.deepcopy(DOCUMENTS), Y.copy()
    for pooling in ("attention", "absmax", "ema"):
        probe = Probe(pooling, **FAST).fit(documents, y)
        probe.predict_proba(documents), probe.attention(documents), probe.score_tokens(documents)
    assert all((a == b).all() for a, b in zip(documents, DOCUMENTS, strict=True)) and (y == Y).all()
