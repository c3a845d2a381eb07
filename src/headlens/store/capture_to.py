"""`hl.capture_to`: run a model over a corpus once, and keep what was at some sites on disk.

Shards are cut by counting bytes, and only documents of one shard share a batch (the longest together, then shorter
ones, so that little is padding). So what a shard holds follows from the corpus and the options alone, and one that is
missing or damaged can be made again, alone, to the same bytes: on the same kind of device, with the same versions and
number of threads, which decide how sums round.

Memory: one shard's rows (`shard_bytes`), one batch, and the model; whatever the size of corpus and store.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from headlens._errors import DataError, ModelError, OutputError, SiteError, StoreError, StoreMismatch
from headlens._files import whole_file
from headlens._lock import only_process
from headlens._result import versions
from headlens.data.tokens import Tokens
from headlens.models import Model, load
from headlens.store.activations import ActivationStore
from headlens.store.documents import Document, Documents, TemplateTokens
from headlens.store.manifest import (
    MANIFEST,
    Manifest,
    Settings,
    Shard,
    check_store_target,
    faults,
    is_own,
    read_manifest,
    settle,
    shard_name,
    unlisted,
)
from headlens.store.shard import write_shard
from headlens.tracing.capture import Batch, capture
from headlens.tracing.sites import parse_site

Dtype = Literal["float16", "bfloat16", "float32"]
Told = Callable[[int], None]
TOKEN_BYTES = 4 + 8 + 1
"""What a shard holds of each token beside its rows: id, span, and whether it has rows."""


def capture_to(
    store: str | Path,
    model: Any,
    corpus: Any,
    sites: Sequence[str],
    *,
    dtype: Dtype = "float16",
    max_tokens: int | None = None,
    template_tokens: TemplateTokens = "keep",
    batch_tokens: int = 8192,
    shard_bytes: int = 1 << 28,
    field: str = "text",
    resume: bool = False,
    progress: Told | None = None,
    note: Callable[[str], None] | None = None,
) -> ActivationStore:
    """Write the activations of a corpus to the folder `store`, and open it.

    Parameters
    ----------
    model
        Whatever `hl.load` takes.
    corpus
        What `hl.data.iter_texts` reads, or texts (a list, or an iterator over more than fits in memory), or token
        ids (`Tokens`, a list of id lists).
    sites
        Names such as `blocks.*.hook_resid_post`; q, k, v and z are kept as rows of heads x d_head. Not patterns.
    dtype
        What rows are kept in. Activations that float16 cannot hold are refused.
    max_tokens
        Where documents are cut, BOS included; None for the model's context.
    template_tokens
        "drop": special tokens and those of the chat template go through the model but have no rows. BOS at the
        beginning and padding never have rows.
    batch_tokens
        How many tokens, padding included, go through the model at once.
    shard_bytes
        How large a shard may become; one is held in memory.
    field
        Of a corpus that is read from a file: its field or column of texts.
    resume
        Go on where an earlier run with the same model, corpus and options was stopped. Shards that are missing,
        truncated, damaged or of another store are made again, and no others.
    progress
        Called with the number of documents done, batch by batch.
    note
        Called with a sentence on each shard that has to be made again.

    Raises
    ------
    StoreMismatch
        If `resume` is set and the store is of another model, corpus or option.
    StoreError
        If the folder holds something already, or another process is writing to it.
    SiteError
        If a site does not exist in this model, or is no row per token.
    DataError
        If there is no document, an option is out of range, or a row does not fit `dtype`.
    ModelError
        If an activation is NaN or infinite.
    OutputError
        If the disk is full; what was written is whole, and `resume` goes on from there.
    """
    _check_options(dtype, max_tokens, template_tokens, batch_tokens, shard_bytes)
    folder = Path(store)
    check_store_target(folder, resume=resume)
    model = load(model)
    shapes = _shapes(model, sites)
    limit = model.n_ctx if max_tokens is None else min(max_tokens, model.n_ctx)
    documents = Documents(model, corpus, max_tokens=limit, template_tokens=template_tokens, field=field)
    settings = Settings(model.provenance(), dtype, shapes, limit, template_tokens, batch_tokens, shard_bytes)
    with only_process(folder):
        check_store_target(folder, resume=resume)  # again: another process may have written since
        work = _Work(folder, model, settings, progress or _ignore, note or _ignore)
        work.finish(documents)
    return ActivationStore(folder)


def _ignore(_: Any) -> None:
    pass


def _check_options(dtype: str, max_tokens: int | None, template_tokens: str, *sizes: int) -> None:
    if dtype not in ("float16", "bfloat16", "float32"):
        raise DataError(f"dtype must be float16, bfloat16 or float32, not '{dtype}'.")
    if template_tokens not in ("keep", "drop"):
        raise DataError(f"template_tokens must be keep or drop, not '{template_tokens}'.")
    names = ("max_tokens", "batch_tokens", "shard_bytes")
    for name, value in zip(names, (max_tokens, *sizes), strict=True):
        if value is not None and value < 1:
            raise DataError(f"{name} must be 1 or more, not {value}.")


def _shapes(model: Model, sites: Sequence[str]) -> dict[str, list[int]]:
    """Return the shape of a row at each site, in the order asked for."""
    if isinstance(sites, str):
        raise SiteError(f"sites is a list of names, not one string: write ['{sites}'].")
    found = {}
    for site in (site for text in sites for site in parse_site(model, text)):
        what = site.name.removeprefix("attn.hook_")
        if what in ("pattern", "attn_scores"):
            raise SiteError(f"{site} is (head, query, key) and has no row per token: fold it with hl.capture.")
        if site.name.startswith("attn."):
            heads = model.n_kv_heads if what.removeprefix("rot_") in ("k", "v") else model.n_heads
            found[str(site)] = [heads, model.d_head]
        else:
            found[str(site)] = [model.d_model]
    if not found:
        raise SiteError("No site was asked for.")
    return found


@dataclass
class _Work:
    """One store, being written."""

    folder: Path
    model: Model
    settings: Settings
    progress: Told
    note: Callable[[str], None]

    def finish(self, documents: Documents) -> None:
        """Write every shard that is not there."""
        manifest, redo = self._begin()
        index = -1
        for index, some in enumerate(_shards(documents, self.settings)):
            shard = manifest.shards[index] if index < len(manifest.shards) else None
            corpus = _corpus_hash(some)
            if shard is not None and shard.corpus != corpus:
                raise self._other_corpus(manifest, index)
            if shard is None or shard.file in redo:
                manifest = manifest.with_shard(index, self._write(index, some, corpus))
                self._save(manifest)
            else:
                self.progress(len(some))
        if index < 0:
            raise DataError("There is no document to capture.")
        if index + 1 < len(manifest.shards):
            raise self._other_corpus(manifest, index + 1)
        self._save(manifest.finished(documents.texts_hash))

    def _begin(self) -> tuple[Manifest, Mapping[str, str]]:
        """Return what is there already, and what of it has to be made again."""
        if not (self.folder / MANIFEST).exists():
            manifest = Manifest(self.settings, versions())
            self._clean(manifest)
            return manifest, {}
        manifest = read_manifest(self.folder)
        there, wanted = manifest.settings.same(), self.settings.same()
        if changed := [key for key in wanted if there.get(key) != wanted[key]]:
            key = changed[0]
            raise StoreMismatch(
                f"{self.folder} was captured with {key} {_told(there.get(key))}, and this is {_told(wanted[key])}: use "
                "the model and options it was begun with, or name another folder."
            )
        self.settings = manifest.settings  # the same, in the order it was begun with
        self._clean(manifest)
        listed = {shard.file for shard in manifest.shards}
        redo = {name: what for name, what in faults(self.folder).items() if name in listed}
        for name, what in redo.items():
            self.note(f"{name} is {what}; it is made again.")
        return manifest, redo

    def _clean(self, manifest: Manifest) -> None:
        """Remove what a killed run left, and nothing else."""
        for path in unlisted(self.folder, manifest):
            if not path.name.startswith(".") and not is_own(path, manifest):
                raise StoreError(f"{path} is not of this store: move it away, or name another folder.")
            path.unlink()

    def _other_corpus(self, manifest: Manifest, index: int) -> StoreMismatch:
        first = sum(shard.documents for shard in manifest.shards[:index])
        return StoreMismatch(
            f"{self.folder} was captured from another corpus: document {first}, or one after it, differs. Pass the "
            "corpus it was begun with, or name another folder."
        )

    def _write(self, index: int, documents: list[Document], corpus: str) -> Shard:
        tensors = _tensors(self.model, self.settings, documents, self.progress)
        name = shard_name(index)
        with self._room():
            with whole_file(self.folder / name) as path:
                size, digest = write_shard(path, tensors, {"store": self.settings.key, "corpus": corpus})
            settle(self.folder)
        tokens, rows = (int(tensors[f"{what}_offsets"][-1]) for what in ("token", "row"))
        return Shard(name, size, digest, len(documents), tokens, rows, sum(d.cut for d in documents), corpus)

    def _save(self, manifest: Manifest) -> None:
        with self._room():
            manifest.save(self.folder)

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Say what to do where the disk is full."""
        try:
            yield
        except (OutputError, OSError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            reason = getattr(cause, "strerror", None) or str(error)
            raise OutputError(
                f"{self.folder} could not be written: {reason}. What was written before is whole: free space, and go "
                "on with resume=True (--resume)."
            ) from error


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{', '.join(list(value)[:3])}{', ...' if len(value) > 3 else ''} ({len(value)} in all)"
    return str(value)


def _shards(documents: Documents, settings: Settings) -> Iterator[list[Document]]:
    """Cut the corpus: a shard takes documents as long as they fit in `shard_bytes`, and one at least."""
    row_bytes = sum(int(np.prod(shape)) for shape in settings.sites.values()) * _torch(settings.dtype).itemsize
    some: list[Document] = []
    size = 0
    for document in documents:
        more = document.n_rows * row_bytes + len(document.ids) * TOKEN_BYTES + 16
        if some and size + more > settings.shard_bytes:
            yield some
            some, size = [], 0
        some.append(document)
        size += more
    if some:
        yield some


def _torch(dtype: str) -> torch.dtype:
    return getattr(torch, dtype)


def _corpus_hash(documents: list[Document]) -> str:
    digest = hashlib.sha256()
    for one in documents:
        digest.update(len(one.ids).to_bytes(8, "little"))
        for part in (one.ids, one.spans, one.kept):
            digest.update(b"none" if part is None else part.tobytes())
    return digest.hexdigest()[:16]


def _offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths, dtype=np.int64).tolist()], dtype=torch.int64)


