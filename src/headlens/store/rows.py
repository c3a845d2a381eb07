"""What do probes read? Rows of documents of different lengths, one row a token, without padding.

    rows of document i     `read([i])`, (lengths[i], width); of several, one after the other in the order asked for

Whatever holds them (memory, or a store far larger than it) has the same three things. What `read` returns may lie in a
file that is mapped into memory: it is for reading, never for writing.

Axes: document; row = tokens of the documents that were read; width = numbers a token.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headlens._errors import DataError


@runtime_checkable
class Rows(Protocol):
    """Documents of rows."""

    @property
    def lengths(self) -> Int[np.ndarray, " document"]:
        """Rows of each document; may be 0."""
        ...

    @property
    def width(self) -> int: ...

    @property
    def source(self) -> Mapping[str, Any] | None:
        """Where the rows come from (model, revision, site, token mask, BOS policy, hash); None for a bare array."""
        ...

    def read(self, documents: Int[np.ndarray, " some"]) -> Float[Tensor, "row width"]:
        """Return the rows of some documents, in the order asked for, in the type they are kept in."""
        ...


@dataclass(frozen=True)
class ArrayRows:
    """Rows in memory."""

    rows: Float[Tensor, "row width"]
    offsets: Int[np.ndarray, " bounds"]
    source: Mapping[str, Any] | None = None

    @property
    def lengths(self) -> Int[np.ndarray, " document"]:
        return np.diff(self.offsets)

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    def read(self, documents: Int[np.ndarray, " some"]) -> Float[Tensor, "row width"]:
        spans = [slice(int(self.offsets[i]), int(self.offsets[i + 1])) for i in documents]
        if spans and all(a.stop == b.start for a, b in itertools.pairwise(spans)):
            return self.rows[spans[0].start : spans[-1].stop]
        return torch.cat([self.rows[span] for span in spans]) if spans else self.rows[:0]


@dataclass(frozen=True)
class Chosen:
    """Some documents of other rows, in another order perhaps."""

    of: Rows
    index: Int[np.ndarray, " document"]

    @property
    def lengths(self) -> Int[np.ndarray, " document"]:
        return self.of.lengths[self.index]

    @property
    def width(self) -> int:
        return self.of.width

    @property
    def source(self) -> Mapping[str, Any] | None:
        return self.of.source

    def read(self, documents: Int[np.ndarray, " some"]) -> Float[Tensor, "row width"]:
        return self.of.read(self.index[np.asarray(documents, dtype=np.int64)])


def as_rows(X: Any, *, mask: Any = None, site: str | None = None) -> Rows:
    """Return any of the forms that callers may pass as `Rows`, without changing or, where possible, copying it.

    Parameters
    ----------
    X
        `Rows`; an `ActivationStore` (with `site`, where it has several); a list of (token, width) arrays; a padded
        (document, token, width) array with `mask`; or a (document, width) array, one row each.
    mask
        For a padded array: True on real tokens.

    Raises
    ------
    DataError
        If it is none of these, widths differ, or a mask is missing, does not fit, or is given for something else.
    """
    of_site: Any = getattr(X, "rows", None)
    if callable(of_site):  # an ActivationStore, which is not imported here
        _no_mask(mask, "an ActivationStore")
        return cast(Rows, of_site(site))
    if isinstance(X, Rows):
        _no_mask(mask, "ragged rows")
        return cast(Rows, X)
    if isinstance(X, Sequence) and not isinstance(X, (str, bytes)) and (not X or np.ndim(X[0]) == 2):
        _no_mask(mask, "a list of arrays")
        return _from_list([_floats(one, f"Document {i}") for i, one in enumerate(X)])
    X = _floats(X, "X")
    if X.ndim == 2:
        _no_mask(mask, "an array of one row a document")
        return ArrayRows(X, np.arange(len(X) + 1))
    if X.ndim != 3:
        raise DataError(f"X must be (document, width), or (document, token, width) with a mask, not {tuple(X.shape)}.")
    return _from_padded(X, mask)


def _from_list(documents: list[Tensor]) -> ArrayRows:
    widths = {one.shape[1] for one in documents}
    if len(widths) != 1:
        raise DataError(f"Documents must all have rows of one width, not {sorted(widths) or 'no document at all'}.")
    return ArrayRows(torch.cat(documents), np.cumsum([0, *map(len, documents)]))


def _from_padded(X: Float[Tensor, "document token width"], mask: Any) -> ArrayRows:
    if mask is None:
        raise DataError("A padded (document, token, width) array needs mask=, True on real tokens.")
    real = torch.as_tensor(np.asarray(mask)).bool()
    if real.shape != X.shape[:2]:
        raise DataError(f"mask must be (document, token) = {tuple(X.shape[:2])}, not {tuple(real.shape)}.")
    return ArrayRows(X[real.to(X.device)], np.cumsum([0, *real.sum(1).tolist()]))


def _floats(X: Any, name: str) -> Tensor:
    try:
        rows = X if isinstance(X, Tensor) else torch.as_tensor(np.asarray(X))
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must be an array of numbers: {error}.") from error
    if rows.is_complex() or rows.dtype is torch.bool:
        raise DataError(f"{name} must be an array of real numbers, not {rows.dtype}.")
    return rows.detach() if rows.is_floating_point() else rows.double()


def _no_mask(mask: Any, what: str) -> None:
    if mask is not None:
        raise DataError(f"mask= goes with a padded array; {what} needs none.")
