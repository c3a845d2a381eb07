"""What is a feature, in words? Labels that somebody wrote, or the tokens on which features are most active.

    read_labels("labels.json")                      a table or JSON of yours (`label_files.py` says which)
    read_labels("neuronpedia:gpt2-small/5-res-jb")  Neuronpedia's explanations, fetched; also from a file of theirs
    label_features(model, dictionary, texts, layer) computed: for each feature, the tokens on which it is most active,
                                                    each with the context in which it is

Computing reads the texts once. For each feature it keeps the n tokens of the largest activation, and no more: a token
that falls out has n others before it, and these can only rise. The position of BOS is not counted.

Labels are text from elsewhere: whoever shows them must not read them as markup.

Memory: n x (2 width + 1) numbers a feature, and the activations of one batch.

Axes: feature; slot = n best tokens of a feature; entry = one active (position, feature); around = tokens of a context.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int

from headlens._errors import DataError
from headlens._result import Provenance, Result, versions
from headlens.data.text import texts_hash
from headlens.data.tokens import tokenize
from headlens.dictionaries import Dictionary
from headlens.dictionaries.sites import fitted
from headlens.fra.label_files import described
from headlens.models import load
from headlens.tracing.capture import capture

CONTEXT = pa.struct(
    [("before", pa.string()), ("token", pa.string()), ("after", pa.string()), ("activation", pa.float64())]
)
SCHEMA = pa.schema([
    ("feature", pa.int64()), ("label", pa.string()), ("frequency", pa.float64()), ("contexts", pa.list_(CONTEXT)),
])  # fmt: skip
"""label: null where there is none; frequency: share of tokens on which the feature is active, null if not counted."""
NO_TOKEN = -1
SHOWN_LABELS = 5
"""Tokens that make a computed label."""


@dataclass(frozen=True)
class FeatureLabels(Result):
    """What features are, in words."""

    table: pa.Table
    """One row a feature that something is known of: the columns of `SCHEMA`."""

    def label(self, feature: int) -> str | None:
        """Return the words for a feature; None where there are none."""
        row = self._rows.get(feature)
        return None if row is None else self.table["label"][row].as_py()

    def name(self, feature: int) -> str:
        """Return a feature's number, and its label where it has one: `feature 12: cats`."""
        label = self.label(feature)
        return f"feature {feature}" if label is None else f"feature {feature}: {label}"

    def contexts(self, feature: int) -> list[dict[str, Any]]:
        """Return where a feature is most active: before, token, after, activation; [] where that was not computed."""
        row = self._rows.get(feature)
        return [] if row is None else self.table["contexts"][row].as_py() or []

    def named(self, table: pa.Table) -> pa.Table:
        """Return a table of pairs (`FeatureAttention.top`, `.contrast`) with labels behind the names of features."""
        for side in ("query", "key"):
            at = table.schema.get_field_index(f"{side}_name")
            sources, names = (table[f"{side}_{what}"].to_pylist() for what in ("source", "name"))
            shown = [self.name(i) if i in self._rows else name for i, name in zip(sources, names, strict=True)]
            table = table.set_column(at, f"{side}_name", pa.array(shown, pa.string()))
        return table

    def filled(self, other: "FeatureLabels") -> "FeatureLabels":
        """Return these labels, with what they lack (labels, frequencies, contexts) taken from others."""
        rows = {row["feature"]: row for row in other.table.to_pylist()}
        for row in self.table.to_pylist():
            kept = {name: value for name, value in row.items() if value is not None}
            rows[row["feature"]] = rows.get(row["feature"], {}) | kept
        told = [dict.fromkeys(SCHEMA.names) | rows[feature] for feature in sorted(rows)]
        return FeatureLabels(self.provenance, pa.Table.from_pylist(told, SCHEMA))

    def check(self, n_features: int) -> None:
        """Raise if these are labels of a larger dictionary.

        Raises
        ------
        DataError
        """
        if (highest := max(self._rows, default=-1)) >= n_features:
            raise DataError(
                f"There is a label of feature {highest}, and the dictionary's features are 0 to {n_features - 1}: "
                "these labels are of another one."
            )

    def to_table(self) -> pa.Table:
        """One row a feature: feature, label, frequency, contexts."""
        return self.table

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {feature: row for row, feature in enumerate(self.table["feature"].to_pylist())}

    @classmethod
    def _restore(cls, provenance: Provenance, table: pa.Table, arrays: dict[str, np.ndarray]) -> "FeatureLabels":  # noqa: ARG003
        return cls(provenance, table.select(SCHEMA.names).cast(SCHEMA))


