"""Which tokens go through the model, and which of them have a row in the store?

    text     model's BOS, where it has one, and the text's tokens (`hl.data.tokenize`); cut at `max_tokens`. For an
             encoder [CLS], the text's tokens and [SEP], which is never cut off
    ids      as they come; cut at `max_tokens`

Every token goes through the model. A row is kept of each, except BOS at the beginning (it holds no text, and its
activations are outliers), [CLS] and [SEP] of encoders, padding (which is never stored at all) and, on request, tokens
of the chat template: special tokens, and tokens that lie wholly in text that the tokenizer's template puts around
messages.

Documents are read as they are needed, so a corpus may be larger than memory.

Axes: token; span = 2 (start, end), in characters.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int32

from headlens._errors import DataError
from headlens.data.text import iter_texts
from headlens.data.tokens import Tokens, tokenize
from headlens.models import Model
from headlens.tracing.capture import as_tokens, check_tokens

TemplateTokens = Literal["keep", "drop"]
AT_ONCE = 256
"""Texts tokenised together."""
_MESSAGE = "\ue000message{}\ue001"
"""Stands in for a message where a chat template is asked what it puts around one."""


@dataclass(frozen=True)
class Document:
    """One document, ready for the model."""

    ids: Int32[np.ndarray, " token"]
    spans: Int32[np.ndarray, "token span"] | None
    kept: Bool[np.ndarray, " token"]
    cut: bool

    @property
    def n_rows(self) -> int:
        return int(self.kept.sum())


class Documents:
    """The documents of a corpus, one after the other; `texts_hash` once all have been read."""

    def __init__(
        self, model: Model, corpus: Any, *, max_tokens: int, template_tokens: TemplateTokens, field: str = "text"
    ) -> None:
        self.model, self.max_tokens = model, max_tokens
        self.special = special_ids(model.tokenizer) if template_tokens == "drop" else np.zeros(0, np.int64)
        self.template = chat_template(model.tokenizer) if template_tokens == "drop" else None
        self._digest: Any = None
        if isinstance(corpus, (str, Path)):
            self._source = self._of_texts(iter_texts(corpus, field=field))
            return
        first, corpus = _first(corpus)
        if isinstance(first, str):
            self._source = self._of_texts(corpus)
        else:
            self._source = self._of_tokens(as_tokens(corpus))

    def __iter__(self) -> Iterator[Document]:
        return self._source

    @property
    def texts_hash(self) -> str | None:
        """`hl.data.texts_hash` of the texts read so far; None for a corpus of token ids."""
        return None if self._digest is None else self._digest.hexdigest()[:16]

    def _of_texts(self, texts: Iterable[Any]) -> Iterator[Document]:
        self._digest = hashlib.sha256()
        for number, some in enumerate(_chunks(texts, AT_ONCE)):
            for i, text in enumerate(some):
                if not isinstance(text, str):
                    raise DataError(f"Document {number * AT_ONCE + i} is a {type(text).__name__}, and others are text.")
                encoded = text.encode("utf-8", "surrogatepass")
                self._digest.update(len(encoded).to_bytes(8, "little") + encoded)
            # One more than is kept, to see which texts are cut.
            tokens = tokenize(some, self.model.tokenizer, bos=self.model.bos, max_tokens=self.max_tokens + 1)
            for i, text in enumerate(some):
                yield self._document(tokens, i, text)

    def _of_tokens(self, tokens: Tokens) -> Iterator[Document]:
        if len(tokens.ids):
            check_tokens(self.model, tokens.ids, np.ones(1, np.int64))  # now, and not after hours
        for i in range(len(tokens)):
            yield self._document(tokens, i, None)

    def _document(self, tokens: Tokens, index: int, text: str | None) -> Document:
        start, stop = (int(bound) for bound in tokens.offsets[index : index + 2])
        closing = None if text is None else self.model.closing
        room = self.max_tokens - (closing is not None)
        cut = stop - start > room
        part = slice(start, min(stop, start + room))
        ids, spans = tokens.ids[part], None if tokens.spans is None else tokens.spans[part]
        kept = ~np.isin(ids, self.special)
        if len(ids) and ids[0] == self.model.bos:
            kept[0] = False
        if text is not None and spans is not None and self.template is not None:
            kept &= ~_inside(spans, self.template, text)
        if closing is not None and spans is not None:
            end = [int(spans[-1, 1])] * 2 if len(spans) else [0, 0]  # it covers nothing
            ids, spans, kept = np.append(ids, closing), np.append(spans, [end], 0), np.append(kept, False)
        return Document(ids.astype(np.int32), None if spans is None else spans.astype(np.int32), kept, cut)


def _first(corpus: Any) -> tuple[Any, Any]:
    """Look at the first document without losing it."""
    if isinstance(corpus, (Tokens, Sequence)) or hasattr(corpus, "ndim"):
        return (corpus[0] if len(corpus) else None), corpus
    documents = iter(corpus)
    first = next(documents, None)
    return first, itertools.chain([] if first is None else [first], documents)


def _chunks(texts: Iterable[Any], size: int) -> Iterator[list[Any]]:
    texts = iter(texts)
    while some := list(itertools.islice(texts, size)):
        yield some


def special_ids(tokenizer: Any | None) -> np.ndarray:
    """Return the ids that a tokenizer calls special: beginning and end, roles, turns."""
    if tokenizer is None:
        raise DataError("This model has no tokenizer to say which tokens are special: use template_tokens='keep'.")
    marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return np.array(sorted(marked | set(tokenizer.all_special_ids)), dtype=np.int64)


def chat_template(tokenizer: Any) -> re.Pattern[str] | None:
    """Return a pattern of what a tokenizer's chat template puts around messages; None where it has none.

    The template itself is asked: it renders messages that no text contains, and what stands between them is its own.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    parts: set[str] = set()
    for roles in (["user", "assistant"] * 2, ["system", *["user", "assistant"] * 2]):
        messages = [{"role": role, "content": _MESSAGE.format(i)} for i, role in enumerate(roles)]
        try:
            shown = tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception:  # a template may refuse a role, with whatever error it likes
            continue
        parts.update(re.split(_MESSAGE.format(r"\d"), shown))
    parts = {part for part in parts if part.strip()}
    return re.compile("|".join(map(re.escape, sorted(parts, key=lambda part: (-len(part), part))))) if parts else None


def _inside(spans: np.ndarray, template: re.Pattern[str], text: str) -> Bool[np.ndarray, " token"]:
    """Which tokens lie wholly in what the template put there."""
    marked = np.zeros(len(text) + 1, np.int64)
    for match in template.finditer(text):
        marked[match.start() + 1 : match.end() + 1] = 1
    before = marked.cumsum()
    start, end = spans[:, 0], spans[:, 1]
    return (end > start) & (before[end] - before[start] == end - start)
