"""Any encoder and decoder as a dictionary: another format, a crosscoder, a dictionary in the making.

    sae = wrapped(theirs.encode, theirs.decode, theirs.W_dec, site="blocks.3.hook_resid_pre")

It must read what headlens shows at its site (see `Convention`), and what it decodes must be the sum of its features'
vectors and a bias, since that is what is taken apart: this is checked on every row that is.

A crosscoder reads several sites and has vectors for each: name the sites in `inputs`, in its order, and pass the
vectors of the one that is to be taken apart; its rows are then (row, input, d_in).

Axes: row; input = sites read; d_in; d_sae.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headlens._errors import DataError, InvalidWeights
from headlens.dictionaries.dictionary import CHUNK_NUMBERS, Active, Dictionary, check_sum

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Wrapped(Dictionary):
    """A dictionary that others encode and decode."""

    encode_with: Map
    decode_with: Map
    W_dec: Float[Tensor, "d_sae d_in"]
    reads: tuple[str, ...] = ()
    """Sites that a crosscoder reads, in its order; empty: the one where its vectors are."""

    def __post_init__(self) -> None:
        if self.W_dec.ndim != 2 or not bool(torch.isfinite(self.W_dec).all()):
            raise InvalidWeights(f"W_dec must be finite numbers (d_sae, d_in), and is {tuple(self.W_dec.shape)}.")
        if self.reads and self.site not in self.reads:
            raise DataError(f"The vectors are of {self.site}, which is not among the inputs: {', '.join(self.reads)}.")

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def vectors(self) -> Float[Tensor, "d_sae d_in"]:
        return self.W_dec

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.reads or super().inputs

    def under(self, site: str) -> "Wrapped":
        """Return it with its site under another name that the same values have."""
        return replace(self, site=site, reads=tuple(site if own == self.site else own for own in self.reads))

    @property
    def digest(self) -> str:
        """A hash of the vectors and the bias: what encodes cannot be hashed."""
        found = hashlib.sha256(repr((self.site, self.head, self.inputs)).encode())
        for value in (self.W_dec, self._bias):
            found.update(f"{tuple(value.shape)}{value.dtype}".encode())
            found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return found.hexdigest()[:16]

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Return how active each feature is.

        Raises
        ------
        DataError
            If rows are not as wide as the vectors, not of all inputs, or what encodes answers in another shape.
        """
        rows = self._at_site(x).shape[:-1]
        with torch.no_grad():
            found = self.encode_with(x)
        if not isinstance(found, Tensor) or tuple(found.shape) != (*rows, self.d_sae):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise DataError(f"encode must return {(*rows, self.d_sae)} for rows of {tuple(x.shape)}, not {shape}.")
        return found

    def decode(
        self,
        features: Float[Tensor, "... d_sae"],
        *,
        like: Float[Tensor, "... d_in"] | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "... d_in"]:
        """Return what features amount to at `site`."""
        with torch.no_grad():
            found = self.decode_with(features)
        if not isinstance(found, Tensor) or tuple(found.shape) != (*features.shape[:-1], self.d_in):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise DataError(f"decode must return {(*features.shape[:-1], self.d_in)}, not {shape}.")
        return found

    def to(self, *, device: Any = None, dtype: torch.dtype | None = None) -> "Wrapped":
        """Return it with vectors elsewhere or in another precision; what encodes and decodes stays where it is."""
        return replace(self, W_dec=self.W_dec.to(device, dtype))

    @cached_property
    def _bias(self) -> Tensor:
        return self.decode(self.W_dec.new_zeros(1, self.d_sae))[0]

    def _at_site(self, x: Tensor) -> Tensor:
        many = len(self.reads) > 1
        if x.shape[-1] != self.d_in or (many and (x.ndim < 2 or x.shape[-2] != len(self.reads))):
            wanted = f"(row, {len(self.reads)}, {self.d_in})" if many else f"(row, {self.d_in})"
            raise DataError(f"Rows of this dictionary are {wanted}, not {tuple(x.shape)}.")
        return x[..., self.reads.index(self.site), :] if many and self.site is not None else x

    def _scales(self, x: Tensor, active: Active) -> tuple[Tensor, Tensor]:
        bias, vectors = self._bias.to(x.dtype), self.W_dec.to(x.dtype)
        step = max(1, CHUNK_NUMBERS // self.d_sae)
        for start in range(0, active.n_rows, step):
            part = active.part(start, start + step)
            decoded = self.decode(part.dense()).to(x.dtype) - bias
            check_sum(decoded - part.times(vectors), decoded, "What `decode` makes of features")
        return active.values.to(x.dtype), bias[None]


def wrapped(
    encode: Map,
    decode: Map,
    W_dec: Float[Tensor, "d_sae d_in"],
    *,
    site: str,
    head: int | None = None,
    inputs: Sequence[str] = (),
    model: str | None = None,
) -> Wrapped:
    """Return any encoder and decoder as a dictionary.

    Parameters
    ----------
    encode
        From rows (..., d_in), or of a crosscoder (..., input, d_in), to activations (..., d_sae).
    decode
        From activations to rows (..., d_in) of `site`.
    W_dec
        The vectors that `decode` sums.
    site
        Where they live, such as blocks.3.hook_resid_pre.
    inputs
        Of a crosscoder: all the sites that it reads, in its order.
    """
    return Wrapped(
        encode_with=encode,
        decode_with=decode,
        W_dec=W_dec.detach(),
        reads=tuple(inputs),
        site=site,
        head=head,
        model=model,
    )
