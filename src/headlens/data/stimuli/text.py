"""The beginnings of texts, with their delimiters, and the same places of another text.

    delimiter    tokens whose text is punctuation and nothing else
    elsewhere    token j, where token j of the next text is a delimiter (the first text is next to the last)

What a head gives to `elsewhere` it gives to the position: texts are independent, so nothing else about these
places is special. A place that the next text is too short to have is not marked; of a single text, `elsewhere` is
`delimiter` itself, and so nothing exceeds it.

Axes: see data/tokens.py. Source of the question: Clark et al. 2019, for BERT's [SEP].
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from headlens._errors import DataError
from headlens.data.stimuli.stimulus import Stimulus
from headlens.data.tokens import pack, tokenize


def passages(texts: Sequence[str], tokenizer: Any, *, bos: int | None, max_tokens: int) -> Stimulus:
    """Return the beginnings of texts, one sequence each; texts of fewer than 4 tokens are left out.

    Marks: delimiter, elsewhere.

    Raises
    ------
    DataError
        If no text is long enough.
    """
    tokens = tokenize(texts, tokenizer, bos=bos, max_tokens=max_tokens)
    kept = np.flatnonzero(tokens.lengths >= 4).tolist()
    if not kept:
        raise DataError(f"No text has four tokens or more when it is cut at {max_tokens}: use longer ones.")
    assert tokens.spans is not None
    spans = [tokens.spans[tokens.offsets[i] : tokens.offsets[i + 1]] for i in kept]
    delimiters = [_delimiters(texts[i], rows) for i, rows in zip(kept, spans, strict=True)]
    elsewhere = [_at_places_of(there, here) for here, there in _with_next(delimiters)]
    marks = {"delimiter": np.concatenate(delimiters), "elsewhere": np.concatenate(elsewhere)}
    return Stimulus("text", pack([tokens[i] for i in kept]), bos, None, {"max_tokens": max_tokens}, marks)


def _delimiters(text: str, spans: Int[np.ndarray, "token span"]) -> Bool[np.ndarray, " token"]:
    found = np.zeros(len(spans), bool)
    for j, (start, end) in enumerate(spans.tolist()):
        if start == end:  # BOS, or another byte of the character before
            found[j] = j > 0 and found[j - 1]
        else:
            found[j] = _is_punctuation(text[start:end].strip())
    return found


def _is_punctuation(text: str) -> bool:
    return bool(text) and all(unicodedata.category(character).startswith("P") for character in text)


def _with_next(rows: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(rows, [*rows[1:], rows[0]], strict=True))


def _at_places_of(there: Bool[np.ndarray, " other"], here: Bool[np.ndarray, " token"]) -> Bool[np.ndarray, " token"]:
    """`there`, cut or filled up with False to the length of `here`."""
    found = np.zeros(len(here), bool)
    both = min(len(here), len(there))
    found[:both] = there[:both]
    return found
