"""Where would a head of this kind look? From sequences to the set of (query, key) targets, and back to one number.

    score    = mean over rows with a target of  sum over targets k of  A[q, k]
    weighted = the same with A[q, k] |v_k W_O| / sum_j A[q, j] |v_j W_O| in place of A[q, k]
    even     = the same with 1 / (keys that q sees): a head that looks nowhere in particular

so 1 means that all attention of every such row goes to targets. Rows without a target do not count. Weighting by the
size of what a key would write takes out attention that is parked where nothing is written (a sink).

    previous_token          k = q - 1                     q >= 2 after a BOS: what precedes q = 1 is the BOS
    self                    k = q, q >= 1
    sink                    k = 0, q >= 1                 the first token, BOS where there is one
    duplicate_token         t_k = t_q, k < q              earlier copies of the query's token
    induction               t_{k-1} = t_q, k < q          what followed earlier copies of the query's token
    one_period_back         k = q - S + 1, q >= S         in R R, with S tokens in R
    between(a, b)           from tokens marked a to earlier tokens marked b (None: from everywhere)

BOS is never a token that repeats.

Axes: batch, query, key, head. Source: Olsson et al. 2022; Wang et al. 2023 (IOI); Gu et al. 2024 (sinks); Kobayashi et
al. 2020 (weighting).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Targets = Bool[Tensor, "batch token token"]


@dataclass(frozen=True)
class Reading:
    """Padded sequences, and what is known of their tokens."""

    ids: Int[Tensor, "batch token"]
    mask: Bool[Tensor, "batch token"]
    bos: int | None
    """Id that begins each sequence; None: there is none."""
    marks: Mapping[str, Bool[Tensor, "batch token"]] = field(default_factory=dict)
    """Part -> which tokens play it."""


Aim = Callable[[Reading], Targets]


def previous_token(reading: Reading) -> Targets:
    """Mark the token before each query."""
    return _offset(reading, 1, first=1 if reading.bos is None else 2)


def itself(reading: Reading) -> Targets:
    """Mark each query's own position."""
    return _offset(reading, 0, first=1)


def sink(reading: Reading) -> Targets:
    """Mark the first position."""
    ids = reading.ids
    targets = torch.zeros(*ids.shape, ids.shape[1], dtype=torch.bool, device=ids.device)
    targets[:, 1:, 0] = reading.mask[:, 1:]
    return targets


def duplicate_token(reading: Reading) -> Targets:
    """Mark earlier copies of the query's own token."""
    ids, mask = reading.ids, reading.mask
    same = ids[:, :, None] == ids[:, None, :]
    counts = mask if reading.bos is None else mask & (ids != reading.bos)
    return (same & counts[:, :, None] & counts[:, None, :]).tril(-1)


def induction(reading: Reading) -> Targets:
    """Mark the tokens that followed earlier copies of the query's token."""
    after = torch.zeros_like(same := duplicate_token(reading))
    after[:, :, 1:] = same[:, :, :-1]
    return after.tril(-1)  # k + 1 < q: the query itself is no target


def one_period_back(reading: Reading) -> Targets:
    """Mark, in `R R`, what followed the query's token one length of R before, by position alone."""
    period = reading.ids.shape[1] // 2
    return _offset(reading, period - 1, first=period)


def between(query: str | None, key: str) -> Aim:
    """Return the aim that marks, for queries of one part (None: all but the first), earlier keys of another."""

    def aim(reading: Reading) -> Targets:
        asks = reading.mask if query is None else reading.marks[query] & reading.mask
        return (asks[:, :, None] & reading.marks[key][:, None, :]).tril(-1)

    return aim


def _offset(reading: Reading, back: int, first: int) -> Targets:
    n = reading.ids.shape[1]
    query = torch.arange(n, device=reading.ids.device)
    band = (query[:, None] - query[None, :] == back) & (query[:, None] >= first)
    return band & reading.mask[:, :, None]


