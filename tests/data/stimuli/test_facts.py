"""Needles: the needle's sentence answers the question, nothing else does, and the null query has no answer."""

import re

import numpy as np
import pytest

from headlens._errors import DataError
from headlens.data import needles
from headlens.data.stimuli import english
from headlens.data.world import lexicon
from tests.data.stimuli.reading import CASES, bare, places, same, texts, tokenizer_of

N = 40
NAMES = {"english": english.NAMES, "world": lexicon.FIRST_NAMES}
VALUES = {"english": english.CODES, "world": (*lexicon.COLOURS, *lexicon.COUNTRIES, *lexicon.MONTHS)}
every_case = pytest.mark.parametrize(("language", "name"), CASES)


def made(language, name, n=N, n_filler=5, seed=0, bos=True):
    tokenizer = tokenizer_of(language, name)
    bos = tokenizer.bos_token_id if bos else None
    return tokenizer, needles(tokenizer, n=n, n_filler=n_filler, bos=bos, seed=seed, language=language)


def owners_in(text: str, language: str) -> list[str]:
    """Whoever has something said or asked, in order (white space is gone)."""
    people = "|".join(sorted(NAMES[language], key=len, reverse=True))
    return re.findall(rf"of({people})(?:is|\?)", text)


def claim(sentence: str, language: str) -> str:
    """What a sentence says, without the world's opening."""
    return sentence.split("that", 1)[1] if language == "world" else sentence


@every_case
def test_the_needle_is_what_its_sentence_says_of_the_owner_asked_for(language, name):
    tokenizer, stimulus = made(language, name)
    marks = {mark: texts(stimulus, tokenizer, mark) for mark in ("needle", "gold", "decoy", "question")}
    for needle, gold, decoy, question, text in zip(*marks.values(), texts(stimulus, tokenizer), strict=True):
        assert {needle, decoy} <= {bare(value) for value in VALUES[language]} and needle != decoy
        assert text.count(claim(gold, language)) == 1 and text.endswith(question)
        (owner,) = owners_in(gold, language)
        assert gold.endswith(f"of{owner}is{needle}.") and set(owners_in(question, language)) == {owner}
        assert question.endswith(claim(gold, language).removesuffix(f"{needle}."))


@every_case
def test_the_decoy_says_the_same_thing_of_another(language, name):
    tokenizer, stimulus = made(language, name)
    marks = {mark: texts(stimulus, tokenizer, mark) for mark in ("gold", "decoy", "needle")}
    for gold, decoy, needle, text in zip(*marks.values(), texts(stimulus, tokenizer), strict=True):
        (owner,) = owners_in(gold, language)
        (other,) = {*owners_in(text, language)} - {owner}
        said = claim(gold, language).removesuffix(f"of{owner}is{needle}.")
        assert text.count(f"{said}of{other}is{decoy}.") == 1 == text.count(f"of{other}is")


@every_case
def test_marks_are_whole_stretches_in_their_order(language, name):
    _, stimulus = made(language, name)
    for marked in zip(*(places(stimulus, m) for m in ("needle", "gold", "decoy", "question", "end")), strict=True):
        for tokens in marked:
            assert tokens == list(range(tokens[0], tokens[0] + len(tokens)))
        needle, gold, decoy, question, end = map(set, marked)
        assert needle < gold and not gold & decoy and not question & (gold | decoy) and end < question
        assert len(needle) == len(decoy) and max(question) == max(end)
    assert [end for (end,) in places(stimulus, "end")] == (stimulus.tokens.lengths - 1).tolist()


@every_case
@pytest.mark.parametrize("bos", [True, False])
def test_the_answer_is_the_needles_first_token(language, name, bos):
    tokenizer, stimulus = made(language, name, bos=bos)
    for i, (ids, needle, decoy) in enumerate(
        zip(stimulus.tokens, places(stimulus, "needle"), places(stimulus, "decoy"), strict=True)
    ):
        assert stimulus.answers["first"][i] == ids[needle[0]] != ids[decoy[0]]
        assert (ids[0] == tokenizer.bos_token_id) == bos


@every_case
def test_the_null_query_asks_for_somebody_of_whom_nothing_is_said(language, name):
    tokenizer, stimulus = made(language, name)
    assert (stimulus.control.offsets == stimulus.tokens.offsets).all()
    assert not (stimulus.control.ids != stimulus.tokens.ids)[~stimulus.marks["question"]].any()
    asked = texts(stimulus, tokenizer, "question", control=True)
    real = texts(stimulus, tokenizer, "question")
    for text, question, true in zip(texts(stimulus, tokenizer), asked, real, strict=True):
        (nobody,), (owner,) = set(owners_in(question, language)), set(owners_in(true, language))
        assert nobody not in owners_in(text, language) and question.replace(nobody, owner) == true


