import sys

import numpy as np
import pytest
import torch

import headlens as hl
from headlens._errors import DataError, ResultError, StoreMismatch
from headlens.data.world import documents
from headlens.probes import Probe
from headlens.probes.evaluation.metrics import Evaluation
from headlens.probes.linear import LDA, Ridge, RidgeRegression
from headlens.probes.readings import SCHEMA, ProbeReadings, described, readings
from headlens.probes.training.module import ProbeModule
from headlens.probes.training.pooling import POOLINGS
from headlens.store.rows import as_rows

MODEL, SITE = "zoo:llama-small", "blocks.1.hook_resid_post"
TEXTS = [d.text[:160] for d in documents(24, seed=3)]
NEW = ["Ada knows Lyon.", "The ship sank. The cup fell.", "", "Tom read: «\ud800»\nyes <b>no</b>"]


@pytest.fixture(scope="module")
def model():
    return hl.load(MODEL)


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    return hl.capture_to(tmp_path_factory.mktemp("readings") / "store", model, TEXTS, [SITE], dtype="float32")


def fitted(store, pooling="attention", classes=("no", "yes"), **options):
    """A probe of the store whose weights are drawn, not learned: what it says must be told whatever it is."""
    y = np.array([classes[i % len(classes)] for i in range(len(TEXTS))])
    probe = Probe(pooling, optimizer="adamw", steps=1, **options)
    if pooling == "token":
        y = [np.full(n, y[i]) for i, n in enumerate(store.lengths)]
    probe.fit(store, y)
    generator = torch.Generator().manual_seed(0)
    for weight in probe.module_.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    return probe


def by_document(result):
    found = {}
    for row, attention in zip(result.table.to_pylist(), result.attention, strict=True):
        found.setdefault(row["document"], []).append(row | {"attention": attention})
    return list(found.values())


def captured(model, tmp_path, texts=NEW, **options):
    return hl.capture_to(tmp_path / "new", model, texts, [SITE], dtype="float32", **options)


@pytest.mark.parametrize("pooling", [name for name in POOLINGS if name != "token"])
def test_it_is_what_the_probe_says_of_a_store_of_these_texts(store, model, tmp_path, pooling):
    probe = fitted(store, pooling)
    probe.threshold_ = 0.4
    new = captured(model, tmp_path)
    found = by_document(readings(probe, model, NEW))
    assert [rows[0]["score"] for rows in found] == pytest.approx(probe.decision_function(new), abs=1e-5)
    assert [rows[0]["probability"] for rows in found] == pytest.approx(probe.predict_proba(new)[:, 1], abs=1e-5)
    assert [rows[0]["prediction"] for rows in found] == probe.predict(new).tolist()
    assert {row["towards"] for rows in found for row in rows} == {"yes"}
    for rows, added, taken in zip(found, probe.score_tokens(new), probe.attention(new), strict=True):
        if len(added):
            assert [row["contribution"] for row in rows] == pytest.approx(added, abs=1e-5)
            assert np.stack([row["attention"] for row in rows]) == pytest.approx(taken, abs=1e-5)


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c")])
@pytest.mark.parametrize("pooling", ["attention", "multimax", "rolling_mean_max", "absmax", "mean"])
def test_tokens_and_bias_sum_to_the_score(store, model, pooling, classes):
    probe = fitted(store, pooling, classes)
    bias = probe.module_.bias.detach().numpy()
    for rows in by_document(readings(probe, model, TEXTS[:4])):
        column = list(classes).index(rows[0]["towards"]) if len(classes) > 2 else 0
        assert rows[0]["rest"] == pytest.approx(bias[column], abs=1e-4)
        assert sum(row["contribution"] for row in rows) + bias[column] == pytest.approx(rows[0]["score"], abs=1e-4)


def test_behind_hidden_layers_the_rest_is_what_tokens_do_not_add(store, model):
    probe = fitted(store, after=(6,))
    for rows in by_document(readings(probe, model, TEXTS[:4])):
        assert sum(row["contribution"] for row in rows) + rows[0]["rest"] == pytest.approx(rows[0]["score"], abs=1e-6)
        assert abs(rows[0]["rest"] - float(probe.module_.bias.detach())) > 1e-3, "the map here is not the one at zero"


