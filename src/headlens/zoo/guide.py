"""Where two heads are guided to look while they form, so that we know where they are.

A loss beside the model's own, for one previous-token head and one induction head:

    guide = - mean_q log sum_{k in target(q)} A[q, k]

Left alone, no such circuit formed in the minutes that a zoo model is trained for; guided, both do in a few
hundred steps. The guide is withdrawn after `GUIDED` of the training: what a shipped model shows, it kept
while only next-token prediction was asked of it.

Axes: batch query key.
"""

import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

GUIDED = 0.6
"""Share of the training that is guided."""


def previous_token(ids: Int[Tensor, "batch token"]) -> Bool[Tensor, "batch query key"]:
    """True where the key stands just before the query."""
    n = ids.shape[1]
    return torch.diag(torch.ones(n - 1), -1).bool().expand(len(ids), n, n)


def induction(ids: Int[Tensor, "batch token"]) -> Bool[Tensor, "batch query key"]:
    """True where the token before the key is the query's, and the key is earlier than the query."""
    same = ids[:, :, None] == ids[:, None, :]  # batch query key
    return same.roll(1, dims=2).tril(-1) & (torch.arange(ids.shape[1]) > 0)


def guide_loss(pattern: Float[Tensor, "batch query key"], target: Bool[Tensor, "batch query key"]) -> Float[Tensor, ""]:
    """Mean over the queries that have a target of minus the log of the attention that it gets."""
    hit = reduce(pattern * target, "batch query key -> batch query", "sum")
    return -hit[target.any(dim=2)].clamp_min(1e-9).log().mean()
