"""Indirect objects: names stand where the marks say, one is said twice, and the control says none twice."""

import re

import numpy as np
import pytest

from headlens._errors import DataError
from headlens.data import indirect_objects
from headlens.data.stimuli import english
from headlens.data.stimuli.prompts import check_language
from headlens.data.world import lexicon, planted
from tests.data.stimuli.reading import CASES, bare, places, same, texts, tokenizer_of

N = 60
BY_LANGUAGE = {"english": (english.GIFTS, english.NAMES), "world": (planted.GIFTS, lexicon.FIRST_NAMES)}
every_case = pytest.mark.parametrize(("language", "name"), CASES)


def made(language, name, n=N, seed=0, bos=True):
    tokenizer = tokenizer_of(language, name)
    bos = tokenizer.bos_token_id if bos else None
    return tokenizer, indirect_objects(tokenizer, n=n, bos=bos, seed=seed, language=language)


def parsed(text: str, language: str) -> dict[str, str]:
    """The names in a prompt, by the template that it follows."""
    templates, names = BY_LANGUAGE[language]
    person = "|".join(sorted(names, key=len, reverse=True))
    for template in templates:
        pattern = re.escape(bare(template.split(" {receiver}")[0]))
        for field in ("a", "b", "giver"):
            pattern = pattern.replace(rf"\{{{field}\}}", f"(?P<{field}>{person})")
        if found := re.fullmatch(re.sub(r"\\\{\w+\\\}", "[a-z]+", pattern), text):
            return found.groupdict()
    raise AssertionError(text)


@every_case
def test_marks_are_the_names_of_a_sentence_of_this_language(language, name):
    tokenizer, stimulus = made(language, name)
    said = {mark: texts(stimulus, tokenizer, mark) for mark in ("io", "s1", "s2")}
    for i, text in enumerate(texts(stimulus, tokenizer)):
        found = parsed(text, language)
        assert found["giver"] == said["s1"][i] == said["s2"][i] != said["io"][i]
        assert {found["a"], found["b"]} == {said["s1"][i], said["io"][i]}
        # Each mark is where its name is, first or second: `a` and `b` are read off the text in order.
        io_first = places(stimulus, "io")[i][0] < places(stimulus, "s1")[i][0]
        assert found["a" if io_first else "b"] == said["io"][i]
        assert places(stimulus, "s1")[i][-1] < places(stimulus, "s2")[i][0]


@every_case
def test_every_token_of_a_name_is_marked_and_no_other(language, name):
    _, stimulus = made(language, name)
    for marked in zip(*(places(stimulus, mark) for mark in ("io", "s1", "s2")), strict=True):
        assert len({len(tokens) for tokens in marked}) == 1
        for tokens in marked:
            assert tokens == list(range(tokens[0], tokens[0] + len(tokens)))


def test_names_of_several_tokens_do_occur():
    widths = {name: len(places(made("world", name)[1], "io")[0]) for name in ("word", "bpe-300")}
    assert widths["word"] == 1 and widths["bpe-300"] > 1


@every_case
@pytest.mark.parametrize("bos", [True, False])
def test_the_end_is_the_last_token_and_bos_the_first(language, name, bos):
    tokenizer, stimulus = made(language, name, bos=bos)
    assert places(stimulus, "end") == [[n - 1] for n in stimulus.tokens.lengths]
    assert all((ids[0] == tokenizer.bos_token_id) == bos for ids in stimulus.tokens)


@every_case
def test_the_answer_is_what_the_tokenizer_writes_next(language, name):
    """The whole sentence, encoded at once, begins with the prompt and goes on with the first token of io."""
    tokenizer, stimulus = made(language, name)
    names = BY_LANGUAGE[language][1]
    spaced = {bare(n): n for n in names}
    for i, ids in enumerate(stimulus.tokens):
        for kind, mark in (("io", "io"), ("s", "s1")):
            told = spaced[texts(stimulus, tokenizer, mark)[i]]
            whole = tokenizer.backend_tokenizer.encode(f"to {told}.", add_special_tokens=False).ids
            after_to = tokenizer.backend_tokenizer.encode("to", add_special_tokens=False).ids
            tail = whole[len(after_to) :]
            # A space of its own stands at the end of the prompt already.
            tail = tail[1:] if tokenizer.decode([tail[0]]).strip() == "" else tail
            assert stimulus.answers[kind][i] == tail[0] == ids[places(stimulus, mark)[i][0]]
    assert (stimulus.answers["io"] != stimulus.answers["s"]).all()


@pytest.mark.parametrize("n", [1, 7, 60])
@pytest.mark.parametrize("language", ["english", "world"])
def test_half_of_the_prompts_name_the_indirect_object_first(language, n):
    _, stimulus = made(language, "large" if language == "english" else "word", n=n)
    first = [io < s for io, s in zip(places(stimulus, "io"), places(stimulus, "s1"), strict=True)]
    assert sum(first) == n // 2
    assert n < 60 or 2 < np.abs(np.diff(first)).sum() < 57  # in no order


@every_case
def test_the_control_names_nobody_twice_and_is_the_same_elsewhere(language, name):
    tokenizer, stimulus = made(language, name)
    assert (stimulus.control.offsets == stimulus.tokens.offsets).all()
    differs = stimulus.control.ids != stimulus.tokens.ids
    assert not differs[~stimulus.marks["s2"]].any()
    thirds = texts(stimulus, tokenizer, "s2", control=True)
    for i, text in enumerate(texts(stimulus, tokenizer, control=True)):
        found = parsed(text, language)
        assert found["giver"] == thirds[i] and len(set(found.values())) == 3
        firsts = [stimulus.control[i][places(stimulus, mark)[i][0]] for mark in ("io", "s1", "s2")]
        assert len(set(firsts)) == 3


@every_case
def test_one_seed_gives_the_same_and_another_gives_others(language, name):
    _, first = made(language, name)
    assert same(first, made(language, name)[1])
    assert first.tokens.hash != made(language, name, seed=1)[1].tokens.hash
    assert len({tuple(ids.tolist()) for ids in first.tokens}) == N


def test_single_tokens_are_taken_where_there_are_enough_of_them():
    _, stimulus = made("english", "large")
    assert {len(marked) for marked in places(stimulus, "io")} == {1} and stimulus.recipe["names"] >= 12


def test_provenance_says_how_it_was_made():
    said = made("world", "word", n=3, seed=5)[1].provenance()
    assert said | {"name": "indirect_objects", "n": 3, "language": "world", "seed": 5, "names": 32} == said


WORLD = ("world", "word")
REFUSED = {
    "language": (lambda: check_language("french"), "language must be english or world, not 'french'"),
    "none": (lambda: made(*WORLD, n=0), "n of indirect_objects must be 1 or more"),
    "seed": (lambda: made(*WORLD, seed=-1), "seed of indirect_objects must be 0 or more"),
    "no tokenizer": (lambda: indirect_objects(None, n=1, bos=None, seed=0), "no tokenizer"),
    "words": (
        lambda: indirect_objects(tokenizer_of("english", "words"), n=5, bos=None, seed=0, language="world"),
        "does not know .* of the tokens of indirect_objects.*language",
    ),
    "few names": (
        lambda: indirect_objects(tokenizer_of("english", "tiny"), n=5, bos=None, seed=0),
        "needs three names with equally many tokens .* the tokenizer knows 2",
    ),
    "names": (
        lambda: indirect_objects(tokenizer_of("world", "word"), n=5, bos=None, seed=0, language="english"),
        "does not know",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_made_is_refused(case):
    build, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        build()