def test_of_many_classes_it_is_the_one_that_is_said(store, model, tmp_path):
    probe = fitted(store, "max", ("a", "b", "c"))
    new = captured(model, tmp_path, TEXTS[:6])
    scores, chance = probe.decision_function(new), probe.predict_proba(new)
    said = scores.argmax(1)
    assert len(set(said)) > 1
    for i, rows in enumerate(by_document(readings(probe, model, TEXTS[:6]))):
        assert rows[0]["towards"] == rows[0]["prediction"] == "abc"[said[i]]
        assert rows[0]["score"] == pytest.approx(scores[i, said[i]], abs=1e-5)
        assert rows[0]["probability"] == pytest.approx(chance[i, said[i]], abs=1e-5)
        assert [row["contribution"] for row in rows] == pytest.approx(probe.score_tokens(new)[i][:, said[i]], abs=1e-5)
        taken = np.stack([row["attention"] for row in rows])
        assert taken == pytest.approx(probe.attention(new)[i][:, :, said[i]], abs=1e-5), "its own, not another's"


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c")])
def test_with_the_pooling_token_each_token_answers(store, model, tmp_path, classes):
    probe = fitted(store, "token", classes)
    new = captured(model, tmp_path)
    labels = [np.array([classes[t % 2] for t in range(n)], dtype=object) for n in new.lengths]
    labels[0][0] = None
    found = by_document(readings(probe, model, NEW, labels=labels))
    scores, chance, said = probe.decision_function(new), probe.predict_proba(new), probe.predict(new)
    bias = probe.module_.bias.detach().numpy()
    for i, rows in enumerate(found):
        if not new.lengths[i]:
            assert rows[0]["score"] is None and rows[0]["position"] is None
            continue
        best = scores[i] if scores[i].ndim == 1 else scores[i].max(1)
        assert [row["score"] for row in rows] == pytest.approx(best, abs=1e-5)
        assert [row["prediction"] for row in rows] == said[i].tolist()
        assert [row["label"] for row in rows] == labels[i].tolist()
        column = [list(probe.classes_).index(row["towards"]) if chance[i].shape[1] > 2 else 0 for row in rows]
        assert [row["contribution"] + bias[k] for row, k in zip(rows, column, strict=True)] == pytest.approx(
            best, abs=1e-4
        )
        assert [row["rest"] for row in rows] == pytest.approx(bias[column], abs=1e-4)


def test_tokens_are_the_characters_of_the_text_without_bos(store, model):
    found = by_document(readings(fitted(store), model, NEW))
    for text, rows in zip(NEW, found, strict=True):
        readable = text.replace("\ud800", "\ufffd")
        assert rows[0]["start"] in (0, None)
        if text == "":
            assert len(rows) == 1 and rows[0]["token"] is rows[0]["position"] is None
            assert rows[0]["score"] == pytest.approx(rows[0]["rest"]), "its bias alone"
            continue
        assert [row["position"] for row in rows] == list(range(len(rows)))
        assert "".join(readable[row["start"] : row["end"]] for row in rows) == readable
        assert all(row["token"] == readable[row["start"] : row["end"]] for row in rows if row["end"] > row["start"])
        assert not any(row["cut"] for row in rows)


def test_a_long_text_is_cut_and_says_so(store, model, tmp_path):
    probe = fitted(store)
    found = by_document(readings(probe, model, [TEXTS[0], "Ada."], max_tokens=9))
    assert [len(rows) for rows in found] == captured(model, tmp_path, [TEXTS[0], "Ada."], max_tokens=9).lengths.tolist()
    assert [rows[0]["cut"] for rows in found] == [True, False]


@pytest.mark.parametrize("pooling", ["mean", "last", "max", "absmax"])
@pytest.mark.parametrize("kind", [LDA, Ridge])
def test_closed_forms_are_read_too(store, model, tmp_path, pooling, kind):
    probe = kind(pooling).fit(store, np.array([i % 3 for i in range(len(TEXTS))]))
    new = captured(model, tmp_path)
    scores = probe.decision_function(new)
    for i, rows in enumerate(by_document(readings(probe, model, NEW))):
        k = int(rows[0]["towards"])
        assert k == scores[i].argmax()
        assert rows[0]["score"] == pytest.approx(scores[i, k], rel=1e-4, abs=1e-4)
        if rows[0]["position"] is not None:
            added = sum(row["contribution"] for row in rows)
            assert added == pytest.approx(scores[i, k] - probe.intercept_[k], rel=1e-3, abs=1e-3)
            assert sum(row["attention"][0] for row in rows) == pytest.approx(1, abs=1e-5)