def read_labels(source: str | Path) -> FeatureLabels:
    """Return labels that somebody wrote. Of several for one feature the first is taken.

    Parameters
    ----------
    source
        A file: .json, .jsonl (either may end in .gz), .csv, .parquet, .arrow or .feather; or
        neuronpedia:MODEL/DICTIONARY, which is fetched.

    Raises
    ------
    DataError
        If it is not there, cannot be read or fetched, or holds no label.
    """
    found = described(source)
    table = pa.table(
        {"feature": pa.array(list(found), pa.int64()), "label": pa.array(list(found.values()), pa.string())}
    )
    for name in ("frequency", "contexts"):
        table = table.append_column(name, pa.nulls(len(found), SCHEMA.field(name).type))
    digest = hashlib.sha256("\0".join(f"{i}\t{label}" for i, label in found.items()).encode()).hexdigest()[:16]
    data = {"labels": {"source": str(source), "n": len(found), "hash": digest}}
    return FeatureLabels(Provenance(data=data, versions=versions()), table.sort_by("feature"))


@torch.no_grad()
def label_features(
    source: Any,
    dictionary: Dictionary,
    texts: Iterable[str],
    layer: int,
    *,
    n: int = 8,
    width: int = 8,
    max_tokens: int = 256,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
    **load_options: Any,
) -> FeatureLabels:
    """Return, for every feature, the tokens on which it is most active, each in its context; of these its label.

    Parameters
    ----------
    texts
        May be a stream.
    layer
        Whose heads read what the dictionary is of.
    n, width
        Tokens that are kept of a feature, and the tokens on either side that make their context.
    max_tokens
        Where texts are cut.
    progress
        Called with the number of texts that are done.

    Raises
    ------
    SiteError
        If the dictionary does not live in what heads of this layer read.
    DataError
        If there is no text, or the model has no tokenizer.
    """
    if n < 1 or width < 0:
        raise DataError(f"n must be at least 1 and width at least 0, not {n} and {width}.")
    model = load(source, **load_options)
    dictionary = fitted(dictionary, model, layer, 0).to(device=model.device)
    site, best, hashes = dictionary.site, _Best.empty(dictionary.d_sae, n, width), hashlib.sha256()
    assert site is not None
    done = 0
    for some in _groups(texts):
        hashes.update(texts_hash(some).encode())
        tokens = tokenize(some, model.tokenizer, bos=model.bos, max_tokens=min(max_tokens, model.n_ctx))
        for batch in capture(model, [row for row in tokens if len(row)], [site], batch_tokens=batch_tokens):
            counted = batch.mask & (batch.ids != (NO_TOKEN if model.bos is None else model.bos))
            active = dictionary.encode_sparse(batch[site][counted])
            places = counted.cpu().numpy().nonzero()
            ids = np.where(batch.mask.cpu(), batch.ids.cpu(), NO_TOKEN)
            rows = active.rows.cpu().numpy()
            own = (active.features, active.values.float())
            best.add(ids, places[0][rows], places[1][rows], *(one.cpu().numpy() for one in own))
            best.n_tokens += len(places[0])
        done += len(some)
        if progress is not None:
            progress(done)
    if not done:
        raise DataError("There is no text to find features in.")
    data = {"texts": {"n": done, "n_tokens": best.n_tokens, "hash": hashes.hexdigest()[:16]}}
    data |= {"dictionary": {"site": site, "digest": dictionary.digest}}
    return FeatureLabels(
        Provenance((model.provenance(),), data, None, "", versions()), _told(best, model.tokenizer, width)
    )


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    if isinstance(texts, str):
        raise DataError("texts is a list of texts, not one string: write [text].")
    left = iter(texts)
    while some := list(islice(left, 64)):
        yield some


class _Entries(NamedTuple):
    """Activations, and where each was: in a slot that is kept, or in the batch."""

    feature: Int[np.ndarray, " entry"]
    token: Int[np.ndarray, " entry"]
    value: Float[np.ndarray, " entry"]
    place: Int[np.ndarray, " entry"]
    """Number of the slot; behind these, of the entry of the batch."""

    def some(self, which: np.ndarray) -> "_Entries":
        return _Entries(*(one[which] for one in self))


