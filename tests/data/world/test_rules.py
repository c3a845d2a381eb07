"""What follows from a rule: every answer is worked out again from the text alone."""

import re
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from headlens.data.world import Document, documents
from headlens.data.world.lexicon import COUNTRIES, PORTS, SPOKEN_IN, VILLAGES
from tests.data.world.reading import COUNTING, KNOWN, WEEK, YEAR, alone, answers, said, sentence_of, written

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25, deadline=None)


def even(n: int, of: int) -> bool:
    """Is `n` of `of` what a fair coin gives?"""
    return abs(n - of / 2) < 4 * (of / 4) ** 0.5


# --- series and brackets ----------------------------------------------------------------------------------


def test_each_ordinal_is_the_successor_of_its_source():
    series_seen, lengths, wrapped = set(), set(), False
    for document in written(60, 1, alone("ordinals")):
        for row in re.findall(r"In order: (.+?)\.", document.text):
            items = row.split(", ")
            (series,) = (series for series in (COUNTING, WEEK, YEAR) if items[0] in series)
            for before, item in pairwise(items):
                step = series.index(item) - series.index(before)
                assert step == 1 or (series is not COUNTING and step == 1 - len(series))
                wrapped |= step < 0
            series_seen.add(series[0])
            lengths.add(len(items))
        for span, (before,) in answers(document, "ordinal"):
            assert document.text[before.end : span.start] == ", "
        first = [span for span in document.spans if not span.sources]
        assert all(document.text[: span.start].endswith("In order: ") for span in first)
    assert len(series_seen) == 3 and lengths == {3, 4, 5, 6} and wrapped


CLOSES = {")": "(", "]": "[", "}": "{"}


def test_brackets_balance_and_each_closing_one_points_at_what_it_closes():
    depths, orders = set(), set()
    for document in written(60, 2, alone("brackets")):
        open_, pairs = [], []
        for place, character in enumerate(document.text):
            if character in CLOSES.values():
                open_.append(place)
                depths.add(len(open_))
                orders.add("".join(document.text[i] for i in open_))
            elif character in CLOSES:
                assert document.text[open_[-1]] == CLOSES[character]
                pairs.append((open_.pop(), place))
        assert not open_
        marked = [(opening.start, closing.start) for closing, (opening,) in answers(document, "closing")]
        assert marked == pairs
        assert sorted(span.start for span in document.spans if span.kind == "opening") == sorted(a for a, _ in pairs)
    assert depths == {1, 2, 3} and len(orders) == 3 + 6 + 6


def test_what_stands_before_a_bracket_tells_whether_one_closes():
    for document in written(60, 2, alone("brackets")):
        for span in document.spans:
            before = document.text[: span.start]
            if span.kind == "closing":
                assert re.search(r"([({[]a \w+|\sof [A-Z]\w+|\sand a \w+)$", before)
            else:
                assert re.search(r"(Note|[({[]the \w+ \w+) $", before)


# --- languages --------------------------------------------------------------------------------------------


def language_of(city: str) -> str:
    """By the table of the countries, and the order in which the lexicon gives the other cities."""
    for country, (language, capital) in KNOWN.items():
        other = tuple(SPOKEN_IN)[len(KNOWN) + COUNTRIES.index(country)]
        if city in (capital, other):
            return language
    raise AssertionError(city)


def test_every_country_has_two_cities_of_one_word():
    assert len(SPOKEN_IN) == 32 and all(SPOKEN_IN[city] == language_of(city) for city in SPOKEN_IN)
    assert SPOKEN_IN["Lyon"] == "French" and SPOKEN_IN["Porto"] == "Portuguese" and SPOKEN_IN["Kazan"] == "Russian"


def test_one_speaks_the_language_of_the_city_where_one_grew_up():
    cities = set()
    for document in written(300, 3, alone("skip_grams", 0.5)):
        grown = dict(re.findall(r"(\w+) grew up in (\w+)\.", document.text))
        spoken = dict(re.findall(r"(\w+) speaks (\w+)\.", document.text))
        assert len(spoken) <= 1 and spoken == {person: language_of(city) for person, city in grown.items()}
        cities |= set(grown.values())
        for span, (city,) in answers(document, "language"):
            assert (city.kind, said(document, city)) == ("city", *grown.values())
            assert said(document, span) == spoken[next(iter(grown))]
    assert len(cities) > 25


