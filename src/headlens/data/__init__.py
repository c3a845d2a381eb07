"""What do we read? Text, tokens, stimuli and the text world."""

from headlens.data.stimuli import Stimulus, duplicates, passages, plain, repeats
from headlens.data.text import iter_texts, read_texts, texts_hash
from headlens.data.tokens import Tokens, ordinary_ids, pack, pad, tokenize

__all__ = [
    "Stimulus",
    "Tokens",
    "duplicates",
    "iter_texts",
    "ordinary_ids",
    "pack",
    "pad",
    "passages",
    "plain",
    "read_texts",
    "repeats",
    "texts_hash",
    "tokenize",
]
