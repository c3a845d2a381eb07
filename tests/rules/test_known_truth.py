"""On a head set by hand, every rule that was written down is found, and nothing beside it.

The head of `rules` (docs/constructed.md): at `speaks` a city scores 3 and writes +4 of its language, a denial scores 5
and writes -4 of every language; all else 0.
"""

import math

import numpy as np
import pytest
import torch

import headlens as hl
from headlens.rules import Asked, Rules, SkipGram, extract, observe
from headlens.rules.agreement import CONTEXTS, agreement
from headlens.rules.extract import texts_of
from headlens.rules.language import NONE
from headlens.rules.mining import Miner
from headlens.zoo.constructed.vocabulary import CITIES, DENIALS, FILLERS
from tests.rules.made import rules_head, world

FRENCH = 0


@pytest.fixture(scope="module")
def mined():
    c, model, own, z = rules_head()
    return c, model, own, z, extract(model, own, z, world(), 0, 0)


def names(c):
    features = list(c.features)
    return lambda i: "any" if i == NONE else features[i]


def test_every_pair_that_was_written_down_is_a_rule_and_no_other(mined):
    c, _, _, _, found = mined
    name = names(c)
    for feature, language in enumerate(CITIES):
        rules = {(name(r.query), name(r.key)): r for r in found.rules(feature)}
        wired = {(i, j) for i, j, _ in c.wiring[0, 0].match}
        wanted = wired | {("any", f"city:{language}"), ("any", "denial")}  # those write to it wherever they are seen
        assert wired <= set(rules) <= wanted
        assert rules["asks-language", f"city:{language}"].effect > 0 > rules["asks-language", "denial"].effect
        own = found.rule_set(feature)
        for r, rule in enumerate(own.rules):
            wiring = {(i, j): score for i, j, score in c.wiring[0, 0].match}
            assert own.score[0, r] == pytest.approx(wiring.get((name(rule.query), name(rule.key)), 0), abs=1e-3)


def truth_and_rules(mined, words):
    """The model's own value of output:French at the last word, and what rules say of it, from activations alone."""
    _, model, own, z, found = mined
    ids = hl.data.tokenize([" ".join(words)], model.tokenizer, bos=model.bos)[0]
    sites = ["blocks.0.hook_resid_pre", "blocks.0.attn.hook_z"]
    (batch,) = hl.capture(model, torch.as_tensor(ids), sites)
    active = own.split(batch[sites[0]][0]).weighted
    true = float((batch[sites[1]][0, :, 0] @ z.W_enc)[-1, FRENCH])
    return true, float(found.rule_set(FRENCH).predict(active)[-1]), bool(found.rule_set(FRENCH).fires(active)[-1])


def text(n, m, length=16):
    return ["Paris"] * n + ["never"] * m + [FILLERS[i % len(FILLERS)] for i in range(length - n - m - 1)] + ["speaks"]


@pytest.mark.parametrize(
    ("n", "m", "length", "g"),
    [
        (1, 0, 16, 2.2899),
        (1, 1, 16, -2.8127),
        (7, 1, 16, -0.1052),
        (8, 1, 16, 0.1553),
        (13, 2, 16, -0.2556),
        (14, 2, 17, -0.1080),
    ],
)
def test_rules_predict_suppression_and_counts(mined, n, m, length, g):
    true, predicted, fires = truth_and_rules(mined, text(n, m, length))
    assert true == pytest.approx(g, abs=1e-3)
    assert predicted == pytest.approx(g, abs=5e-3)
    assert fires == (g > found_threshold(mined))


def found_threshold(mined):
    return mined[4].rule_set(FRENCH).threshold


def test_a_match_with_a_distractor_predicts_the_lower_activation(mined):
    alone, both = (truth_and_rules(mined, text(1, m))[1] for m in (0, 1))
    assert both < 0 < alone


def test_the_denial_is_found_as_a_distractor_of_every_language(mined):
    c, _, _, _, found = mined
    name = names(c)
    for feature, language in enumerate(CITIES):
        (absence,) = found.absences(feature)
        assert (name(absence.rule.query), name(absence.rule.key)) == ("asks-language", f"city:{language}")
        assert name(absence.distractor.key) == "denial"
        row = found.table["absences"][feature].as_py()[0]
        assert row["put_in"]["high"] < 0 < row["taken_out"]["low"]
        assert row["fires_with"] == 0 and row["fires_without"] > 0.9
        assert row["with_it"]["mean"] < row["without_it"]["mean"]


