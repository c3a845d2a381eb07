"""Circuits set by hand: who is given something, what entity is coming, and by what relation a question is answered."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headlens as hl
from headlens.data.stimuli import english
from headlens.tracing import edit, patch
from headlens.zoo.constructed.vocabulary import GIFT_WORDS, PEOPLE, RELATIONS, TASK_WORDS, WORDS
from tests.zoo.constructions import construction, loaded, read, scores_of_last

both = pytest.mark.parametrize("architecture", ["gpt2", "llama"])
ways = pytest.mark.parametrize(
    ("architecture", "by"), [("gpt2", "duplicate_token"), ("gpt2", "induction"), ("llama", "induction")]
)
E10 = math.exp(10)


def near(x: float, within: float = 1e-5):
    return pytest.approx(x, abs=within)


def places(c) -> dict[str, tuple[int, int]]:
    return {name: place for place, name in c.heads.items() if name != "uniform"}


def p_of(c, logits: torch.Tensor, word: str) -> float:
    return float(logits.double().softmax(-1)[c.tokenizer.convert_tokens_to_ids(word)])


# --- indirect objects ----------------------------------------------------------------------------------------------

TOLD = "When Mary and Tom came to the park, Tom gave a book to"
TO = len(TOLD.replace(",", " ,").split())


@ways
def test_where_heads_of_the_gift_circuit_stand(architecture, by):
    found = places(construction("indirect_objects", architecture, by=by))
    late = by == "induction"
    first = {"previous_token": (0, 0), "name_induction": (1, 0)} if late else {"duplicate_token": (0, 0)}
    assert found == first | {
        "giver_attending": (1 + late, 0),
        "s_inhibition": (1 + late, 1),
        "name_attending": (2 + late, 0),
        "negative_name_mover": (2 + late, 1),
        "name_mover": (2 + late, 2),
    }


@ways
def test_who_is_given_something(architecture, by):
    c = construction("indirect_objects", architecture, by=by)
    seen, at = read(c, TOLD), places(c)
    expected = {"Mary": 60, "Tom": 0, "<bos>": 30}
    scores = scores_of_last(c, TOLD, *at["name_mover"])
    assert dict(zip(seen.words, scores, strict=True)) == {w: near(expected.get(w, 0), 1e-4) for w in seen.words}
    for name in ("name_attending", "negative_name_mover", "name_mover"):
        assert seen.attends(*at[name])["Mary"] == near(1)
    for name in ("giver_attending", "s_inhibition"):
        giver = scores_of_last(c, TOLD, *at[name])
        assert [giver[i] for i, w in enumerate(seen.words) if w == "Tom"] == [near(0, 1e-4), near(60, 1e-4)]
        assert seen.patterns[at[name]][-1, 10] == near(1)
    assert seen.words[10] == "Tom"
    assert seen.raised(c) == {"Mary": near(5, 1e-4)}
    assert p_of(c, seen.logits[-1], "Mary") == near(0.4859, 5e-5)
    assert p_of(c, seen.logits[-1], "Mary") == near(math.exp(5) / (math.exp(5) + 157))


@ways
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_whoever_is_named_in_whatever_words(architecture, by, data):
    c = construction("indirect_objects", architecture, by=by)
    io, giver = data.draw(st.permutations(PEOPLE))[:2]
    a, b = data.draw(st.permutations([io, giver]))
    template = data.draw(st.sampled_from(english.GIFTS))
    told = template.format(a=a, b=b, giver=giver, receiver="", place="park", thing="ring").removesuffix(" .")
    assert read(c, told).raised(c) == {io: near(5, 1e-4)}


@ways
def test_without_inhibition_all_three_mentions_are_alike(architecture, by):
    c = construction("indirect_objects", architecture, by=by)
    at, model = places(c), loaded(c)
    layer, head = at["s_inhibition"]
    site = f"blocks.{at['name_mover'][0]}.attn.hook_pattern"
    for silent, share in ((head, 1 / 3), (1 - head, 1)):  # 1 - head: giver_attending
        with edit(model, hl.ablate(f"blocks.{layer}.attn.hook_z", head=silent)):
            (batch,) = hl.capture(model, [c.tokenizer(TOLD)["input_ids"]], [site])
        assert batch[site][0, :3, -1, 2].tolist() == [near(share)] * 3
    assert read(c, TOLD.replace(", Tom", ", Lisa")).attends(*at["s_inhibition"])["<bos>"] == near(1)
    assert read(c, TOLD.replace("Mary", "Lisa")).attends(*at["s_inhibition"])["Tom"] == near(1)


def test_what_gifts_are_told_in():
    assert len(GIFT_WORDS) == 157
    assert len(PEOPLE) == 83 and set(PEOPLE) < set(GIFT_WORDS)
    assert {",", ".", "to", "the"} < set(GIFT_WORDS)


# --- entities --------------------------------------------------------------------------------------------------------

KNOWN, UNKNOWN = "owl cat red fox goat owl", "owl bear wolf lion goat owl"


@both
def test_an_entity_comes_on(architecture):
    c = construction("concepts", architecture)
    seen, at = read(c, KNOWN), places(c)
    assert seen.attends(*at["induction"])["cat"] == near(1)
    assert seen.attends(*at["concept_attending"])["fox"] == near(1)
    assert seen.attends(*at["concept_induction"])["fox"] == near(1)
    assert seen.raised(c) == {"cat": near(10, 1e-4)}
    after = read(c, f"{KNOWN} cat")
    assert after.raised(c) == {"red": near(20, 1e-4)}
    assert 1 - p_of(c, after.logits[-1], "red") == pytest.approx(63 * math.exp(-20), rel=1e-3)
    other = read(c, f"{UNKNOWN} cat")
    assert other.raised(c) == {"wolf": near(10, 1e-4)}
    assert p_of(c, other.logits[-1], "red") == pytest.approx(1 / (E10 + 63), rel=1e-4)


def z_at(c, text: str, layer: int, at: int) -> torch.Tensor:
    """(head, d_head)"""
    site = f"blocks.{layer}.attn.hook_z"
    (batch,) = hl.capture(loaded(c), [c.tokenizer(text)["input_ids"]], [site])
    return batch[site][0, at]


@both
def test_what_each_head_says_before_an_entity_begins(architecture):
    c = construction("concepts", architecture)
    model, ids, end = loaded(c), torch.tensor([c.tokenizer(f"{UNKNOWN} cat")["input_ids"]]), 6
    for context, p in ((KNOWN, E10 / (E10 + 63)), (UNKNOWN.replace("goat owl", "goat pepper"), 1 / 64)):
        for layer in range(3):
            z = z_at(c, context, layer, end)
            for head in range(model.n_heads):
                change = patch(f"blocks.{layer}.attn.hook_z", z[head][None, None], head=head, position=[end])
                with torch.no_grad(), edit(model, change):
                    found = p_of(c, c.model(ids).logits[0, -1], "red")
                planted = c.heads[layer, head] == "concept_induction"
                assert found == near(p if planted else 1 / (E10 + 63), 1e-6), (layer, head)
    known = E10 / (E10 + 63)
    assert known == near(0.9971, 5e-5)


# --- relations -------------------------------------------------------------------------------------------------------

SHOWN = {
    "antonym": "Q: hot\nA: cold\n\nQ: big\nA: small\n\nQ: {}\nA:",
    "capital": "Q: France\nA: Paris\n\nQ: Japan\nA: Tokyo\n\nQ: {}\nA:",
    "plural": "Q: cat\nA: cats\n\nQ: foot\nA: feet\n\nQ: {}\nA:",
}


def test_no_word_is_in_two_relations():
    words = [word for pairs in RELATIONS.values() for pair in pairs.items() for word in pair]
    assert len(words) == len(set(words)) == 2 * 117
    assert set(TASK_WORDS) == {*words, "the", "Q", "A", ":"}
    assert len(TASK_WORDS) == 238


@both
def test_examples_are_followed(architecture):
    c = construction("relations", architecture)
    at, told = places(c), SHOWN["antonym"].format("old")
    seen = read(c, told)
    for name in ("examples_attending", "function_vector"):
        shares = seen.attends(*at[name])
        assert (shares["cold"], shares["small"]) == (near(0.5), near(0.5))
    assert scores_of_last(c, told, *at["applying_antonym"])[0] == near(30, 1e-4)
    assert scores_of_last(c, told, *at["applying_antonym"])[-1] == near(60, 1e-4)
    assert scores_of_last(c, told, *at["applying_capital"])[0] == near(90, 1e-4)
    cold = 6
    assert seen.words[cold] == "cold"
    assert seen.patterns[at["right_answer"]][cold, cold] == near(1)
    assert seen.raised(c) == {"young": near(10, 1e-4)}
    assert p_of(c, seen.logits[-1], "young") == near(0.9893, 5e-5)
    wrong = read(c, told.replace("cold", "?").replace("small", "cold").replace("?", "small"))
    assert wrong.patterns[at["right_answer"]][cold, 0] == near(1)
    assert wrong.attends(*at["function_vector"])["<bos>"] == near(1)
    assert wrong.raised(c) == {}


def test_each_relation_answers_its_own_questions_and_no_others():
    c = construction("relations", "llama")
    for shown, told in SHOWN.items():
        asked = [(name, *pair) for name, pairs in RELATIONS.items() for pair in pairs.items()]
        texts = [told.format(question) for _, question, _ in asked]
        with torch.no_grad():
            logits = c.model(torch.tensor(c.tokenizer(texts)["input_ids"])).logits[:, -1]
        expected = torch.zeros_like(logits)
        for i, (name, _, answer) in enumerate(asked):
            expected[i, c.tokenizer.convert_tokens_to_ids(answer)] = 10.0 * (name == shown)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_marks_are_words_of_their_own():
    c = construction("relations")
    told = SHOWN["antonym"].format("old")
    assert c.tokenizer(told)["input_ids"] == c.tokenizer(told.replace(":", " : "))["input_ids"]
    assert len(WORDS) == 63
