"""Tokens: spans tile any text, packing and padding lose nothing, and random stimuli draw from ordinary tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from headlens._errors import DataError
from headlens.data import Tokens, ordinary_ids, pack, pad, tokenize
from headlens.data.tokens import contiguous

CORPUS = [
    "Once upon a time, there was a little boy named Tim.",
    "Größe, naïve café, 北京 and 東京; Привет мир!",
    "👩\u200d🚀 and 🇩🇪, cafe\u0301, \u202eתירבע\u202c",
    "one  two\tthree\n\nfour",
]
BOS = "<s>"
ODD = ("👩\u200d🚀", "e\u0301", "\u0301", "🇩🇪", "\x00", "\u202e", " ", "\u00a0", "\u3000", "\n", "\r\n", "ﬁ", "İ", "ß", "한",
       "\u2028", "\ufeff", "</s>", "<0x0A>", "▁")  # fmt: skip
TEXT = st.lists(st.text(max_size=8) | st.sampled_from(ODD + tuple(CORPUS)), max_size=6).map("".join)


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=320, special_tokens=[BOS], initial_alphabet=sorted(alphabet),
                                          show_progress=False)  # fmt: skip


def metaspace():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    specials = [BOS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)


def word_level():
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer, trainers.WordLevelTrainer(vocab_size=100, special_tokens=[BOS, "<unk>"], show_progress=False)


def normalised():
    """Like BERT's: lower case and no accents, so what is tokenised is not what was written."""
    tokenizer, trainer = word_level()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    )
    return tokenizer, trainer


def trained(kind) -> PreTrainedTokenizerFast:
    tokenizer, trainer = kind()
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS)


TOKENIZERS = {kind.__name__: trained(kind) for kind in (byte_level, metaspace, word_level, normalised)}
every_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)

IDS = st.lists(st.lists(st.integers(0, 2**40), max_size=6), max_size=6)


# --- spans ------------------------------------------------------------------------------------------------


@every_tokenizer
@given(texts=st.lists(TEXT, min_size=1, max_size=3))
def test_spans_tile_every_text(name, texts):
    tokens = tokenize(texts, TOKENIZERS[name])
    assert len(tokens) == len(texts)
    for i, text in enumerate(texts):
        spans = tokens.spans[tokens.offsets[i] : tokens.offsets[i + 1]]
        assert "".join(text[start:end] for start, end in spans) == (text if len(spans) else "")
        assert all(spans[1:, 0] == spans[:-1, 1])


@every_tokenizer
@given(texts=st.lists(TEXT, min_size=1, max_size=3))
def test_ids_are_those_of_the_tokenizer(name, texts):
    tokenizer = TOKENIZERS[name]
    for row, text in zip(tokenize(texts, tokenizer), texts, strict=True):
        assert row.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


@given(text=TEXT.map(lambda text: text.replace("<", "").replace("\ufffd", "")))
def test_each_token_covers_the_characters_it_stands_for(text):
    tokenizer = TOKENIZERS["byte_level"]
    tokens = tokenize([text], tokenizer)
    for id_, (start, end) in zip(tokens.ids, tokens.spans, strict=True):
        piece = tokenizer.backend_tokenizer.decode([int(id_)])  # a part of a character decodes to U+FFFD
        assert piece == text[start:end] or "\ufffd" in piece


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted).map(tuple), max_size=8), st.integers(30, 40)
)
def test_contiguous_tiles_whatever_offsets_it_is_given(offsets, n_characters):
    spans = contiguous(offsets, n_characters)
    assert len(spans) == len(offsets)
    if offsets:
        assert spans[0, 0] == 0 and spans[-1, 1] == n_characters
        assert (spans[1:, 0] == spans[:-1, 1]).all() and (spans[:, 0] <= spans[:, 1]).all()
        # A token ends where it says it does, or later: never before a character that is its own.
        assert (spans[:, 1] >= [end for _, end in offsets]).all()


def test_spaces_belong_to_the_token_after_them():
    tokens = tokenize([" one  two \n"], TOKENIZERS["word_level"])
    assert [" one  two \n"[s:e] for s, e in tokens.spans] == [" one", "  two \n"]


def test_bytes_of_one_character_end_together():
    (end,) = {end for _, end in tokenize(["👾"], TOKENIZERS["byte_level"]).spans.tolist()}
    assert end == 1


