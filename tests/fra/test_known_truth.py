"""On heads set by hand, the pairs are what was written down: nothing missing, nothing beside them.

The dictionary is the one the model was made with: its features' own directions. Scores are as docs/constructed.md says.
"""

import numpy as np
import pytest
import torch

import headlens as hl
from headlens.dictionaries.autoencoder import Autoencoder
from headlens.fra import resolve
from headlens.zoo import constructed


def model_and_features(name, architecture="gpt2", **options):
    c = constructed.build(name, architecture=architecture, **options)
    return c, hl.load(c.model, tokenizer=c.tokenizer), list(c.features)


def dictionary(c, layer):
    directions = torch.stack(list(c.features.values()))
    return Autoencoder(
        W_enc=directions.T.contiguous(), b_enc=torch.full((len(directions),), -1e-4), W_dec=directions,
        b_dec=torch.zeros(directions.shape[1]), site=f"blocks.{layer}.hook_resid_pre",
    )  # fmt: skip


def by_name(found, features, query, key, size=0.05):
    """The pairs of one score that are not nothing: (feature of the query, feature of the key) to value."""
    pair = found.pair(query, key)
    names = [*features, *(f"<{name}>" for name in ("bias", "error", "norm bias", "projection bias"))]
    return {
        (names[pair.query_sources[a]], names[pair.key_sources[b]]): float(pair.product[a, b])
        for a, b in np.argwhere(np.abs(pair.product) > size)
    }


TEXTS = {  # <bos> is put before those that have one
    "induction": "cat red fox cat red",
    "two_matches": "aunt-Mary uncle-Mary aunt-Sue uncle-Sue aunt-Mary?",
    "synonyms": "big boat gift large",
    "rules": "Paris never the Rome speaks",
}


@pytest.mark.parametrize("name", ["induction", "two_matches", "synonyms", "rules"])
def test_every_score_is_made_by_the_pairs_that_were_written_down(name):
    c, model, features = model_and_features(name)
    ids = [int(i) for i in hl.data.tokenize([TEXTS[name]], model.tokenizer, bos=model.bos)[0]]
    checked = 0
    for (layer, head), wiring in c.wiring.items():
        wanted = {(i, j): score for i, j, score in wiring.match}
        found = resolve(model, dictionary(c, layer), ids, layer, head)
        for query in range(len(ids)):
            for key in range(query + 1):
                pairs = by_name(found, features, query, key)
                for pair, value in pairs.items():
                    if wiring.back and pair not in wanted:
                        assert all(part.startswith("position:") for part in pair)
                        continue
                    assert value == pytest.approx(wanted[pair], rel=2e-3)
                    checked += 1
    assert checked > 0


def test_induction_is_the_current_token_with_the_previous_one_and_sits_after_the_match():
    c, model, features = model_and_features("induction")
    found = resolve(model, dictionary(c, 1), "cat red fox cat", 1, 0)
    assert by_name(found, features, 4, 2) == {("token:cat", "previous:cat"): pytest.approx(60, rel=2e-3)}  # q - P + 1
    assert by_name(found, features, 4, 1) == {}  # q - P: the same token
    c, model, features = model_and_features("duplicate_token")
    found = resolve(model, dictionary(c, 0), "cat red cat", 0, 0)
    assert by_name(found, features, 3, 1) == {("token:cat", "token:cat"): pytest.approx(60, rel=2e-3)}
    assert by_name(found, features, 3, 2) == {}


def test_two_matches_side_by_side_are_two_blocks_of_rank_one():
    c, model, features = model_and_features("two_matches")
    questions, mentions = [w for w in c.features if w.startswith("asked-")], ("name:", "class:")
    told = [f for f in features if f.startswith(mentions)]
    matrix = np.zeros((len(questions), len(told)))
    names, classes = ("Mary", "Sue"), ("aunt", "uncle")
    words = [f"{c}-{n}" for c in classes for n in names]
    for asked in words:
        found = resolve(model, dictionary(c, 0), " ".join([*words, asked + "?"]), 0, 0)
        for key in range(1, 5):
            pair = found.pair(5, key)
            for a, i in enumerate(pair.query_sources.tolist()):
                for b, j in enumerate(pair.key_sources.tolist()):
                    if max(i, j) < len(features) and features[i] in questions and features[j] in told:
                        matrix[questions.index(features[i]), told.index(features[j])] = pair.product[a, b]
    of_name = np.array([q.startswith("asked-name") for q in questions])
    key_name = np.array([k.startswith("name") for k in told])
    assert np.linalg.matrix_rank(matrix, tol=0.1) == 2
    for rows, columns in ((of_name, key_name), (~of_name, ~key_name)):
        block = matrix[np.ix_(rows, columns)]
        assert np.linalg.matrix_rank(block, tol=0.1) == 1
        np.testing.assert_allclose(np.abs(block), 10, rtol=2e-3)
    assert np.abs(matrix[np.ix_(of_name, ~key_name)]).max() < 1e-3
    assert np.abs(matrix[np.ix_(~of_name, key_name)]).max() < 1e-3


def test_a_concept_induces_without_the_token():
    c, model, features = model_and_features("synonyms")
    found = resolve(model, dictionary(c, 1), "big boat gift large", 1, 1)
    concept = ("concept:big", "previous-concept:big")
    assert by_name(found, features, 4, 2) == {concept: pytest.approx(60, rel=2e-3)}
    assert float(found.pattern[4, 2]) == pytest.approx(1, abs=1e-4)
    assert float(found.channel(*map(features.index, concept))[4, 2]) == pytest.approx(60, rel=2e-3)
    token = resolve(model, dictionary(c, 1), "big boat gift large", 1, 0)
    assert by_name(token, features, 4, 2) == {}, "the token head sees nothing there"
    shuffled = torch.roll(torch.stack(list(c.features.values())), 7, 0)
    wrong = Autoencoder(
        W_enc=shuffled.T.contiguous(), b_enc=torch.full((len(shuffled),), -1e-4), W_dec=shuffled,
        b_dec=torch.zeros(shuffled.shape[1]), site="blocks.1.hook_resid_pre",
    )  # fmt: skip
    off = resolve(model, wrong, "big boat gift large", 1, 1)
    assert abs(float(off.channel(*map(features.index, concept))[4, 2])) < 0.05, "other features, another channel"


def test_a_distractor_and_what_it_outcompetes_are_told_apart():
    c, model, features = model_and_features("rules")
    found = resolve(model, dictionary(c, 0), "Paris never the Rome speaks", 0, 0)
    asks = "asks-language"
    assert by_name(found, features, 4, 0) == {(asks, "city:French"): pytest.approx(3, rel=2e-3)}
    assert by_name(found, features, 4, 1) == {(asks, "denial"): pytest.approx(5, rel=2e-3)}
    rows = found.contrast(4, 0, 1, 2).to_pylist()
    assert [(features[r["key_source"]], round(r["value"])) for r in rows] == [("denial", -5), ("city:French", 3)]


def test_rotary_heads_set_by_hand_too():
    c, model, features = model_and_features("induction", "llama")
    found = resolve(model, dictionary(c, 1), "cat red fox cat", 1, 0)
    assert found.error() < 1e-5
    assert by_name(found, features, 4, 2) == {("token:cat", "previous:cat"): pytest.approx(60, rel=2e-2)}
    assert by_name(found, features, 4, 1) == {}