def test_the_count_has_the_ratio_of_both_strengths_and_its_dose_curve_turns_there(mined):
    c, _, _, _, found = mined
    name = names(c)
    for feature, language in enumerate(CITIES):
        (count,) = found.counts(feature)
        assert (name(count.query), name(count.attract), name(count.suppress)) == (
            "asks-language", f"city:{language}", "denial",
        )  # fmt: skip
        assert count.ratio == pytest.approx(math.e**2, rel=1e-3)
        doses = {(d["n"], d["m"]): d for d in found.table["counts"][feature].as_py()[0]["doses"]}
        assert doses[7, 1]["fires"] == 0 and doses[8, 1]["fires"] == 1
        assert doses[7, 1]["pre"] == pytest.approx(-0.1, abs=0.02)
        assert all(d["fires"] == 0 for (n, m), d in doses.items() if m == 2 and n <= 14)


def test_on_made_texts_the_feature_does_what_its_rules_say(mined, tmp_path):
    c, _, _, _, found = mined
    name = names(c)
    for feature, language in enumerate(CITIES):
        told = {(name(one.rule.query), name(one.rule.key)): one for one in found.agreement(feature)}
        one = told["asks-language", f"city:{language}"]
        assert one.n == CONTEXTS and one.matching > 0.7 and one.without_key == 0  # some of the texts hold a denial
        wanted = (one.matching + 1 - (one.without_key + one.without_query) / 2) / 2
        assert one.right.mean == pytest.approx(wanted) and one.right.low <= wanted <= one.right.high
    again = Rules.load(found.save(tmp_path / "rules"))
    assert str(again.agreement(0)) == str(found.agreement(0))  # NaN is no number's equal


def test_on_made_texts_a_rule_that_does_not_hold_agrees_by_chance(mined):
    c, model, own, z, _ = mined
    miner = Miner(observe(model, own, {0: z}, texts_of(model, world(), 64), 0), 0, Asked())
    features = list(c.features)
    wrong = SkipGram(features.index("asks-language"), features.index("city:Italian"), 1.0)
    (one,) = agreement([wrong], FRENCH, miner.exemplars, miner.replacements, seed=0)
    assert one.matching == 0 and one.right.mean == pytest.approx(0.5, abs=0.1)  # a neutral token may be a French city
    anywhere = SkipGram(NONE, features.index("city:French"), 1.0)
    (one,) = agreement([anywhere], FRENCH, miner.exemplars, miner.replacements, seed=0)
    assert math.isnan(one.without_query) and one.without_key == 0
    assert one.right.mean == pytest.approx((one.matching + 1) / 2)


def test_without_the_words_there_is_no_rule_of_absence_or_counting():
    """The control: a head that copies what it sees, evenly. A word that is there raises itself, and nothing counts."""
    from headlens.dictionaries import Autoencoder
    from headlens.zoo import constructed

    c = constructed.build("copying")
    model = hl.load(c.model, tokenizer=c.tokenizer)
    directions = torch.stack(list(c.features.values()))
    own = Autoencoder(
        W_enc=directions.T.contiguous(), b_enc=torch.full((len(directions),), -1e-4), W_dec=directions,
        b_dec=torch.zeros(directions.shape[1]), site="blocks.0.hook_resid_pre",
    )  # fmt: skip
    words = [f.removeprefix("token:") for f in c.features if f.startswith("token:") and f != "token:<bos>"][:12]
    outputs = torch.stack([c.features[f"output:{w}"] for w in words[:2]])
    W = model.head(0, 0).W_O.detach() @ outputs.T
    z = Autoencoder(
        W_enc=W, b_enc=torch.full((2,), -1e-3), W_dec=W.T.contiguous(), b_dec=torch.zeros(len(W)),
        site="blocks.0.attn.hook_z", head=0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, rng.integers(4, 14))) for _ in range(300)]
    found = extract(model, own, z, texts, 0, 0, [0, 1])
    name = names(c)
    for feature in (0, 1):
        assert found.absences(feature) == [] and found.counts(feature) == []
        first = found.rules(feature)[0]
        assert name(first.key) == f"token:{words[feature]}" and first.effect > 0


def test_denials_are_words_of_the_construction():
    assert set(DENIALS) == {"never", "not"}
