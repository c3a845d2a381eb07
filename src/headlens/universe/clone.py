"""Phase 1: can a head's pattern be told from what an encoder knows of the text? One low-rank map for each head.

    s_ij = (W_Q phi_i) . (W_K phi_j) / sqrt(r) + b[bucket(i - j)] + c 1[j is BOS],   A^_i = softmax of s_ij over j <= i
    loss = mean over rows of  - sum_j A_ij log A^_ij
    skill = 1 - KL(A, A^) / KL(A, A^ of the same fit with r = 0)

b[0] is the term of the token itself. Rank 0 is the position-only baseline; with `symbols` it is the symbolic one, which
also knows copies, what followed a copy, and punctuation. (W_Q, W_K) can be turned at will, so compare W_Q^T W_K.

All heads that read alike are trained at once: the features meet one matrix of all heads' maps, and the gradient is
written out. Heads share nothing, so the losses are those of one head at a time.

Axes: as in batches.py; rank. Unit: nats a row.
Source: heads.md section 2; Beliy et al. 2024 for one shared encoder.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlens._errors import DataError
from headlens.axes import HeadId
from headlens.universe.batches import BOS, POSITIONAL, SYMBOLS, Batch, Group, placed
from headlens.universe.features import Features

RANK = 16
PLACE = 5.0
"""How much faster places are fitted than maps: what position tells should not be learned word by word."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Training:
    """How parameters are fitted; everything that changes a number is here."""

    epochs: int = 5
    rate: float = 0.02
    """Of Adam; it falls to 0 along a cosine."""
    decay: float = 0.3
    """Pulls maps, and nothing else, towards 0 at every step, times the rate."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.rate <= 0 or self.decay < 0 or self.seed < 0:
            raise DataError("epochs must be 1 or more, the rate above 0, decay and seed 0 or more.")


@dataclass(frozen=True)
class Clones:
    """One map for each of some heads."""

    heads: tuple[HeadId, ...]
    W_Q: Float[Tensor, "head rank feature"]
    W_K: Float[Tensor, "head rank feature"]
    place: Float[Tensor, "head place"]
    """b, c, and in the symbolic baseline the weights of the symbols."""

    @property
    def rank(self) -> int:
        return self.W_Q.shape[1]

    def of(self, heads: Sequence[HeadId]) -> "Clones":
        """Return the clones of some heads, in this order."""
        at = {head: i for i, head in enumerate(self.heads)}
        chosen = torch.tensor([at[head] for head in heads], dtype=torch.long)
        return Clones(tuple(heads), self.W_Q[chosen], self.W_K[chosen], self.place[chosen])

    def log_patterns(self, batch: Batch) -> Float[Tensor, "head doc row key"]:
        """Return log A^, with 0 where a query does not see the key."""
        return log_softmax(_scores(self, batch), batch)


def joined(parts: Sequence[Clones]) -> Clones:
    """Return clones of several groups as one, sorted by head."""
    heads = [head for part in parts for head in part.heads]
    one = Clones(
        tuple(heads), *(torch.cat([getattr(part, name) for part in parts]) for name in ("W_Q", "W_K", "place"))
    )
    return one.of(sorted(heads))


def start(heads: Sequence[HeadId], width: int, *, rank: int, n_place: int, seed: int) -> Clones:
    """Return clones before training; what a head starts from depends on the seed and its own name alone."""
    maps = torch.empty(2, len(heads), rank, width)
    for i, head in enumerate(heads):
        own = torch.Generator().manual_seed((seed << 32) + zlib.crc32(str(head).encode()))
        maps[:, i] = torch.randn(2, rank, width, generator=own) / math.sqrt(width)
    return Clones(tuple(heads), maps[0], maps[1], torch.zeros(len(heads), n_place))


def fit_clones(
    group: Group,
    features: Features,
    *,
    rank: int = RANK,
    symbols: bool = False,
    training: Training | None = None,
    progress: Progress | None = None,
) -> Clones:
    """Return the clones of all heads of models that read alike.

    Raises
    ------
    DataError
        If the rank is below 0, or the encoder has not read the texts.
    """
    if rank < 0:
        raise DataError(f"rank must be 0 or more, not {rank}.")
    training = training or Training()
    n_place = POSITIONAL + (len(SYMBOLS) if symbols else 0)
    clones = start(group.heads, features.width, rank=rank, n_place=n_place, seed=training.seed)
    adam = Adam(
        [clones.W_Q, clones.W_K, clones.place], decayed=(True, True, False), training=training, faster=(1.0, 1.0, PLACE)
    )
    total = training.epochs * group.n_shards
    for step, index in enumerate(shard_order(group.n_shards, training)):
        clones = replace(clones, **dict(zip(("W_Q", "W_K", "place"), adam.parameters, strict=True)))
        adam.step(gradients(clones, group.batch(index, features)), step / total)
        if progress is not None:
            progress(f"{', '.join(group.models)}: clones", step + 1, total)
    return replace(clones, **dict(zip(("W_Q", "W_K", "place"), adam.parameters, strict=True)))


def shard_order(n_shards: int, training: Training) -> list[int]:
    """Return which shard is read at each step: all of them once an epoch, in an order of the seed's."""
    rng = np.random.Generator(np.random.PCG64([training.seed, n_shards]))
    return [int(i) for _ in range(training.epochs) for i in rng.permutation(n_shards)]