def _tensors(model: Model, settings: Settings, documents: list[Document], progress: Told) -> dict[str, Tensor]:
    """Return all that a shard of these documents holds, from wide numbers to narrow ones."""
    tensors = {
        "token_offsets": _offsets([len(one.ids) for one in documents]),
        "row_offsets": _offsets([one.n_rows for one in documents]),
        "ids": torch.from_numpy(np.concatenate([one.ids for one in documents])),
    }
    spans = [one.spans for one in documents if one.spans is not None]
    if spans:
        tensors["spans"] = torch.from_numpy(np.concatenate(spans))
    tensors |= _rows(model, settings, documents, tensors["row_offsets"].numpy(), progress)
    return tensors | {"kept": torch.from_numpy(np.concatenate([one.kept for one in documents]))}


def _rows(
    model: Model, settings: Settings, documents: list[Document], offsets: np.ndarray, progress: Told
) -> dict[str, Tensor]:
    """Run the model over the documents of one shard, longest first, and return the rows of every site."""
    dtype = _torch(settings.dtype)
    rows = {site: torch.empty((int(offsets[-1]), *shape), dtype=dtype) for site, shape in settings.sites.items()}
    lengths = np.array([len(one.ids) for one in documents])
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    progress(len(documents) - len(order))
    if not len(order):
        return rows
    ids = np.concatenate([documents[i].ids for i in order]).astype(np.int64)
    sorted_tokens = Tokens(ids, np.concatenate(([0], lengths[order].cumsum())))
    places = _Places(documents, order, offsets)

    def keep(site: str) -> Callable[[Tensor, Batch], None]:
        def reduce(value: Tensor, batch: Batch) -> None:
            there, to = places.of(batch)
            rows[site][to] = _cast(value[there], dtype, model, site).cpu()

        return reduce

    sites = {site: keep(site) for site in settings.sites}
    for _ in capture(model, sorted_tokens, sites, batch_tokens=settings.batch_tokens, progress=progress):
        pass
    return {site: value.flatten(1) for site, value in rows.items()}