class Places(NamedTuple):
    """Targets as indices, made once for all layers and heads of a batch."""

    row: Int[Tensor, " target"]
    query: Int[Tensor, " target"]
    key: Int[Tensor, " target"]
    n_rows: Int[Tensor, " batch"]
    """Rows with a target, per sequence."""


def places(targets: Targets) -> Places:
    """Return where the targets are."""
    row, query, key = targets.nonzero(as_tuple=True)
    return Places(row, query, key, targets.any(-1).sum(-1))


def target_mass(pattern: Float[Tensor, "batch head token token"], at: Places) -> Float[Tensor, "batch head"]:
    """Return each head's mean attention to targets over the rows that have one; NaN where no row has.

    Reads only the targeted entries of the pattern: a few per row, not all of it.
    """
    return _mean(pattern[at.row, :, at.query, at.key], at)


def masses(
    pattern: Float[Tensor, "batch head token token"],
    sizes: Float[Tensor, "batch token head"],
    totals: Float[Tensor, "batch head token"],
    at: Places,
) -> tuple[Float[Tensor, "batch head"], Float[Tensor, "batch head"]]:
    """Return `target_mass`, and the same with each key weighted by the size of what it writes.

    `totals` is `weighted_totals`.
    """
    entries = pattern[at.row, :, at.query, at.key]
    shares = entries * sizes[at.row, at.key] / totals[at.row, :, at.query]
    return _mean(entries, at), _mean(shares.nan_to_num(0.0), at)  # a row that writes nothing at all goes nowhere


def weighted_totals(
    pattern: Float[Tensor, "batch head token token"], sizes: Float[Tensor, "batch token head"]
) -> Float[Tensor, "batch head token"]:
    """Return, for each query, the sum over keys of attention times size."""
    return (pattern @ sizes.transpose(1, 2)[..., None].to(pattern.dtype))[..., 0]


def even_mass(at: Places, window: int | None = None) -> Float[Tensor, " batch"]:
    """Return the score of a head that attends to all visible keys alike: the analytic null."""
    seen = at.query + 1
    if window is not None:
        seen = seen.clamp(max=window)
    visible = at.key > at.query - (at.query + 1 if window is None else window)
    return _mean((visible / seen)[:, None], at)[:, 0]


def _mean(entries: Float[Tensor, "target head"], at: Places) -> Float[Tensor, "batch head"]:
    precise = torch.float32 if entries.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    mass = entries.new_zeros(len(at.n_rows), entries.shape[1], dtype=precise)
    mass.index_add_(0, at.row, entries.to(precise))
    return mass / at.n_rows[:, None]


def offset_profile(
    pattern: Float[Tensor, "batch head token token"], *, first: int
) -> Float[Tensor, "batch head offset"]:
    """Return the mean attention to the token d back for every d = 0 .. T - 1 - first, over queries q >= d + first.

    Sequences must be of one length. A causal pattern read in rows of T + 1 has every offset in a column, so that all
    are one sum without a copy: entry (q, q - d) stands at q T + q - d = q (T + 1) - d.
    """
    n = pattern.shape[-1]
    rows = pattern.reshape(*pattern.shape[:2], n * n)[..., 1:].unflatten(-1, (n - 1, n + 1))
    # Rows are added a few at a time in float32 and these sums in float64, which would else take a wider copy of all.
    sums = torch.stack([part.sum(2, dtype=torch.float32) for part in rows.split(64, 2)], -1)
    sums = sums.sum(-1, dtype=torch.float64).flip(-1)[..., 1:]
    own = pattern.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float64)
    sums = torch.cat([own[..., None], sums[..., : n - 1]], dim=-1)
    for column in range(first):  # keys before `first` are no targets
        sums = sums - pattern[..., column].roll(-column, -1) * (torch.arange(n, device=pattern.device) < n - column)
    return sums[..., : n - first] / torch.arange(n - first, 0, -1, device=pattern.device)
