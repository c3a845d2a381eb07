"""What is drawn, and how does it become a line? Integer draws that add up their nats; templates; marks.

A draw is a 64-bit word of PCG64, taken to 0 .. n-1 by `word * n >> 64`; nothing else of numpy is used, whose
own methods may change between versions. Each draw of probability p adds -ln p to `Scene.nats`.

Axes: none. Unit of `nats`: nats of the document so far; of offsets: characters.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from string import Formatter
from typing import TypeVar

import numpy as np

from headlens.data.world.config import WorldConfig
from headlens.data.world.lexicon import FAVOURITE, POOLS
from headlens.data.world.sentences import TOPICS

T = TypeVar("T")
WORD = 1 << 64


@dataclass(frozen=True)
class Span:
    """A stretch of text that was planted: `document.text[start:end]`."""

    kind: str
    start: int
    end: int
    sources: tuple[int, ...] = ()
    """Indices in `document.spans` of the earlier spans that determine what this one says; none where it is new."""


@dataclass(frozen=True)
class Mark:
    """A word to be marked when it is put into a line; `sources` count the spans of its utterance."""

    text: str
    kind: str
    sources: tuple[int, ...] = ()


@dataclass(frozen=True)
class Line:
    """One line of an utterance. Its spans count characters of the line, and spans of the utterance."""

    text: str
    spans: tuple[Span, ...] = ()


class Scene:
    """The draws of one document, and what must not come twice in it."""

    def __init__(self, seed: int, i: int, config: WorldConfig) -> None:
        self._raw = np.random.PCG64([seed, i]).random_raw
        self._left: dict[tuple, list] = {}
        self._times: dict[str, int] = {}
        self.config = config
        self.nats = 0.0
        self.topic = tuple(TOPICS)[self.hidden(len(TOPICS))]
        self.author = tuple(FAVOURITE)[self.hidden(len(FAVOURITE))]

    def charge(self, probability: float) -> None:
        """Count something that had this probability."""
        self.nats -= math.log(probability)

    def hidden(self, n: int) -> int:
        """A whole number from 0 to n - 1 that is not charged, for the text may never show it."""
        return self._raw() * n >> 64

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        self.nats += math.log(n)
        return self._raw() * n >> 64

    def which(self, weights: Sequence[int] | Sequence[float]) -> int:
        """A place in `weights`, each as likely as its share of their sum."""
        total = math.fsum(weights)
        left, chosen = self._raw() / WORD * total, 0
        for chosen in (i for i, weight in enumerate(weights) if weight):  # rounding must not choose what has none
            left -= weights[chosen]
            if left < 0:
                break
        self.charge(weights[chosen] / total)
        return chosen

    def coin(self, probability: float) -> bool:
        """True this often."""
        return self.which((1 - probability, probability)) == 1

    def one_of(self, choices: Sequence[T]) -> T:
        """Any of `choices`."""
        return choices[self.below(len(choices))]

    def taken(self, left: list[T]) -> T:
        """Any of `left`, which loses it."""
        i = self.below(len(left))
        left[i], left[-1] = left[-1], left[i]
        return left.pop()

    def some_of(self, choices: Sequence[T], n: int) -> list[T]:
        """`n` different ones of `choices`, in random order."""
        left = list(choices)
        return [self.taken(left) for _ in range(n)]

    def dealt(self, choices: tuple[T, ...]) -> T:
        """Any of `choices` that this document has not been dealt yet."""
        return self.taken(self._left.setdefault(choices, list(choices)))

    def times(self, what: str) -> int:
        """How often this document did `what` before."""
        return self._times.get(what, 0)

    def did(self, what: str) -> None:
        """Remember that this document did `what` once more."""
        self._times[what] = self.times(what) + 1


def line_of(pieces: Iterable[str | Mark]) -> Line:
    """Put pieces side by side, and mark those that are to be marked."""
    text, spans = "", []
    for piece in pieces:
        if isinstance(piece, Mark):
            spans.append(Span(piece.kind, len(text), len(text) + len(piece.text), piece.sources))
            text += piece.text
        else:
            text += piece
    return Line(text, tuple(spans))


def fill(scene: Scene, template: str, **given: str | Mark) -> Line:
    """Fill a template with what is given, or drawn; no word is drawn twice for one field."""
    left: dict[str, list[str]] = {}
    pieces = []
    for literal, field in _parsed(template):
        pieces.append(literal)
        if field in given:
            pieces.append(given[field])
        elif field:
            pieces.append(scene.taken(left.setdefault(field, list(POOLS[field]))))
    return line_of(pieces)


@cache
def _parsed(template: str) -> tuple[tuple[str, str], ...]:
    return tuple((literal, field or "") for literal, field, _, _ in Formatter().parse(template))


def again(line: Line) -> Line:
    """The same line as an echo: each span says what it said the first time."""
    return Line(line.text, tuple(replace(span, sources=(i,)) for i, span in enumerate(line.spans)))
