"""A small text world: seeded documents whose regularities are planted, so that their labels are known.

A document is a row of utterances, drawn one after another from a table of makers until a random length
(20-200 words) is reached. Most makers write plain sentences. The planting makers write lines in which
something comes back, word for word, and mark it:

    kind               what comes back, and where
    sentence           a whole sentence, some utterances later
    list               a list of unrelated words, some utterances later
    name               a person's first and last name, some utterances later
    fact               what was said of somebody ("the key of Ada is red"), some utterances later
    subject            the giver's name, in "When Ada and Tom went to the park, Tom gave a book to Ada."
    indirect object    the receiver's name, in the same sentence

Offsets are in characters. Document i depends on (seed, i) and the config alone, and only on the integer
stream of PCG64: the same seed gives the same bytes on every machine.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from string import Formatter
from types import MappingProxyType

import numpy as np

from headlens._errors import DataError

SHORTEST, LONGEST = 20, 200
"""Length of a document, in words between spaces."""
MAX_GAP = 4
"""At most this many utterances are drawn between a planted line and its echo."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words("""
    Ada Tom Mary John Lena Omar Ruth Paul Nina Hugo Clara Ivan Sofia Karl Emma Noah Julia Peter Laura Simon
    Alice David Maria Felix Anna Victor Helen Oscar Grace Martin Irene Louis
""")
LAST_NAMES = _words("""
    Lovell Barton Marsh Keller Novak Fisher Conrad Hansen Porter Walsh Moreno Tanner Becker Sutton Archer
    Dalton Meyer Foster Granger Linden
""")
COUNTRIES = _words("""
    France Germany Spain Italy Japan China Russia Poland Sweden Norway Denmark Greece Turkey Portugal Finland
    Hungary
""")
LANGUAGES = _words("""
    French German Spanish Italian Japanese Chinese Russian Polish Swedish Norwegian Danish Greek Turkish
    Portuguese Finnish Hungarian
""")
LANGUAGE_OF = dict(zip(COUNTRIES, LANGUAGES, strict=True))
CATEGORY_OF = {
    **dict.fromkeys(_words("hammer saw drill ladder shovel brush"), "tool"),
    **dict.fromkeys(_words("cup plate bowl spoon kettle jar"), "dish"),
    **dict.fromkeys(_words("coat scarf hat glove shirt boot"), "garment"),
    **dict.fromkeys(_words("table chair lamp shelf bed desk"), "piece of furniture"),
    **dict.fromkeys(_words("book letter map key clock bell"), "thing to keep"),
    **dict.fromkeys(_words("peach pear lemon plum cherry melon"), "fruit"),
}
OBJECTS = tuple(CATEGORY_OF)
COLOURS = _words("red blue green yellow black white brown grey pink purple silver golden")
ANIMALS = _words("dog cat horse cow goat duck frog bird bear lion tiger rabbit snake whale")
PLACES = _words("""
    park school market station garden library museum harbour bridge church kitchen river forest bakery castle
    theatre farm hotel shop office
""")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
NUMBERS = _words("""
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
""")
WEATHER = _words("cold warm rainy sunny windy quiet dark bright")
TRAVELS = ("went to", "walked to", "ran to", "visited", "left", "came to", "looked for", "waited at")
LIST_WORDS = (*OBJECTS, *COLOURS, *ANIMALS, *PLACES, *NUMBERS)


NO_MARKS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class WorldConfig:
    """Share of a document's utterances that plant each regularity; what is left is plain text."""

    sentence_repeats: float = 0.1
    list_repeats: float = 0.1
    name_repeats: float = 0.15
    facts: float = 0.2
    indirect_objects: float = 0.1

    def __post_init__(self) -> None:
        shares = astuple(self)
        if min(shares) < 0 or not sum(shares) <= 1:
            raise DataError(f"The shares of a WorldConfig must be at least 0 and add to at most 1; got {self}.")


@dataclass(frozen=True)
class Span:
    """A stretch of text that was planted: `document.text[start:end]`."""

    kind: str
    start: int
    end: int
    repeats: int | None
    """Index in `document.spans` of the span whose text this one says again; None where it is new."""


@dataclass(frozen=True)
class Document:
    """A text and what was planted in it, in the order of the text."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Line:
    """One sentence, and its marked stretches as (kind, start, end)."""

    text: str
    marks: tuple[tuple[str, int, int], ...] = ()


class Scene:
    """The draws of one document; names that must not be confused are dealt without replacement."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        self._people = list(generator.permutation(len(FIRST_NAMES)))

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self._generator.integers(n))

    def share(self) -> float:
        """A number from 0 up to 1."""
        return float(self._generator.random())

    def one_of(self, words: tuple[str, ...]) -> str:
        return words[self.below(len(words))]

    def some_of(self, words: tuple[str, ...], n: int) -> list[str]:
        """`n` different words, in random order."""
        return [words[i] for i in self._generator.permutation(len(words))[:n]]

    def new_person(self) -> str:
        """A first name that this document has not been dealt yet, so that no two facts share an owner."""
        return FIRST_NAMES[self._people.pop()]


def documents(n: int, *, seed: int, config: WorldConfig = WorldConfig()) -> Iterator[Document]:
    """Yield `n` documents; a longer run with the same seed begins with the same documents."""
    for i in range(n):
        yield _document(Scene(np.random.Generator(np.random.PCG64([seed, i]))), config)


def _document(scene: Scene, config: WorldConfig) -> Document:
    text, spans, seen = "", [], {}
    for plant, line in _arranged(_utterances(scene, config), scene):
        text += " " if text else ""
        for kind, start, end in line.marks:
            what = (plant, kind, line.text[start:end])
            spans.append(Span(kind, len(text) + start, len(text) + end, seen.get(what)))
            seen.setdefault(what, len(spans) - 1)
        text += line.text
    return Document(text, tuple(spans))


