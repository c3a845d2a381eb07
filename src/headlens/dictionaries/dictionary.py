"""What are the features? A dictionary: vectors, and how much of each an activation holds.

    f = encode(x)          how active each feature is at the row x; most are 0
    x ~ decode(f, like=x)

Whatever its kind, a dictionary takes a row apart without a rest, which is what decompositions need:

    x = sum_i weight_i vector_i + bias + error          (`split`)

    weight_i   f_i, times what the row was scaled by before encoding, where it was
    bias       what decoding gives without any feature; of one row, where rows are normalised one by one
    error      what the dictionary does not explain

Memory: `encode_sparse` and `split` go over the rows in chunks and hold, beside what they return, a few arrays of
chunk x d_sae numbers (64 MiB each in float32, unless told otherwise), whatever the number of rows.

Axes: row; d_in = numbers that the dictionary reads; d_sae = features; entry = one active (row, feature).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from headlens._errors import DataError, NotAffineError

Convention = Literal["site", "centred", "before_gain", "without_value_bias"]
"""How what a dictionary was trained on differs from what headlens shows at the site of that name:

    site                 not at all
    centred              less its mean over d_model (TransformerLens with center_writing_weights)
    before_gain          normalised, but before the norm's gain and bias (TransformerLens' ln1.hook_normalized)
    without_value_bias   z less the value bias (TransformerLens with fold_value_biases, its default)

`fitted` turns any of them into the first.
"""
CHUNK_NUMBERS = 1 << 24
"""Numbers of one chunk's array of chunk x d_sae."""


@dataclass(frozen=True)
class Active:
    """Which features are active in each row, and how much: compressed rows."""

    offsets: Int[Tensor, " bound"]
    """Row r holds the entries offsets[r] to offsets[r + 1]."""
    features: Int[Tensor, " entry"]
    """Ascending within a row."""
    values: Float[Tensor, " entry"]
    d_sae: int

    @property
    def n_rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> Int[Tensor, " entry"]:
        """The row of each entry."""
        return torch.repeat_interleave(
            torch.arange(self.n_rows, device=self.offsets.device), self.offsets.diff(), output_size=len(self.features)
        )

    def row(self, index: int) -> tuple[Int[Tensor, " active"], Float[Tensor, " active"]]:
        """Return the features of one row and their values."""
        entries = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.features[entries], self.values[entries]

    def part(self, start: int, stop: int) -> "Active":
        """Return some of the rows."""
        bounds = self.offsets[start : stop + 1]
        entries = slice(int(bounds[0]), int(bounds[-1]))
        return Active(bounds - bounds[0], self.features[entries], self.values[entries], self.d_sae)

    def dense(self) -> Float[Tensor, "row d_sae"]:
        """Return all values, zeros included."""
        found = self.values.new_zeros(self.n_rows, self.d_sae)
        found[self.rows, self.features] = self.values
        return found

    def times(self, vectors: Float[Tensor, "d_sae width"]) -> Float[Tensor, "row width"]:
        """Return the sum of each row's vectors, weighted by its values."""
        values = self.values.to(vectors.dtype)
        return embedding_bag(
            self.features, vectors, self.offsets, mode="sum", per_sample_weights=values, include_last_offset=True
        )


