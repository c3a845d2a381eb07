"""How do the scores of a document's tokens become one? A table of poolings, one row each.

Every pooling is a weighted sum of scores, and a row of the table says what the weights are:

    pooled_h = sum_t a_th s_th        s_th = v_h . y_t         the score, what a token says
                                      k_th = q_h . y_t + w_h t   the key, where a head looks

    token              a = 1, every token for itself
    mean               1 / n
    last               1 on the last token
    max, multimax      1 where s_th is largest; max has one head, multimax sums several
    absmax             1 where |y_tj| is largest, for each feature j: features are pooled, not scores
    softmax            softmax_t(s / 5)
    attention          softmax_t(k)
    tanh               tanh(k)
    rolling_attention  softmax(k) within the 10 tokens, ending anywhere, whose weighted sum is largest
    rolling_mean_max   1/40 on the 40 tokens, ending anywhere, whose mean is largest
    ema                (1 - alpha)^(u - t) alpha, to the u where e_u = alpha s_u + (1 - alpha) e_(u-1) is largest;
                       alpha = .5, e_0 = s_0

A window that reaches beyond the first token holds the tokens there are. Weights that say which token wins are constants
to the gradient: that of a maximum goes to the winner alone. Rows are packed, so there is no padding that could weigh
in. The sum over no token is 0.

Axes: row = tokens of documents one after the other; document; column = heads of one or many probes; output.
Source: McKenzie et al. 2025 (attention, softmax, rolling mean); Kramár et al. 2026 (multimax, rolling attention, ema);
EleutherAI 2025 (tanh).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Packing:
    """Where the documents lie in packed rows."""

    def __init__(self, lengths: Int[Tensor, " document"]) -> None:
        self.lengths = lengths

    @property
    def n_documents(self) -> int:
        return len(self.lengths)

    @cached_property
    def n_rows(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def longest(self) -> int:
        """Rows of the longest document, at least 1."""
        return max(1, int(self.lengths.max())) if self.n_documents else 1

    @cached_property
    def document(self) -> Int[Tensor, " row"]:
        """Which document a row belongs to."""
        which = torch.arange(self.n_documents, device=self.lengths.device)
        return torch.repeat_interleave(which, self.lengths, output_size=self.n_rows)

    @cached_property
    def position(self) -> Int[Tensor, " row"]:
        """How many rows of its document come before a row."""
        first = self.lengths.cumsum(0) - self.lengths
        return torch.arange(self.n_rows, device=self.lengths.device) - first[self.document]

    def spread(self, x: Tensor) -> Tensor:
        """Give each row what its document has: (document, ...) to (row, ...)."""
        return x.index_select(0, self.document)

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the rows of each document: (row, ...) to (document, ...)."""
        return x.new_zeros(self.n_documents, *x.shape[1:]).index_add(0, self.document, x)

    def max(self, x: Tensor) -> Tensor:
        """Take the largest over the rows of each document; that of no row is the least number of the type."""
        least = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        flat = x.flatten(1)
        start = flat.new_full((self.n_documents, flat.shape[1]), least)
        index = self.document[:, None].expand_as(flat)  # expanded: torch then reduces whole rows at once
        return start.scatter_reduce(0, index, flat, "amax").view(-1, *x.shape[1:])

    def softmax(self, x: Tensor) -> Tensor:
        """Softmax over the rows of each document."""
        return _Softmax.apply(x, self)  # pyright: ignore[reportReturnType]


class _Softmax(torch.autograd.Function):
    """d x = a (d a - sum_t a d a): two passes fewer than what autograd would make of the parts."""

    @staticmethod
    def forward(ctx, x: Tensor, at: Packing) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        exp = (x - at.spread(at.max(x))).exp_()
        out = exp.div_(at.spread(at.sum(exp)))
        ctx.save_for_backward(out)
        ctx.at = at
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (out,) = ctx.saved_tensors
        weighted = out * grad
        return weighted.addcmul_(out, ctx.at.spread(ctx.at.sum(weighted)), value=-1), None


Scores = Float[Tensor, "row column output"]
Keys = Float[Tensor, "row key 1"]
Weights = Float[Tensor, "row #column #output"]


class Seen(NamedTuple):
    """What weights are made of."""

    scores: Scores
    keys: Keys
    """Of poolings that have none, empty."""
    at: Packing
    setting: float = 0.0


@dataclass(frozen=True)
class Pooling:
    """One way to weigh tokens."""

    weights: Callable[["Seen"], Weights]
    keyed: bool = False
    """A query says where to look."""
    several_heads: bool = False
    pools_features: bool = False
    """Weights do not depend on what a head reads: the inputs may be pooled before the probe sees them."""
    setting: float = 0.0
    """Temperature, window or alpha, where the formula has one."""
    setting_name: str = ""
    first_slope: float = 0.0
    """How steep the slopes of heads may start."""


def _every(seen: Seen) -> Weights:
    return seen.scores.new_ones(len(seen.scores), 1, 1)


def _even(seen: Seen) -> Weights:
    return seen.at.spread(1 / seen.at.lengths.to(seen.scores.dtype))[:, None, None]


def _last(seen: Seen) -> Weights:
    is_last = seen.at.position + 1 == seen.at.spread(seen.at.lengths)
    return is_last.to(seen.scores.dtype)[:, None, None]


def _largest(seen: Seen) -> Weights:
    return (_before_winner(seen.scores.detach(), seen.at) == 0).to(seen.scores.dtype)


def _largest_size(seen: Seen) -> Weights:
    return (_before_winner(seen.scores.detach().abs(), seen.at) == 0).to(seen.scores.dtype)


def _softmax_of_scores(seen: Seen) -> Weights:
    return seen.at.softmax(seen.scores / seen.setting)