class Adam:
    """Adam with decoupled decay and a rate that falls along a cosine, for tensors whose first axis is heads."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        decayed: Sequence[bool],
        training: Training,
        faster: Sequence[float] | None = None,
    ) -> None:
        self.parameters = [p.clone() for p in parameters]
        self.decayed, self.training, self.n = decayed, training, 0
        self.faster = [1.0] * len(self.parameters) if faster is None else faster
        self._mean = [torch.zeros_like(p) for p in parameters]
        self._square = [torch.zeros_like(p) for p in parameters]

    def step(self, gradient: Sequence[Tensor], done: float) -> None:
        """Go one step; `done` is the share of steps behind us."""
        self.n += 1
        now = self.training.rate * 0.5 * (1 + math.cos(math.pi * done))
        together = zip(self.parameters, gradient, self._mean, self._square, self.decayed, self.faster, strict=True)
        for value, slope, mean, square, decayed, faster in together:
            rate = now * faster
            mean.lerp_(slope, 0.1)
            square.mul_(0.99).addcmul_(slope, slope, value=0.01)
            size = (square / (1 - 0.99**self.n)).sqrt_().add_(1e-10)
            if decayed:
                value.mul_(1 - rate * self.training.decay)
            value.addcdiv_(mean, size, value=-rate / (1 - 0.9**self.n))


def gradients(clones: Clones, batch: Batch) -> list[Tensor]:
    """Return the gradient of every head's mean row cross-entropy: of W_Q, W_K and the places.

    d loss / d s = (A^ - A) / rows, which then goes back through the two maps and the places. Maps meet the tokens of
    all documents at once; patterns are gone through document by document, of which all heads' fit into a cache.
    """
    n_heads, rank, width = clones.W_Q.shape
    real = batch.real
    phi, queries = batch.phi[batch.inside], batch.queries[real.bool()]
    scale = 1 / math.sqrt(max(rank, 1))
    q, k = (
        (W.reshape(-1, width) @ x.T).view(n_heads, rank, len(x))  # (head, rank, token)
        for W, x in ((clones.W_Q * scale, queries), (clones.W_K, phi))
    )
    d_q, d_k, d_place = torch.empty_like(q), torch.empty_like(k), torch.zeros_like(clones.place)
    all_told = bool((batch.told | ~real.bool()).all())
    rows, keys = 0, 0
    for d, (n_keys, n_rows) in enumerate(zip(batch.tokens, map(int, real.sum(1)), strict=True)):
        own_q, own_k = slice(rows, rows + n_rows), slice(keys, keys + n_keys)
        rows, keys = own_q.stop, own_k.stop
        own = (d, slice(n_rows), slice(n_keys))
        places = placed(batch.bucket[own], batch.bos[own]).flatten(1)  # (place, row key)
        if clones.place.shape[1] > POSITIONAL:
            places = torch.cat((places, batch.symbols[:, *own].flatten(1)))
        scores = (clones.place @ places).view(n_heads, n_rows, n_keys)
        if rank:
            scores.baddbmm_(q[:, :, own_q].transpose(1, 2), k[:, :, own_k])
        scores.masked_fill_(~batch.seen[own], -torch.inf)
        slope = scores.softmax(-1).sub_(batch.target[:, *own])
        if not all_told:
            slope *= batch.told[:, d, :n_rows, None]
        d_place.addmm_(slope.flatten(1), places.T)
        if rank:
            d_q[:, :, own_q] = k[:, :, own_k] @ slope.transpose(1, 2)
            d_k[:, :, own_k] = q[:, :, own_q] @ slope
    d_Q, d_K = (
        (slopes.view(n_heads * rank, len(x)) @ x).view_as(clones.W_Q) for slopes, x in ((d_q, queries), (d_k, phi))
    )
    return [d_Q.mul_(scale / rows), d_K.div_(rows), d_place.div_(rows)]


def losses(clones: Clones, batch: Batch) -> Float[Tensor, " head"]:
    """Return every head's mean row cross-entropy."""
    return -(batch.target * clones.log_patterns(batch)).sum((1, 2, 3)) / batch.real.sum()


def _scores(clones: Clones, batch: Batch) -> Float[Tensor, "head doc row key"]:
    scores = clones.place[:, batch.bucket.reshape(-1)].view(-1, *batch.bucket.shape)
    if clones.rank:
        q, k = (_mapped(x, W) for x, W in ((batch.queries, clones.W_Q), (batch.phi, clones.W_K)))
        scores += (q @ k.transpose(2, 3)).div_(math.sqrt(clones.rank))
    scores += clones.place[:, BOS, None, None, None] * batch.bos
    for symbol, weights in enumerate(clones.place[:, POSITIONAL:].T):
        scores += weights[:, None, None, None] * batch.symbols[symbol]
    return scores


def _mapped(x: Float[Tensor, "doc token feature"], W: Float[Tensor, "head rank feature"]) -> Tensor:
    """(head, doc, token, rank): one product for the maps of all heads."""
    heads, rank, width = W.shape
    flat = x.reshape(-1, width) @ W.reshape(-1, width).T  # (doc token, head rank)
    return flat.view(*x.shape[:2], heads, rank).permute(2, 0, 1, 3).contiguous()


def log_softmax(scores: Float[Tensor, "head doc row key"], batch: Batch) -> Float[Tensor, "head doc row key"]:
    """Return log softmax over the keys that a query sees, and 0 on all others."""
    scores = scores.masked_fill_(~batch.seen, -torch.inf)
    largest = scores.amax(-1, keepdim=True).clamp_min(-1e30)  # rows that are not there see nothing
    scores -= largest
    scores -= scores.exp().sum(-1, keepdim=True).clamp_min_(1e-30).log_()
    return scores.masked_fill_(~batch.seen, 0.0)


def divergence(target: Float[Tensor, "head doc row key"], log_p: Float[Tensor, "head doc row key"]) -> Tensor:
    """Return KL(A, A^) of every row, in nats: (head, doc, row)."""
    return (torch.special.xlogy(target, target) - target * log_p).sum(-1)
