"""Head scores against known truth: hand-set heads, a trained model measured by others, and nulls."""

import contextlib
import functools
import io
import runpy
from pathlib import Path

import numpy as np
import pytest

import headlens as hl
from headlens._errors import DataError
from headlens.data import Stimulus, pack, plain, repeats
from headlens.heads.kinds import DEFAULT_KINDS
from headlens.heads.scores import SCHEMA
from headlens.zoo import constructed
from tests.families import build

V, S = 64, 20  # words of the hand-set model, BOS (id 0) included; period that its impostor is made for
ORACLE = Path(__file__).parents[3] / "shared" / "reference" / "heads_ground_truth.py"


@functools.cache
def hand_set() -> constructed.Constructed:
    return constructed.build("all_kinds")


@pytest.fixture(scope="module")
def known():
    return hl.load(hand_set().model)


def by_head(scores: hl.heads.HeadScores, kind: str, column: str = "score") -> dict[str, float]:
    names = hand_set().heads
    rows = [row for row in scores.table.to_pylist() if row["kind"] == kind]
    return {names[row["layer"], row["head"]]: row[column] for row in rows}


# --- hand-set heads ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_repeats(known):
    stimulus = repeats(range(1, V), n=60, length=S, max_gap=39, bos=0, seed=0)
    return hl.heads.score(known, stimulus=stimulus)


