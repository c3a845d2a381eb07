"""Rules that were planted in a trained model are found in it; in the same model trained without them, none.

`zoo:gpt2-control` has no induction head, and all planted rules: at ` speaks` head 0 of layer 0 looks at the city (or
port), and at ` were` head 5 at the votes. The control is its twin, trained for as long on the same documents with every
answer drawn anew (`without_rules`). Dictionaries of both are in dictionaries/, made alike (make_dictionaries.py).
Documents are of a seed on which neither models nor dictionaries were trained, nor thresholds chosen.
"""

from pathlib import Path

import pytest

import headlens as hl
from headlens.data.world import documents
from headlens.rules import Asked, mine, observe
from tests.rules.planted import WORLD, Planted, absences, answers_in, counts, learnt, skip_grams

HERE = Path(__file__).parent / "dictionaries"
SEED, TEXTS = 906, 800


def mined(model, name):
    """Skip-grams, absences, counts: what the rules of two heads tell; and the cities that the model has learnt."""
    own, *z = (
        hl.dictionaries.load(str(HERE / name), f"blocks.0.{site}", head=head, dtype="float32")
        for site, head in (("hook_resid_pre", None), ("attn.hook_z", 0), ("attn.hook_z", 5))
    )
    texts = list(documents(TEXTS, seed=SEED, config=WORLD))
    tokens = hl.data.tokenize([one.text for one in texts], model.tokenizer, bos=model.bos, max_tokens=160)
    observed = observe(model, own, dict(zip((0, 5), z, strict=True)), tokens, 0)
    answers = answers_in(tokens, texts, model.tokenizer)
    speaks, votes = (Planted(observed, head, answers) for head in (0, 5))
    of_speaks = mine(observed, 0, speaks.features(("language", "absence"), 2), Asked(draws=20))
    of_votes = mine(observed, 5, votes.features(("majority",), 2), Asked(draws=20))
    told = skip_grams(speaks, of_speaks)
    return learnt(model, answers), told, absences(speaks, of_speaks), counts(votes, of_votes)


@pytest.mark.slow
def test_nine_in_ten_planted_skip_grams_that_were_learnt_are_found_and_absences_and_counts():
    cities, told, absent, counted = mined(hl.load("zoo:gpt2-control"), "gpt2-control")
    assert len(cities) >= 25
    assert len(told.cities & set(cities)) >= 0.9 * len(cities)
    assert told.planted >= 0.7 * told.reported
    assert absent and counted


@pytest.mark.slow
def test_without_planted_rules_none_are_found():
    cities, told, absent, counted = mined(hl.load(str(HERE / "without-rules-model")), "without-rules")
    assert cities == [] and not told.cities and not absent and not counted
