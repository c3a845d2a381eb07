"""What are a head's queries and keys made of? Every source of every position, projected once.

The stream x_p that a head reads at position p is a sum of sources, and with its norms frozen at x_p the head maps
each of them to a part of its query (and of its key):

    x_p     = sum_i f_i d_i + b_dec + e_p            features i active at p, dictionary bias, reconstruction error
    query_p = scale R_p [ r_p g * ( (n_p G c) W_Q + beta W_Q + b_Q ) ]       summed over the sources c of x_p

with n_p the inverse denominator of the norm before the head, G its gain (and centring), beta its bias, r_p and g those
of a norm on queries, R_p the rotation. beta and b_Q are sources too, so that

    score[q, k] = sum_i sum_j <query part i of q, key part j of k>          the head's own score, before any soft-cap

A `Side` is all parts of all queries, or keys, as rows sorted by position. Features have the numbers of the dictionary,
other sources those that follow.

Axes: token; row = one source at one position; feature. Unit: a product of a query and a key part is attention logits.
Source: Anthropic 2025 (QK attributions), for other architectures as `Head` has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headlens.dictionaries.dictionary import Split
from headlens.models.head import Head, QKNorm
from headlens.models.norm import Norm

OTHERS = ("dictionary bias", "error", "norm bias", "projection bias")
"""Sources that are no features; source n_features + i is OTHERS[i]."""


@dataclass(frozen=True)
class Side:
    """The parts of a head's queries, or keys, over one text."""

    offsets: Int[Tensor, " bound"]
    """Rows of position p: offsets[p] to offsets[p + 1]."""
    source: Int[Tensor, " row"]
    """Number of the feature, or n_features + i for OTHERS[i]; ascending within a position."""
    activation: Float[Tensor, " row"]
    """The feature's; 1 for other sources."""
    vector: Float[Tensor, "row d_head"]
    """What the source adds to the query or key that meet in the score."""

    @property
    def n_tokens(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def position(self) -> Int[Tensor, " row"]:
        """Position of each row."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    def at(self, position: int) -> slice:
        """The rows of a position."""
        return slice(int(self.offsets[position]), int(self.offsets[position + 1]))

    def sums(self) -> Float[Tensor, "token d_head"]:
        """Return the whole query or key of each position."""
        whole = self.vector.new_zeros(self.n_tokens, self.vector.shape[1])
        return whole.index_add_(0, self.position, self.vector)

    def cpu(self) -> "Side":
        """Return the side in ordinary memory."""
        return Side(self.offsets.cpu(), self.source.cpu(), self.activation.cpu(), self.vector.cpu())

    def only(self, rows: Tensor) -> "Side":
        """Return the side with some rows, a mask or ascending numbers."""
        kept = torch.zeros(len(self.source), dtype=torch.bool, device=self.source.device)
        kept[rows] = True
        counts = torch.zeros(self.n_tokens, dtype=torch.int64, device=kept.device).index_add_(
            0, self.position, kept.long()
        )
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Side(offsets, self.source[kept], self.activation[kept], self.vector[kept])


def sides(
    head: Head, x: Float[Tensor, "token d_model"], parts: Split, *, normalized: bool = False, used: "Used | None" = None
) -> tuple[Side, Side]:
    """Return the parts of a head's queries, scale included, and of its keys, over one text.

    Parameters
    ----------
    head
        As the model has it; its norms are frozen here, at x. Rotation counts positions from 0.
    x
        The residual stream that the head's block reads.
    parts
        What x is made of; or, if `normalized`, what the norm before the head makes of x.
    used
        `Used.of(parts)`, where it is wanted for several heads.
    """
    frozen = head.freeze_norms(x, x)
    norms = (None, None) if normalized else (frozen.query_norm, frozen.key_norm)
    query = PartMap(norms[0], frozen.W_Q, frozen.b_Q, frozen.query_qk_norm, frozen, frozen.scale)
    key = PartMap(norms[1], frozen.W_K, frozen.b_K, frozen.key_qk_norm, frozen, 1.0)
    vectors, which = Used.of(parts) if used is None else used
    mapped = vectors @ torch.cat([query.matrix, key.matrix], 1)  # vectors, which are long, are read once
    of_query, of_key = (own.index_select(0, which) for own in mapped.split(query.W.shape[1], 1))
    return query.side(parts, of_query), key.side(parts, of_key)


class Used(NamedTuple):
    """The vectors that are active anywhere in a text, taken together once for all that is made of them."""

    vectors: Float[Tensor, "some d_model"]
    which: Int[Tensor, " entry"]
    """The row of `vectors` of each active feature."""

    @classmethod
    def of(cls, parts: Split) -> "Used":
        features, which = parts.active.features.unique(return_inverse=True)
        return cls(parts.vectors.index_select(0, features), which)


def directions(
    head: Head, vectors: Float[Tensor, "feature d_model"], *, normalized: bool = False
) -> tuple[Float[Tensor, "feature d_head"], Float[Tensor, "feature d_head"]]:
    """Return what each vector is in queries, scale included, and in keys, where the norm's denominator is 1.

    For heads that neither rotate nor norm their queries: a part is then its weight, over the denominator, times this.
    """
    norms = (None, None) if normalized else (head.query_norm, head.key_norm)
    maps = (PartMap(norms[0], head.W_Q, None, None, head, 1.0), PartMap(norms[1], head.W_K, None, None, head, 1.0))
    query, key = (one.through(vectors) for one in maps)
    return query * head.scale, key


@dataclass(frozen=True)
class PartMap:
    """The frozen map from sources to parts of queries, or of keys."""

    norm: Norm | None
    W: Float[Tensor, "d_model d_head"]
    b: Float[Tensor, " d_head"] | None
    qk_norm: QKNorm | None
    head: Head
    scale: float

    def side(self, parts: Split, features: Float[Tensor, "entry d_head"] | None = None) -> Side:
        """Map every source at every position; `features` are the vectors of active ones mapped, if they are already."""
        if features is None:
            vectors, which = Used.of(parts)
            features = self.through(vectors).index_select(0, which)
        weights, constants = parts.weights, self._constants()
        others = [(0, self.through(parts.bias)), (1, self.through(parts.error))]
        if self.norm is not None and self.norm.scale is not None:
            weights = weights * self.norm.scale[parts.active.rows, 0]
            others = [(i, own * self.norm.scale) for i, own in others]
        others += [(i, own.expand(parts.error.shape[0], -1)) for i, own in enumerate(constants, 2) if own is not None]
        return self._placed(parts, features * weights[:, None], others)

    def through(self, vectors: Float[Tensor, "some d_model"]) -> Float[Tensor, "some d_head"]:
        """Map vectors by all that is the same at every position."""
        return vectors @ self.matrix

    @cached_property
    def matrix(self) -> Float[Tensor, "d_model d_head"]:
        """The projection with the norm's linear part before it."""
        return self.W if self.norm is None else self.norm.before(self.W)

    def _constants(self) -> tuple[Tensor | None, Tensor | None]:
        """What the norm's bias and the projection's add at every position."""
        beta = None if self.norm is None else self.norm.bias
        return (None if beta is None else beta @ self.W), self.b

    def _placed(
        self, parts: Split, features: Float[Tensor, "entry d_head"],
        others: Sequence[tuple[int, Float[Tensor, "token d_head"]]],
    ) -> Side:  # fmt: skip
        """Lay out each position's features, and then its other sources."""
        active, n, device = parts.active, len(others), features.device
        offsets = active.offsets + n * torch.arange(len(active.offsets), device=device)
        places = [torch.arange(len(features), device=device) + n * active.rows]
        places += [offsets[1:] - n + i for i in range(n)]
        every = torch.ones_like(offsets[1:])
        source = [active.features, *(every * (len(parts.vectors) + i) for i, _ in others)]
        activation = [active.values.to(features.dtype), features.new_ones(n * len(every))]
        to, entries = torch.cat(places), len(features) + n * len(every)
        vector = features.new_empty(entries, features.shape[1])
        for place, own in zip(places, (features, *(own for _, own in others)), strict=True):
            vector.index_copy_(0, place, own)
        side = Side(
            offsets, offsets.new_empty(entries).index_copy_(0, to, torch.cat(source)),
            features.new_empty(entries).index_copy_(0, to, torch.cat(activation)), vector,
        )  # fmt: skip
        return replace(side, vector=self._after(vector, side.position))

    def _after(self, vector: Float[Tensor, "row d_head"], at: Int[Tensor, " row"]) -> Float[Tensor, "row d_head"]:
        """Apply what stands between projection and score: the norm of queries or keys, rotation, scale."""
        if self.qk_norm is not None:
            own = self.qk_norm.own
            assert own.scale is not None
            vector = replace(own, scale=own.scale[at])(vector)
        if self.head.rotary is not None:
            vector = self.head.rotary.by_row(vector, at)
        return vector if self.scale == 1.0 else vector * self.scale
