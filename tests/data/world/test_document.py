"""Documents: the same bytes everywhere, of the length promised, with spans that fit; knobs that switch."""

import hashlib
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headlens._errors import DataError
from headlens.data.world import ANSWERS, WITHOUT_REPEATS, Document, WorldConfig, documents
from headlens.data.world.config import KNOBS, PLANTED
from headlens.data.world.document import LONGEST, MAX_GAP, PLANTS, SHORTEST, TARGETS
from headlens.data.world.labels import draw_labels
from headlens.data.world.planted import CONCEPT_LINES
from headlens.data.world.scene import Scene
from tests.data.world.reading import alone, answers, sentences, written

seeds = st.integers(0, 2**64)
configs = st.sampled_from([WorldConfig(), WITHOUT_REPEATS, *(alone(knob) for knob in PLANTED)])
few = settings(max_examples=60, deadline=None)
KINDS = {knob: {kind for plant in PLANTS if plant.knob == knob for kind in plant.kinds} for knob in PLANTED} | {
    "topics": {"topic"},
    "authors": {"tic"},
    "sentiments": {"verdict", "hearsay"},
    "needles": {"needle"},
}


def test_the_same_seed_gives_the_same_bytes_on_every_machine():
    drawn = repr([(d.text, d.spans, d.labels, round(d.nats, 6)) for d in documents(50, seed=7)])
    assert (
        hashlib.sha256(drawn.encode()).hexdigest() == "74293dd9bd943f82b341d89f2b4b09f887cc44acd3291a33e1a77fbf79e0def3"
    )


def test_a_longer_run_begins_with_the_same_documents_and_another_seed_with_others():
    assert list(documents(9, seed=1))[:4] == list(documents(4, seed=1))
    assert list(documents(4, seed=1)) != list(documents(4, seed=2))
    assert len({document.text for document in documents(50, seed=1)}) == 50


def test_a_negative_seed_is_refused():
    with pytest.raises(DataError, match="seed must be 0 or more, not -1"):
        next(documents(1, seed=-1))


@given(seed=seeds, config=configs)
@few
def test_a_document_has_20_to_200_words(seed, config):
    (document,) = documents(1, seed=seed, config=config)
    assert SHORTEST <= len(document.text.split()) <= LONGEST
    assert document.nats > 0


def test_asides_never_decide_the_length_and_an_utterance_never_passes_the_longest():
    longest = 0
    for i in range(500):
        scene = Scene(1, i, WorldConfig(sentiments=1.0, needles=0.5, authors=1.0))
        _, asides = draw_labels(scene)
        assert sum(len(line.text.split()) for line in asides) < TARGETS.start
        for plant in PLANTS:
            lines = plant.make(Scene(2, i, WorldConfig(authors=1.0)))
            longest = max(longest, sum(len(line.text.split()) for line in lines))
    assert TARGETS.stop - 2 + longest <= LONGEST and longest == 30


def test_lengths_are_spread_evenly():
    lengths = [len(document.text.split()) for document in written(1000, 1)]
    assert min(lengths) < 30 and max(lengths) > 170
    assert sum(length < 100 for length in lengths) == pytest.approx(1000 * 73 / 147, abs=80)


@given(seed=seeds, config=configs)
@few
def test_spans_are_in_the_order_of_the_text_and_their_sources_before_them(seed, config):
    (document,) = documents(1, seed=seed, config=config)
    assert list(document.spans) == sorted(document.spans, key=lambda span: (span.start, -span.end))
    for i, span in enumerate(document.spans):
        assert 0 <= span.start < span.end <= len(document.text)
        assert document.text[span.start : span.end].strip() == document.text[span.start : span.end]
        assert list(span.sources) == sorted(set(span.sources))
        for source in span.sources:
            assert source < i and document.spans[source].end <= span.start


def test_every_kind_of_answer_has_sources_and_only_planted_kinds_have():
    seen = {kind: [0, 0] for kinds in KINDS.values() for kind in kinds}
    for document in written(400, 1):
        for span in document.spans:
            seen[span.kind][bool(span.sources)] += 1
    assert all(sum(counts) > 10 for counts in seen.values())
    assert {kind for kind, counts in seen.items() if counts[1]} >= set(ANSWERS)
    always = {"closing", "language", "absence", "majority", "tally", "lookup"}
    assert {kind for kind, counts in seen.items() if not counts[0]} == always
    again = {"sentence", "list", "name", "concept", "subject", "topic", "tic"}  # the last two in repeated sentences
    assert {kind for kind, counts in seen.items() if counts[1]} == {*ANSWERS, *again}


# --- arrangement ------------------------------------------------------------------------------------------


def test_an_echo_comes_0_to_4_utterances_after_its_line():
    gaps = [
        sum(first.start < other.start < echo.start and not other.sources for other in document.spans)
        for document in written(200, 5, alone("list_repeats"))
        for echo, (first,) in answers(document, "list")
    ]
    assert set(gaps) == set(range(MAX_GAP + 1))
    assert all(gaps.count(gap) > len(gaps) / 20 for gap in set(gaps))


