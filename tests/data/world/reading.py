"""How the tests read documents, what they know of the world, and how they write one regularity at a time."""

import re
from functools import cache

from headlens.data.world import Document, Span, WorldConfig, documents
from headlens.data.world.config import KNOBS


def _words(text: str) -> list[str]:
    return text.split()


COUNTING = _words("""
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty
""")
WEEK = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
YEAR = _words("January February March April May June July August September October November December")
KNOWN = {
    "France": ("French", "Paris"), "Germany": ("German", "Berlin"), "Spain": ("Spanish", "Madrid"),
    "Italy": ("Italian", "Rome"), "Japan": ("Japanese", "Tokyo"), "China": ("Chinese", "Beijing"),
    "Russia": ("Russian", "Moscow"), "Poland": ("Polish", "Warsaw"), "Sweden": ("Swedish", "Stockholm"),
    "Norway": ("Norwegian", "Oslo"), "Denmark": ("Danish", "Copenhagen"), "Greece": ("Greek", "Athens"),
    "Turkey": ("Turkish", "Ankara"), "Portugal": ("Portuguese", "Lisbon"), "Finland": ("Finnish", "Helsinki"),
    "Hungary": ("Hungarian", "Budapest"),
}  # fmt: skip
"""Country -> its language and its capital."""


def alone(knob: str, share: float = 1.0) -> WorldConfig:
    """A world with this knob, and all others at 0."""
    return WorldConfig(**dict.fromkeys(KNOBS, 0.0) | {knob: share})


@cache
def written(n: int, seed: int, config: WorldConfig | None = None) -> tuple[Document, ...]:
    """Documents, drawn once for all tests that ask for the same."""
    return tuple(documents(n, seed=seed, config=config or WorldConfig()))


def said(document: Document, span: Span) -> str:
    return document.text[span.start : span.end]


def spans_of(document: Document, kind: str) -> list[Span]:
    return [span for span in document.spans if span.kind == kind]


def answers(document: Document, kind: str) -> list[tuple[Span, list[Span]]]:
    """The spans of a kind that have sources, and their sources."""
    return [
        (span, [document.spans[source] for source in span.sources])
        for span in document.spans
        if span.kind == kind and span.sources
    ]


def sentences(text: str) -> list[str]:
    """A text in pieces that end in . or ?, and the quotation mark after it."""
    return re.findall(r'\S.*?[.?](?:"\.|")?(?= |$)', text)


def sentence_of(document: Document, span: Span) -> str:
    """The sentence that a span stands in."""
    start = max((found.end() for found in re.finditer(r'[.?]"? ', document.text[: span.start])), default=0)
    return sentences(document.text[start:])[0]
