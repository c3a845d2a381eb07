"""Causal kinds find the head that was set by hand to do the job, by the amount that its proof says, and no other."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest

import headlens as hl
from headlens.heads import effects
from headlens.heads.setting import Protocol, Setting
from headlens.heads.tally import Measured
from headlens.zoo.constructed import gpt2, heads
from headlens.zoo.constructed.designs import DESIGNS
from headlens.zoo.constructed.vocabulary import GIFT_WORDS
from headlens.zoo.constructed.wiring import UNIFORM, Design
from tests.zoo.constructions import construction, loaded

both = pytest.mark.parametrize("architecture", ["gpt2", "llama"])
ways = pytest.mark.parametrize(("architecture", "by"), [("gpt2", "duplicate_token"), ("llama", "induction")])
E10 = math.exp(10)
GIFT_KINDS = ("duplicate_token", "induction", "copying_logits", "name_mover", "giver_attention", "s_inhibition")
FAST = {"num_prompts": 12, "num_samples": 32, "seq_len": 20, "max_gap": 20}


def model_of(design: Design, words_of: str) -> hl.Model:
    """A design that is no construction's, with the words of one."""
    return hl.load(gpt2.compiled(design).hf, tokenizer=construction(words_of).tokenizer)


def labelled(model: hl.Model, kinds: tuple[str, ...], **options) -> dict[str, set[tuple[int, int]]]:
    """Which heads are of each kind."""
    atlas = hl.heads.atlas(model, kinds, **FAST | options)
    return {kind: {(r["layer"], r["head"]) for r in atlas.heads(kind).to_pylist()} for kind in kinds}


def named(c, *names: str) -> set[tuple[int, int]]:
    return {place for place, name in c.heads.items() if name in names}


def near(x: float, within: float = 1e-5):
    return pytest.approx(x, abs=within)


def by_name(c, measured: np.ndarray) -> dict[str, np.ndarray]:
    """What was measured of each head that is wired, prompt by prompt."""
    return {name: measured[:, layer, head] for (layer, head), name in c.heads.items() if name != "uniform"}


@functools.cache
def design(name: str) -> Design:
    return DESIGNS[name]()


@functools.cache
def inhibition(architecture: str, by: str) -> Measured:
    setting = Setting(loaded(construction("indirect_objects", architecture, by=by)), Protocol(num_prompts=12))
    return effects.s_inhibition(setting)


def cut(name: str, head: str) -> Design:
    """A construction one of whose heads is silent."""
    layers = tuple(tuple(UNIFORM if w.name == head else w for w in layer) for layer in design(name).layers)
    assert layers != design(name).layers
    return replace(design(name), layers=layers)


# --- who gets it -------------------------------------------------------------------------------------------------------


@ways
def test_whole_atlas_of_the_gift_circuit(architecture, by):
    c = construction("indirect_objects", architecture, by=by)
    found = labelled(loaded(c), GIFT_KINDS[:-1])
    assert found == {
        "duplicate_token": named(c, "duplicate_token"),
        "induction": set(),  # name_induction looks so, and copies nothing
        "copying_logits": named(c, "name_mover"),
        "name_mover": named(c, "name_mover"),  # not name_attending, not negative_name_mover
        "giver_attention": named(c, "giver_attending", "s_inhibition"),
    }


@ways
def test_s_inhibition_is_the_one_head_that_inhibits(architecture, by):
    c = construction("indirect_objects", architecture, by=by)
    assert labelled(loaded(c), ("s_inhibition",)) == {"s_inhibition": named(c, "s_inhibition")}


@ways
def test_without_word_on_the_giver_name_movers_lose_two_thirds(architecture, by):
    c = construction("indirect_objects", architecture, by=by)
    for name, own in by_name(c, inhibition(architecture, by).own).items():
        np.testing.assert_allclose(own, 2 / 3 if name == "s_inhibition" else 0, atol=1e-6, err_msg=name)


@ways
def test_s_inhibition_of_the_same_giver_is_no_loss(architecture, by):
    c = construction("indirect_objects", architecture, by=by)
    np.testing.assert_allclose(by_name(c, inhibition(architecture, by).null)["s_inhibition"], 0, atol=1e-6)


