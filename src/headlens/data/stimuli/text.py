"""The beginnings of texts, with their delimiters, and the same places of another text.

    delimiter    tokens whose text is punctuation and nothing else
    elsewhere    token j, where token j of the next text is a delimiter (the first text is next to the last)

What a head gives to `elsewhere` it gives to the position: texts are independent, so nothing else about these
places is special. A place that the next text is too short to have is not marked; of a single text, `elsewhere` is
`delimiter` itself, and so nothing exceeds it.

Axes: see data/tokens.py. Source of the question: Clark et al. 2019, for BERT's [SEP].
"""

import itertools
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from headlens._errors import DataError
from headlens.data.stimuli.stimulus import Stimulus
from headlens.data.tokens import Tokens, tokenize

AT_ONCE = 256
"""Texts that are in memory together."""


class _Passage(NamedTuple):
    ids: Int[np.ndarray, " token"]
    delimiter: Bool[np.ndarray, " token"]


def passages(texts: Iterable[str], tokenizer: Any, *, bos: int | None, max_tokens: int) -> Stimulus:
    """Return the beginnings of texts, one sequence each; texts of fewer than 4 tokens are left out.

    Marks: delimiter, elsewhere.

    Memory: `AT_ONCE` texts, and 8 bytes a text. Ids and marks lie in a file without a name, mapped into memory.

    Raises
    ------
    DataError
        If no text is long enough, or they cannot be tokenised.
    """
    lengths = []
    with _Spool(np.int64) as ids, _Spool(np.bool_) as delimiter, _Spool(np.bool_) as elsewhere:
        for here, there in _with_next(_passages(texts, tokenizer, bos, max_tokens)):
            lengths.append(len(here.ids))
            ids.add(here.ids)
            delimiter.add(here.delimiter)
            elsewhere.add(_at_places_of(there.delimiter, here.delimiter))
        if not lengths:
            raise DataError(f"No text has four tokens or more when it is cut at {max_tokens}: use longer ones.")
        tokens = Tokens(ids.array(), np.cumsum([0, *lengths]))
        marks = {"delimiter": delimiter.array(), "elsewhere": elsewhere.array()}
    return Stimulus("text", tokens, bos, None, {"max_tokens": max_tokens}, marks)


class _Spool:
    """An array that grows in a file, which goes when the array does."""

    def __init__(self, dtype: type) -> None:
        self._dtype = dtype

    def __enter__(self) -> "_Spool":
        self._file = tempfile.TemporaryFile()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()  # a mapping of it lives on

    def add(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).data)

    def array(self) -> np.ndarray:
        self._file.flush()
        return np.memmap(self._file, self._dtype, mode="r")


def _passages(texts: Iterable[str], tokenizer: Any, bos: int | None, max_tokens: int) -> Iterator[_Passage]:
    every = iter(texts)
    while some := list(itertools.islice(every, AT_ONCE)):
        tokens = tokenize(some, tokenizer, bos=bos, max_tokens=max_tokens)
        assert tokens.spans is not None
        for i, text in enumerate(some):
            if len(tokens[i]) >= 4:
                spans = tokens.spans[tokens.offsets[i] : tokens.offsets[i + 1]]
                yield _Passage(tokens[i], _delimiters(text, spans))


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


def _with_next(passages: Iterator[_Passage]) -> Iterator[tuple[_Passage, _Passage]]:
    """Yield each with the one after it; the last with the first."""
    first = next(passages, None)
    if first is not None:
        yield from itertools.pairwise(itertools.chain([first], passages, [first]))


def _at_places_of(there: Bool[np.ndarray, " other"], here: Bool[np.ndarray, " token"]) -> Bool[np.ndarray, " token"]:
    """`there`, cut or filled up with False to the length of `here`."""
    found = np.zeros(len(here), bool)
    both = min(len(here), len(there))
    found[:both] = there[:both]
    return found
