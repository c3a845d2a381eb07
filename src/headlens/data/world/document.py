"""How does a document come about? A row of utterances of about the length drawn, echoes moved on, asides let in.

    1. A length is drawn, evenly from `TARGETS`, and then the labels with the lines that show them (asides).
    2. Utterances are drawn from the table of makers until utterances and asides have that many words.
    3. Asides get random places between the utterances; then every echo a random gap of 0-`MAX_GAP` utterances.

`Document.nats` is -ln of the probability of these draws. What the text cannot show is not charged: the length
counts as the chance to stop where the document stops, a gap ends with the document, and topic and author cost
nothing until they show. The text (and where it ends) is a function of the draws, so the mean of `nats` is at
least the entropy of the text: a perfect reader's mean loss per document. It is hardly more, since different draws
seldom write the same text; only the openers that two authors share are charged as if the author were known.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from headlens._errors import DataError
from headlens.data.world import planted, rules
from headlens.data.world.config import DEFAULT, WorldConfig
from headlens.data.world.labels import Labels, draw_labels
from headlens.data.world.plain import plain
from headlens.data.world.scene import Line, Scene, Span

SHORTEST, LONGEST = 20, 200
"""Length of a document, in words between spaces."""
TARGETS = range(24, 171)
"""Lengths to be reached. All asides together have at most 22 words, so they never decide it; no utterance has more
than 30, so it is not passed by more."""
MAX_GAP = 4
"""At most this many utterances stand between a planted line and its echo."""

Maker = Callable[[Scene], tuple[Line, ...]]


@dataclass(frozen=True)
class Plant:
    """One maker that plants something."""

    knob: str
    make: Maker
    kinds: tuple[str, ...]
    """Of the spans that it marks."""
    part: float = 1.0
    """Of the knob's share."""
    most: tuple[str, int] | None = None
    """A document holds at most so many utterances of makers that name this."""


PLANTS = (
    Plant("sentence_repeats", planted.sentence, ("sentence",)),
    Plant("list_repeats", planted.word_list, ("list",)),
    Plant("name_repeats", planted.name, ("name",)),
    Plant("concepts", planted.concept, ("concept", "consequence"), most=("concepts", planted.CONCEPT_LINES)),
    Plant("facts", planted.fact, ("fact",)),
    Plant("tables", planted.table, ("cell", "lookup")),
    Plant("indirect_objects", planted.indirect_object, ("subject", "indirect object")),
    Plant("tasks", planted.task, ("task input", "task")),
    Plant("ordinals", rules.ordinals, ("ordinal",)),
    Plant("brackets", rules.brackets, ("opening", "closing")),
    # One person who speaks, for else "speaks" would be answered by what was spoken before.
    Plant("skip_grams", rules.skip_gram, ("city", "language"), most=("tongues", 1)),
    Plant("absences", rules.absence, ("city", "port", "village", "absence"), most=("tongues", 1)),
    Plant("counts", rules.majority, ("vote", "majority"), part=0.5, most=("majorities", 1)),
    Plant("counts", rules.tally, ("ding", "tally"), part=0.5, most=("tallies", 1)),
)

ANSWERS = (
    "consequence", "fact", "lookup", "indirect object", "task", "ordinal", "closing", "language", "absence",
    "majority", "tally",
)  # fmt: skip
"""Kinds of span that, where they have sources, follow from them to the last word."""


@dataclass(frozen=True)
class Document:
    """A text, and what was planted in it."""

    text: str
    spans: tuple[Span, ...]
    """In the order of the text."""
    labels: Labels
    nats: float
    """-ln of the probability of the draws that wrote it; see the module."""


def documents(n: int, *, seed: int, config: WorldConfig = DEFAULT) -> Iterator[Document]:
    """Yield `n` documents; a longer run with the same seed begins with the same documents.

    Raises
    ------
    DataError
        If the seed is negative.
    """
    for i in range(n):
        yield nth_document(i, seed=seed, config=config)


def nth_document(i: int, *, seed: int, config: WorldConfig = DEFAULT) -> Document:
    """Write document `i` of a seed.

    Raises
    ------
    DataError
        If the seed is negative.
    """
    if seed < 0:
        raise DataError(f"seed must be 0 or more, not {seed}.")
    return _document(Scene(seed, i, config))


def _document(scene: Scene) -> Document:
    target = TARGETS[scene.hidden(len(TARGETS))]
    labels, asides = draw_labels(scene)
    utterances = _utterances(scene, target, sum(map(_n_words, asides)))
    rows = _let_in([(aside,) for aside in asides], utterances, scene)
    text, spans = _written(_arranged(rows, scene))
    return Document(text, spans, labels, scene.nats)


def _utterances(scene: Scene, target: int, words: int) -> list[tuple[Line, ...]]:
    """Draw utterances until `words` and theirs are `target` or more."""
    drawn, before = [], words
    while words < target:
        before = words
        drawn.append(_maker(scene)(scene))
        words += sum(map(_n_words, drawn[-1]))
    stopping = range(max(before + 1, TARGETS.start), min(words + 1, TARGETS.stop))
    scene.charge(len(stopping) / len(TARGETS))  # any of these targets would have given this text
    return drawn


def _n_words(line: Line) -> int:
    return line.text.count(" ") + 1


def _maker(scene: Scene) -> Maker:
    """Choose among the makers that this document has room for; all else is plain text."""
    free = [plant for plant in PLANTS if plant.most is None or scene.times(plant.most[0]) < plant.most[1]]
    shares = [plant.part * getattr(scene.config, plant.knob) for plant in free]
    chosen = scene.which((*shares, max(0.0, 1 - math.fsum(shares))))
    if chosen == len(free):
        return plain
    if most := free[chosen].most:
        scene.did(most[0])
    return free[chosen].make


def _let_in(asides: list[tuple[Line, ...]], utterances: list[tuple[Line, ...]], scene: Scene) -> list[tuple[Line, ...]]:
    """Shuffle two rows into one, each in its own order; all ways to do so are equally likely."""
    rows = []
    while asides and utterances:
        is_aside = scene.which((len(utterances), len(asides))) == 1
        rows.append((asides if is_aside else utterances).pop(0))
    return rows + asides + utterances


def _arranged(rows: list[tuple[Line, ...]], scene: Scene) -> list[tuple[int, Line]]:
    """Put every echo a random gap after its line, and say which utterance each line belongs to."""
    placed = []
    for i, (line, *echoes) in enumerate(rows):
        placed.append((i, 0, i, line))
        placed += [(i + scene.below(min(MAX_GAP + 1, len(rows) - i)), 1, i, echo) for echo in echoes]
    return [(i, line) for _, _, i, line in sorted(placed, key=lambda place: place[:3])]


def _written(arranged: list[tuple[int, Line]]) -> tuple[str, tuple[Span, ...]]:
    """Join lines with spaces; offsets and sources, which counted in the line and its utterance, count in the text."""
    texts, spans, start = [], [], 0
    of_utterance: dict[int, list[int]] = {}
    for i, line in arranged:
        places = of_utterance.setdefault(i, [])
        for span in line.spans:
            places.append(len(spans))
            sources = tuple(places[source] for source in span.sources)
            spans.append(Span(span.kind, start + span.start, start + span.end, sources))
        texts.append(line.text)
        start += len(line.text) + 1
    return " ".join(texts), tuple(spans)
