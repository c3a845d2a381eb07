"""Read a store: activations that lie on disk, by site, head, document and row.

One shard is mapped into memory at a time, and those that a tensor which was returned still looks into. So neither
memory nor address space grows with the store, and documents that follow one another in one shard come without a copy.
To open a store reads its manifest and looks at the sizes of its shards; all else is read when it is asked for.

Axes: document; token = all tokens that went through the model; row = the tokens of them that have rows (not BOS, not
padding; store/documents.py); width = numbers a row; head, d_head.
"""

import mmap
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headlens._errors import DataError, SiteError, StoreError
from headlens.data.tokens import Tokens
from headlens.store.manifest import Manifest, faults, in_words, read_manifest
from headlens.store.shard import Header, Place, map_file, read_header, read_tensor, tensor_at


class ActivationStore:
    """A folder that `hl.capture_to` wrote.

    Parameters
    ----------
    path
        The folder.

    Raises
    ------
    StoreError
        If there is no store, it is not finished, or a shard is missing or of another size than it was.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self._refuse(faults(self.path, checksums=False))
        self._maps: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()
        self._last: mmap.mmap | None = None
        """Stays mapped, since what is read next is mostly beside it."""
        self._headers: dict[int, Header] = {}

    def __reduce__(self) -> tuple[type["ActivationStore"], tuple[Path]]:
        return ActivationStore, (self.path,)

    def __repr__(self) -> str:
        totals = self.manifest.totals
        return (
            f"ActivationStore('{self.path}': {totals['documents']:,} documents, {totals['rows']:,} rows, "
            f"{len(self.sites)} sites in {self.manifest.settings.dtype}, of {self.manifest.settings.model['name']})"
        )

    def __len__(self) -> int:
        return self.manifest.totals["documents"]

    def __getitem__(self, document: int | np.integer) -> Float[Tensor, "row width"]:
        """Rows of one document, of a store of one site."""
        return self.read(None, np.array([range(len(self))[int(document)]]))

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.manifest.settings.sites)

    def shape(self, site: str | None = None) -> tuple[int, ...]:
        """What a row of a site is before it is made flat: (d_model,), or (head, d_head)."""
        return tuple(self.manifest.settings.sites[self._site(site)])

    @property
    def dtype(self) -> torch.dtype:
        """What rows are kept in."""
        return getattr(torch, self.manifest.settings.dtype)

    @property
    def hash(self) -> str:
        """Digest of all that the store holds."""
        return self.manifest.hash

    @property
    def text_hash(self) -> str | None:
        """`hl.data.texts_hash` of the corpus; None where it was token ids."""
        return self.manifest.texts

    @cached_property
    def offsets(self) -> Int[np.ndarray, " bounds"]:
        """Document i has rows offsets[i] to offsets[i + 1]."""
        return self._joined_offsets("row_offsets")

    @cached_property
    def lengths(self) -> Int[np.ndarray, " document"]:
        """Rows of each document; 0 where it has none."""
        return np.diff(self.offsets)

    @cached_property
    def tokens(self) -> Tokens:
        """All tokens that went through the model, with the characters they cover where there was text."""
        spans = self._column("spans") if "spans" in self._header(0).places else None
        return Tokens(self._column("ids"), self._joined_offsets("token_offsets"), spans)

    @cached_property
    def kept(self) -> Bool[np.ndarray, " token"]:
        """Which of `tokens` have a row."""
        return self._column("kept")

    @property
    def spans(self) -> Int[np.ndarray, "row span"] | None:
        """Characters of its text that each row's token covers; None where the corpus was token ids."""
        return None if self.tokens.spans is None else self.tokens.spans[self.kept]

    def source(self, site: str | None = None, *, head: int | None = None) -> dict[str, Any]:
        """Return what rows of a site come from: model, site, tokens, and the digest of the store."""
        s = self.manifest.settings
        return {
            "model": s.model["name"],
            **{key: s.model[key] for key in ("revision", "weights", "tokenizer", "bos")},
            "site": self._site(site),
            "head": head,
            "dtype": s.dtype,
            "max_tokens": s.max_tokens,
            "token_mask": {"bos": "drop", "padding": "drop", "template_tokens": s.template_tokens},
            "texts": self.text_hash,
            "hash": self.hash,
        }

    def rows(self, site: str | None = None, *, head: int | None = None) -> "StoredRows":
        """Return one site (and one head of it) as `Rows`, as probes read them; nothing is read yet.

        Raises
        ------
        SiteError
            If the store has no such site or head, or several sites and none is named.
        """
        return StoredRows(self, self._site(site, head), head)

    def read(
        self, site: str | None = None, documents: Any = None, *, head: int | None = None
    ) -> Float[Tensor, "row width"]:
        """Return the rows of some documents (all, where none are named), in the order asked for.

        Documents that follow one another in one shard are a view of the file: it is for reading, keeps the shard
        mapped as long as it lives, and what is written into it reaches the file never.

        Raises
        ------
        SiteError
            If the store has no such site or head, or several sites and none is named.
        IndexError
            If there is no such document.
        """
        site = self._site(site, head)
        index = np.arange(len(self)) if documents is None else _whole(documents, len(self), "document")
        starts, lengths = self.offsets[index], self.lengths[index]
        starts, lengths = starts[lengths > 0], lengths[lengths > 0]  # so that ends meet where documents are neighbours
        starts, lengths = _runs(starts, lengths)
        if not len(starts):
            return self._empty(site, 0, head)
        shard = self._shard_of(starts)
        if len(starts) == 1 and starts[0] + lengths[0] <= self._bounds[shard[0] + 1]:
            first = int(starts[0] - self._bounds[shard[0]])
            return self._mapped(int(shard[0]), site, head)[first : first + int(lengths[0])]
        return self._gather(site, starts, lengths, head)

    def read_rows(self, site: str | None, rows: Any, *, head: int | None = None) -> Float[Tensor, "row width"]:
        """Return single rows, counted over the whole store (`offsets`), in the order asked for.

        Raises
        ------
        SiteError
            If the store has no such site or head, or several sites and none is named.
        IndexError
            If there is no such row.
        """
        site, index = self._site(site, head), _whole(rows, self.manifest.totals["rows"], "row")
        out, shard = self._empty(site, len(index), head), self._shard_of(index)
        for j in np.unique(shard):
            where = np.flatnonzero(shard == j)
            local = torch.from_numpy(index[where] - self._bounds[j])
            out[torch.from_numpy(where)] = self._mapped(int(j), site, head)[local]
        return out

    def verify(self) -> None:
        """Read every byte and compare it with its checksum.

        Raises
        ------
        StoreError
            Naming each shard that is missing, truncated, damaged, half-written or of another store.
        """
        self._refuse(faults(self.path))

    # --- reading ------------------------------------------------------------------------------------------

    def _refuse(self, found: Mapping[str, str]) -> None:
        if found:
            raise StoreError(f"{self.path} is not whole: {in_words(found)}. Capture again with resume=True (--resume).")

    def _site(self, site: str | None, head: int | None = None) -> str:
        """The site meant; there is such a head in it."""
        if site is None and len(self.sites) == 1:
            site = self.sites[0]
        if site is None or site not in self.sites:
            asked = "Say which site" if site is None else f"{self.path} does not hold '{site}'"
            raise SiteError(f"{asked}; it has: {', '.join(self.sites)}.")
        shape = self.manifest.settings.sites[site]
        if head is not None and (len(shape) != 2 or not 0 <= head < shape[0]):
            there = f"heads 0 to {shape[0] - 1}" if len(shape) == 2 else "no heads"
            raise SiteError(f"{site} has {there}, and head {head} was asked for.")
        return site

    @cached_property
    def _bounds(self) -> Int[np.ndarray, " bounds"]:
        """Shard j has rows bounds[j] to bounds[j + 1]."""
        return np.cumsum([0, *(shard.rows for shard in self.manifest.shards)])

    def _shard_of(self, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
        return np.searchsorted(self._bounds, rows, side="right") - 1

    def _gather(
        self, site: str, starts: Int[np.ndarray, " run"], lengths: Int[np.ndarray, " run"], head: int | None
    ) -> Tensor:
        """Runs of rows, in the order given: one shard after the other, and one copy of each row."""
        out = self._empty(site, int(lengths.sum()), head)
        words, stops, to = _words(out), starts + lengths, lengths.cumsum() - lengths
        first, last = self._shard_of(starts), self._shard_of(stops - 1)
        for j in range(int(first.min()), int(last.max()) + 1):
            mine = (first <= j) & (j <= last)
            if not mine.any():
                continue
            mapped = _words(self._mapped(j, site, head))
            begin = np.maximum(starts[mine], self._bounds[j])
            end = np.minimum(stops[mine], self._bounds[j + 1])
            place = to[mine] + begin - starts[mine]
            begin, end = begin - self._bounds[j], end - self._bounds[j]
            for a, b, c in zip(begin.tolist(), end.tolist(), place.tolist(), strict=True):
                words[c : c + b - a] = mapped[a:b]
        return out

    def _empty(self, site: str, n: int, head: int | None) -> Tensor:
        shape = self.shape(site)
        return torch.empty((n, shape[1] if head is not None else int(np.prod(shape))), dtype=self.dtype)

    def _mapped(self, shard: int, site: str, head: int | None) -> Tensor:
        """One site of one shard (row, width), as a view of the file."""
        mapped = self._maps.get(shard)
        if mapped is None:
            mapped = self._maps[shard] = map_file(self._file(shard), self.manifest.shards[shard].bytes)
        self._last = mapped
        rows = tensor_at(mapped, self._place(shard, site))
        return rows if head is None else rows.unflatten(1, self.shape(site))[:, head]

    def _file(self, shard: int) -> Path:
        return self.path / self.manifest.shards[shard].file

    def _header(self, shard: int) -> Header:
        if shard not in self._headers:
            self._headers[shard] = read_header(self._file(shard))
        return self._headers[shard]

    def _place(self, shard: int, name: str) -> Place:
        place = self._header(shard).places.get(name)
        if place is None:
            raise StoreError(f"{self._file(shard)} is damaged: it lacks {name}. Capture again with resume=True.")
        return place

    def _column(self, name: str) -> np.ndarray:
        shards = range(len(self.manifest.shards))
        return np.concatenate([read_tensor(self._file(j), self._place(j, name)).numpy() for j in shards])

    def _joined_offsets(self, name: str) -> np.ndarray:
        shards = range(len(self.manifest.shards))
        parts = [read_tensor(self._file(j), self._place(j, name)).diff().numpy() for j in shards]
        return np.concatenate(([0], np.concatenate(parts).cumsum()))


@dataclass(frozen=True)
class StoredRows:
    """One site of a store, or one head of it, as `Rows`."""

    store: ActivationStore
    site: str
    head: int | None = None

    @property
    def lengths(self) -> Int[np.ndarray, " document"]:
        return self.store.lengths

    @property
    def width(self) -> int:
        shape = self.store.shape(self.site)
        return int(np.prod(shape)) if self.head is None else shape[1]

    @property
    def source(self) -> Mapping[str, Any]:
        return self.store.source(self.site, head=self.head)

    def read(self, documents: Int[np.ndarray, " some"]) -> Float[Tensor, "row width"]:
        return self.store.read(self.site, documents, head=self.head)


def _whole(index: Any, n: int, what: str) -> Int[np.ndarray, " some"]:
    index = np.asarray(index)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise DataError(
            f"{what.title()}s to read are a flat list of whole numbers, not {index.dtype} of {index.ndim} axes."
        )
    if index.size and not 0 <= index.min() <= index.max() < n:
        worst = index.min() if index.min() < 0 else index.max()
        raise IndexError(f"There is no {what} {worst}: {what}s go from 0 to {n - 1}.")
    return index.astype(np.int64)


def _runs(
    starts: Int[np.ndarray, " some"], lengths: Int[np.ndarray, " some"]
) -> tuple[Int[np.ndarray, " run"], Int[np.ndarray, " run"]]:
    """Join neighbours: a run begins where the one before does not end."""
    begins = np.ones(len(starts), dtype=bool)
    begins[1:] = starts[1:] != starts[:-1] + lengths[:-1]
    return starts[begins], np.add.reduceat(lengths, np.flatnonzero(begins)) if len(starts) else lengths


def _words(rows: Tensor) -> np.ndarray:
    """The same memory as numpy sees it, which has no bfloat16 and copies small slices faster."""
    return rows.view(torch.int16 if rows.element_size() == 2 else torch.int32).numpy()
