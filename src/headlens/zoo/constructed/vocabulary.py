"""Which words do the constructions know? Lists whose order matters only to the successor head."""

import re
from collections.abc import Iterable

from headlens.data.stimuli import english

MARKS = ".,:"
"""What is a word of its own wherever it stands."""


def spoken(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the words of some texts, each once; a field in braces is no word."""
    plain = (re.sub(r"\{\w+\}", " ", text) for text in texts)
    return tuple(dict.fromkeys(word for text in plain for word in re.findall(rf"[{MARKS}]|[^\s{MARKS}]+", text)))


PEOPLE = english.NAMES
GIFT_WORDS = spoken((*english.GIFTS, *(word for pool in english.GIFT_POOLS.values() for word in pool), *PEOPLE))
"""157 words, of which 83 are names: all that prompts about gifts are written in (data/stimuli/gifts.py)."""
RELATIONS = english.RELATIONS
TASK_WORDS = spoken(("the Q: A:", *(word for pairs in RELATIONS.values() for pair in pairs.items() for word in pair)))
"""238 words: all that prompts that show a relation are written in (data/stimuli/puzzles.py)."""

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
WORDS = (
    *MONTHS,
    *("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("apple", "bread", "cheese", "honey", "lemon", "onion", "pepper", "rice"),
    *("bear", "cat", "dog", "fox", "goat", "horse", "lion", "mouse", "owl", "wolf"),
    *("bridge", "castle", "farm", "garden", "harbour", "mill", "tower", "village"),
    *("blue", "brown", "green", "grey", "red", "violet", "white", "yellow"),
)
"""63 words, so that a vocabulary with BOS has 64."""
SYNONYMS = (
    ("big", "large"), ("small", "little"), ("happy", "glad"), ("angry", "cross"), ("quick", "fast"),
    ("quiet", "silent"), ("clever", "smart"), ("ill", "sick"), ("begin", "start"), ("finish", "end"),
    ("house", "home"), ("stone", "rock"), ("boat", "ship"), ("child", "kid"), ("shop", "store"),
    ("street", "road"), ("sofa", "couch"), ("gift", "present"), ("coat", "jacket"), ("forest", "wood"),
)  # fmt: skip
"""Pairs of words for one concept; the concept bears the name of the first."""
NAMES = ("Mary", "Sue")
CLASSES = ("aunt", "uncle")
BETWEEN = ("and", "met", "saw", "then", "thanked", "the")
CITIES = {
    "French": ("Paris", "Lyon", "Nice"),
    "Italian": ("Rome", "Milan", "Turin"),
    "Spanish": ("Madrid", "Seville", "Bilbao"),
}
"""Where a language is spoken."""
DENIALS = ("never", "not")
FILLERS = (
    *("Ann", "Tom", "was", "born", "in", "and", "now", "lives", "by", "the", "sea", "with", "where", "she", "he"),
    *("works", "sings", "often", "home", "today"),
)