@every_tokenizer
@given(texts=st.lists(TEXT, min_size=1, max_size=3), limit=st.integers(1, 6), bos=st.sampled_from([None, 0]))
def test_a_cut_is_a_prefix_and_bos_covers_nothing(name, texts, limit, bos):
    whole = tokenize(texts, TOKENIZERS[name])
    cut = tokenize(texts, TOKENIZERS[name], bos=bos, max_tokens=limit)
    for i in range(len(texts)):
        start = [] if bos is None else [bos]
        assert cut[i].tolist() == [*start, *whole[i].tolist()][:limit]
        spans = whole.spans[whole.offsets[i] : whole.offsets[i + 1]].tolist()
        expected = [[0, 0]] * len(start) + spans
        assert cut.spans[cut.offsets[i] : cut.offsets[i + 1]].tolist() == expected[:limit]


def test_padding_and_truncation_of_the_tokenizer_file_are_not_obeyed():
    tokenizer = trained(word_level)
    plain = [row.tolist() for row in tokenize(CORPUS, tokenizer)]
    backend = tokenizer.backend_tokenizer
    backend.enable_padding(length=40, pad_id=1, pad_token="<unk>", direction="left")
    backend.enable_truncation(3, stride=1, direction="left")
    before = backend.padding, backend.truncation
    assert [row.tolist() for row in tokenize(CORPUS, tokenizer)] == plain
    assert (backend.padding, backend.truncation) == before


def test_half_a_character_is_read_as_unknown_and_keeps_its_place():
    text = "one \ud83d two"
    tokens = tokenize([text], TOKENIZERS["byte_level"])
    assert tokens[0].tolist() == tokenize(["one \ufffd two"], TOKENIZERS["byte_level"])[0].tolist()
    assert tokens.spans[-1, 1] == len(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], TOKENIZERS["word_level"]), "There is no text"),
        ((["text"], None), "no tokenizer, so text cannot be read: pass token ids"),
        (("text", TOKENIZERS["word_level"]), r"not one string: write \[text\]"),
        ((["text"], object()), "must be a fast one"),
    ],
)
def test_what_cannot_be_tokenised_is_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        tokenize(*arguments)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_nothing_is_refused(limit):
    with pytest.raises(DataError, match=f"max_tokens must be 1 or more, not {limit}"):
        tokenize(["one two"], TOKENIZERS["word_level"], max_tokens=limit)


# --- pack, pad, hash --------------------------------------------------------------------------------------


@given(IDS)
def test_pack_gives_back_what_it_was_given(rows):
    tokens = pack(rows)
    assert [row.tolist() for row in tokens] == rows and tokens.lengths.tolist() == [len(row) for row in rows]


@pytest.mark.parametrize("form", [tuple, np.int32, np.uint16, torch.tensor])
def test_pack_takes_lists_arrays_and_tensors(form):
    convert = (lambda row: np.array(row, form)) if form in (np.int32, np.uint16) else form
    tokens = pack(convert(row) for row in ([3, 1], [2]))
    assert tokens.ids.tolist() == [3, 1, 2] and tokens.ids.dtype == np.int64


@given(IDS)
def test_sequences_are_counted_like_a_list(rows):
    tokens = pack(rows)
    for i in range(-len(rows), len(rows)):
        assert tokens[i].tolist() == rows[i]
    for i in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            tokens[i]


@given(IDS, IDS)
def test_hashes_are_equal_exactly_where_sequences_are(first, second):
    assert pack(first).hash == pack([list(row) for row in first]).hash
    assert (pack(first).hash == pack(second).hash) == (first == second)


def test_the_hash_sees_where_sequences_are_cut():
    cuts = [[[1, 2, 3]], [[1], [2, 3]], [[1, 2], [3]], [[1, 2, 3], []], [[], [1, 2, 3]]]
    assert len({pack(rows).hash for rows in cuts}) == len(cuts)
    assert pack([[1, 2], [3]]).hash == "ee2ed0d2cde00821"


def test_the_hash_is_of_values_not_of_widths():
    ids, offsets = np.array([1, 2]), np.array([0, 2])
    assert Tokens(ids.astype(np.int32), offsets.astype(np.int16)).hash == Tokens(ids, offsets).hash


