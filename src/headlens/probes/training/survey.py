"""What must be known of the rows before training: whether all are finite, their mean and scale, pooled documents.

    scale_j = 1 / sd_j over the rows of a probe's training documents; 1 for a feature that does not vary

Rows are read once for all of it. Poolings that choose among inputs alone (mean, last, absmax) then train on one row a
document: those rows are kept where they fit `KEPT` bytes, and made anew at every read where they do not.

Axes: row; document; set = distinct sets of training documents among probes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headlens._errors import DataError
from headlens.probes.training.objective import CHUNK, in_chunks
from headlens.probes.training.pooling import POOLINGS, Packing, pool_rows
from headlens.store.rows import ArrayRows, Rows

KEPT = 2**28


@dataclass(frozen=True)
class Pooled:
    """Documents of another `Rows`, pooled to one row each, at every read; those without rows have none here either."""

    of: Rows
    pooling: str

    @property
    def lengths(self) -> Int[np.ndarray, " document"]:
        return np.minimum(self.of.lengths, 1)

    @property
    def width(self) -> int:
        return self.of.width

    @property
    def source(self) -> Mapping[str, Any] | None:
        return self.of.source

    def read(self, documents: Int[np.ndarray, " some"]) -> Float[Tensor, "row width"]:
        return pooled(self.of.read(documents), torch.as_tensor(self.of.lengths[documents]), self.pooling)


def pooled(
    rows: Float[Tensor, "row width"], lengths: Int[Tensor, " document"], pooling: str
) -> Float[Tensor, "some width"]:
    """Return a row for each document that has any, in single precision at least."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return pool_rows(POOLINGS[pooling], wide, Packing(lengths.to(rows.device)))[0]


@dataclass
class Moments:
    """Running mean and variance of rows, for several sets of documents."""

    sets: Bool[Tensor, "set document"]
    width: int
    pilot: Float[Tensor, " width"] | None = None
    """What is subtracted first, since squares of numbers far from 0 would lose what they differ by."""

    def __post_init__(self) -> None:
        self.count = torch.zeros(len(self.sets), 1, dtype=torch.float64)
        self.total = torch.zeros(len(self.sets), self.width, dtype=torch.float64)
        self.squares = torch.zeros_like(self.total)

    def add(self, rows: Float[Tensor, "row width"], documents: Int[np.ndarray, " some"], at: Packing) -> None:
        if self.pilot is None:
            self.pilot = rows.mean(0) if len(rows) else None
            if self.pilot is None:
                return
        inside = self.sets[:, documents].to(rows.dtype)
        centred = rows - self.pilot
        self.count += (inside @ at.lengths.to(rows.dtype))[:, None]
        self.total += inside @ at.sum(centred)
        self.squares += inside @ at.sum(centred.square_())

    def mean_and_scale(self) -> tuple[Float[Tensor, "set width"], Float[Tensor, "set width"]]:
        assert self.pilot is not None
        centre = self.total / self.count
        sd = (self.squares / self.count - centre**2).clamp(min=0).sqrt()
        mean = self.pilot + centre
        varies = sd > 1e-6 * mean.abs()
        return mean, torch.where(varies, 1 / torch.where(varies, sd, 1.0), 1.0)


@dataclass
class Survey:
    """What one pass over the rows found."""

    moments: Moments | None
    dtype: torch.dtype
    pooled: dict[str, Rows] = field(default_factory=dict)


def survey(
    rows: Rows,
    documents: Int[np.ndarray, " some"],
    poolings: Sequence[str],
    sets: Bool[Tensor, "set document"] | None,
) -> Survey:
    """Read documents once: check them, pool them, and take the moments of sets of them.

    Raises
    ------
    DataError
        If an activation is NaN or infinite.
    """
    lengths = np.asarray(rows.lengths)
    dtype = torch.promote_types(rows.read(documents[:1]).dtype, torch.float32)
    found = Survey(None if sets is None else Moments(sets, rows.width), dtype)
    keep = len(lengths) * rows.width * dtype.itemsize * len(poolings) <= KEPT
    parts: dict[str, list[Tensor]] = {name: [] for name in poolings if keep}
    for some in in_chunks(documents, lengths, max(1, CHUNK // rows.width)):
        part, at = rows.read(some).cpu(), Packing(torch.as_tensor(lengths[some]))
        check_finite(part, some, at)
        part = part.to(dtype)
        if found.moments is not None:
            found.moments.add(part, some, at)
        for name, kept in parts.items():
            kept.append(pooled(part, at.lengths, name))
    read = np.zeros_like(lengths)
    read[documents] = np.minimum(lengths[documents], 1)
    offsets = np.cumsum([0, *read])
    for name in poolings:
        whole = ArrayRows(torch.cat(parts[name]), offsets, rows.source) if keep else Pooled(rows, name)
        found.pooled[name] = whole
    return found


def check_finite(rows: Float[Tensor, "row width"], documents: Int[np.ndarray, " some"], at: Packing) -> None:
    """Raise for activations that are no numbers.

    Raises
    ------
    DataError
        Naming the first document that holds one.
    """
    # The sum tells at half the price; only an overflow makes it lie, and then the rows are looked at one by one.
    if rows.sum(dtype=torch.float64).isfinite():
        return
    bad = torch.nonzero(~rows.isfinite().all(1))[:, 0]
    if len(bad):
        document = documents[int(at.document[bad[0]])]
        raise DataError(f"Document {document} holds NaN or infinite activations: leave it out, or capture it again.")
