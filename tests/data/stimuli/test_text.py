"""Passages: they begin the texts, their delimiters are marked, and so are the same places of the next text."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headlens._errors import DataError
from headlens.data import passages
from tests.data.test_tokens import TOKENIZERS

BOS = 0
WORDS = TOKENIZERS["word_level"]


def test_passages_begin_the_texts_and_leave_out_short_ones():
    texts = ["one two", "one two three four", "a little boy named Tim a little boy"]
    stimulus = passages(texts, WORDS, bos=BOS, max_tokens=6)
    ids = [WORDS.convert_tokens_to_ids(text.split()) for text in texts]
    assert [row.tolist() for row in stimulus.tokens] == [[BOS, *ids[1]], [BOS, *ids[2]][:6]]
    assert stimulus.name == "text" and stimulus.control is None and stimulus.bos == BOS


def test_passages_of_texts_that_are_all_short_are_refused():
    with pytest.raises(DataError, match="No text has four tokens or more when it is cut at 3"):
        passages(["one two three four"], WORDS, bos=None, max_tokens=3)


# --- delimiters -------------------------------------------------------------------------------------------

PIECES = st.lists(
    st.sampled_from(["one", " two", "three", ", ", ".", " (", "?!", " - ", "…", "\n", "a.b", "+"]), min_size=1
)


def by_sequence(stimulus, mark):
    bounds = zip(stimulus.tokens.offsets[:-1], stimulus.tokens.offsets[1:], strict=True)
    return [stimulus.marks[mark][start:end].tolist() for start, end in bounds]


def test_delimiters_are_punctuation_and_nothing_else():
    text = 'one two, three. (four) - "five" + six a'
    stimulus = passages([text], WORDS, bos=BOS, max_tokens=99)
    (marked,) = by_sequence(stimulus, "delimiter")
    words = ["<s>", "one", "two", ",", "three", ".", "(", "four", ")", "-", '"', "five", '"', "+", "six", "a"]
    assert marked == [word in ',.()-"' for word in words]


def test_bytes_of_one_delimiter_are_all_delimiters():
    tokenizer = TOKENIZERS["byte_level"]
    n_bytes = len(tokenizer.backend_tokenizer.encode("…", add_special_tokens=False).ids)
    (marked,) = by_sequence(passages(["a…b c"], tokenizer, bos=None, max_tokens=9), "delimiter")
    assert n_bytes > 1 and marked == [False, *[True] * n_bytes, False, False, False]


@pytest.mark.parametrize("name", ["byte_level", "metaspace", "word_level"])
@given(texts=st.lists(PIECES.map("".join), min_size=1, max_size=4), bos=st.sampled_from([None, BOS]))
def test_delimiters_hold_punctuation_and_all_of_it_is_held(name, texts, bos):
    """Where a token is one character of punctuation, or more of it, it is marked; where it holds a letter, never."""
    tokenizer = TOKENIZERS[name]
    texts = [text + " one two three four" for text in texts]
    stimulus = passages(texts, tokenizer, bos=bos, max_tokens=200)
    for text, ids, marked in zip(texts, stimulus.tokens, by_sequence(stimulus, "delimiter"), strict=True):
        encoded = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        start = int(bos is not None)
        assert ids[start:].tolist() == encoded.ids and not any(marked[:start])
        for (begin, end), is_marked in zip(encoded.offsets, marked[start:], strict=True):
            held = text[begin:end].strip()
            assert is_marked == (held != "" and all(unicodedata.category(c)[0] == "P" for c in held))


@given(st.lists(PIECES.map("".join), min_size=1, max_size=5), st.integers(4, 12))
def test_elsewhere_is_where_the_next_text_has_its_delimiters(texts, max_tokens):
    stimulus = passages([text + " one two three four" for text in texts], WORDS, bos=BOS, max_tokens=max_tokens)
    own, elsewhere = by_sequence(stimulus, "delimiter"), by_sequence(stimulus, "elsewhere")
    for i, marked in enumerate(elsewhere):
        following = own[(i + 1) % len(own)]
        assert marked == [j < len(following) and following[j] for j in range(len(marked))]


def test_texts_that_are_left_out_are_nobodys_next():
    stimulus = passages(["one two, three.", ",", "one. two three four"], WORDS, bos=None, max_tokens=9)
    assert by_sequence(stimulus, "elsewhere") == [[False, True, False, False, False], [False, False, True, False, True]]