def test_without_inhibition_there_is_no_name_mover():
    """All names said get as much; the giver is looked at as before."""
    kinds = ("name_mover", "giver_attention", "s_inhibition")
    found = labelled(model_of(cut("indirect_objects", "s_inhibition"), "indirect_objects"), kinds)
    assert found == {"name_mover": set(), "giver_attention": {(1, 0)}, "s_inhibition": set()}


def test_an_unrelated_construction_has_no_head_of_the_gift_circuit():
    layers = [heads.previous_token(GIFT_WORDS)], [heads.induction(GIFT_WORDS), heads.anti_copying(GIFT_WORDS)]
    other = replace(design("indirect_objects"), layers=tuple(map(tuple, layers)))
    found = labelled(model_of(other, "indirect_objects"), GIFT_KINDS)
    assert found == {kind: set() for kind in GIFT_KINDS} | {"induction": {(1, 0)}, "copying_logits": {(1, 0)}}


# --- what entity is coming -----------------------------------------------------------------------------------------------


@both
def test_concept_induction_is_the_one_head_that_brings_on_an_entity(architecture):
    c = construction("concepts", architecture)
    found = labelled(loaded(c), ("concept_induction", "entity_end_attention", "induction"))
    assert found == {
        "concept_induction": named(c, "concept_induction"),
        "entity_end_attention": named(c, "concept_induction", "concept_attending"),
        "induction": named(c, "induction"),
    }


@both
def test_what_an_entity_gains_by_each_head(architecture):
    c = construction("concepts", architecture)
    setting = Setting(loaded(c), Protocol(num_prompts=12))
    measured, stimulus = effects.concept_induction(setting), setting.stimulus("entities")
    start = [int(np.flatnonzero(stimulus.marked("start", i))[0]) for i in range(12)]
    entities = [stimulus.tokens[i][s : s + 3].tolist() for i, s in enumerate(start)]
    # Words are few: another prompt's entity may hold a word of this one, or this one's context.
    apart = [not {*entities[i], stimulus.tokens[i][-1]} & {*entities[(i + 1) % 12]} for i in range(12)]
    assert sum(apart) >= 6
    before = 1 / (E10 + 63)
    for what, gain in ((measured.own, E10 / (E10 + 63) - before), (measured.null, 1 / 64 - before)):
        for name, found in by_name(c, what).items():
            expected = gain if name == "concept_induction" else 0
            np.testing.assert_allclose(found[apart], expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("head", ["concept_induction", "bringing_on"])
def test_a_concept_that_nobody_says_or_nobody_reads_has_no_effect(head):
    found = labelled(model_of(cut("concepts", head), "concepts"), ("concept_induction",))
    assert found == {"concept_induction": set()}


# --- by what relation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def test_the_function_vector_is_in_one_head(architecture):
    c = construction("relations", architecture)
    scores = hl.heads.atlas(loaded(c), ["function_vector"], num_prompts=6)
    assert {(r["layer"], r["head"]) for r in scores.heads("function_vector").to_pylist()} == named(c, "function_vector")
    rows = {(r["layer"], r["head"]): r for r in scores.table.to_pylist()}
    one_other, nothing, right = 1 / (E10 + 238), 1 / 239, E10 / (E10 + 238)
    for place, name in c.heads.items():
        # A head of layer 3 says what was asked in the other prompt of its relation: a third of all.
        says = {"function_vector": right - nothing} | dict.fromkeys(
            (f"applying_{relation}" for relation in ("antonym", "capital", "plural")), (one_other - nothing) / 3
        )
        assert rows[place]["score"] == near(says.get(name, 0.0), 1e-6), name
        assert rows[place]["null"] == near(0, 1e-6), name


# --- wherever it stands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("concepts", "concept_induction"), ("indirect_objects", "name_mover")])
def test_a_head_is_found_wherever_it_stands_in_its_layer(name, kind):
    layers = tuple(layer[1:] + layer[:1] for layer in design(name).layers)
    (expected,) = ((i, j) for i, layer in enumerate(layers) for j, w in enumerate(layer) if w.name == kind)
    assert labelled(model_of(replace(design(name), layers=layers), name), (kind,)) == {kind: {expected}}
