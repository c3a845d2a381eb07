"""A probe that was saved is the probe that was fitted, and says no to what the fitted one refused."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy.special import expit
from sklearn.exceptions import NotFittedError

import headlens as hl
from headlens._errors import DataError, ResultError, StoreMismatch
from headlens.probes import (
    LDA,
    AttentionProbe,
    DifferenceOfMeans,
    Logistic,
    Probe,
    Ridge,
    RidgeRegression,
    Temperature,
    evaluate,
)
from headlens.probes.card import CARD, WEIGHTS, read_card, same_source
from headlens.probes.training.pooling import POOLINGS
from tests.probes.documents import pack, random_documents

SOURCE = {"model": "m", "weights": "w", "revision": "r", "site": "blocks.0.ln1.hook_normalized", "head": None,
          "tokenizer": "t", "bos": True, "token_mask": {"bos": False}}  # fmt: skip


def labelled(n=60, seed=0, classes=2, source=None):
    documents = random_documents(np.random.default_rng(seed).integers(2, 12, n).tolist(), 5, seed, torch.float32)
    means = np.array([x[:, 0].mean().item() for x in documents])
    y = np.digitize(means, np.quantile(means, np.linspace(0, 1, classes + 1)[1:-1]))
    return pack(documents, source), np.array(["bad", "good", "odd"])[y]


TRAINED = [
    *(Probe(name, steps=8) for name in POOLINGS if name != "token"),
    AttentionProbe(2, before=(4,), after=(3, 2), steps=8, class_weight={"good": 2.0}),
    Probe("tanh", n_heads=2, slopes=False, steps=8, penalty="cv", folds=2),
]
SOLVED = [DifferenceOfMeans(), LDA("last"), Ridge(), Logistic("max")]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("probe", [*TRAINED, *SOLVED], ids=repr)
def test_what_was_saved_is_what_comes_back(probe, classes, tmp_path):
    rows, y = labelled(classes=classes, source=SOURCE)
    probe.fit(rows, y).calibrate(rows, y, on="the same")
    if classes == 2:
        probe.choose_threshold(rows, y, fpr=0.1, on="the same")
    back = hl.probes.load(probe.save(tmp_path / "probe", notes="a note"))
    fresh, _ = labelled(seed=1, classes=classes, source=SOURCE)
    assert type(back) is type(probe)
    np.testing.assert_equal(back.get_params(), probe.get_params())
    assert back.decision_function(fresh).tobytes() == probe.decision_function(fresh).tobytes()
    assert back.predict_proba(fresh).tobytes() == probe.predict_proba(fresh).tobytes()
    np.testing.assert_array_equal(back.predict(fresh), probe.predict(fresh))
    assert (back.threshold_, back.threshold_set_) == (probe.threshold_, probe.threshold_set_)
    assert back.calibration_set_ == probe.calibration_set_
    assert back.source_ == probe.source_
    again = back.save(tmp_path / "again")
    assert (again / WEIGHTS).read_bytes() == (tmp_path / "probe" / WEIGHTS).read_bytes()
    same = {name: read_card(tmp_path / "probe")[name] for name in read_card(again) if name != "notes"}
    assert {name: value for name, value in read_card(again).items() if name != "notes"} == same


@pytest.mark.parametrize(
    "probe, y",
    [
        (Probe("mean", steps=5), np.random.default_rng(0).normal(size=60)),
        (Probe("attention", steps=5), np.random.default_rng(0).normal(size=(60, 2))),
        (Probe("attention", steps=5), np.random.default_rng(0).integers(0, 2, (60, 3))),
        (RidgeRegression(), np.random.default_rng(0).normal(size=60)),
        (RidgeRegression(), np.random.default_rng(0).normal(size=(60, 2))),
    ],
    ids=["number", "numbers", "labels", "ridge", "ridges"],
)
def test_probes_without_classes_come_back_too(probe, y, tmp_path):
    rows, _ = labelled()
    back = hl.probes.load(probe.fit(rows, y).save(tmp_path / "probe"))
    assert back.predict(rows).tobytes() == probe.predict(rows).tobytes()
    assert back.predict(rows).shape == probe.predict(rows).shape
    with pytest.raises(DataError, match="two classes"):
        back.choose_threshold(rows, y)
    with pytest.raises(DataError, match="probes of classes"):
        back.calibrate(rows, y)


def test_a_probe_of_tokens_is_calibrated_and_cut_on_rows_that_have_a_label(tmp_path):
    rows, _ = labelled()
    y = [np.where(x[:, 0] > 0, 1.0, 0.0) for x in rows.rows.split(rows.lengths.tolist())]
    y[0][:] = math.nan
    probe = Probe("token", steps=20).fit(rows, y).calibrate(rows, y).choose_threshold(rows, y, fpr=0.05)
    labels, scores = np.concatenate(y), np.concatenate(probe.decision_function(rows))
    assert probe.threshold_set_["n"] == probe.calibration_set_["n"] == np.isfinite(labels).sum()
    assert (scores[labels == 0] > probe.threshold_).sum() == math.floor(0.05 * (labels == 0).sum())
    back = hl.probes.load(probe.save(tmp_path / "probe"))
    np.testing.assert_array_equal(np.concatenate(back.predict(rows)), np.concatenate(probe.predict(rows)))


@pytest.mark.parametrize("fpr", [0.0, 0.02, 0.1, 0.5])
def test_the_threshold_is_the_lowest_that_lets_no_more_through(fpr):
    rows, y = labelled(200)
    probe = Probe("mean", steps=20).fit(rows, y).choose_threshold(rows, y, fpr=fpr, on="train")
    scores, bad = probe.decision_function(rows), y == "bad"
    assert (probe.predict(rows)[bad] == "good").sum() == math.floor(fpr * bad.sum())  # one more would be one too many
    assert len(set(scores)) == 200
    assert probe.threshold_set_["on"] == "train" and probe.threshold_set_["fpr"] == fpr


def test_documents_of_the_first_class_alone_set_a_threshold():
    rows, y = labelled(100)
    probe = Probe("mean", steps=20).fit(rows, y)
    some = np.flatnonzero(y == "bad")
    only = pack([rows.read(np.array([i])) for i in some])
    probe.choose_threshold(only, y[some], fpr=0.0)
    assert probe.threshold_ >= probe.decision_function(only).max()


def test_fitting_again_forgets_threshold_and_calibration():
    rows, y = labelled()
    for probe in (Probe("mean", steps=5), Ridge()):
        probe.fit(rows, y).calibrate(rows, y).choose_threshold(rows, y)
        assert probe.threshold_set_ is not None
        probe.fit(rows, y)
        assert (probe.threshold_, probe.threshold_set_, probe.calibration_) == (0.0, None, None)


@pytest.mark.parametrize("probe", [Probe("mean", steps=200, learning_rate=0.1), Logistic()], ids=repr)
def test_calibration_moves_probabilities_and_not_answers(probe):
    rows, y = labelled(200)
    probe.fit(rows, y)
    wrong = np.where(np.random.default_rng(0).random(200) < 0.3, y[::-1], y)
    answers, before = probe.predict(rows), probe.predict_proba(rows)
    probe.calibrate(rows, wrong)
    np.testing.assert_array_equal(probe.predict(rows), answers)

    def loss(chances):
        return -np.log(chances[np.arange(200), (wrong == "good").astype(int)]).mean()

    assert loss(probe.predict_proba(rows)) < loss(before) - 0.01
    scores = probe.decision_function(rows)
    by_hand = Temperature().fit(scores, (wrong == "good").astype(int)).temperature_
    np.testing.assert_allclose(probe.predict_proba(rows)[:, 1], expit(scores / by_hand), atol=1e-6)  # scores are single


def test_another_pooling_needs_a_threshold_and_a_calibration_of_its_own():
    rows, y = labelled()
    probe = Probe("attention", steps=20).fit(rows, y).calibrate(rows, y).choose_threshold(rows, y)
    assert probe.threshold_ != 0
    other = probe.with_pooling("multimax")
    assert (other.threshold_, other.threshold_set_, other.calibration_) == (0.0, None, None)
    assert probe.threshold_ != 0 and probe.calibration_ is not None


def test_options_keyed_by_numbers_come_back(tmp_path):
    rows, y = labelled()
    probe = Probe("mean", steps=5, class_weight={0: 1.0, 1: 2.0}).fit(rows, (y == "good").astype(int))
    assert hl.probes.load(probe.save(tmp_path / "probe")).class_weight == {0: 1.0, 1: 2.0}


def test_the_card_says_what_others_need(tmp_path):
    rows, y = labelled(source=SOURCE)
    probe = Probe("attention", n_heads=2, steps=5, seed=7).fit(rows, y)
    probe.choose_threshold(rows, y, fpr=0.1, on="held out")
    said = evaluate(y, probe.decision_function(rows), classes=probe.classes_)
    card = json.loads((probe.save(tmp_path / "probe", evaluation=said) / CARD).read_text())
    assert card["source"] == SOURCE
    assert card["seeds"] == {"seed": 7}
    assert card["threshold"]["set"]["on"] == "held out" and card["threshold"]["value"] == probe.threshold_
    auroc = next(row for row in card["metrics"] if row["metric"] == "auroc")
    assert auroc["low"] <= auroc["value"] <= auroc["high"]
    assert card["learned"]["shape"]["pooling"] == "attention" and "headlens" in card["versions"]
    assert set(load_file(tmp_path / "probe" / WEIGHTS)) >= {"module.value", "module.query", "module.slopes"}


@pytest.mark.parametrize(
    "name, value, says",
    [
        ("weights", "other", "model m and X comes from m"),
        ("revision", "other", "revision r and X has revision other"),
        ("tokenizer", "other", "tokenizer"),
        ("bos", False, "bos True and X has bos False"),
        ("site", "blocks.1.hook_resid_pre", "site"),
        ("head", 3, "head None and X has head 3"),
        ("token_mask", {"bos": True}, "token_mask"),
    ],
)
def test_activations_of_elsewhere_are_refused_after_loading(name, value, says, tmp_path):
    rows, y = labelled(source=SOURCE)
    other, _ = labelled(source=SOURCE | {name: value})
    for probe in (Probe("mean", steps=5), LDA()):
        back = hl.probes.load(probe.fit(rows, y).save(tmp_path / type(probe).__name__ / name))
        for one in (probe, back):
            one.predict(rows)
            with pytest.raises(StoreMismatch, match=says):
                one.predict(other)


def test_one_model_at_two_paths_is_one_model():
    same_source({"model": "a", "weights": "w"}, {"model": "b", "weights": "w"})
    same_source({"model": "a"}, {"model": "a", "weights": "w"})
    same_source(None, {"model": "a"})
    with pytest.raises(StoreMismatch, match="model a and X comes from b"):
        same_source({"model": "a", "weights": None}, {"model": "b", "weights": "w"})


# --- folders ---


@pytest.fixture
def saved(tmp_path):
    rows, y = labelled()
    return Probe("attention", n_heads=2, steps=5).fit(rows, y).save(tmp_path / "probe")


def test_a_saved_probe_may_be_written_over_and_nothing_else(saved, tmp_path):
    rows, y = labelled()
    Probe("mean", steps=5).fit(rows, y).save(saved)
    assert hl.probes.load(saved).pooling == "mean"
    (saved / "precious.txt").write_text("mine")
    with pytest.raises(ResultError, match="not a saved probe"):
        Probe("mean", steps=5).fit(rows, y).save(saved)
    assert hl.probes.load(saved).pooling == "mean" and (saved / "precious.txt").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResultError, match="not a saved probe"):
        Probe("mean", steps=5).fit(rows, y).save(tmp_path / "file")


def test_every_byte_of_the_weights_counts(saved):
    data = (saved / WEIGHTS).read_bytes()
    for at in np.random.default_rng(0).integers(0, len(data), 20).tolist():
        (saved / WEIGHTS).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ResultError, match="damaged"):
            hl.probes.load(saved)


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda folder: (folder / CARD).unlink(), "holds no probe"),
        (lambda folder: (folder / WEIGHTS).unlink(), "damaged"),
        (lambda folder: (folder / CARD).write_text("{"), "cannot be read"),
        (lambda folder: (folder / CARD).write_text("[]"), "not the card"),
        (lambda folder: (folder / CARD).write_bytes(b"\xff"), "cannot be read"),
        (lambda folder: changed(folder, format=99), "format 99"),
        (lambda folder: changed(folder, type="Thing"), "Thing"),
        (lambda folder: changed(folder, parameters={"pooling": "attention", "odd": 1}), "damaged"),
        (lambda folder: changed(folder, learned={}), "damaged"),
    ],
)
def test_a_damaged_folder_is_named(saved, damage, says):
    damage(saved)
    with pytest.raises(ResultError, match=says):
        hl.probes.load(saved)


def changed(folder, **values):
    (folder / CARD).write_text(json.dumps(json.loads((folder / CARD).read_text()) | values))


def test_weights_of_another_shape_than_the_cards_are_refused(saved):
    arrays = load_file(saved / WEIGHTS)
    arrays["module.value"] = arrays["module.value"][:, :-1].copy()
    save_file(arrays, saved / WEIGHTS)
    changed(saved, weights=hashlib.sha256((saved / WEIGHTS).read_bytes()).hexdigest())
    with pytest.raises(ResultError, match=r"damaged.*value"):
        hl.probes.load(saved)


def test_another_kind_is_not_loaded_in_its_place(saved):
    assert isinstance(Probe.load(saved), Probe)
    with pytest.raises(ResultError, match=r"holds a Probe, not a LDA: call headlens\.probes\.load"):
        LDA.load(saved)


def test_a_probe_that_is_not_fitted_has_nothing_to_keep(tmp_path):
    for probe in (Probe(), LDA()):
        with pytest.raises(NotFittedError):
            probe.save(tmp_path / "probe")
    assert not (tmp_path / "probe").exists()


def test_what_json_cannot_hold_is_refused_and_nothing_is_left(tmp_path):
    rows, y = labelled()
    probe = Probe("mean", steps=5, setting=None).fit(rows, y)
    probe.device = object()
    with pytest.raises(DataError, match=r"parameters\.device is a object"):
        probe.save(tmp_path / "probe")
    assert not (tmp_path / "probe").exists()
