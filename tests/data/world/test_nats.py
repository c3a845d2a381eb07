"""nats are the text's: in worlds small enough to write every document, they are -ln of its probability."""

import math
from collections import defaultdict

import pytest

from headlens.data.world import WorldConfig, document, labels, plain, planted, rules, scene
from headlens.data.world.document import Plant
from headlens.data.world.lexicon import CITIES, CONCEPTS, HAPPENINGS, POOLS
from headlens.data.world.scene import Line, Scene
from tests.data.world.every import every
from tests.data.world.reading import alone, written


def chances(draw, config: WorldConfig) -> tuple[dict[str, float], dict[str, float], float]:
    """Text -> its probability; text -> probability by the nats of its draws, added up; and the mean of nats."""
    true, charged, mean = defaultdict(float), {}, 0.0
    for text, probability, nats in every(draw, config):
        true[text] += probability
        charged[text] = math.exp(-nats)
        mean += probability * nats
    return true, charged, mean


def entropy(probabilities) -> float:
    return -sum(p * math.log(p) for p in probabilities)


def text_of(lines: tuple[Line, ...]) -> str:
    return "|".join(line.text for line in lines)


MAKERS = (
    planted.fact, planted.indirect_object, rules.ordinals, rules.tally, rules.majority, rules.skip_gram, rules.absence,
)  # fmt: skip


@pytest.mark.parametrize("maker", MAKERS)
def test_no_two_draws_of_a_maker_write_the_same_lines(maker, monkeypatch):
    few = ("Ada", "Tom")
    for module in (scene, planted):
        monkeypatch.setattr(module, "POOLS", dict.fromkeys(POOLS, few))
    for module in (planted, rules):
        monkeypatch.setattr(module, "FIRST_NAMES", few)
    monkeypatch.setattr(planted, "OBJECTS", few)
    monkeypatch.setattr(rules, "CITIES", CITIES[:5])
    true, _, mean = chances(lambda scene: text_of(maker(scene)), alone("facts"))
    assert sum(true.values()) == pytest.approx(1)
    assert mean == pytest.approx(entropy(true.values()))


def test_a_concept_line_costs_its_groups_verbs_nouns_and_order():
    for seed in range(20):
        drawn = Scene(seed, 0, alone("concepts"))
        first, _ = planted.concept(drawn)
        nouns = [first.text[span.start : span.end] for span in first.spans if span.kind == "concept"]
        sizes = [len(next(group for group in CONCEPTS if noun in group)) for noun in nouns]
        groups, verbs = math.perm(len(CONCEPTS), 3), math.perm(len(HAPPENINGS), 3)
        ways = groups * verbs * math.prod(size * (size - 1) for size in sizes) * math.factorial(3)
        assert drawn.nats == pytest.approx(math.log(ways))


def tiny(scene: Scene) -> tuple[Line, ...]:
    line = Line(f"Once {scene.one_of(('x', 'y'))} is.")
    return line, line


TOPICS = {"one": (("a", "b"), ("{telling} is.",)), "two": (("c",), ("{telling}.",))}
AUTHORS = {"Ash": "Well", "Birch": "So"}


def shrink(monkeypatch, *, topics=1, authors=1, general=("It is {day}.", "Go.")) -> None:
    """Make documents of five to seven words, more than asides can have, of a handful of sentences."""
    few_topics = {topic: TOPICS[topic] for topic in list(TOPICS)[:topics]}
    few_authors = {author: AUTHORS[author] for author in list(AUTHORS)[:authors]}
    for module, name, value in (
        (document, "TARGETS", range(5, 8)),
        (document, "PLANTS", (Plant("facts", tiny, ("fact",), most=("tiny", 1)),)),
        (plain, "GENERAL", general),
        (plain, "TOPICS", few_topics),
        (scene, "TOPICS", few_topics),
        (plain, "FAVOURITE", few_authors),
        (scene, "FAVOURITE", few_authors),
        (scene, "POOLS", {"day": ("today", "so")}),
        (labels, "HEARSAY", ("{word}?",)),
        (labels, "VERDICTS", ("{word}!",)),
        (labels, "PRAISE", ("good",)),
        (labels, "BLAME", ("bad",)),
        (labels, "PASSWORD", "P {word}."),
        (labels, "NEEDLES", ("rare",)),
        (labels, "OBJECTS", ("cup",)),
    ):
        monkeypatch.setattr(module, name, value)


def world(**shares: float) -> WorldConfig:
    off = alone("facts", 0.0)
    return WorldConfig(**{name: shares.get(name, getattr(off, name)) for name in off.__dataclass_fields__})


WORLDS = {
    "plain": (world(), {}),
    "an echo after a gap": (world(facts=0.5), {}),
    "a sure plant": (world(facts=1.0), {}),
    "topics": (world(topics=0.5), {"topics": 2}),
    "needles": (world(needles=0.25), {}),
    "sentiments": (world(sentiments=0.5), {"general": ("It is {day} now.",)}),
}


@pytest.mark.parametrize("name", WORLDS)
def test_the_mean_of_nats_is_the_entropy_of_the_text(monkeypatch, name):
    config, size = WORLDS[name]
    shrink(monkeypatch, **size)
    true, charged, mean = chances(lambda drawn: document._document(drawn).text, config)
    assert len(true) > 1 and sum(true.values()) == pytest.approx(1)
    assert mean == pytest.approx(entropy(true.values()))
    assert charged == pytest.approx(true)


def test_with_tics_the_mean_of_nats_is_above_the_entropy_but_not_far(monkeypatch):
    shrink(monkeypatch, authors=2, general=("It is {day} now.",))
    true, _, mean = chances(lambda drawn: document._document(drawn).text, world(authors=0.5))
    assert entropy(true.values()) < mean < entropy(true.values()) + 0.7


def test_nats_of_default_documents_are_of_a_likely_size():
    for drawn in written(300, 0):
        assert 0.4 < drawn.nats / len(drawn.text.split()) < 3