class _Places:
    """Which tokens of a batch have rows, and which rows of the shard these are; found once per batch."""

    def __init__(self, documents: list[Document], order: np.ndarray, offsets: np.ndarray) -> None:
        self.documents, self.order, self.offsets = documents, order, offsets
        self._first, self._found = -1, (torch.empty(0), torch.empty(0))

    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self._first != batch.index[0]:
            members = self.order[batch.index]
            there = np.zeros(batch.ids.shape, dtype=bool)
            for row, i in enumerate(members):
                there[row, : len(self.documents[i].kept)] = self.documents[i].kept
            to = np.concatenate([np.arange(*self.offsets[i : i + 2].tolist()) for i in members])
            self._first = int(batch.index[0])
            self._found = (torch.from_numpy(there).to(batch.ids.device), torch.from_numpy(to))
        return self._found


def _cast(rows: Tensor, dtype: torch.dtype, model: Model, site: str) -> Tensor:
    """Return rows in the type they are kept in, and refuse what it cannot hold."""
    cast = rows.to(dtype)
    # The sum is one cheap pass; only where it is not finite does every entry count.
    if not bool(cast.sum(dtype=torch.float32).isfinite()) and not bool(cast.isfinite().all()):
        if not bool(rows.isfinite().all()):
            raise ModelError(
                f"{site} of {model.name} is NaN or infinite: its numbers overflow "
                f"{str(model.dtype).removeprefix('torch.')}. Load it in a wider dtype."
            )
        name, largest = str(dtype).removeprefix("torch."), float(rows.abs().max())
        raise DataError(
            f"{site} of {model.name} reaches {largest:.3g}, which {name} cannot hold: keep it as bfloat16 or float32."
        )
    return cast
