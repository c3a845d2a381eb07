"""Prompts: spans become tokens, the answer is cut off where it begins, and what does not line up is refused."""

import numpy as np
import pytest

from headlens._errors import DataError
from headlens.data.stimuli.prompts import ANSWER, Prompt, check_language, check_said, draw, firsts, joined, marked, read
from headlens.data.stimuli.words import Word, alike, several, spelled
from headlens.data.world.config import DEFAULT
from headlens.data.world.scene import Line, Mark, Scene, Span, line_of
from tests.data.stimuli.reading import tokenizer_of


def prompt(said: str, echo: str = "Ada", other: str = "Tom") -> Prompt:
    lines = (line_of(("When ", Mark(name, "said"), " met, ", Mark(echo, ANSWER), ".")) for name in (said, other))
    return Prompt(*lines)


def reading(*prompts, name="word", bos=None):
    return read("x", prompts, tokenizer_of("world", name), bos, broken="said")


@pytest.mark.parametrize("bos", [None, 0])
@pytest.mark.parametrize("name", ["word", "bpe-300", "characters"])
def test_the_prompt_is_what_stands_before_the_answer(name, bos):
    tokenizer = tokenizer_of("world", name)
    told, control = (
        reading(prompt("Ada"), prompt("Tom", "Tom", "Ada"), name=name, bos=bos)
        if name != "bpe-300"
        else (reading(prompt("Ada", other="Ada"), prompt("Tom", "Tom", "Tom"), name=name, bos=bos))
    )
    for i, who in enumerate(("Ada", "Tom")):
        whole = tokenizer.backend_tokenizer.encode(f"When {who} met, {who}.", add_special_tokens=False).ids
        ids = told.tokens[i].tolist()
        assert ids[: int(bos is not None)] == [0] * int(bos is not None)
        assert [*ids[int(bos is not None) :], *told.spelled[i].tolist()] == whole[:-1]
        assert tokenizer.decode(marked(told, "said")[i].tolist()).strip() == who
        assert firsts(told.spelled)[i] == told.spelled[i][0] and told.marks["end"].sum() == 2
    assert control.offsets.tolist() == told.tokens.offsets.tolist()


def test_a_space_that_is_a_token_stays_in_the_prompt():
    told, _ = reading(prompt("Ada"), name="characters")
    tokenizer = tokenizer_of("world", "characters")
    assert (
        tokenizer.decode(told.tokens[0].tolist()).endswith("met, ")
        and tokenizer.decode(told.spelled[0].tolist()) == "Ada"
    )


def test_what_does_not_line_up_is_refused():
    with pytest.raises(DataError, match="x and their control do not line up"):
        reading(prompt("Ada", other="Alice"), name="characters")  # longer
    line = line_of(("When ", Mark("Ada", "said"), " met, ", Mark("Ada", ANSWER), "."))
    with pytest.raises(DataError, match="do not line up"):
        reading(Prompt(line, line_of(("While Ada met, ", Mark("Ada", ANSWER), "."))))  # differs where nothing is marked


def test_words_that_the_tokenizer_does_not_know_are_refused_but_bos_may_be_its_unknown_token():
    with pytest.raises(DataError, match="does not know 1 of the tokens of x"):
        reading(prompt("Zebulon", other="Zebulon"))
    unk = tokenizer_of("world", "word").unk_token_id
    assert reading(prompt("Ada"), bos=unk)[0].tokens[0][0] == unk


def test_an_answer_spelled_differently_where_it_is_said_is_refused():
    check_said("x", reading(prompt("Ada"))[0], "said")
    with pytest.raises(DataError, match="spells an answer of x differently"):
        check_said("x", reading(prompt("Ada", "Tom"))[0], "said")


def test_the_same_prompt_is_not_drawn_twice_and_too_few_are_refused():
    names = ("Ada", "Tom", "Lena")
    seen = []

    def make(scene, k):
        seen.append(k)
        return prompt(scene.one_of(names))

    for seed in range(5):
        drawn = [p.told.text for p in draw("x", 3, seed, make)]
        assert len(set(drawn)) == 3 and drawn == [p.told.text for p in draw("x", 3, seed, make)]
    assert set(seen) == {0, 1, 2} and len(seen) > 5 * 2 * 3  # k counts the prompts kept, not those drawn
    with pytest.raises(DataError, match="x can write 3 different prompts with this tokenizer, not 4: ask for fewer"):
        draw("x", 4, 0, make)


def test_lines_joined_keep_what_their_spans_hold():
    first, second = Line("One two.", (Span("a", 4, 7),)), Line("Three four.", (Span("b", 0, 5), Span("c", 6, 10)))
    line = joined([first, second, first])
    assert [line.text[s.start : s.end] for s in line.spans] == ["two", "Three", "four", "two"]
    assert line.text == "One two. Three four. One two."


def test_there_are_two_languages():
    check_language("world")
    with pytest.raises(DataError, match="language must be english or world, not 'french'"):
        check_language("french")


# --- words ------------------------------------------------------------------------------------------------


def test_words_are_spelled_as_they_stand_after_a_space():
    tokenizer = tokenizer_of("world", "bpe-600")
    for word in spelled(tokenizer, ("Ada", "Tuesday", "Pidgin", "zephyr")):
        encoded = tokenizer.backend_tokenizer.encode(f"the {word.text}", add_special_tokens=False)
        rest = [i for i, (_, end) in zip(encoded.ids, encoded.offsets, strict=True) if end > len("the")]
        assert word.width == len(rest) and list(word.ids) == rest[len(rest) - len(word.ids) :]
        assert tokenizer.decode(list(word.ids)).strip() == word.text
        assert (word.width > len(word.ids)) == (tokenizer.decode(rest[:1]) == " ")


def test_words_that_are_not_known_are_left_out():
    assert [w.text for w in spelled(tokenizer_of("world", "word"), ("Ada", "Zebulon", "Tom", "Ada"))] == ["Ada", "Tom"]


WORDS = [Word("a", (1,), 1), Word("b", (1, 2), 2), Word("c", (3, 2), 2), Word("d", (4, 5), 3), Word("e", (3, 6), 2)]


def test_alike_are_words_of_as_many_tokens_with_first_ones_to_choose_from():
    assert [[w.text for w in group] for group in alike(WORDS, 1)] == [["a"], ["b", "c", "e"], ["d"]]
    assert [[w.text for w in group] for group in alike(WORDS, 2)] == [["b", "c", "e"]]
    assert alike(WORDS, 3) == []


def test_several_begin_with_different_tokens():
    (group,) = alike(WORDS, 2)
    drawn = {frozenset(w.text for w in several(Scene(0, i, DEFAULT), group, 2)) for i in range(40)}
    assert drawn == {frozenset("bc"), frozenset("be")} and np.array(group[0].ids).size == 2
