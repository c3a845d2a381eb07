"""Tasks: every pair shown is of the relation, in the control none is, and the target is the query's answer."""

import re
from collections import Counter

import pytest

from headlens._errors import DataError
from headlens.data import tasks
from headlens.data.stimuli import english
from headlens.data.stimuli.puzzles import RELATIONS, WORLD_RELATIONS
from headlens.data.stimuli.puzzles import _pairs as pairs_of
from headlens.data.world import lexicon
from tests.data.stimuli.reading import CASES, places, same, texts, tokenizer_of

N = 40
every_case = pytest.mark.parametrize(("language", "name"), CASES)


def made(language, name, n=N, shots=3, seed=0, bos=True, **options):
    tokenizer = tokenizer_of(language, name)
    bos = tokenizer.bos_token_id if bos else None
    return tokenizer, tasks(tokenizer, n=n, shots=shots, bos=bos, seed=seed, language=language, **options)


def relation(stimulus, language, i):
    names = stimulus.recipe["relations"]
    return RELATIONS[language][names[i % len(names)]]


def pairs(text: str, language: str, known) -> tuple[list[tuple[str, str]], str]:
    """The examples of a prompt, and what it asks for."""
    if language == "english":
        *shown, query = re.sub("^Q:", "", text).split("Q:")
        return [tuple(pair.split("A:")) for pair in shown], query.removesuffix("A:")
    # "fiveistosixasnine" is cut at "isto" into an answer and the next question; the words are known.
    pieces = re.sub("^Puzzle:", "", text).removesuffix("isto").split("isto")
    asked, answered = [pieces[0]], []
    for piece in pieces[1:]:
        answer, question = next((a, q) for a in known.values() for q in known if a + "as" + q == piece)
        answered.append(answer)
        asked.append(question)
    return list(zip(asked, answered, strict=False)), asked[-1]


@every_case
def test_every_pair_is_of_its_relation_and_the_target_completes_the_last(language, name):
    tokenizer, stimulus = made(language, name)
    for i, text in enumerate(texts(stimulus, tokenizer)):
        known = relation(stimulus, language, i)
        shown, query = pairs(text, language, known)
        assert len(shown) == 3 and all(known[question] == answer for question, answer in shown)
        assert len({query, *dict(shown)}) == 4 == len({known[query], *dict(shown).values()})
        start = "the " + known[query]
        spelled = tokenizer.backend_tokenizer.encode(start, add_special_tokens=False)
        (target, *_) = [t for t, (_, end) in zip(spelled.ids, spelled.offsets, strict=True) if end > 4]
        assert stimulus.answers["target"][i] == target


@every_case
def test_marks_are_questions_answers_and_the_end(language, name):
    tokenizer, stimulus = made(language, name)
    asked, answered = (texts(stimulus, tokenizer, mark) for mark in ("question", "shown"))
    for i, text in enumerate(texts(stimulus, tokenizer)):
        shown, _ = pairs(text, language, relation(stimulus, language, i))
        assert (asked[i], answered[i]) == tuple("".join(side) for side in zip(*shown, strict=True))
    assert places(stimulus, "end") == [[n - 1] for n in stimulus.tokens.lengths]


@every_case
def test_the_control_gives_every_answer_to_another_question(language, name):
    tokenizer, stimulus = made(language, name)
    assert (stimulus.control.offsets == stimulus.tokens.offsets).all()
    assert not (stimulus.control.ids != stimulus.tokens.ids)[~stimulus.marks["shown"]].any()
    both = zip(texts(stimulus, tokenizer), texts(stimulus, tokenizer, control=True), strict=True)
    for i, (text, wrong) in enumerate(both):
        known = relation(stimulus, language, i)
        (shown, query), (moved, asked) = pairs(text, language, known), pairs(wrong, language, known)
        assert query == asked and [q for q, _ in shown] == [q for q, _ in moved]
        assert Counter(a for _, a in shown) == Counter(a for _, a in moved)
        assert all(known[question] != answer for question, answer in moved)


@every_case
def test_the_target_is_no_first_token_of_an_answer_shown(language, name):
    _, stimulus = made(language, name)
    for i, ids in enumerate(stimulus.tokens):
        width = len(places(stimulus, "shown")[i]) // 3
        firsts = ids[places(stimulus, "shown")[i][::width]].tolist()
        assert len(firsts) == 3 and stimulus.answers["target"][i] not in firsts and len(set(firsts)) == 3