@pytest.mark.parametrize("offsets", [[], [0], [1, 2], [0, 1], [0, 3], [0, 2, 1, 2]])
def test_offsets_must_cut_all_of_the_ids(offsets):
    with pytest.raises(DataError, match="offsets must rise from 0 to the number of ids"):
        Tokens(np.array([5, 6]), np.array(offsets, dtype=np.int64))


@pytest.mark.parametrize("row", [[0.5], ["a"], [[1, 2]], 7, [True]])
def test_what_is_no_list_of_ids_is_refused(row):
    with pytest.raises(DataError, match="Sequence 1 must be a flat list of token ids"):
        pack([[1], row])


@given(IDS.filter(len), st.sampled_from(["left", "right"]), st.integers(-1, 5), st.data())
def test_padding_can_be_taken_off(rows, side, fill, data):
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    ids, mask = pad(pack(rows), chosen, side=side, fill=fill)
    width = max(len(rows[i]) for i in chosen)
    assert ids.shape == mask.shape == (len(chosen), width)
    assert (ids[~mask] == fill).all()
    for i, row, real in zip(chosen, ids, mask, strict=True):
        n = len(rows[i])
        assert row[real].tolist() == rows[i]
        expected = [True] * n + [False] * (width - n)
        assert real.tolist() == (expected if side == "right" else expected[::-1])


def test_an_unknown_side_is_refused():
    with pytest.raises(Exception, match="side"):
        pad(pack([[1]]), [0], side="both")


# --- ordinary ids -----------------------------------------------------------------------------------------


def named(words: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, unk_token="<unk>")


def test_ordinary_ids_are_words():
    odd = ["<0x0A>", "<0xfF>", "[unused1]", "<unused_7>", "<unused12>", "<|reserved_special_token_3|>", "<reserved_2>",
           "<0XA0>", "[UNUSED1]", "<|RESERVED_9|>"]  # fmt: skip
    words = ["<0xG0>", "unused1", "[unused]", "reserved", "<b>", "<0x0A>0", "▁the"]
    tokenizer = named([BOS, "<unk>", *odd, *words])
    assert tokenizer.convert_ids_to_tokens(ordinary_ids(tokenizer, 100)) == words


def test_added_and_special_tokens_are_not_ordinary():
    tokenizer = named([BOS, "<unk>", "cat", "dog", "eel"])
    tokenizer.add_tokens(["new"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["dog"]})
    assert ordinary_ids(tokenizer, 100, special=[4]).tolist() == [2]


def test_ids_beyond_the_embedding_are_not_ordinary():
    tokenizer = named([BOS, "<unk>", "cat", "dog", "eel"])
    assert ordinary_ids(tokenizer, 4).tolist() == [2, 3]


@every_tokenizer
def test_every_ordinary_token_decodes_to_whole_characters(name):
    tokenizer = TOKENIZERS[name]
    ids = ordinary_ids(tokenizer, len(tokenizer))
    assert len(ids) > 30 and sorted(set(ids.tolist())) == ids.tolist()
    texts = {int(i): tokenizer.backend_tokenizer.decode([int(i)], skip_special_tokens=False) for i in ids}
    assert not any("\ufffd" in text for text in texts.values())
    assert not {BOS, "<unk>"} & set(texts.values())


def test_parts_of_a_character_are_not_ordinary():
    tokenizer = TOKENIZERS["byte_level"]
    parts = set(tokenize(["👾"], tokenizer).ids.tolist())
    assert len(parts) > 1 and not parts & set(ordinary_ids(tokenizer, len(tokenizer)).tolist())


def test_without_a_tokenizer_every_id_but_the_special_ones_is_ordinary():
    assert ordinary_ids(None, 6, special=[0, 3, 9]).tolist() == [1, 2, 4, 5]


def test_a_vocabulary_of_specials_only_has_none():
    assert ordinary_ids(named([BOS, "<unk>"]), 2).tolist() == []


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(DataError, match="must be a fast one"):
        ordinary_ids(object(), 5)


def test_a_text_that_a_tokenizer_has_no_words_for_is_refused():
    from headlens.zoo import constructed

    with pytest.raises(DataError, match="cannot spell these texts"):
        tokenize(["cat zebra-crossing"], constructed.build("induction").tokenizer)
