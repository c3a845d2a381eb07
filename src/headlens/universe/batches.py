"""What is a head's pattern predicted from? Shards of models that read alike, put beside the encoder's features.

    place(i, j) = bucket of i - j (0 is the token itself), and the BOS key
    symbols     = the same token as the query's, the one after an earlier copy of it, a mark of punctuation

Distances from 0 to 15 have a bucket each; from there on they grow by a factor of about 1.3.

Axes: doc, row = sampled query positions, key, head = heads of all models that read alike, feature, place.
Memory: one shard of each of these models; all of them where only the first documents are asked for.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headlens._errors import DataError
from headlens.axes import HeadId
from headlens.universe.features import Features
from headlens.universe.patterns import DOCS, Patterns, Shard

EXACT, FURTHER = 16, 16
BUCKETS = EXACT + FURTHER
BOS = BUCKETS
"""The place feature of a BOS key."""
POSITIONAL = BUCKETS + 1
SYMBOLS = ("duplicate", "induction", "punctuation")
_GROWTH = 64 ** (1 / FURTHER)


@dataclass(frozen=True)
class Batch:
    """Some documents, as the heads that read them alike are trained on them."""

    phi: Float[Tensor, "doc token feature"]
    rows: Int[Tensor, "doc row"]
    bucket: Int[Tensor, "doc row key"]
    bos: Float[Tensor, "doc row key"]
    """1 on a BOS key."""
    seen: Bool[Tensor, "doc row key"]
    """Keys up to the query, of rows that are there."""
    target: Float[Tensor, "head doc row key"]
    told: Bool[Tensor, "head doc row"]
    """Rows that are there and in which the head attends to anything; of others it is not said where it looks."""
    ids: tuple[Int[np.ndarray, " _"], ...]
    spans: tuple[Int[np.ndarray, "_ span"], ...]
    texts: tuple[str, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(map(len, self.ids))

    @cached_property
    def places(self) -> Float[Tensor, "place doc row key"]:
        """Which bucket each entry has, and whether its key is BOS."""
        return placed(self.bucket, self.bos)

    @cached_property
    def symbols(self) -> Float[Tensor, "symbol doc row key"]:
        """What only the symbolic baseline is shown."""
        found = torch.zeros(len(SYMBOLS), *self.bucket.shape)
        for n, (ids, spans, text) in enumerate(zip(self.ids, self.spans, self.texts, strict=True)):
            kept = self.rows[n][self.real[n].bool()]
            found[:, n, : len(kept), : len(ids)] = torch.from_numpy(_symbols(ids, spans, text))[:, kept]
        return found

    @property
    def real(self) -> Float[Tensor, "doc row"]:
        """1 on rows that are there: documents of fewer rows are padded."""
        return self.seen.any(-1).float()

    @property
    def inside(self) -> Bool[Tensor, "doc token"]:
        """Tokens that are there."""
        return torch.arange(self.phi.shape[1]) < torch.tensor(self.tokens)[:, None]

    @property
    def queries(self) -> Float[Tensor, "doc row feature"]:
        return self.phi.gather(1, self.rows[..., None].expand(-1, -1, self.phi.shape[-1]))

    def first(self, n: int) -> "Batch":
        """Return the first documents, as wide as the longest of these."""
        if n >= len(self.texts):
            return self
        rows, keys = int(self.real[:n].sum(1).max()), max(self.tokens[:n])
        own = (slice(n), slice(rows), slice(keys))
        return Batch(
            self.phi[:n, :keys], self.rows[:n, :rows], self.bucket[own], self.bos[own], self.seen[own],
            self.target[:, *own], self.told[:, :n, :rows], self.ids[:n], self.spans[:n], self.texts[:n],
        )  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Models that read the same tokens of the same texts."""

    members: tuple[Patterns, ...]
    chosen: tuple[HeadId, ...] | None = None
    """Heads that count, in the order of the members'; None for all."""
    documents: int | None = None
    """The first ones only, in the order of the shards; None for all."""
    _kept: dict[int, Batch] = field(init=False, default_factory=dict, compare=False, repr=False)
    """Of the first documents: these are gone through again and again."""

    @property
    def heads(self) -> list[HeadId]:
        return self._all if self.chosen is None else list(self.chosen)

    @property
    def _all(self) -> list[HeadId]:
        return [head for member in self.members for head in member.heads]

    def only(self, heads: Collection[HeadId]) -> "Group":
        """Return the group with these heads alone, and models that have none of them left out."""
        kept = set(heads)
        members = tuple(m for m in self.members if kept.intersection(m.heads))
        return replace(self, members=members, chosen=tuple(head for m in members for head in m.heads if head in kept))

    def first(self, documents: int | None) -> "Group":
        """Return the group on its first documents alone, the same whatever is fitted on them; None for all that it has.

        Raises
        ------
        DataError
            If there are fewer, or fewer than one is asked for.
        """
        if documents is None:
            return self
        if documents < 1:
            raise DataError(f"documents must be 1 or more, not {documents}.")
        if (missing := documents - (self.documents or self.members[0].manifest["documents"])) > 0:
            raise DataError(
                f"{', '.join(self.models)} has {missing} documents fewer than asked for: record more texts."
            )
        return replace(self, documents=documents)

    @property
    def models(self) -> list[str]:
        return [member.model for member in self.members]

    @property
    def n_shards(self) -> int:
        return self.members[0].n_shards if self.documents is None else -(-self.documents // DOCS)

    def batch(self, index: int, features: Features) -> Batch:
        """Return one shard of all members, beside its features."""
        if index in self._kept:
            return self._kept[index]
        at = {head: i for i, head in enumerate(self._all)}
        batch = make_batch([m.shard(index) for m in self.members], features, [at[head] for head in self.heads])
        if self.documents is None:
            return batch
        return self._kept.setdefault(index, batch.first(self.documents - index * DOCS))

    def batches(self, features: Features) -> Iterator[Batch]:
        return (self.batch(i, features) for i in range(self.n_shards))


def grouped(patterns: Sequence[Patterns]) -> list[Group]:
    """Return the models in groups that read alike; the order given does not matter.

    Raises
    ------
    DataError
        If there is none, one is given twice, or they were not recorded on the same texts and rows.
    """
    ordered = sorted(patterns, key=lambda member: member.model)
    names = [member.model for member in ordered]
    if not names:
        raise DataError("There are no patterns: record those of at least one model.")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise DataError(f"{twice[0]} is given twice: give each model once.")
    for key in ("texts", "rows", "seed"):
        if len({member.manifest[key] for member in ordered}) > 1:
            raise DataError(
                f"The models were not recorded on the same {key}: every model must read the same texts, whole, and "
                "keep as many rows of the same seed."
            )
    reading = dict.fromkeys(member.reads for member in ordered)
    return [Group(tuple(member for member in ordered if member.reads == reads)) for reads in reading]


def bucket_of(distance: Int[np.ndarray, "*any"]) -> Int[np.ndarray, "*any"]:
    """Return the bucket of each distance from a query back to a key."""
    far = np.log(np.maximum(distance, EXACT) / EXACT) / np.log(_GROWTH)
    return np.where(distance < EXACT, np.maximum(distance, 0), np.minimum(EXACT + far, BUCKETS - 1)).astype(np.int64)


def make_batch(shards: Sequence[Shard], features: Features, heads: Sequence[int]) -> Batch:
    """Return the shards of models that read alike as one batch, with these of all their heads.

    Raises
    ------
    DataError
        If the encoder has not read one of the texts.
    """
    first = shards[0]
    if unread := [text for text in first.texts if text not in features.texts]:
        raise DataError(f"The encoder has not read {len(unread)} of these texts: call features.read(texts) first.")
    n_docs, n_tokens = len(first.texts), int(first.ids.lengths.max())
    keys = np.arange(n_tokens)
    n_rows = max(map(len, first.rows))
    phi = np.zeros((n_docs, n_tokens, features.width), dtype=np.float32)
    rows = np.zeros((n_docs, n_rows), dtype=np.int64)
    real = np.zeros((n_docs, n_rows), dtype=bool)
    bos = np.zeros(n_docs, dtype=np.float32)
    target = np.zeros((len(heads), n_docs, n_rows, n_tokens), dtype=np.float32)
    for n, (ids, spans, kept, text) in enumerate(zip(first.ids, first.spans, first.rows, first.texts, strict=True)):
        phi[n, : len(ids)] = features.of(text, spans)
        rows[n, : len(kept)], real[n, : len(kept)] = kept, True
        bos[n] = spans[0, 1] == 0
        # Rows lie one after another, each up to its query: the causal half of (row, key), read along the rows.
        weights = np.concatenate([shard.weights[n] for shard in shards])
        target[:, n, : len(kept)][:, keys <= kept[:, None]] = weights[heads]
    seen = (keys <= rows[..., None]) & real[..., None]
    # Half precision rounds: a row of many small weights sums to 1 only within 1e-3.
    total = target.sum(-1, keepdims=True)
    np.divide(target, total, out=target, where=total > 0)
    return Batch(
        phi=torch.from_numpy(phi),
        rows=torch.from_numpy(rows),
        bucket=torch.from_numpy(bucket_of(np.maximum(rows[..., None] - keys, 0))),
        bos=torch.from_numpy(bos[:, None, None] * (keys == 0) * np.ones_like(seen, dtype=np.float32)).float(),
        seen=torch.from_numpy(seen),
        target=torch.from_numpy(target),
        told=torch.from_numpy(total[..., 0] > 0),
        ids=tuple(first.ids),
        spans=first.spans,
        texts=first.texts,
    )


def placed(bucket: Int[Tensor, "*entry"], bos: Float[Tensor, "*entry"]) -> Float[Tensor, "place *entry"]:
    """Return which places each entry has: one product with it gives scores of places, another one their slopes."""
    found = torch.zeros(POSITIONAL, *bucket.shape)
    found.scatter_(0, bucket[None], 1.0)
    found[BOS] = bos
    return found


def _symbols(
    ids: Int[np.ndarray, " token"], spans: Int[np.ndarray, "token span"], text: str
) -> Float[np.ndarray, "symbol query key"]:
    """Indicators of keys: an earlier copy of the query's token, what followed one, a mark of punctuation."""
    bytes_of = text.encode("utf-8", "surrogatepass")
    marks = np.array([_is_mark(bytes_of[a:b]) for a, b in spans])
    same = np.tril(ids[:, None] == ids[None, :], -1)
    after = np.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    return np.stack((same, np.tril(after), np.tril(np.broadcast_to(marks, same.shape)))).astype(np.float32)


def _is_mark(piece: bytes) -> bool:
    stripped = piece.strip()
    return bool(stripped) and not any(chr(byte).isalnum() or byte > 127 for byte in stripped)
