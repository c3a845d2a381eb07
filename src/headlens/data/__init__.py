"""What do we read? Text, tokens, stimuli and the text world."""

from headlens.data.labelled import Labelled, read_labelled
from headlens.data.stimuli import (
    Order,
    Stimulus,
    duplicates,
    entities,
    indirect_objects,
    needles,
    orders,
    passages,
    plain,
    repeats,
    tasks,
)
from headlens.data.text import iter_texts, read_texts, texts_hash
from headlens.data.tokens import Tokens, ordinary_ids, pack, pad, tokenize

__all__ = [
    "Labelled",
    "Order",
    "Stimulus",
    "Tokens",
    "duplicates",
    "entities",
    "indirect_objects",
    "iter_texts",
    "needles",
    "orders",
    "ordinary_ids",
    "pack",
    "pad",
    "passages",
    "plain",
    "read_labelled",
    "read_texts",
    "repeats",
    "tasks",
    "texts_hash",
    "tokenize",
]