@dataclass
class _Best:
    """The tokens of the largest activation of each feature, as far as texts were read."""

    token: Int[np.ndarray, "feature slot"]
    value: Float[np.ndarray, "feature slot"]
    """Descending; -inf where there is none."""
    context: Int[np.ndarray, "feature slot around"]
    count: Int[np.ndarray, " feature"]
    """Tokens on which a feature is active."""
    n_tokens: int = 0

    @classmethod
    def empty(cls, n_features: int, n: int, width: int) -> "_Best":
        return cls(
            np.full((n_features, n), NO_TOKEN), np.full((n_features, n), -np.inf, np.float32),
            np.full((n_features, n, 2 * width + 1), NO_TOKEN, np.int32), np.zeros(n_features, np.int64),
        )  # fmt: skip

    def add(self, ids: np.ndarray, text: np.ndarray, at: np.ndarray, feature: np.ndarray, value: np.ndarray) -> None:
        """Take in one batch: an entry is `feature` with `value` at position `at` of `text`, a row of `ids`."""
        self.count += np.bincount(feature, minlength=len(self.count))
        may = value > self.value[feature, -1]
        text, at, feature, value = text[may], at[may], feature[may], value[may]
        touched, n = np.unique(feature), self.token.shape[1]
        slots = (touched[:, None] * n + np.arange(n)).ravel()
        old = _Entries(slots // n, self.token.ravel()[slots], self.value.ravel()[slots], slots)
        new = _Entries(feature, ids[text, at], value, self.token.size + np.arange(len(feature)))
        both = _Entries(*(np.concatenate(parts) for parts in zip(old.some(old.token != NO_TOKEN), new, strict=True)))
        found, rank = _first(_largest_of_each_token(both), n)
        around = np.concatenate([self.context.reshape(self.token.size, -1)[slots], self._around(ids, text, at)])
        slot_of = np.searchsorted(slots, found.place)  # entries of the batch come behind all slots
        slot_of = np.where(found.place < self.token.size, slot_of, len(slots) + found.place - self.token.size)
        self.token[found.feature, rank], self.value[found.feature, rank] = found.token, found.value
        self.context[found.feature, rank] = around[slot_of]

    def _around(self, ids: np.ndarray, text: np.ndarray, at: np.ndarray) -> Int[np.ndarray, "entry around"]:
        width = self.context.shape[-1] // 2
        padded = np.pad(ids, ((0, 0), (width, width)), constant_values=NO_TOKEN)
        return padded[text[:, None], at[:, None] + np.arange(2 * width + 1)].astype(np.int32)


def _largest_of_each_token(entries: _Entries) -> _Entries:
    order = np.lexsort((entries.place, -entries.value, entries.token, entries.feature))  # of equals the earlier one
    entries = entries.some(order)
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(entries.feature) != 0) | (np.diff(entries.token) != 0)
    return entries.some(first)


def _first(entries: _Entries, n: int) -> tuple[_Entries, Int[np.ndarray, " entry"]]:
    """The n largest of each feature, and their ranks."""
    entries = entries.some(np.lexsort((entries.place, -entries.value, entries.feature)))
    start = np.searchsorted(entries.feature, entries.feature)
    rank = np.arange(len(start)) - start
    return entries.some(rank < n), rank[rank < n]


def _told(best: _Best, tokenizer: Any, width: int) -> pa.Table:
    """Contexts as text; features that were never active are left out."""
    feature, slot = (best.token != NO_TOKEN).nonzero()
    around = best.context[feature, slot]
    before, until, whole = (_texts(around[:, :end], tokenizer) for end in (width, width + 1, 2 * width + 1))
    contexts: dict[int, list[dict[str, Any]]] = {}
    values = best.value[feature, slot].tolist()
    for i, b, u, w, value in zip(feature.tolist(), before, until, whole, values, strict=True):
        own = {"before": b, "token": u[len(b) :], "after": w[len(u) :], "activation": value}
        contexts.setdefault(i, []).append(own)
    labels = [
        " · ".join(c["token"].strip() or repr(c["token"]) for c in own[:SHOWN_LABELS]) for own in contexts.values()
    ]
    shares = [best.count[i] / best.n_tokens for i in contexts]
    columns = {"feature": list(contexts), "label": labels, "frequency": shares, "contexts": list(contexts.values())}
    return pa.table(columns, SCHEMA)


def _texts(ids: Int[np.ndarray, "some around"], tokenizer: Any) -> list[str]:
    rows = [[i for i in row if i != NO_TOKEN] for row in ids.tolist()]
    if not rows:
        return []  # a tokenizer makes one text of no rows
    return tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)
