"""What does a map from tokens to tokens do? Functions of arrays, for whoever has a head's weights or direct logits.

    eigenvalue_copying     Re(sum of eigenvalues) / sum of |eigenvalues|
    top1_copying           share of tokens that rank themselves first
    logit_copying          how far up the own token is among a text's others, -1 to 1
    successor_share        share of members of an ordered class that rank the next one first
    suppressed_copying     how far down the attended token is where it is expected anyway

What each of them says of a head is in heads/circuits.py and heads/suppression.py.

Axes: head, token (read), vocab (written), d_head, d_model.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LOGITS_AT_ONCE = 2**24


def eigenvalue_copying(
    E: Float[Tensor, "token d_model"],
    W_V: Float[Tensor, "head d_model d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    U: Float[Tensor, "d_model token"],
) -> Float[Tensor, " head"]:
    """Return Re(sum of eigenvalues) / sum of |eigenvalues| of each head's map E W_V W_O U; 0 for a map that is zero.

    In float64 on the CPU, and from matrices of d_head x d_head: AB and BA have the same eigenvalues but for zeros.
    """
    return eigenvalue_ratio(on_cpu(E) @ on_cpu(W_V), on_cpu(W_O) @ on_cpu(U))


def top1_copying(
    E: Float[Tensor, "token d_model"],
    W_V: Float[Tensor, "head d_model d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    U: Float[Tensor, "d_model token"],
) -> Float[Tensor, " head"]:
    """Return the share of tokens whose highest logit through each head is their own; shared first places do not count.

    Memory: d_head x token for one head, and as many rows of token x token as `LOGITS_AT_ONCE` holds.
    """
    diagonal = torch.arange(len(E), device=E.device)[:, None]
    found = [first_through(E @ v, o @ U, diagonal)[:, 0].float().mean() for v, o in zip(W_V, W_O, strict=True)]
    return torch.stack(found)


def logit_copying(logits: Float[Tensor, "*any token token"]) -> Float[Tensor, " *any"]:
    """Return how far up the own token (the diagonal) is among each row: 1 where first, 0 at chance, -1 where last."""
    diagonal = torch.arange(logits.shape[-1], device=logits.device)
    return (2 * share_below(logits, diagonal) - 1).mean(-1)


def successor_share(logits: Float[Tensor, "*any member member"], *, cyclic: bool) -> Float[Tensor, " *any"]:
    """Return the share of members (rows) whose successor is the highest of the class.

    The last member counts only where the class is `cyclic`: its successor is then the first.
    """
    n = logits.shape[-1]
    following = torch.arange(1, n + cyclic, device=logits.device) % n
    return ranks_first(logits[..., : n - 1 + cyclic, :], following).to(logits.dtype).mean(-1)


def suppressed_copying(
    logits: Float[Tensor, "*any query vocab"],
    attended: Int[Tensor, "*#any query"],
    expected: Bool[Tensor, "*#any query"],
) -> Float[Tensor, " *any"]:
    """Return how far down the attended token is, -1 to 1, on average over queries where it is expected anyway.

    `logits` are a head's direct logits over ordinary tokens at each query and `attended` indexes them. NaN where no
    query counts.
    """
    down = torch.where(expected, 1 - 2 * share_below(logits, attended), 0.0)
    return down.sum(-1) / expected.sum(-1)


def share_below(logits: Float[Tensor, "*any vocab"], target: Int[Tensor, "*#any"]) -> Float[Tensor, " *any"]:
    """Return the share of all other tokens whose logit lies below the target's; ties count half."""
    comes = logits.gather(-1, target.expand(logits.shape[:-1])[..., None])
    twice = 2 * (logits < comes).sum(-1) + (logits == comes).sum(-1) - 1  # the target ties with itself
    return twice.to(logits.dtype) / (2 * (logits.shape[-1] - 1))


def ranks_first(logits: Float[Tensor, "*any vocab"], target: Int[Tensor, "*#any"]) -> Bool[Tensor, " *any"]:
    """Return whether the target's logit lies above all others: a head that writes nothing ranks nothing first."""
    value, index = logits.topk(2, dim=-1)
    return (index[..., 0] == target) & (value[..., 0] > value[..., 1])


def eigenvalue_ratio(
    value: Float[Tensor, "head token d_head"], read: Float[Tensor, "head d_head token"]
) -> Float[Tensor, " head"]:
    eigenvalues = torch.linalg.eigvals(read @ value)
    size = eigenvalues.abs().sum(-1)
    return torch.where(size == 0, 0.0, eigenvalues.sum(-1).real / size)


def first_through(
    value: Float[Tensor, "token d_head"], read: Float[Tensor, "d_head vocab"], targets: Int[Tensor, "token target"]
) -> Bool[Tensor, "token target"]:
    """Return, for several targets of each token, whether its logits rank that one first."""
    found = [
        torch.stack([ranks_first(value[rows] @ read, target) for target in targets[rows].T], -1)
        for rows in chunks(len(value), read.shape[-1])
    ]
    return torch.cat(found)


def chunks(n: int, vocab: int) -> Iterator[slice]:
    step = max(1, LOGITS_AT_ONCE // vocab)
    return (slice(start, start + step) for start in range(0, n, step))


def on_cpu(x: Tensor) -> Tensor:
    return x.detach().cpu().double()  # Apple's GPUs have no float64, and small matrices are faster here anyway