def test_a_port_puts_the_trade_tongue_in_the_place_of_the_citys():
    ports = first = n = 0
    for document in written(600, 4, alone("absences", 0.5)):
        for person, *towns in re.findall(r"(\w+) knows (\w+) and (\w+)\.", document.text):
            ((city, other),) = ((a, b) for a, b in (towns, towns[::-1]) if a in SPOKEN_IN)
            (spoken,) = re.findall(rf"{person} speaks (\w+)\.", document.text)
            assert other in PORTS or other in VILLAGES
            assert spoken == ("Pidgin" if other in PORTS else language_of(city))
            n, ports, first = n + 1, ports + (other in PORTS), first + (towns[0] == city)
            ((span, sources),) = answers(document, "absence")
            assert said(document, span) == spoken and [said(document, source) for source in sources] == towns
            kinds = {said(document, source): source.kind for source in sources}
            assert kinds == {city: "city", other: "port" if other in PORTS else "village"}
    assert n > 500 and even(ports, n) and even(first, n)


def test_one_person_of_a_document_speaks_and_nobody_else_says_it():
    both = set()
    for document in written(400, 5):
        spoken = [span for span in document.spans if span.kind in ("language", "absence")]
        assert len(spoken) == document.text.count(" speaks ") <= 1
        both |= {span.kind for span in spoken}
    assert both == {"language", "absence"}


# --- counting ---------------------------------------------------------------------------------------------


@given(seed=seeds)
@few
def test_many_were_for_it_when_more_than_half_said_yes(seed):
    (document,) = documents(1, seed=seed, config=alone("counts"))
    votes = [vote.split() for vote in re.findall(r"The vote went ((?:yes|no)(?: yes| no)*)\.", document.text)]
    answer = re.findall(r"Those for it were (few|many)\.", document.text)
    assert len(votes) == len(answer) <= 1
    for cast, said_of_it in zip(votes, answer, strict=True):
        assert len(cast) in (3, 5, 7, 9)
        assert said_of_it == ("many" if cast.count("yes") > cast.count("no") else "few")
        ((span, sources),) = answers(document, "majority")
        assert said(document, span) == said_of_it and [said(document, source) for source in sources] == cast


@given(seed=seeds)
@few
def test_the_bell_is_counted(seed):
    (document,) = documents(1, seed=seed, config=alone("counts"))
    rung = re.findall(r"The bell went ((?:ding ?)+)\.", document.text)
    counted = re.findall(r"It rang (\w+) times\.", document.text)
    assert len(rung) == len(counted) <= 1
    for dings, number in zip(rung, counted, strict=True):
        assert COUNTING.index(number) + 2 == dings.count("ding") <= 6
        ((span, sources),) = answers(document, "tally")
        assert said(document, span) == number and len(sources) == dings.count("ding")
        assert {(source.kind, said(document, source)) for source in sources} == {("ding", "ding")}


def test_few_and_many_are_equally_likely_and_every_count_occurs():
    drawn = written(1500, 6, alone("counts"))
    outcomes = [said(d, span) for d in drawn for span, _ in answers(d, "majority")]
    assert even(outcomes.count("many"), len(outcomes)) and len(outcomes) > 500
    assert {said(d, span) for d in drawn for span, _ in answers(d, "tally")} == {"two", "three", "four", "five", "six"}


def spoken_words(document: Document) -> set[str]:
    return set(re.findall(r"[A-Za-z]+", document.text))


def test_the_words_of_a_rule_are_said_only_by_its_lines():
    for document in written(400, 5):
        kinds = {span.kind for span in document.spans}
        words = spoken_words(document)
        assert bool(words & {"few", "many", "yes", "no", "vote"}) == ("majority" in kinds)
        assert bool(words & {"ding", "rang", "times"}) == ("tally" in kinds)
        assert bool(words & {"speaks", "grew up"}) == bool(kinds & {"language", "absence"})
        assert bool(words & {*PORTS, *VILLAGES}) == ("absence" in kinds)


def test_a_rule_that_is_answered_once_leaves_the_rest_to_plain_text():
    for knob, once in (("skip_grams", "city"), ("counts", "majority"), ("counts", "tally")):
        for document in written(20, 7, alone(knob)):
            assert len([span for span in document.spans if span.kind == once]) == 1
            assert len({sentence_of(document, span) for span in document.spans}) <= 4