@dataclass(frozen=True)
class Split:
    """Rows as vectors that sum to them."""

    active: Active
    """Activations as `encode` gives them."""
    weights: Float[Tensor, " entry"]
    """How many times its feature's vector each entry holds."""
    vectors: Float[Tensor, "d_sae d_in"]
    bias: Float[Tensor, "row d_in"]
    error: Float[Tensor, "row d_in"]

    @property
    def whole(self) -> Float[Tensor, "row d_in"]:
        """The rows again: features, bias and error."""
        return self.explained + self.bias + self.error

    @property
    def weighted(self) -> Active:
        """Which features are active, and how many times its vector each is there."""
        return replace(self.active, values=self.weights)

    @property
    def explained(self) -> Float[Tensor, "row d_in"]:
        """What the features hold of each row."""
        return self.weighted.times(self.vectors)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Dictionary(ABC):
    """Features of what a model holds at one site."""

    site: str | None = None
    """Where it was trained, such as blocks.3.hook_resid_pre; None: it does not say."""
    head: int | None = None
    """The one head it was trained on; None: all of them, one after the other, or a site without heads."""
    convention: Convention = "site"
    model: str | None = None
    """The model that its card names, as the card names it."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """What came with it: how and on what it was trained."""

    @property
    @abstractmethod
    def d_in(self) -> int: ...

    @property
    @abstractmethod
    def d_sae(self) -> int: ...

    @property
    @abstractmethod
    def digest(self) -> str:
        """What tells this dictionary from every other: a hash of its numbers and options."""

    @property
    @abstractmethod
    def vectors(self) -> Float[Tensor, "d_sae d_in"]:
        """Each feature's vector, in the coordinates of what the dictionary reads."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The sites whose values `encode` reads."""
        return () if self.site is None else (self.site,)

    def under(self, site: str) -> "Dictionary":
        """Return it with its site under another name that the same values have."""
        return replace(self, site=site)

    @abstractmethod
    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Return how active each feature is."""

    @abstractmethod
    def decode(
        self, features: Float[Tensor, "... d_sae"], *, like: Float[Tensor, "... d_in"] | None = None
    ) -> Float[Tensor, "... d_in"]:
        """Return what features amount to.

        `like` are the rows that were encoded, for a dictionary that normalises each row: it gives back what it took.
        """

    @abstractmethod
    def to(self, *, device: Any = None, dtype: torch.dtype | None = None) -> "Dictionary":
        """Return this dictionary elsewhere, or in another precision."""

    def __repr__(self) -> str:
        at = "" if self.site is None else f" at {self.site}{'' if self.head is None else f', head {self.head}'}"
        of = "" if self.model is None else f" of {self.model}"
        return f"{type(self).__name__}({self.d_sae} features of {self.d_in} numbers{at}{of})"

    @abstractmethod
    def _scales(self, x: Tensor, active: Active) -> tuple[Tensor, Tensor]:
        """Return each entry's weight, and each row's bias, in the precision of `x`."""

    def encode_sparse(self, x: Float[Tensor, "row ..."], *, chunk: int | None = None) -> Active:
        """Return which features are active in each row, `chunk` rows at a time.

        Raises
        ------
        DataError
            If rows are not as wide as the dictionary reads, or are not finite.
        """
        counts, features, values = [], [], []
        for part in self._chunks(x, chunk):
            f = self.encode(part)
            row, feature = nonzero(f)
            counts.append(torch.bincount(row, minlength=len(part)))
            features.append(feature)
            values.append(f[row, feature])
        return _active(counts, features, values, self)

    def split(self, x: Float[Tensor, "row ..."], *, chunk: int | None = None) -> Split:
        """Return rows as features, bias and error, which sum to them in the precision of `x` (or the dictionary's).

        Raises
        ------
        DataError
            If rows are not as wide as the dictionary reads, or are not finite.
        NotAffineError
            If what features amount to is not the sum of their vectors, and so cannot be taken apart.
        """
        active = self.encode_sparse(x, chunk=chunk)
        at = self._at_site(x)
        at = at.to(torch.promote_types(at.dtype, self.vectors.dtype))
        weights, bias = self._scales(at, active)
        vectors = self.vectors.to(at.dtype)
        explained = replace(active, values=weights).times(vectors)
        return Split(active, weights, vectors, bias.expand_as(at), at - explained - bias)

    def reconstruct(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """Return what the dictionary makes of `x`: encoded, and decoded again."""
        return self.decode(self.encode(x), like=x)

    def error(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """Return what the dictionary does not explain of `x`."""
        return x - self.reconstruct(x).to(x.dtype)

    def _at_site(self, x: Tensor) -> Tensor:
        """The part of what `encode` reads that the vectors sum to."""
        return x

    def _chunks(self, x: Tensor, chunk: int | None) -> Iterator[Tensor]:
        if chunk is not None and chunk < 1:
            raise DataError(f"chunk must be at least 1 row, not {chunk}.")
        for part in x.split(max(1, CHUNK_NUMBERS // self.d_sae) if chunk is None else chunk):
            if not bool(torch.isfinite(part).all()):
                raise DataError("Rows to encode hold NaN or infinite numbers: look at how they were made.")
            yield part


def _active(counts: list[Tensor], features: list[Tensor], values: list[Tensor], of: Dictionary) -> Active:
    vectors = of.vectors
    if not counts:
        empty = torch.zeros(0, dtype=torch.int64, device=vectors.device)
        return Active(empty.new_zeros(1), empty, vectors.new_zeros(0), of.d_sae)
    count = torch.cat(counts)
    return Active(torch.cat([count.new_zeros(1), count.cumsum(0)]), torch.cat(features), torch.cat(values), of.d_sae)


def check_sum(gap: Tensor, of: Tensor, what: str) -> None:
    """Raise if what should be 0 is not small beside the numbers it is made of.

    Raises
    ------
    NotAffineError
    """
    if gap.numel() and not float(gap.abs().max()) <= 1e-3 * float(of.abs().max()):  # NaN must not pass
        raise NotAffineError(
            f"{what} is not the sum of its features' vectors (off by {float(gap.abs().max()):.3g}): it cannot be taken "
            "apart. Pass the vectors that it decodes with."
        )


def nonzero(values: Float[Tensor, "row column"]) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"]]:
    """Return rows and columns of what is not 0, row by row."""
    if values.device.type != "cpu":
        row, column = values.nonzero(as_tuple=True)
        return row, column
    at = torch.from_numpy(np.flatnonzero(values.bool().numpy()))  # several times as fast as torch's own
    return at // values.shape[1], at % values.shape[1]
