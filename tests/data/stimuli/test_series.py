"""Orders: classes in their order, as far as they are single tokens, with a space before or without."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from headlens._errors import DataError
from headlens.data import orders
from headlens.data.stimuli import english
from headlens.data.world import lexicon
from tests.data.stimuli.reading import CASES, tokenizer_of

SPACED = pre_tokenizers.Split(pattern=" ", behavior="merged_with_next")


def with_words(*words: str, spaced: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words; those that begin with a space are known after one, others at the start alone."""
    vocabulary = {word: i for i, word in enumerate(("<unk>", "the", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = SPACED
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def said(tokenizer, **options) -> dict[str, tuple[list[str], bool]]:
    return {
        order.name: ([tokenizer.decode([i]).strip() for i in order.ids], order.cyclic)
        for order in orders(tokenizer, **options)
    }


def test_the_words_of_the_world_are_all_there():
    assert said(tokenizer_of("world", "word"), language="world") == {
        "days": (list(lexicon.DAYS), True),
        "months": (list(lexicon.MONTHS), True),
        "numbers": (list(lexicon.NUMBERS), False),
    }


def test_the_words_of_english_are_all_there():
    assert said(tokenizer_of("english", "words")) == {
        "days": (list(english.DAYS), True),
        "months": (list(english.MONTHS), True),
        "numbers": (list(english.NUMBERS), False),
        "digits": (list(english.DIGITS), False),
        "letters": (list(english.LETTERS), False),
    }


@pytest.mark.parametrize(("language", "name"), CASES)
def test_every_class_is_a_run_of_its_members_each_one_token(language, name):
    tokenizer = tokenizer_of(language, name)
    try:
        found = said(tokenizer, language=language)
    except DataError:
        assert name in ("bpe-300", "bpe-600")  # whose days and numbers are pieces
        return
    everything = {"days": english.DAYS, "months": english.MONTHS, "digits": english.DIGITS, "letters": english.LETTERS}
    everything["numbers"] = english.NUMBERS if language == "english" else lexicon.NUMBERS
    for kind, (members, cyclic) in found.items():
        whole = everything[kind]
        start = whole.index(members[0])
        assert len(members) >= 4 and members == list((*whole[start:], *whole[:start])[: len(members)])
        assert cyclic == (kind in ("days", "months") and len(members) == len(whole))


def days(*missing: str, space: str = " ") -> list[str]:
    return [space + day for day in english.DAYS if day not in missing]


def test_a_class_that_goes_round_may_be_cut_anywhere():
    assert said(with_words(*days("Wednesday"))) == {
        "days": (["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday"], False)
    }


def test_the_longest_run_is_taken_and_short_ones_are_none():
    assert said(with_words(*days("Wednesday", "Sunday", "Saturday"), *(f" {n}" for n in english.NUMBERS[2:8]))) == {
        "numbers": (list(english.NUMBERS[2:8]), False)
    }


def test_numbers_do_not_go_round():
    known = (*english.NUMBERS[:3], *english.NUMBERS[15:])
    assert said(with_words(*(f" {n}" for n in known)))["numbers"] == (list(english.NUMBERS[15:]), False)


def test_words_stand_after_a_space_unless_more_are_known_without():
    both = with_words(*days("Monday"), *days("Friday", space=""))
    assert [both.convert_ids_to_tokens(int(i))[0] for i in orders(both)[0].ids] == [" "] * 6
    bare = with_words(*days("Monday"), *days(space=""))
    assert bare.convert_ids_to_tokens(orders(bare)[0].ids.tolist()) == list(english.DAYS) and orders(bare)[0].cyclic


def test_a_tokenizer_that_knows_no_class_is_refused():
    with pytest.raises(DataError, match="4 consecutive days.*other language"):
        orders(with_words(*days("Wednesday", "Saturday")))
