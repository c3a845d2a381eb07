"""Experiment files say what they say in TOML and YAML, or name what is wrong; and runs survive whatever happens."""

import inspect
import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml

from headlens._errors import ConfigError, ResultError
from headlens.data.labelled import read_labelled
from headlens.probes.experiments import pieces as module
from headlens.probes.experiments.controls import rare_words, selectivity_of, with_labels_of_nothing
from headlens.probes.experiments.experiment import SweepTable, read_experiment
from headlens.probes.experiments.pieces import Piece, read_pieces, run
from headlens.probes.sweep import SCHEMA, sweep
from headlens.store import ActivationStore
from tests.cli.conftest import contents, word_tokenizer
from tests.families import build

FILE = """
[models.tiny]
model = "llama"
layers = [0, -1]

[models.other]
model = "neox"
sites = ["blocks.1.hook_resid_post"]

[data.words]
source = "words.jsonl"
split_field = "split"

[sweep]
poolings = ["mean", "attention"]
heads = [1, 2]
penalties = [0.01, 1.0]
steps = 20

[sets.first]
models = ["tiny"]

[sets.second]
models = ["other"]
sweep = { poolings = ["last"], controls = ["permuted_labels"] }
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with two models, a data set and an experiment file."""
    root = tmp_path_factory.mktemp("experiment")
    for name, family in {"llama": "llama", "neox": "gpt_neox"}.items():
        build(family).save_pretrained(root / name)
        word_tokenizer().save_pretrained(root / name)
    rng = np.random.default_rng(0)
    with (root / "words.jsonl").open("w") as file:
        for i in range(60):
            words = " ".join(f"w{k}" for k in rng.integers(0, 40, rng.integers(4, 9)))
            split = ("train", "train", "train", "val", "test")[i % 5]
            file.write(json.dumps({"text": words, "label": "ab"[i // 5 % 2], "split": split}) + "\n")
    (root / "file.toml").write_text(FILE)
    return root


def changed(place: Path, old: str, new: str, name: str = "changed.toml") -> Path:
    assert old in FILE
    (place / name).write_text(FILE.replace(old, new))
    return place / name


# --- the file ---------------------------------------------------------------------------------------------


def test_toml_and_yaml_say_the_same_and_paths_go_from_the_file(place):
    (place / "file.yaml").write_text(yaml.safe_dump(tomllib.loads(FILE)))
    said = read_experiment(place / "file.toml")
    assert said == read_experiment(place / "file.yaml")
    assert (said.models["tiny"].model, said.data["words"].source) == (str(place / "llama"), str(place / "words.jsonl"))
    assert read_experiment(changed(place, '"llama"', '"zoo:llama-small"')).models["tiny"].model == "zoo:llama-small"


WRONG = {
    ("steps = 20", "stesp = 20"): r"\[sweep\] has 'stesp', which is no option there \(did you mean 'steps'\?\)",
    ("layers =", "layer ="): r"\[models.tiny\] has 'layer', .* \(did you mean 'layers'\?\)",
    ("split_field", "splitfield"): r"\[data.words\] has 'splitfield', .* \(did you mean 'split_field'\?\)",
    ("[sets.first]", "[sets.first]\nmodel = []"): r"\[sets.first\] has 'model', .* \(did you mean 'models'\?\)",
    ("[sweep]", "[swept]"): r"the file has 'swept', .* \(did you mean 'sweep'\?\)",
    ('["last"]', '["last"], step = 3'): r"\[sets.second.sweep\] has 'step', .* \(did you mean 'steps'\?\)",
    ('"attention"]', '"atention"]'): r"'atention' is no pooling of documents \(did you mean 'attention'\?\)",
    ('"attention"]', '"token"]'): r"'token' is no pooling of documents",
    ('["last"]', '["lats"]'): r"'lats' is no pooling of documents \(did you mean 'last'\?\)",
    ('["tiny"]', '["tinny"]'): r"\[sets.first\] names 'tinny', and models are tiny, other \(did you mean 'tiny'\?\)",
    ("heads = [1, 2]", "heads = [0]"): "greater than or equal to 1",
    ("heads = [1, 2]", "heads = []"): "at least 1 item",
    ("penalties = [0.01, 1.0]", "penalties = [-1.0]"): "greater than or equal to 0",
    ("penalties = [0.01, 1.0]", "penalties = [nan]"): "'0' in .sweep.penalties.",
    ("steps = 20", 'steps = "20"'): "'steps' in .sweep.: input should be a valid integer",
    ("steps = 20", "folds = 2"): "greater than or equal to 3",
    ('source = "words.jsonl"', ""): r"\[data.words\] has no 'source'",
    ("[models.other]", '[models."../up"]'): "must be of letters, digits and . _ -, to name a folder",
    ("[models.other]", "[models.texts]"): "a model must not be named 'texts'",
    ("steps = 20", "steps = = 20"): "cannot be read",
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_a_suggestion(place, case):
    with pytest.raises(ConfigError, match=WRONG[case]) as refusal:
        read_experiment(changed(place, *case))
    assert "changed.toml" in str(refusal.value) and "\n" not in str(refusal.value)


def test_what_is_no_file_of_experiments_is_refused(place, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.yaml").write_text("a: [")
    (tmp_path / "b.yaml").write_text("- 1")
    (tmp_path / "c.toml").write_text("")
    for name, said in {"gone.toml": "no experiment file", "a.json": "ends in '.json'", "a.yaml": "cannot be read",
                       "b.yaml": "b.yaml: ", "c.toml": "the file has no 'models'"}.items():  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            read_experiment(tmp_path / name)


# --- running it -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(place) -> Path:
    """What an undisturbed run writes."""
    run(read_experiment(place / "file.toml"), place / "runs")
    return place / "runs"


def test_the_pieces_are_those_of_the_file(place, done):
    sites = {"tiny": ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"], "other": ["blocks.1.hook_resid_post"]}
    expected = {Piece(set_, "words", None, "") for set_ in ("first", "second")}
    for set_, model, controls in (
        ("first", "tiny", ("permuted_labels", "control_task")),
        ("second", "other", ("permuted_labels",)),
    ):
        expected |= {Piece(set_, "words", model, site, one) for site in sites[model] for one in (None, *controls)}
    found = read_pieces(done)
    assert set(found) == expected
    first = found[Piece("first", "words", "tiny", sites["tiny"][0])]
    names = [(config.pooling, config.n_heads) for config in first.configs]
    assert names == [("mean", 1), ("attention", 1), ("attention", 2), ("random_direction", 1)]
    assert {
        row["pooling"] for row in found[Piece("second", "words", "other", sites["other"][0])].table.to_pylist()
    } == {"last", "random_direction"}


def test_a_piece_is_the_sweep_of_its_options(place, done):
    data = read_labelled(place / "words.jsonl", split_field="split")
    (folder,) = (done / "stores" / "tiny").iterdir()
    site = "blocks.2.hook_resid_post"
    options = {"sites": [site], "split": data.splits, "poolings": ["mean", "attention"], "heads": [1, 2]}
    training = {"penalties": [0.01, 1.0], "steps": 20}
    for control in (None, "permuted_labels", "control_task"):
        labels = data.labels if control is None else with_labels_of_nothing(data, control, seed=0)
        expected = sweep(ActivationStore(folder), labels, **options, **training)
        found = read_pieces(done)[Piece("first", "words", "tiny", site, control)]
        np.testing.assert_array_equal(found.logits[:3], expected.logits)
        np.testing.assert_array_equal(found.codes, expected.codes)
        assert found.table.slice(0, expected.table.num_rows).equals(expected.table) and found.table.schema == SCHEMA


def test_what_is_there_is_not_done_again(place, done, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    monkeypatch.setattr(module, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(module, "sweep", lambda *_, **__: pytest.fail("a probe was trained"))
    said = []
    pieces = run(read_experiment(place / "file.toml"), done, note=said.append)
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == before
    assert said == [f"{len(pieces)} of {len(pieces)} pieces were there already"]


KILLS = {
    "between pieces": ("sweep", False, 2),
    "within a piece": ("sweep", True, 4),
    "at a store": ("capture_to", True, 1),
}


@pytest.mark.parametrize("when", KILLS)
def test_a_run_that_is_killed_ends_as_if_undisturbed(place, done, tmp_path, monkeypatch, when):
    name, after, at = KILLS[when]
    experiment, out, calls = read_experiment(place / "file.toml"), tmp_path / "runs", []
    original = getattr(module, name)

    def killed(*arguments, **options):
        found = original(*arguments, **options) if after or len(calls) < at else None
        if len(calls) == at:
            raise KeyboardInterrupt
        calls.append(1)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            run(experiment, out)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*/**/manifest.json") if "stores" not in path.parts}
    assert finished
    run(experiment, out)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert contents(out) == contents(done)


def test_stores_may_go_when_all_is_done(place, done, tmp_path):
    copy = shutil.copytree(done, tmp_path / "runs")
    shutil.rmtree(copy / "stores")
    run(read_experiment(place / "file.toml"), copy)
    assert not (copy / "stores").exists() and set(read_pieces(copy)) == set(read_pieces(done))


def test_some_of_it_by_name(place, done, tmp_path):
    experiment = read_experiment(place / "file.toml")
    assert {piece.set for piece in run(experiment, done, only=["second"])} == {"second"}
    assert {piece.model for piece in run(experiment, done, only=["tiny", "words"])} == {None, "tiny"}
    with pytest.raises(
        ConfigError, match=r"nothing called 'secnd' \(did you mean 'second'\?\): it has sets: first, second;"
    ):
        run(experiment, tmp_path / "runs", only=["secnd"])
    with pytest.raises(ConfigError, match="No set has both a model and a data set"):
        run(experiment, tmp_path / "runs", only=["first", "other"])
    assert not (tmp_path / "runs").exists()


def test_other_options_or_data_are_refused_and_other_layers_are_done_besides(place, done, tmp_path):
    before = contents(done)
    for case, said in {("steps = 20", "steps = 21"): "made with steps 20, and this experiment has 21",
                       ("layers = [0, -1]", "max_tokens = 4"): "made with max_tokens None"}.items():  # fmt: skip
        with pytest.raises(ResultError, match=said):
            run(read_experiment(changed(place, *case)), done)
    with pytest.raises(ResultError, match="made with data .*: put what is new in a set of its own"):
        run(read_experiment(changed(place, "split_field", "limit = 9\nsplit_field")), done)
    with pytest.raises(ConfigError, match="has layers 0 to 2, and the experiment names layer 7"):
        run(read_experiment(changed(place, "[0, -1]", "[7]")), tmp_path / "none")
    assert {path: kept for path, kept in contents(done).items() if path in before} == before
    one = tmp_path / "one"
    run(read_experiment(changed(place, "[0, -1]", "[0]")), one)
    run(read_experiment(place / "file.toml"), one)
    found, expected = read_pieces(one), read_pieces(done)
    assert set(found) == set(expected)
    for piece, one_sweep in found.items():
        np.testing.assert_array_equal(one_sweep.logits, expected[piece].logits)


def test_a_folder_without_pieces_and_a_damaged_piece_are_refused(done, tmp_path):
    with pytest.raises(ResultError, match="no finished piece"):
        read_pieces(tmp_path)
    copy = shutil.copytree(done, tmp_path / "runs")
    next((copy / "results").rglob("arrays.safetensors")).write_bytes(b"?")
    with pytest.raises(ResultError, match="arrays.safetensors|damaged"):
        read_pieces(copy)


def test_no_options_are_those_of_a_sweep():
    """What an experiment leaves unsaid is what `sweep` leaves unsaid, but for heads and folds."""
    defaults = {name: p.default for name, p in inspect.signature(sweep).parameters.items()}
    for name, value in SweepTable().model_dump().items():
        if name not in ("heads", "folds", "controls"):
            assert defaults[name] == (tuple(value) if isinstance(value, list) else value), name


# --- controls ---------------------------------------------------------------------------------------------


def test_a_document_is_labelled_by_its_first_rare_word():
    texts = [f"@user Look, the {word} of {other}!" for word in ("cat", "dog") for other in ("Ann", "Bob", "Cid", "Dan")]
    assert rare_words([*texts, "user"]) == ["ann", "bob", "cid", "dan"] * 2 + ["user"]


def test_selectivity_counts_what_a_slow_count_does(done):
    site = "blocks.0.hook_resid_post"
    found = read_pieces(done)
    task, control = (found[Piece("first", "words", "tiny", site, one)] for one in (None, "control_task"))
    for config in control.configs:
        rights = []
        for one in (task, control):
            i, judged = one.configs.index(config), one.rounds >= 0
            rights.append(((one.logits[i, 0, judged, 0] > 0) == one.codes[judged]).astype(float))
        selective = selectivity_of(task, control, config)
        assert selective.value == pytest.approx(np.mean(rights[0] - rights[1]))
        assert (selective.task, selective.control) == pytest.approx((rights[0].mean(), rights[1].mean()))
        draws = np.random.default_rng(1).integers(0, 12, (4000, 12))
        expected = np.quantile((rights[0] - rights[1])[draws].mean(1), [0.025, 0.975])
        np.testing.assert_allclose((selective.low, selective.high), expected, atol=0.09)
