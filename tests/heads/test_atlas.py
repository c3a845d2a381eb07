"""The atlas finds what is known to be there, and nothing in a model that has learnt nothing."""

import dataclasses
import functools

import pytest
import torch
import transformers as tf

import headlens as hl
from headlens import zoo
from headlens._errors import DataError
from headlens.heads import summary
from headlens.zoo import constructed
from headlens.zoo.recipes import RECIPES


@functools.cache
def atlas_of(name: str) -> hl.heads.HeadAtlas:
    return hl.heads.atlas(f"zoo:{name}", num_samples=64)


def is_of(atlas: hl.heads.HeadAtlas, kind: str) -> set[tuple[int, int]]:
    rows = atlas.heads(kind).to_pylist()
    return {(row["layer"], row["head"]) for row in rows}


def test_induction_heads_must_copy_what_they_find():
    """Two factors: the same attention with a random and a negative output is no induction head."""
    made = constructed.build("anti_induction")
    atlas = hl.heads.atlas(hl.load(made.model), ["induction"], num_samples=16, seq_len=12)
    scores = {
        made.heads[row["layer"], row["head"]]: row for row in atlas.table.to_pylist() if row["kind"] == "induction"
    }
    assert all(scores[name]["score"] > 0.9 for name in ("induction", "induction_random_ov", "anti_induction"))
    assert {made.heads[at] for at in is_of(atlas, "induction")} == {"induction"}