def test_nobody_in_the_document_has_the_null_querys_name():
    """Names are one token each in this tokenizer, and filler is full of them."""
    _, stimulus = made("world", "word", n_filler=12)
    for ids, control, question in zip(stimulus.tokens, stimulus.control, places(stimulus, "question"), strict=True):
        (place,) = np.flatnonzero(ids != control)
        assert place in question and control[place] not in ids and (ids == ids[place]).sum() == 2


@pytest.mark.parametrize(("language", "name"), [("english", "large"), ("world", "word")])
def test_the_document_holds_the_needle_its_owner_and_their_words_once(language, name):
    """Both tokenizers spell these words with tokens of their own, so a word's tokens are counted."""
    tokenizer, stimulus = made(language, name, n_filler=12)
    for i, ids in enumerate(stimulus.tokens):
        question = places(stimulus, "question")[i][0]
        for token in places(stimulus, "needle")[i] + places(stimulus, "decoy")[i]:
            if len(tokenizer.decode([ids[token]]).strip()) > 3:  # a word, and not a piece of one
                assert (ids == ids[token]).sum() == 1
        assert question > 0


@pytest.mark.parametrize("n_filler", [0, 1, 12])
@pytest.mark.parametrize(("language", "name"), [("english", "large"), ("world", "word")])
def test_there_is_as_much_filler_as_asked_for(language, name, n_filler):
    tokenizer, stimulus = made(language, name, n=20, n_filler=n_filler)
    for ids, question in zip(stimulus.tokens, places(stimulus, "question"), strict=True):
        text = tokenizer.decode(ids[1 : question[0]].tolist()).strip()
        # Every sentence ends with a point, or with one and what closes what was said.
        sentences = re.findall(r'[^.?"]*(?:"[^"]*"|[.?])', text)
        assert len([s for s in sentences if s.strip()]) == n_filler + 2
        assert len(set(map(str.strip, sentences))) == len(sentences)


def test_needle_and_decoy_stand_anywhere_and_in_either_order():
    _, stimulus = made("world", "word", n=400, n_filler=2)
    firsts = [n[0] < d[0] for n, d in zip(places(stimulus, "needle"), places(stimulus, "decoy"), strict=True)]
    assert 160 < sum(firsts) < 240
    begins = [gold[0] == 1 for gold in places(stimulus, "gold")]
    ends = [g[-1] + 1 == q[0] for g, q in zip(places(stimulus, "gold"), places(stimulus, "question"), strict=True)]
    assert all(60 < sum(either) < 150 for either in (begins, ends))  # one in four


@every_case
def test_one_seed_gives_the_same_and_another_gives_others(language, name):
    _, first = made(language, name)
    assert same(first, made(language, name)[1])
    assert first.tokens.hash != made(language, name, seed=1)[1].tokens.hash
    assert len({tuple(ids.tolist()) for ids in first.tokens}) == N


def test_provenance_says_how_it_was_made():
    said = made("world", "word", n=3, n_filler=4, seed=5)[1].provenance()
    assert said | {"name": "needles", "n": 3, "language": "world", "n_filler": 4, "seed": 5} == said


WORLD = ("world", "word")
REFUSED = {
    "none": (lambda: made(*WORLD, n=0), "n of needles must be 1 or more"),
    "seed": (lambda: made(*WORLD, seed=-1), "seed of needles must be 0 or more"),
    "filler": (lambda: made(*WORLD, n_filler=-1), "n_filler of needles must be 0 or more"),
    "words": (lambda: needles(tokenizer_of(*WORLD), n=3, bos=None, seed=0), "needs two values.*other language"),
    "names": (lambda: needles(tokenizer_of("english", "tiny"), n=3, bos=None, seed=0), "needs three names"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_made_is_refused(case):
    build, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        build()


def test_filler_that_runs_out_is_refused(monkeypatch):
    monkeypatch.setattr(english, "FILLER", ("Then came {season}.",))
    assert len(made("english", "large", n=1, n_filler=4)[1].tokens) == 1
    with pytest.raises(DataError, match="4 different sentences of filler here, not 5: lower n_filler"):
        made("english", "large", n=1, n_filler=5)


def test_tokens_are_whole_numbers_and_marks_truth_values():
    _, stimulus = made(*WORLD)
    assert stimulus.tokens.ids.dtype == np.int64 and {mark.dtype for mark in stimulus.marks.values()} == {
        np.dtype(bool)
    }
