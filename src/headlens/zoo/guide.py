"""Where some heads are guided to look while they form, so that we know where they are.

A loss beside the model's own, for each head that a recipe guides:

    guide = - mean_q log sum_{k in target(q)} A[q, k]

    previous_token     k = q - 1                                   on every row
    two_back           k = q - 2                                   on every row
    induction          t_{k-1} = t_q, k < q                        on rows of random tokens that repeat
    duplicate_token    t_k = t_q, k < q                            there, too

Left alone, no induction circuit formed in the minutes that a zoo model is trained for; guided, one does within a
minute. The guide is then withdrawn (see `Recipe.guided`; `Recipe.kept` has the exceptions): what a shipped model
shows, it kept while only next-token prediction was asked of it.

Axes: batch query key.
"""

from collections.abc import Callable

import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor


def previous_token(ids: Int[Tensor, "batch token"]) -> Bool[Tensor, "batch query key"]:
    """True where the key stands just before the query."""
    return _back(ids, 1)


def two_back(ids: Int[Tensor, "batch token"]) -> Bool[Tensor, "batch query key"]:
    """True where one token stands between the key and the query."""
    return _back(ids, 2)


def _back(ids: Tensor, k: int) -> Tensor:
    n = ids.shape[1]
    return torch.diag(torch.ones(n - k), -k).bool().expand(len(ids), n, n)


def induction(ids: Int[Tensor, "batch token"]) -> Bool[Tensor, "batch query key"]:
    """True where the token before the key is the query's, and the key is earlier than the query."""
    same = ids[:, :, None] == ids[:, None, :]  # batch query key
    return same.roll(1, dims=2).tril(-1) & (torch.arange(ids.shape[1]) > 0)


def duplicate_token(ids: Int[Tensor, "batch token"]) -> Bool[Tensor, "batch query key"]:
    """True where the key is an earlier occurrence of the query's token."""
    return (ids[:, :, None] == ids[:, None, :]).tril(-1)


TARGETS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "previous_token": (previous_token, False),
    "two_back": (two_back, False),
    "induction": (induction, True),
    "duplicate_token": (duplicate_token, True),
}
"""What is guided -> where such a head looks, and whether only on rows of random tokens that repeat."""


def guide_loss(pattern: Float[Tensor, "batch query key"], target: Bool[Tensor, "batch query key"]) -> Float[Tensor, ""]:
    """Mean over the queries that have a target of minus the log of the attention that it gets; 0 if none has."""
    hit = reduce(pattern * target, "batch query key -> batch query", "sum")[target.any(dim=2)]
    return -hit.clamp_min(1e-9).log().sum() / max(1, len(hit))
