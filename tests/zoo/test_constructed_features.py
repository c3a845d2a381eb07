"""Feature interactions set by hand: two matches side by side, meaning without words, and three rules in one head."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headlens as hl
from headlens.data import Stimulus, repeats
from headlens.zoo import constructed
from headlens.zoo.constructed.vocabulary import CITIES, SYNONYMS
from tests.zoo.constructions import construction, directions, loaded, read, scores_of_last

both = pytest.mark.parametrize("architecture", ["gpt2", "llama"])


def near(x: float, within: float = 1e-5):
    return pytest.approx(x, abs=within)


def pair_scores(c, layer: int, head: int, queries: list[str], keys: list[str]) -> torch.Tensor:
    """Score of every query feature (rows) against every key feature, one position apart."""
    one = loaded(c).head(layer, head)
    q, k = (torch.stack([c.features[name] for name in names]) for names in (queries, keys))
    return one.scale * one.query(q, 1) @ one.key(k, 0).T


# --- two matches ---------------------------------------------------------------------------------------------------

ASKED = ["asked-name:Mary", "asked-name:Sue", "asked-class:aunt", "asked-class:uncle"]
HELD = ["name:Mary", "name:Sue", "class:aunt", "class:uncle"]


@both
def test_two_matches_are_two_blocks_of_rank_one(architecture):
    c = construction("two_matches", architecture)
    block = torch.tensor([[10.0, -10.0], [-10.0, 10.0]])
    torch.testing.assert_close(pair_scores(c, 0, 0, ASKED, HELD), torch.block_diag(block, block), atol=1e-4, rtol=0)
    every = pair_scores(c, 0, 0, list(c.features), list(c.features))
    assert int(torch.linalg.matrix_rank(every, atol=1e-3, rtol=0)) == 2
    head, basis = loaded(c).head(0, 0), directions(c)
    assert int(torch.linalg.matrix_rank(basis @ head.W_Q @ head.W_K.T @ basis.T, atol=1e-3, rtol=0)) == 2
    names = list(c.features)
    weights = basis @ head.W_Q @ head.W_K.T @ basis.T
    crossing = [
        (names.index(a), names.index(b)) for a in ASKED for b in HELD if a.split(":")[0] != f"asked-{b.split(':')[0]}"
    ]
    assert len(crossing) == 8
    assert all(weights[at] == 0 for at in crossing)


@both
def test_two_matches_together_find_who_is_asked_for(architecture):
    c = construction("two_matches", architecture)
    for asked in ("aunt-Mary", "uncle-Mary", "aunt-Sue", "uncle-Sue"):
        seen = read(c, f"aunt-Mary met uncle-Sue and aunt-Sue saw uncle-Mary then {asked}?")
        assert seen.attends(0, 0)[asked] == near(1 - 9 * math.exp(-20), 1e-7)
        assert seen.raised(c) == {asked: near(10, 1e-4)}


@both
def test_one_match_alone_cannot_choose(architecture):
    """With the class match cut, both Marys score 10."""
    c = construction("two_matches", architecture)
    head = loaded(c).head(0, 0)
    query = c.features["asked-name:Mary"].expand(4, -1)
    keys = torch.stack(
        [c.features[f"name:{n}"] + c.features[f"class:{k}"] for n in ("Mary", "Sue") for k in ("aunt", "uncle")]
    )
    scores = head.score(query, keys, at=(9, torch.arange(4)))
    torch.testing.assert_close(scores, torch.tensor([10.0, 10.0, -10.0, -10.0]), atol=1e-4, rtol=0)
    assert scores.softmax(-1)[:2].tolist() == [near(0.5), near(0.5)]


# --- synonyms ----------------------------------------------------------------------------------------------------------

INDUCTION, CONCEPT, SYNONYM = 0, 1, 2


@both
def test_attention_to_what_followed_a_word_or_its_synonym(architecture):
    c = construction("synonyms", architecture)
    expected = {"big": (1, 1, 0), "large": (0, 1, 1), "shop": (0, 0, 0)}
    made = {"big": (60, 60, -60), "large": (0, 60, 60), "shop": (0, 0, 0)}
    for word, on_boat in expected.items():
        seen = read(c, f"big boat gift {word}")
        for head, share in enumerate(on_boat):
            assert scores_of_last(c, f"big boat gift {word}", 1, head)[2] == near(made[word][head], 1e-3)
            assert seen.attends(1, head)["boat"] == near(share), (word, head)
            assert seen.attends(1, head)["<bos>"] == near(1 - share), (word, head)
        assert seen.raised(c) == ({"boat": near(20, 1e-3)} if any(on_boat) else {})


@both
def test_concepts_score_where_tokens_do_not(architecture):
    """Channels of the score of `boat` at `large`: the concept makes 60, the token 0; at `big` in head 1.0 the reverse."""
    c = construction("synonyms", architecture)
    words = [w for pair in SYNONYMS for w in pair]
    channels = {
        "token": [f"token:{w}" for w in words],
        "concept": [f"concept:{first}" for first, _ in SYNONYMS],
        "constant": ["constant"],
    }
    model = loaded(c)
    ids = c.tokenizer("big boat gift large")["input_ids"]
    (batch,) = hl.capture(model, [ids], ["blocks.1.hook_resid_pre"])
    query, key = batch["blocks.1.hook_resid_pre"][0, [4, 2]]
    head = model.head(1, CONCEPT)
    found = {}
    for channel, names in channels.items():
        basis = torch.stack([c.features[name] for name in names])
        found[channel] = head.score(query @ basis.T @ basis, key, at=(4, 2)).item()
    assert found == {"token": near(0), "concept": near(60, 1e-3), "constant": near(0)}
    assert model.head(1, INDUCTION).score(query, key, at=(4, 2)).item() == near(0, 1e-4)
    assert model.head(1, SYNONYM).score(query, key, at=(4, 2)).item() == near(60, 1e-3)


def induction_scores(c, stimulus: Stimulus) -> list[float]:
    rows = hl.heads.score(loaded(c), ["induction"], stimulus=stimulus).table.to_pylist()
    found = {(row["layer"], row["head"]): row["score"] for row in rows}
    return [found[1, head] for head in (INDUCTION, CONCEPT, SYNONYM)]


@both
def test_the_token_level_score_cannot_see_synonym_induction(architecture):
    c = construction("synonyms", architecture)
    first = [c.tokenizer.convert_tokens_to_ids(pair[0]) for pair in SYNONYMS]
    stimulus = repeats(first, n=20, length=8, max_gap=12, bos=0, seed=0)
    assert induction_scores(c, stimulus) == [near(1), near(1), near(0)]


@both
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(20)), length=st.integers(2, 8), gap=st.integers(0, 4))
def test_concept_level_scores_on_random_synonyms(architecture, order, length, gap):
    """BOS R G R', each word of R' the synonym of R's: what followed the synonym gets all attention of 1.1 and 1.2."""
    c = construction("synonyms", architecture)
    said = [SYNONYMS[i][0] for i in order[: length + gap]]
    again = [SYNONYMS[i][1] for i in order[:length]]
    patterns = read(c, " ".join(said + again)).patterns
    rows = torch.arange(length - (gap == 0))  # with no gap, the last target of R is the first word of R'
    at = 1 + length + gap + rows, 2 + rows
    assert patterns[1, INDUCTION][at].max() < 1e-6
    assert patterns[1, CONCEPT][at].min() == near(1)
    assert patterns[1, SYNONYM][at].min() == near(1)