def test_every_order_of_wrong_answers_occurs():
    tokenizer, stimulus = made("english", "large", n=300, relations=["capital"])
    known, found = english.RELATIONS["capital"], Counter()
    for text, wrong in zip(texts(stimulus, tokenizer), texts(stimulus, tokenizer, control=True), strict=True):
        answers = [a for _, a in pairs(text, "english", known)[0]]
        found[tuple(answers.index(a) for _, a in pairs(wrong, "english", known)[0])] += 1
    assert set(found) == {(1, 2, 0), (2, 0, 1)} and min(found.values()) > 110


@pytest.mark.parametrize(("language", "name"), [("english", "large"), ("world", "word")])
def test_all_relations_take_turns_unless_some_are_chosen(language, name):
    _, stimulus = made(language, name)
    assert stimulus.recipe["relations"] == list(RELATIONS[language])
    _, chosen = made(language, name, relations=["capital"])
    assert chosen.recipe["relations"] == ["capital"] and chosen.tokens.hash != stimulus.tokens.hash


def test_a_relation_that_the_tokenizer_spells_too_few_words_of_is_left_out_unless_chosen():
    _, stimulus = made("world", "bpe-300", shots=5)
    left_out = set(WORLD_RELATIONS) - set(stimulus.recipe["relations"])
    assert left_out and stimulus.recipe["relations"]
    with pytest.raises(DataError, match="5 shots need 6 answers with equally many tokens"):
        made("world", "bpe-300", shots=5, relations=[*stimulus.recipe["relations"], *left_out])


@pytest.mark.parametrize("name", english.RELATIONS)
def test_english_relations_have_thirty_pairs_of_single_words_none_twice(name):
    known = english.RELATIONS[name]
    assert len(known) >= 30 and len(set(known.values())) == len(known)
    assert all(re.fullmatch("[A-Za-z]+", word) for pair in known.items() for word in pair)
    assert all(question != answer for question, answer in known.items())


@pytest.mark.parametrize("name", english.RELATIONS)
def test_a_pair_whose_sides_begin_with_one_token_is_left_out(name):
    known, tokenizer = english.RELATIONS[name], tokenizer_of("english", "small")

    def first(word):
        encoded = tokenizer.backend_tokenizer.encode(f"the {word}", add_special_tokens=False)
        return next(i for i, (_, end) in zip(encoded.ids, encoded.offsets, strict=True) if end > 4)

    kept = {question: answer.text for answer, asked in pairs_of(tokenizer, known).items() for question in asked}
    assert kept == {question: answer for question, answer in known.items() if first(question) != first(answer)}
    assert name != "plural" or len(kept) < 15


def test_the_worlds_maps_have_their_names():
    asked = {name: next(iter(known.items())) for name, known in WORLD_RELATIONS.items()}
    assert WORLD_RELATIONS["language"] == lexicon.LANGUAGE_OF and WORLD_RELATIONS["category"] == lexicon.CATEGORY_OF
    assert WORLD_RELATIONS["capital"] == lexicon.CAPITAL_OF and len(asked) == 8
    assert WORLD_RELATIONS["number after"]["five"] == "six" and WORLD_RELATIONS["number before"]["five"] == "four"
    assert WORLD_RELATIONS["day after"]["Sunday"] == "Monday" and WORLD_RELATIONS["day before"]["Monday"] == "Sunday"
    assert WORLD_RELATIONS["month after"]["May"] == "June"


@every_case
def test_one_seed_gives_the_same_and_another_gives_others(language, name):
    _, first = made(language, name)
    assert same(first, made(language, name)[1])
    assert first.tokens.hash != made(language, name, seed=1)[1].tokens.hash
    assert len({tuple(ids.tolist()) for ids in first.tokens}) == N


WORLD = ("world", "word")
REFUSED = {
    "none": (lambda: made(*WORLD, n=0), "n of tasks must be 1 or more"),
    "seed": (lambda: made(*WORLD, seed=-1), "seed of tasks must be 0 or more"),
    "one shot": (lambda: made(*WORLD, shots=1), "shots of tasks must be 2 or more"),
    "unknown": (lambda: made(*WORLD, relations=["antonym"]), "'antonym' is no relation of tasks.*language, capital"),
    "no relation": (lambda: made(*WORLD, relations=[]), "no relation of tasks"),
    "many shots": (lambda: made(*WORLD, shots=40), "40 shots need 41 answers.*lower shots"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_made_is_refused(case):
    build, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        build()