def test_numbers_have_neither_class_nor_probability(store, model, tmp_path):
    probe = Probe("mean", steps=1).fit(store, np.linspace(0, 1, len(TEXTS)))
    found = by_document(readings(probe, model, NEW, labels=[0.5, 1, None, float("nan")]))
    assert [rows[0]["score"] for rows in found] == pytest.approx(probe.predict(captured(model, tmp_path)), abs=1e-5)
    assert [rows[0]["label"] for rows in found] == ["0.5", "1", None, None]
    assert {rows[0]["towards"] for rows in found} == {rows[0]["probability"] for rows in found} == {None}


def test_it_is_saved_and_read_back(store, model, tmp_path):
    result = readings(fitted(store), model, NEW, labels=["yes", None, "no", "no"])
    assert result.table.schema == SCHEMA
    back = ProbeReadings.load(result.save(tmp_path / "r"))
    assert back.table.equals(result.table)
    assert np.array_equal(back.attention, result.attention, equal_nan=True)
    assert back.probe == result.probe == result.provenance.data["probe"]
    with pytest.raises(ResultError, match="ProbeReadings.load"):
        Evaluation.load(tmp_path / "r")


def test_a_probe_is_described_by_what_tells_it_from_others(store):
    one, other = fitted(store), fitted(store)
    assert described(one) == described(other)
    assert described(one)["site"] == SITE
    assert described(one)["classes"] == ["no", "yes"]
    assert [described(fitted(store, "mean", before=(3,), after=(6, 2)))[name] for name in ("before", "after")] == [
        [3],
        [6, 2],
    ]
    assert described(one)["calibration"] is None
    one.calibrate(store, ["no", "yes"] * (len(TEXTS) // 2), kind="platt")
    assert described(one)["calibration"] == "platt"
    other.module_.bias_0.data += 1e-3
    assert described(one)["weights"] != described(other)["weights"]


def test_the_same_texts_give_the_same_bytes(store, model):
    probe = fitted(store)
    one, other = readings(probe, model, NEW), readings(probe, model, NEW)
    assert one.table.equals(other.table)
    assert one.attention.tobytes() == other.attention.tobytes()


def test_another_model_is_refused_before_it_runs(store, monkeypatch):
    monkeypatch.setattr(sys.modules[readings.__module__], "capture_to", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(StoreMismatch, match="fitted to the model zoo:llama-small"):
        readings(fitted(store), "zoo:gpt2-small", NEW)


def test_what_cannot_be_read_is_refused(store, model):
    probe = fitted(store)
    bare = Probe("mean", steps=1).fit(as_rows([np.eye(3), np.eye(3)] * 4), [0, 1] * 4)
    several = Probe("mean", steps=1).fit(store, np.tile(np.eye(2, dtype=int), (12, 1)))
    numbers = RidgeRegression().fit(store, np.arange(24.0))
    refused = [
        (lambda: readings(bare, model, NEW), "bare arrays"),
        (lambda: readings(several, model, NEW), "2 answers for each document"),
        (lambda: readings(numbers, model, NEW), "RidgeRegression does not say"),
        (lambda: readings(probe, model, "one text"), r"write \[text\]"),
        (lambda: readings(probe, model, []), "no document"),
        (lambda: readings(probe, model, NEW, labels=["yes"]), "1 labels for 4"),
        (lambda: readings(probe, model, NEW, labels=["yes", "no", "no", "maybe"]), "maybe are none of"),
    ]
    for call, reason in refused:
        with pytest.raises(DataError, match=reason):
            call()


def test_contributions_that_miss_the_score_are_refused(store, model, monkeypatch):
    probe = fitted(store)
    true = ProbeModule.contributions
    monkeypatch.setattr(ProbeModule, "contributions", lambda *given: 1.1 * true(*given))
    with pytest.raises(DataError, match="misses the probe's score"):
        readings(probe, model, TEXTS[:2])