def test_a_document_is_made_of_whole_sentences():
    for document in written(100, 1):
        assert " ".join(sentences(document.text)) == document.text
        assert "  " not in document.text and "{" not in re.sub(r"Note [^.]+\.", "", document.text)


# --- knobs ------------------------------------------------------------------------------------------------


def kinds_of(drawn: tuple[Document, ...]) -> set[str]:
    return {span.kind for document in drawn for span in document.spans}


def test_every_maker_has_its_knob():
    assert {plant.knob for plant in PLANTS} == set(PLANTED)
    assert set(KINDS) == set(KNOBS)
    for knob in PLANTED:
        assert sum(plant.part for plant in PLANTS if plant.knob == knob) == 1


@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_alone_plants_its_kinds_and_no_others(knob):
    assert kinds_of(written(60, 8, alone(knob, 0.5))) == KINDS[knob]


@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_at_zero_plants_none_of_its_kinds(knob):
    others = {kind for other, kinds in KINDS.items() if other != knob for kind in kinds}
    assert kinds_of(written(150, 9, WorldConfig(**{knob: 0.0}))) == others  # cities have two knobs


def test_all_knobs_at_zero_leave_plain_text():
    assert not kinds_of(written(30, 9, alone("facts", 0.0)))


def test_without_repeats_nothing_comes_back_and_all_else_stays():
    drawn = written(400, 10, WITHOUT_REPEATS)
    gone = (
        "sentence_repeats",
        "list_repeats",
        "name_repeats",
        "concepts",
        "facts",
        "tables",
        "indirect_objects",
        "tasks",
    )
    assert kinds_of(drawn) == {kind for knob, kinds in KINDS.items() if knob not in gone for kind in kinds}
    for document in drawn:
        for span in document.spans:
            assert not any(
                document.text[document.spans[i].start : document.spans[i].end] == document.text[span.start : span.end]
                for i in span.sources
            )


def test_shares_are_shares_of_the_utterances():
    drawn = written(300, 11, WorldConfig(**(dict.fromkeys(KNOBS, 0.0) | {"facts": 0.3})))
    told = sum(len(answers(document, "fact")) for document in drawn)
    n = sum(len(sentences(document.text)) for document in drawn) - told
    assert told / n == pytest.approx(0.3, abs=4 * (0.21 / n) ** 0.5)


def test_what_has_room_once_leaves_the_rest_to_plain_text():
    for document in written(60, 12, alone("concepts")):
        assert len([span for span in document.spans if span.kind == "concept"]) <= 6 * CONCEPT_LINES
    most = max(len(document.spans) for document in written(60, 12, alone("concepts")))
    assert most == 12 * CONCEPT_LINES


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        ({"facts": -0.1}, "facts must be a share from 0 to 1, not -0.1."),
        ({"facts": 1.1}, "facts must be a share from 0 to 1, not 1.1."),
        ({"topics": 2.0}, "topics must be a share from 0 to 1, not 2.0."),
        ({"facts": float("nan")}, "facts must be a share from 0 to 1, not nan."),
        ({"needles": 0.6}, "needles must be a share from 0 to 0.5, not 0.6."),
        ({"facts": 0.9}, "add to 1.48, and to at most 1: lower some."),
    ],
)
def test_shares_that_do_not_fit_are_refused(shares, sentence):
    with pytest.raises(DataError, match=re.escape(sentence)):
        WorldConfig(**shares)


def test_shares_may_add_to_exactly_one():
    """0.2 + 0.4 + 0.3 + 0.1 is above 1 where each sum is rounded."""
    shares = dict.fromkeys(KNOBS, 0.0) | dict(zip(PLANTED, (0.2, 0.4, 0.3, 0.1), strict=False))
    assert all(document.spans for document in documents(5, seed=1, config=WorldConfig(**shares)))


# --- the whole --------------------------------------------------------------------------------------------


def test_the_vocabulary_is_a_few_hundred_words():
    words = {word for document in written(3000, 1) for word in re.findall(r"[A-Za-z]+", document.text)}
    assert 450 < len(words) < 650
    assert all(
        character in ' ,.;:?"()[]{}' or character.isalpha()
        for document in written(3000, 1)
        for character in document.text
    )


def test_the_world_needs_no_torch():
    code = "import sys, headlens.data.world; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_docs_state_every_share_and_every_kind():
    page = (Path(__file__).parents[3] / "docs" / "world.md").read_text(encoding="utf-8")
    for knob, share in asdict(WorldConfig()).items():
        assert re.search(rf"`{knob}`(?: \(half\))?(?: \|)? {str(share).removeprefix('0')}\b", page), knob
    for kinds in KINDS.values():
        assert all(f"`{kind}`" in page for kind in kinds)
    assert set(re.findall(r"`([a-z ]+)`\*", page)) == set(ANSWERS)