def test_a_fixed_gap_is_fooled_by_position_and_a_random_one_is_not():
    made = constructed.build("impostor")
    atlas = hl.heads.atlas(hl.load(made.model), ["fixed_gap_induction", "induction"], num_samples=60, seq_len=20)
    rows = {(made.heads[r["layer"], r["head"]], r["kind"]): r["score"] for r in atlas.table.to_pylist()}
    assert rows["impostor", "fixed_gap_induction"] == pytest.approx(1, abs=0.05)
    assert rows["impostor", "induction"] < 0.1
    assert rows["induction", "induction"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", ["gpt2-small", "qwen3-small", "mistral-small"])
def test_the_zoos_known_heads_are_found(name):
    atlas, guides = atlas_of(name), RECIPES[name].guides
    assert is_of(atlas, "induction") == {guides["induction"]}
    assert guides["previous_token"] in is_of(atlas, "previous_token")
    assert guides["induction"] in is_of(atlas, "copying_logits") & is_of(atlas, "retrieval")
    for kind in RECIPES[name].kept:
        assert is_of(atlas, kind) == {guides[kind]}


def test_a_head_that_looks_two_back_is_one_of_offset_two():
    assert {row["detail"] for row in atlas_of("gpt2-small").heads("offset").to_pylist()} == {"2 back"}
    (at,) = is_of(atlas_of("gpt2-small"), "offset")
    assert at == RECIPES["gpt2-small"].guides["two_back"]


def test_the_control_has_no_head_that_repeats_anything():
    atlas = atlas_of("gpt2-control")
    for kind in ("induction", "duplicate_token", "copying_logits", "retrieval", "name_mover", "concept_induction"):
        assert is_of(atlas, kind) == set(), kind


@pytest.mark.parametrize(("name", "seed"), [("gpt2-small", 3), ("llama-deep", 0), ("gemma2-small", 1)])
def test_random_weights_have_no_labels(name, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.from_pretrained(zoo.path(name)))
    model = hl.load(hf, tokenizer=tf.AutoTokenizer.from_pretrained(zoo.path(name)))
    atlas = hl.heads.atlas(model, num_samples=32, num_prompts=16)
    labelled = {(r["layer"], r["head"]) for r in atlas.table.to_pylist() if r["level"] in ("medium", "high")}
    assert len(labelled) <= 0.05 * model.n_layers * model.n_heads


def test_what_a_kind_needs_is_measured_with_it():
    atlas = hl.heads.atlas("zoo:mistral-small", ["induction"], num_samples=8, num_prompts=4)
    assert atlas.kinds == ("induction", "copying_logits")


def test_one_model_of_several_and_back_from_disk(tmp_path):
    both = hl.heads.atlas(["zoo:mistral-small", "zoo:gpt2-twin"], ["self", "sink"], num_samples=8)
    one = hl.heads.atlas("zoo:gpt2-twin", ["self", "sink"], num_samples=8)
    part = both.of("zoo:gpt2-twin")
    assert part.table.equals(one.table)
    assert part.provenance.models == one.provenance.models
    assert not any("mistral" in what for what in part.provenance.data)
    assert hl.heads.HeadAtlas.load(both.save(tmp_path / "a")).table.equals(both.table)
    with pytest.raises(DataError, match="no model 'gpt2'"):
        both.of("gpt2")
    with pytest.raises(DataError, match="kinds self, sink"):
        both.heads("induction")


def test_levels_of_scores_measured_before():
    scores = hl.heads.score("zoo:gpt2-twin", ["self", "previous_token"], num_samples=8)
    assert hl.heads.label(scores).table.equals(
        hl.heads.atlas("zoo:gpt2-twin", ["self", "previous_token"], num_samples=8).table
    )
    strict = hl.heads.label(scores, {"previous_token": (0.999, 1.0)})
    assert strict.provenance.data["thresholds"]["previous_token"] == [0.999, 1.0]
    assert is_of(strict, "previous_token") == set()


def test_summaries_count_every_head_once():
    atlas = atlas_of("gpt2-small")
    rows = atlas.table.to_pylist()
    for kind in atlas.kinds:
        own = [row for row in rows if row["kind"] == kind]
        of_kind = sum(row["level"] in ("medium", "high") for row in own)
        counts = [r for r in summary.counts(atlas).to_pylist() if r["kind"] == kind]
        assert sum(r["heads"] for r in counts) == len(own) == 18
        assert sum(r["heads"] for r in counts if r["level"] in ("medium", "high")) == of_kind
        (spread,) = (r for r in summary.distribution(atlas).to_pylist() if r["kind"] == kind)
        found = sorted(row["score"] for row in own)
        assert (spread["least"], spread["most"]) == (found[0], found[-1])
        assert spread["median"] == pytest.approx((found[8] + found[9]) / 2)
        by_layer = [r for r in summary.layers(atlas).to_pylist() if r["kind"] == kind]
        assert [r["layer"] for r in by_layer] == [0, 1, 2] and sum(r["heads"] for r in by_layer) == of_kind
        depths = [r for r in summary.depths(atlas).to_pylist() if r["kind"] == kind]
        assert [r["depth"] for r in depths] == pytest.approx([0.1, 0.5, 0.8])  # 1/6, 3/6 and 5/6, in tenths
        assert sum(r["share"] * 6 for r in depths) == pytest.approx(of_kind)
    best = summary.top(atlas, 2).to_pylist()
    assert len(best) == 2 * len(atlas.kinds)
    strongest = max((r for r in rows if r["kind"] == "sink"), key=lambda r: r["score"] - r["null"])
    assert next(r for r in best if r["kind"] == "sink")["head"] == strongest["head"]


@pytest.mark.parametrize("bos", [0, None])
def test_a_token_induction_head_looks_at_an_entitys_start_and_not_at_its_end(bos):
    """Ground truth 7, with and without BOS: an offset by one would take one for the other."""
    made = constructed.build("induction")
    stimulus = hl.data.entities(range(1, 60), n=20, context=8, entity=3, max_gap=10, bos=bos, seed=0)
    starts = dataclasses.replace(stimulus, marks={**stimulus.marks, "last": stimulus.marks["start"]})
    for shown, expected in ((stimulus, 0.0), (starts, 1.0)):
        scores = hl.heads.score(hl.load(made.model), ["entity_end_attention"], stimulus=shown)
        found = {made.heads[r["layer"], r["head"]]: r["score"] for r in scores.table.to_pylist()}
        assert found["induction"] == pytest.approx(expected, abs=0.01)


def test_a_head_that_writes_the_negative_of_what_it_reads_suppresses():
    made = constructed.build("copying")
    scores = hl.heads.score(hl.load(made.model), ["copying_logits", "copying_eigenvalues"], num_prompts=4)
    found = {(made.heads[r["layer"], r["head"]], r["kind"]): r["score"] for r in scores.table.to_pylist()}
    assert found["copying", "copying_logits"] == pytest.approx(1, abs=0.01)
    assert found["anti_copying", "copying_logits"] == pytest.approx(-1, abs=0.01)
    assert found["copying", "copying_eigenvalues"] == pytest.approx(1, abs=0.01)
    assert found["anti_copying", "copying_eigenvalues"] == pytest.approx(-1, abs=0.01)