# --- rules ---------------------------------------------------------------------------------------------------------------

FILLERS = ["Ann", "was", "born", "in", "and", "now", "lives", "by", "the", "sea", "with", "Tom", "where", "she"]


def prompt(cities: int, denials: int, total: int = 16, city: str = "Paris") -> str:
    """`total` words: fillers, cities and denials, then `speaks`."""
    fillers = (FILLERS * 2)[: total - cities - denials - 1]
    return " ".join(fillers + [city] * cities + ["never"] * denials + ["speaks"])


def logits(c, text: str) -> dict[str, float]:
    words = c.tokenizer.convert_ids_to_tokens(range(len(c.tokenizer)))
    return dict(zip(words, read(c, text).logits[-1].tolist(), strict=True))


def g(c, text: str) -> float:
    """How much of output:French stands in the last stream after the last word."""
    ids = c.tokenizer(text)["input_ids"]
    (batch,) = hl.capture(loaded(c), [ids], ["blocks.0.hook_resid_post"])
    return float(batch["blocks.0.hook_resid_post"][0, -1] @ c.features["output:French"])


def test_there_is_no_bos_and_t_is_the_number_of_words():
    c = construction("rules")
    assert loaded(c).bos is None
    assert len(c.tokenizer(prompt(1, 1))["input_ids"]) == len(prompt(1, 1).split()) == 16