def _softmax_of_keys(seen: Seen) -> Weights:
    return seen.at.softmax(seen.keys)


def _tanh_of_keys(seen: Seen) -> Weights:
    return seen.keys.tanh()


def _best_window(seen: Seen) -> Weights:
    window = int(seen.setting)
    gap = _before_winner(attended_windows(seen.scores.detach(), seen.keys.detach(), seen.at, window), seen.at)
    outside = (gap < 0) | (gap >= window)
    return seen.at.softmax(seen.keys.expand_as(seen.scores).masked_fill(outside, -torch.inf))


def _best_mean(seen: Seen) -> Weights:
    at, window = seen.at, int(seen.setting)
    held = (at.position + 1).clamp(max=window).to(seen.scores.dtype)[:, None, None]
    gap = _before_winner(decayed_windows(seen.scores.detach(), at, window) / held, at)
    inside = ((gap >= 0) & (gap < window)).to(seen.scores.dtype)
    return inside / at.spread(at.sum(inside))


def _best_average(seen: Seen) -> Weights:
    at, decay = seen.at, 1 - seen.setting
    share = torch.where(at.position == 0, 1.0, seen.setting).to(seen.scores.dtype)[:, None, None]  # e_0 = s_0, whole
    gap = _before_winner(decayed_windows(share * seen.scores.detach(), at, None, decay=decay), at)
    return torch.where(gap >= 0, share * decay**gap, 0.0)


def _before_winner(values: Tensor, at: Packing) -> Tensor:
    """How many rows a row stands before the first largest of its document, per column; negative after it."""
    position = at.position.to(values.dtype)[:, None, None]
    beaten = values < at.spread(at.max(values))
    first = -at.max(torch.where(beaten, -torch.inf, -position))
    return at.spread(first) - position


def decayed_windows(x: Tensor, at: Packing, window: int | None, decay: float = 1.0) -> Tensor:
    """Return sum over i < window of decay^i x_(t-i), within documents; without a window, as far as it matters.

    By doubling: a window of 2k is one of k, and the one k rows before.
    """
    left = at.longest if window is None else min(window, at.longest)
    whole, part, held = None, x, 1  # `part` covers `held` rows
    while True:
        if left & 1:
            whole = part if whole is None else _add(part, whole, held, at, decay**held)
        left >>= 1
        if whole is not None and not left:
            return whole
        if decay**held < 1e-18:  # what lies further back is lost in rounding
            return part
        part, held = _add(part, part, held, at, decay**held), 2 * held


def _add(near: Tensor, far: Tensor, back: int, at: Packing, factor: float) -> Tensor:
    """Add to windows, `factor` times, those that end `back` rows before in the same document."""
    there = (factor * (at.position[back:] >= back)).to(near.dtype)[:, None, None]
    out = near.clone()
    out[back:].addcmul_(there, far[: len(far) - back])
    return out


def attended_windows(scores: Scores, keys: Keys, at: Packing, window: int) -> Scores:
    """Return sum e^k s / sum e^k over the `window` rows that end at each row, within documents.

    By doubling, on (largest key, numerator, denominator): each window is scaled by its own largest key.
    """
    left = min(window, at.longest)
    whole, part, held = None, (keys, scores, torch.ones_like(keys)), 1
    while True:
        if left & 1:
            whole = part if whole is None else _join(part, whole, held, at)
        left >>= 1
        if whole is not None and not left:
            return whole[1] / whole[2]
        part, held = _join(part, part, held, at), 2 * held


def _join(near: tuple[Tensor, ...], far: tuple[Tensor, ...], back: int, at: Packing) -> tuple[Tensor, ...]:
    """Join windows with those that end `back` rows before in the same document."""
    barrier = torch.where(at.position[back:] >= back, 0.0, -torch.inf).to(near[0].dtype)[:, None, None]
    top = far[0][: len(far[0]) - back] + barrier
    out = tuple(x.clone() for x in near)
    both = torch.maximum(out[0][back:], top)  # finite: the near window holds a row
    a, b = (out[0][back:] - both).exp_(), top.sub_(both).exp_()
    out[0][back:] = both
    for mine, theirs in zip(out[1:], far[1:], strict=True):
        mine[back:].mul_(a).addcmul_(b, theirs[: len(theirs) - back])
    return out


POOLINGS: dict[str, Pooling] = {
    "token": Pooling(_every),
    "mean": Pooling(_even, pools_features=True),
    "last": Pooling(_last, pools_features=True),
    "max": Pooling(_largest),
    "absmax": Pooling(_largest_size, pools_features=True),
    "softmax": Pooling(_softmax_of_scores, setting=5.0, setting_name="temperature"),
    "attention": Pooling(_softmax_of_keys, keyed=True, several_heads=True, first_slope=1.0),
    "tanh": Pooling(_tanh_of_keys, keyed=True, several_heads=True),
    "multimax": Pooling(_largest, several_heads=True),
    "rolling_attention": Pooling(_best_window, keyed=True, several_heads=True, setting=10.0, setting_name="window"),
    "rolling_mean_max": Pooling(_best_mean, setting=40.0, setting_name="window"),
    "ema": Pooling(_best_average, setting=0.5, setting_name="alpha"),
}


def pool_rows(how: Pooling, rows: Float[Tensor, "row feature"], at: Packing) -> tuple[Tensor, Packing]:
    """Pool features: one row for each document that has any, none for the others."""
    pooled = at.sum((how.weights(Seen(rows[..., None], rows[:, :0, None], at, how.setting)) * rows[..., None])[..., 0])
    any_row = at.lengths > 0
    return pooled[any_row], Packing(any_row.long())
