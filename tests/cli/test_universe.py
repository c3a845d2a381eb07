"""`headlens universe`: clone, fit and eval on a few texts, and what they refuse."""

import json

import pytest

from headlens.universe import HeadUniverse, Reconstruction, UniverseStudy
from headlens.universe.ablations import CHANGES
from headlens.universe.page import page

FEW = ("--docs", 32, "--max-chars", 80, "--epochs", 1, "--quiet")


def test_clone_prints_every_method_and_saves_a_row_for_every_head(headlens):
    outcome = headlens("universe", "clone", "zoo:gpt2-small", "zoo:qwen3-small", *FEW, "--out", "table")
    assert outcome.status == 0, outcome.err
    for method in ("clone", "position only", "symbolic", "sentence MLP", "nearest head", "shuffled texts"):
        assert method in outcome.out
    assert len(Reconstruction.load("table").column("clone", "kl")) == 18 + 12


def test_fit_saves_a_universe_that_says_what_it_came_from(headlens):
    outcome = headlens("universe", "fit", "zoo:gpt2-small", "zoo:gpt2-twin", *FEW, "--out", "space", "--json")
    assert outcome.status == 0, outcome.err
    assert len(json.loads(outcome.out)["heads"]) == 36
    universe = HeadUniverse.load("space")
    assert universe.provenance.command.startswith("headlens universe fit zoo:gpt2-small")
    assert universe.provenance.data["features"]["encoder"]["name"] == "zoo:neox-small"


@pytest.mark.slow
def test_eval_writes_the_study_and_keeps_its_tables(headlens, tmp_path):
    models = ("zoo:gemma2-small", "zoo:llama-small", "zoo:qwen3-small")
    few = ("--docs", 20, "--max-chars", 50, "--epochs", 1, "--kinds", "previous_token", "--quiet")
    outcome = headlens("universe", "eval", *models, *few, "--out", "study.md", "--save", "study")
    assert outcome.status == 0, outcome.err
    text = (tmp_path / "study.md").read_text()
    for said in (
        "How well",
        "`previous_token`",
        "phase 2",
        "mean pattern PCA",
        "Outliers",
        "Mantel",
        "above the most texts",
        "F1 of phase 2 above it",
        "| phase 2 minus | 1 text |",
    ):
        assert said in text
    study = UniverseStudy.load("study")
    assert page(study) == text and study["heads"].num_rows == 40
    assert {row["kind"] for row in study["spaces"].to_pylist()} == {"previous_token"}
    assert {row["split"] for row in study["queries"].to_pylist()} == {"family left out", "heads held out"}


@pytest.mark.slow
def test_ablate_names_every_change(headlens):
    few = ("--docs", 24, "--max-chars", 60, "--quiet", "--leave-out", "Qwen3", "--kind", "previous_token", "--json")
    outcome = headlens("universe", "ablate", "zoo:mistral-small", "zoo:qwen3-small", *few)
    assert outcome.status == 0, outcome.err
    assert [row["decoder"] for row in json.loads(outcome.out)["ablations"]] == list(CHANGES)


def test_what_cannot_be_done_is_refused_at_once(headlens):
    for arguments, said in (
        (("clone",), "Name at least one model"),
        (("clone", "zoo:gpt2-small", "zoo:gpt2-small"), "named twice"),
        (("eval", "zoo:gpt2-small", "--max-chars", 4), "max-chars"),
        (("eval", "zoo:gpt2-small", "--kinds", "induction,nothing"), "'nothing' is no kind of head"),
        (("ablate",), "Name at least one model"),
        (("ablate", "zoo:gpt2-small", "--kind", "nothing"), "'nothing' is no kind of head"),
        (("clone", "zoo:gpt2-small", "--corpus", "nowhere.jsonl"), "no corpus"),
    ):
        outcome = headlens("universe", *arguments)
        assert outcome.status == 2 and said in outcome.err