PUBLISHED = [(1, 0, 16, 2.2899), (1, 1, 16, -2.8127), (7, 1, 16, -0.1052), (8, 1, 16, 0.1553), (13, 2, 16, -0.2556),
             (14, 2, 17, -0.1080)]  # fmt: skip


@both
@pytest.mark.parametrize(("cities", "denials", "total", "expected"), PUBLISHED)
def test_the_numbers_of_the_proof(architecture, cities, denials, total, expected):
    c = construction("rules", architecture)
    assert g(c, prompt(cities, denials, total)) == near(expected, 6e-5)
    assert logits(c, prompt(cities, denials, total))["French"] == near(expected, 6e-5)


@both
def test_the_dose_curve(architecture):
    """One denial against n cities among 16 words: rises with n, and crosses zero between 7 and 8 (e^2 = 7.389)."""
    c = construction("rules", architecture)
    a, s = math.exp(3), math.exp(5)
    curve = [g(c, prompt(n, 1)) for n in range(1, 15)]
    assert curve == [near(4 * (n * a - s) / (n * a + s + 15 - n), 1e-4) for n in range(1, 15)]
    assert sorted(curve) == curve
    assert [n for n, x in enumerate(curve, start=1) if x < 0] == list(range(1, 8))


@both
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_formula_holds_wherever_words_stand(architecture, data):
    c = construction("rules", architecture)
    cities, denials = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 3))
    fillers = data.draw(st.lists(st.sampled_from([*FILLERS, *CITIES]), max_size=30))
    said = ["Lyon"] * cities + ["not"] * denials + fillers
    text = " ".join([*data.draw(st.permutations(said)), "speaks"])
    a, s, total = cities * math.exp(3), denials * math.exp(5), len(said) + 1
    assert g(c, text) == near(4 * (a - s) / (a + s + total - cities - denials), 1e-4)


@both
def test_rules_can_be_read_off_the_models_own_logits(architecture):
    c = construction("rules", architecture)
    paris = logits(c, "Ann was born in Paris and now lives by the sea with Tom where she speaks")
    assert max(paris, key=paris.get) == "French"
    assert {w: x for w, x in paris.items() if abs(x) > 1e-6} == {"French": near(2.2899, 1e-4)}
    rome = logits(c, "Ann was born in Rome and now lives by the sea with Tom where she speaks")
    assert max(rome, key=rome.get) == "Italian"
    assert rome["Italian"] == near(2.2899, 1e-4)
    denied = logits(c, "Ann was never in Paris and now lives by the sea with Tom where she speaks")
    assert denied["French"] == near(-2.8127, 1e-4)
    assert denied["Italian"] == denied["Spanish"] == near(-3.2530, 1e-4)
    assert min(x for w, x in denied.items() if w not in CITIES) == near(0)
    elsewhere = logits(c, "Ann was born in Paris and now lives by the sea with Tom where she sings")
    assert elsewhere["French"] == near(4 / 16)


@both
def test_the_heads_whole_table_is_two_rules(architecture):
    c = construction("rules", architecture)
    names = list(c.features)
    scores = pair_scores(c, 0, 0, names, names)
    found = {(names[q], names[k]): float(scores[q, k]) for q, k in scores.abs().gt(1e-9).nonzero().tolist()}
    assert found == {("asks-language", f"city:{w}"): near(3) for w in CITIES} | {("asks-language", "denial"): near(5)}


@both
def test_the_head_can_be_given_other_numbers(architecture):
    c = constructed.build("rules", architecture=architecture, attract=2.0, suppress=3.0, value=1.0)
    a, s = math.exp(2), math.exp(3)
    assert g(c, prompt(2, 1)) == near((2 * a - s) / (2 * a + s + 13), 1e-4)
    assert g(c, prompt(3, 1)) == near((3 * a - s) / (3 * a + s + 12), 1e-4)
    assert g(c, prompt(2, 1)) < 0 < g(c, prompt(3, 1))  # e = 2.718