EVEN = ("uniform", "copying", "anti_copying", "fake_copying")
EXPECTED = {
    "induction": ("induction", "induction_random_ov", "anti_induction"),
    "duplicate_token": ("duplicate_token",),
    "previous_token": ("previous_token",),
    "self": ("self", "successor"),
    "sink": ("sink",),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_kind_finds_its_heads_and_no_others(on_repeats, kind):
    for name, score in by_head(on_repeats, kind).items():
        if name in EXPECTED[kind]:
            assert score == pytest.approx(1, abs=1e-4), name
        elif kind == "sink":  # resting on BOS is what content heads do where nothing matches: not an impurity
            assert name in (*EVEN, *EXPECTED["induction"], "duplicate_token") or score < 0.15, name
        elif kind != "self":
            assert score < 0.08, name


def test_uniform_heads_score_their_null(on_repeats):
    for kind in EXPECTED:
        score, null = by_head(on_repeats, kind), by_head(on_repeats, kind, "null")
        for name in EVEN:
            assert score[name] == pytest.approx(null[name], rel=1e-4), kind


def test_control_exposes_the_positional_impostor(known):
    """At a fixed gap a head that looks S - 1 back scores 1 on induction; so does its control. A real one's does not."""
    fixed = repeats(range(1, V), n=20, length=S, max_gap=0, bos=0, seed=0)
    scores = hl.heads.score(known, ["induction"], stimulus=fixed)
    score, null = by_head(scores, "induction"), by_head(scores, "induction", "null")
    assert score["impostor"] == pytest.approx(1, abs=1e-4)
    assert null["impostor"] == pytest.approx(1, abs=1e-4)
    assert score["induction"] == pytest.approx(1, abs=1e-4)
    assert null["induction"] < 0.01


def test_random_gap_defeats_the_positional_impostor(on_repeats):
    assert by_head(on_repeats, "induction")["impostor"] < 0.08


def test_induction_without_bos_still_counts_only_true_targets(known):
    stimulus = repeats(range(1, V), n=10, length=S, max_gap=30, bos=None, seed=1)
    score = by_head(hl.heads.score(known, ["induction"], stimulus=stimulus), "induction")
    assert score["induction"] > 0.95  # the first token has no predecessor to match, so one row may rest elsewhere


IN_THE_ORACLE = {
    "prev": "previous_token", "self": "self", "bos": "sink", "dup": "duplicate_token", "off3": "offset_3",
    "impostor": "impostor", "unif": "uniform", "ind": "induction", "ind_noOV": "induction_random_ov",
    "antiind": "anti_induction", "copy_unif": "copying", "succ": "successor",
}  # fmt: skip


def test_the_oracles_own_numbers(known):
    """The very sequences of the numpy oracle, scored by torch, give the very numbers it prints."""
    if not ORACLE.exists():
        pytest.skip("the numpy oracle (../shared/reference/heads_ground_truth.py) is not here")
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = runpy.run_path(str(ORACLE), run_name="__main__")
    columns = (("var", "induction", 2), ("var", "duplicate_token", 4), ("plain", "previous_token", 5))
    for name, kind, column in columns:
        stimulus = Stimulus(name, pack(oracle["sets"][name]), bos=0)
        scores = by_head(hl.heads.score(known, [kind], stimulus=stimulus), kind)
        for theirs, ours in IN_THE_ORACLE.items():
            assert scores[ours] == pytest.approx(oracle["res"][theirs][column], abs=5e-4), (ours, kind)
    fixed = Stimulus("fixed", pack(oracle["sets"]["fixed"]), bos=None)
    scores = by_head(hl.heads.score(known, ["induction"], stimulus=fixed), "induction")
    for theirs, ours in IN_THE_ORACLE.items():
        assert scores[ours] == pytest.approx(oracle["res"][theirs][1], abs=5e-4), ours


# --- a trained model, measured by others ------------------------------------------------------------------


def test_stories_published_figures(stories):
    """BOS + R + R, 256 sequences, R = 50 random ids from 259..511: the figures of the model's own card."""
    stimulus = repeats(range(259, 512), n=256, length=50, max_gap=0, bos=1, seed=0)
    scores = hl.heads.score(str(stories), ["previous_token", "induction"], stimulus=stimulus)
    rows = {(r["kind"], r["layer"], r["head"]): r for r in scores.table.to_pylist()}
    for layer, head, published in ((3, 6, 0.746), (1, 3, 0.629), (1, 6, 0.512)):
        assert rows["previous_token", layer, head]["score"] == pytest.approx(published, abs=0.01)
    ranked = sorted((r for r in rows.values() if r["kind"] == "previous_token"), key=lambda r: -r["score"])
    assert [(r["layer"], r["head"]) for r in ranked[:3]] == [(3, 6), (1, 3), (1, 6)]
    assert max(r["score"] for r in rows.values() if r["kind"] == "induction") < 0.02


def test_text_kinds_are_measured_on_the_corpus(stories, stories_corpus):
    scores = hl.heads.score(str(stories), ["previous_token"], corpus=stories_corpus, num_samples=16)
    assert scores.provenance.data[f"{stories}: previous_token"]["name"] == "text"
    assert scores.provenance.data["corpus"]["documents"] == 16
    without = hl.heads.score(str(stories), ["previous_token"], num_samples=16)
    assert without.provenance.data[f"{stories}: previous_token"]["name"] == "plain"


# --- the table --------------------------------------------------------------------------------------------


def test_table_has_a_row_per_head_and_kind_with_its_interval():
    models = [hl.load(build("gpt2")), hl.load(build("qwen3"))]
    scores = hl.heads.score(models, num_samples=12, seq_len=10, max_gap=5)
    rows = scores.table.to_pylist()
    assert scores.table.schema == SCHEMA
    for model in models:  # random weights, no tokenizer: what needs text or prompts is left out, and it is said why
        skipped = scores.provenance.data[f"{model.name}: not measured"]
        measured = {r["kind"] for r in rows if r["model"] == model.name}
        assert measured | set(skipped) == set(DEFAULT_KINDS) and not measured & set(skipped)
        assert {"induction", "offset", "copying_logits", "concept_induction"} <= measured
        assert "delimiter" in skipped and "tokenizer" in skipped["name_mover"]
        assert sum(r["model"] == model.name for r in rows) == 3 * 4 * len(measured)
    assert len({(r["model"], r["layer"], r["head"], r["kind"]) for r in rows}) == len(rows)
    assert all(r["low"] - 1e-9 <= r["score"] <= r["high"] + 1e-9 and r["n"] > 1 for r in rows)
    assert all(-1 <= r["null"] <= 1 and 0 <= r["p"] <= 1 for r in rows)
    assert [m["family"] for m in scores.provenance.models] == ["GPT-2", "Qwen3"]


def test_same_seed_same_table_other_seed_other_table():
    model = hl.load(build("llama"))
    first, again, other = (hl.heads.score(model, ["self"], num_samples=8, seed=seed) for seed in (0, 0, 1))
    assert first.table.equals(again.table)
    assert not first.table.equals(other.table)


def test_batch_size_changes_nothing():
    model = hl.load(build("gemma2").double())  # the p of a tiny effect magnifies what float32 rounds
    tables = [hl.heads.score(model, num_samples=9, seq_len=8, max_gap=6, batch_tokens=b).table for b in (40, 100000)]
    for column in ("score", "null", "low", "weighted", "p"):
        np.testing.assert_allclose(tables[0][column].to_numpy(), tables[1][column].to_numpy(), atol=1e-6)


def test_random_models_do_not_beat_their_null():
    """A null that must not be found: on random weights no head gathers more at repeats than at its control."""
    scores = hl.heads.score(hl.load(build("gpt_neox")), ["induction", "duplicate_token"], num_samples=64, seq_len=20)
    gaps = [row["score"] - row["null"] for row in scores.table.to_pylist()]
    assert max(map(abs, gaps)) < 0.1


def test_save_and_load(tmp_path):
    scores = hl.heads.score(hl.load(build("gpt2")), ["self"], num_samples=4)
    assert hl.heads.HeadScores.load(scores.save(tmp_path / "run")).table.equals(scores.table)


def test_small_vocabularies_and_contexts_shrink_the_stimulus():
    import transformers as tf

    config = tf.GPT2Config(
        vocab_size=21, n_positions=24, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    scores = hl.heads.score(hl.load(tf.GPT2LMHeadModel(config)), ["induction"], num_samples=4)
    (stimulus,) = (made for what, made in scores.provenance.data.items() if what.endswith("induction"))
    assert (stimulus["length"], stimulus["max_gap"]) == (10, 3)


def test_unknown_kind():
    with pytest.raises(DataError, match="'attention' is no kind"):
        hl.heads.score(hl.load(build("gpt2")), ["attention"])


def test_no_targets_is_an_error_not_nan(known):
    with pytest.raises(DataError, match="no row|has a target"):
        hl.heads.score(known, ["induction"], stimulus=plain(range(1, V), n=3, length=10, bos=0, seed=0))


def test_encoders_are_refused():
    """Their queries see both sides, and the targets and nulls here are those of causal models."""
    from headlens._errors import UnsupportedArchitecture

    with pytest.raises(UnsupportedArchitecture, match="causal"):
        hl.heads.score(hl.load(build("bert")), ["self"], num_samples=4)
    with pytest.raises(UnsupportedArchitecture, match="causal half"):
        hl.heads.attention_patterns(hl.load(build("bert")), ["text"])
