"""What comes back: every answer is worked out again from the text alone, by readers that know no spans."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headlens.data.world import documents
from headlens.data.world.lexicon import CATEGORIES, CONCEPTS, HAPPENINGS, SYNONYMS
from tests.data.world.reading import COUNTING, KNOWN, WEEK, YEAR, alone, answers, said, sentence_of, written

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25, deadline=None)


@pytest.mark.parametrize("kind", ["sentence", "list", "name", "fact"])
def test_a_repeat_says_again_what_its_one_source_said_and_comes_once(kind):
    n = 0
    for document in written(150, 1):
        sources = []
        for span, (first,) in answers(document, kind):
            assert (first.kind, said(document, first)) == (kind, said(document, span))
            sources.append(first)
            n += 1
        new = [span for span in document.spans if span.kind == kind and not span.sources]
        assert sorted(sources, key=lambda span: span.start) == new
    assert n > 20


@pytest.mark.parametrize(
    ("knob", "kind", "around"),
    [
        ("list_repeats", "list", r'^\w+ read: "(\w+(?: \w+){3,11})\."$'),
        ("name_repeats", "name", r"^(?:Then|Later) ([A-Z]\w+ [A-Z]\w+) (?:\w+ )+the \w+\.$"),
        ("facts", "fact", r"^(?:Remember|Note|We know|They say) that the \w+ of \w+ is (\w+)\.$"),
    ],
)
def test_a_repeat_fills_its_place_in_the_sentence(knob, kind, around):
    for document in written(25, 2, alone(knob)):
        for span in document.spans:
            assert span.kind == kind
            assert re.fullmatch(around, sentence_of(document, span)).group(1) == said(document, span)


def test_a_repeated_sentence_is_a_whole_one():
    whole = re.compile(r"[A-Z].*[.?]\"?")
    for document in written(40, 2, alone("sentence_repeats")):
        for span in document.spans:
            assert whole.fullmatch(said(document, span))
            assert document.text[: span.start] == "" or document.text[: span.start].endswith((". ", '." ', '?" '))
            assert document.text[span.end :] == "" or document.text[span.end] == " "


def test_lists_have_4_to_12_different_words():
    lengths = set()
    for document in written(60, 3, alone("list_repeats")):
        for span in document.spans:
            words = said(document, span).split()
            assert len(set(words)) == len(words)
            lengths.add(len(words))
    assert lengths == set(range(4, 13))


def test_no_two_facts_of_a_document_share_an_owner():
    claim = re.compile(r"that (the \w+ of (\w+) is \w+)\.")
    for document in written(60, 4, alone("facts")):
        told = set(claim.findall(document.text))
        assert len({owner for _, owner in told}) == len(told) > 0


# --- concepts ---------------------------------------------------------------------------------------------

PAIR = re.compile(r"[Tt]he (\w+) (\w+)(?=[,.]| and the)")


def concept_lines(text: str) -> list[list[tuple[str, str]]]:
    """(noun, verb) pairs of each concept line."""
    return [PAIR.findall(line) for line in re.findall(r"The \w+ \w+, the \w+ \w+ and the \w+ \w+\.", text)]


def group_of(noun: str) -> tuple[str, ...]:
    (group,) = (group for group in CONCEPTS if noun in group)
    return group


@given(seed=seeds)
@few
def test_in_the_echo_the_same_happens_to_other_members_of_the_groups(seed):
    (document,) = documents(1, seed=seed, config=alone("concepts"))
    first: dict[tuple[str, ...], tuple[str, str]] = {}
    nouns, echoed = set(), 0
    for line in concept_lines(document.text):
        for noun, verb in line:
            group = group_of(noun)
            assert noun not in nouns
            if group in first:
                other, done = first.pop(group)
                assert verb == done and other != noun
                echoed += 1
            else:
                assert not {noun for noun in nouns if noun in group}
                first[group] = (noun, verb)
        nouns |= {noun for noun, _ in line}
    assert not first and echoed > 0
    verbs = [verb for line in concept_lines(document.text) for _, verb in line]
    assert all(verbs.count(verb) == 2 for verb in verbs)


def test_the_sources_of_a_consequence_are_the_noun_of_the_group_and_its_verb():
    n = 0
    for document in written(40, 5, alone("concepts", 0.7)):
        of_verb = {verb: noun for line in concept_lines(document.text) for noun, verb in line}  # of the echo
        for span, (noun, verb) in answers(document, "consequence"):
            assert (noun.kind, verb.kind) == ("concept", "consequence")
            assert said(document, verb) == said(document, span)
            assert document.text[noun.end : verb.start] == " "
            assert group_of(said(document, noun)) == group_of(of_verb[said(document, span)])
            n += 1
        for span, (noun,) in answers(document, "concept"):
            assert said(document, noun) in set(group_of(said(document, span))) - {said(document, span)}
    assert n > 100


def test_echoes_come_in_every_order():
    orders = set()
    for document in written(60, 6, alone("concepts")):
        for line in re.finditer(r"The \w+ \w+, the \w+ \w+ and the \w+ \w+\.", document.text):
            nouns = [s for s in document.spans if line.start() < s.start < line.end() and s.kind == "concept"]
            assert len(nouns) == 3
            if all(noun.sources for noun in nouns):
                orders.add(tuple(sorted(range(3), key=lambda i: nouns[i].sources)))
    assert len(orders) == 6


def test_what_happens_in_concept_lines_happens_nowhere_else():
    for document in written(150, 1):
        marked = [said(document, span) for span in document.spans if span.kind == "consequence"]
        assert sorted(marked) == sorted(word for word in re.findall(r"\w+", document.text) if word in HAPPENINGS)


def test_a_noun_has_one_group():
    nouns = [noun for group in CONCEPTS for noun in group]
    assert len(nouns) == len(set(nouns))
    assert all(len(group) >= 2 for group in CONCEPTS) and len(SYNONYMS) == 8 and "furniture" in CATEGORIES


# --- tables -----------------------------------------------------------------------------------------------

TABLE = re.compile(r"Table: name, (\w+), (\w+); ((?:\w+, \w+, \w+(?:; )?)+)\.")
LOOKUP = re.compile(r"In the table the (\w+) of (\w+) is (\w+)\.")


@given(seed=seeds)
@few
def test_a_lookup_gives_what_the_table_says(seed):
    (document,) = documents(1, seed=seed, config=alone("tables"))
    cell, owners = {}, []
    for *columns, rows in TABLE.findall(document.text):
        assert rows.count(";") in (2, 3)
        for owner, *values in (row.split(", ") for row in rows.split("; ")):
            owners.append(owner)
            cell |= {(owner, column): value for column, value in zip(columns, values, strict=True)}
    assert len(set(owners)) == len(owners) > 0
    asked = LOOKUP.findall(document.text)
    assert len(asked) == len(TABLE.findall(document.text)) > 0
    for column, owner, value in asked:
        assert cell[owner, column] == value


def test_the_sources_of_a_lookup_are_its_owner_and_its_value():
    for document in written(60, 7, alone("tables", 0.7)):
        for span, (owner, value) in answers(document, "lookup"):
            assert (owner.kind, value.kind) == ("cell", "cell")
            assert LOOKUP.search(sentence_of(document, span)).groups()[1:] == (
                said(document, owner),
                said(document, value),
            )
            assert re.fullmatch(r", (\w+, )?", document.text[owner.end : value.start])
        cells = [said(document, span) for span in document.spans if span.kind == "cell"]
        assert cells == [word for *_, rows in TABLE.findall(document.text) for word in re.findall(r"\w+", rows)]


def test_facts_and_tables_never_tell_of_the_same_person():
    for document in written(300, 8):
        told = re.findall(r"that the \w+ of (\w+) is", document.text)
        cells = {row.split(", ")[0] for *_, rows in TABLE.findall(document.text) for row in rows.split("; ")}
        assert not cells & set(told)


# --- givers and receivers ---------------------------------------------------------------------------------

GIFT = re.compile(
    r"(?:When|After|While|Then) (\w+) and (\w+) [\w ]+,(?: and)? (\w+) (?:gave|handed|sold|brought) a \w+ to (\w+)\."
)


@given(seed=seeds)
@few
def test_the_receiver_is_the_one_of_the_two_that_does_not_give(seed):
    (document,) = documents(1, seed=seed, config=alone("indirect_objects"))
    gifts = GIFT.findall(document.text)
    kinds = [(span.kind, said(document, span)) for span in document.spans]
    assert len(kinds) == 4 * len(gifts) > 0
    for i, (a, b, giver, receiver) in enumerate(gifts):
        assert a != b and {a, b} == {giver, receiver}
        assert kinds[4 * i + 2 : 4 * i + 4] == [("subject", giver), ("indirect object", receiver)]
        for place in (4 * i + 2, 4 * i + 3):
            (source,) = document.spans[place].sources
            assert source < 4 * i + 2 and kinds[source] == kinds[place]


def test_either_of_the_two_gives_equally_often():
    gifts = [gift for document in written(200, 9, alone("indirect_objects")) for gift in GIFT.findall(document.text)]
    first = sum(a == giver for a, _, giver, _ in gifts)
    assert abs(first - len(gifts) / 2) < 4 * (len(gifts) / 4) ** 0.5


# --- tasks ------------------------------------------------------------------------------------------------


def relation(given: str, answer: str) -> str:
    """What the answer is to what was given."""
    if given in KNOWN:
        return ("language", "capital")[KNOWN[given].index(answer)]
    for name, series in (("number", COUNTING), ("day", WEEK), ("month", YEAR)):
        if given in series:
            step = series.index(answer) - series.index(given)
            if name != "number":
                step = (step + 1) % len(series) - 1
            assert step in (1, -1)
            return f"{'next' if step == 1 else 'previous'} {name}"
    assert given in CATEGORIES[answer]
    return "category"


def test_all_pairs_of_a_task_are_of_one_relation_and_every_relation_occurs():
    found = set()
    for document in written(60, 10, alone("tasks")):
        for puzzle in re.findall(r"Puzzle: (.+?)\.", document.text):
            pairs = [pair.split(" is to ") for pair in puzzle.split(" as ")]
            assert 4 <= len(pairs) <= 6 and len({given for given, _ in pairs}) == len(pairs)
            (name,) = {relation(given, answer) for given, answer in pairs}
            found.add(name)
    assert found == {
        "language", "capital", "next number", "previous number", "next day", "previous day", "next month", "category",
    }  # fmt: skip


@given(seed=seeds)
@few
def test_the_sources_of_an_output_are_its_input_and_all_pairs_before(seed):
    (document,) = documents(1, seed=seed, config=alone("tasks"))
    start = 0
    for i, span in enumerate(document.spans):
        if span.kind == "task input":
            assert not span.sources
            if document.text[: span.start].endswith("Puzzle: "):
                start = i
        else:
            assert span.kind == "task"
            assert span.sources == (() if i == start + 1 else tuple(range(start, i)))