def _utterances(scene: Scene, config: WorldConfig) -> list[tuple[Line, ...]]:
    """Draw utterances (a line, or a line and its echo) until the document is long enough."""
    target = SHORTEST + scene.below(LONGEST - SHORTEST + 1)
    drawn, words = [], 0
    while words < target:
        lines = _maker(scene, config)(scene)
        words += sum(len(line.text.split()) for line in lines)
        if words > LONGEST:
            break
        drawn.append(lines)
    return drawn


def _maker(scene: Scene, config: WorldConfig) -> "Maker":
    left = scene.share()
    for knob, maker in PLANTING.items():
        left -= getattr(config, knob)
        if left < 0:
            return maker
    return _plain


def _arranged(utterances: list[tuple[Line, ...]], scene: Scene) -> Iterator[tuple[int, Line]]:
    """Put every echo a random gap after its line, and say which utterance each line belongs to."""
    placed = []
    for i, (line, *echoes) in enumerate(utterances):
        placed.append((i, 0, i, line))
        placed += [(i + scene.below(MAX_GAP + 1), 1, i, echo) for echo in echoes]
    for _, _, i, line in sorted(placed, key=lambda row: row[:3]):
        yield i, line


# ---- makers: each draws one utterance from the scene -------------------------------------------

Maker = Callable[[Scene], tuple[Line, ...]]

POOLS: dict[str, tuple[str, ...]] = {
    "person": FIRST_NAMES, "last": LAST_NAMES, "travelled": TRAVELS, "place": PLACES, "day": DAYS,
    "month": MONTHS, "number": NUMBERS, "weather": WEATHER, "colour": COLOURS, "thing": OBJECTS,
    "animal": ANIMALS, "country": COUNTRIES,
    "nation": tuple(f"In {country} people speak {language}" for country, language in LANGUAGE_OF.items()),
    "category": tuple(f"Every {thing} is a {category}" for thing, category in CATEGORY_OF.items()),
    "opening": ("Remember", "Note", "We know", "They say"),
}  # fmt: skip
"""What a field of a template is drawn from."""

PLAIN = (
    "{person} {travelled} the {place} on {day}.",
    "The {colour} {animal} slept near the {place}.",
    "{person} counted {number} {animal}s.",
    "In {month} it was {weather} at the {place}.",
    "{nation}.",
    "{category}.",
    '{person} said, "I like the {colour} {thing}."',
    '"Where is the {thing}?" asked {person} at the {place}.',
)


def _line(scene: Scene, template: str, marked: Mapping[str, str] = NO_MARKS, **given: str) -> Line:
    """Fill a template with the words given, or drawn; `marked` maps a field to the kind it plants."""
    text, marks = "", []
    for literal, field, _, _ in Formatter().parse(template):
        text += literal
        if field is None:
            continue
        start = len(text)
        text += given[field] if field in given else scene.one_of(POOLS[field])
        if field in marked:
            marks.append((marked[field], start, len(text)))
    return Line(text, tuple(marks))


def _plain(scene: Scene) -> tuple[Line, ...]:
    return (_line(scene, scene.one_of(PLAIN)),)


def _sentence_repeat(scene: Scene) -> tuple[Line, ...]:
    sentence = _line(scene, scene.one_of(PLAIN)).text
    line = Line(sentence, (("sentence", 0, len(sentence)),))
    return line, line


def _list_repeat(scene: Scene) -> tuple[Line, ...]:
    words = " ".join(scene.some_of(LIST_WORDS, 4 + scene.below(9)))
    first, again = (_line(scene, '{person} read: "{list}."', {"list": "list"}, list=words) for _ in range(2))
    return first, again


def _name_repeat(scene: Scene) -> tuple[Line, ...]:
    name = _line(scene, "{person} {last}").text
    first, again = (
        _line(scene, f"{opening} {{name}} {{travelled}} the {{place}}.", {"name": "name"}, name=name)
        for opening in ("Then", "Later")
    )
    return first, again


def _fact(scene: Scene) -> tuple[Line, ...]:
    claim, pool = FACTS[scene.below(len(FACTS))]
    told = {
        "owner": scene.new_person(),
        "thing": scene.one_of(OBJECTS),
        "value": scene.one_of(POOLS[pool]),
    }
    first, again = (_line(scene, f"{{opening}} that {claim}.", {"value": "fact"}, **told) for _ in range(2))
    return first, again


FACTS = (
    ("the {thing} of {owner} is {value}", "colour"),
    ("{owner} lives in {value}", "country"),
    ("{owner} was born in {value}", "month"),
)
"""What can be said of somebody, and the pool that its value is drawn from."""


def _indirect_object(scene: Scene) -> tuple[Line, ...]:
    a, b = scene.some_of(FIRST_NAMES, 2)
    giver, receiver = scene.some_of((a, b), 2)
    kinds = {giver: "subject", receiver: "indirect object"}
    template = "When {a} and {b} went to the {place}, {giver} gave a {thing} to {receiver}."
    marked = {"a": kinds[a], "b": kinds[b], "giver": "subject", "receiver": "indirect object"}
    return (_line(scene, template, marked, a=a, b=b, giver=giver, receiver=receiver),)


PLANTING: dict[str, Maker] = {
    "sentence_repeats": _sentence_repeat,
    "list_repeats": _list_repeat,
    "name_repeats": _name_repeat,
    "facts": _fact,
    "indirect_objects": _indirect_object,
}
"""Field of `WorldConfig` -> the maker whose frequency it sets."""
