"""Phase 2: one decoder for all heads of all models, and a few numbers that say which head it is.

    s_ij = exp(tau) sum_m g_m(e) (U_m phi_i) . (V_m phi_j) / sqrt(r)
           + b(e)[bucket(i - j)] + (c(e) + c_model) 1[j is BOS]
    (g, b, c) = affine in e, and a tanh layer beside it

e has `size` numbers a head. U, V and the maps from e are shared; tau and c_model are a model's own, so that e need not
say which model it is. What the text is asked is made once, whatever the number of heads.

    loss = mean row cross-entropy + pull |e|^2        new heads: all but e (and tau, c_model of a new model) is frozen

Axes: as in batches.py; part = M, size. Unit: nats a row.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headlens._errors import DataError
from headlens.axes import HeadId
from headlens.universe.batches import BOS, POSITIONAL, Batch, Group
from headlens.universe.clone import Adam, Progress, Training, log_softmax, shard_order
from headlens.universe.features import Features

SIZE, PARTS, RANK, HIDDEN = 64, 64, 8, 64
PULL = 1e-3
"""On the mean square of an embedding: without it directions that say nothing would stay where they started."""


@dataclass(frozen=True)
class Shape:
    """How large a decoder is."""

    size: int = SIZE
    """Numbers a head."""
    parts: int = PARTS
    rank: int = RANK
    hidden: int = HIDDEN
    """Of the tanh layer; 0: what is asked is affine in e."""
    own: bool = True
    """Whether a model adds tau and c of its own."""

    def __post_init__(self) -> None:
        if min(self.size, self.parts, self.rank) < 1 or self.hidden < 0:
            raise DataError("An embedding's size, the number of parts and their rank must be 1 or more.")


@dataclass(frozen=True)
class Decoder:
    """What all heads share."""

    U: Float[Tensor, "part feature rank"]
    V: Float[Tensor, "part feature rank"]
    straight: Float[Tensor, "size out"]
    inner: Float[Tensor, "size hidden"]
    outer: Float[Tensor, "hidden out"]
    offset: Float[Tensor, " out"]
    """out = parts, then places: what g, b and c are where e = 0."""

    @property
    def size(self) -> int:
        return self.straight.shape[0]

    @property
    def parts(self) -> int:
        return self.U.shape[0]

    def named(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("U", "V", "straight", "inner", "outer", "offset")}

    def terms(self, e: Float[Tensor, "head size"]) -> tuple[Tensor, Tensor]:
        """Return g (head, part) and the places b and c (head, place)."""
        out = e @ self.straight + torch.tanh(e @ self.inner) @ self.outer + self.offset
        return out[:, : self.parts], out[:, self.parts :]

    def asked(self, batch: Batch) -> Float[Tensor, "term doc row key"]:
        """Return every part's scores of a batch, and its places: all that the text is asked, whatever the heads."""
        width, rank = self.U.shape[1:]
        q, k = (
            (x.reshape(-1, width) @ W.permute(1, 0, 2).reshape(width, -1)).view(*x.shape[:2], self.parts, rank)
            for x, W in ((batch.queries, self.U), (batch.phi, self.V))
        )
        return torch.cat((q.permute(2, 0, 1, 3) @ (k.permute(2, 0, 3, 1) / math.sqrt(rank)), batch.places))


@dataclass(frozen=True)
class Embedded:
    """Embeddings of some heads, and what their models add."""

    heads: tuple[HeadId, ...]
    e: Float[Tensor, "head size"]
    models: tuple[str, ...]
    own: Float[Tensor, "model 2"]
    """tau and c of each model."""

    def of(self, heads: Sequence[HeadId]) -> "Embedded":
        at = {head: i for i, head in enumerate(self.heads)}
        return Embedded(tuple(heads), self.e[[at[head] for head in heads]], self.models, self.own)

    def model_index(self) -> Tensor:
        at = {model: i for i, model in enumerate(self.models)}
        return torch.tensor([at[head.model] for head in self.heads])


def decoded(decoder: Decoder, embedded: Embedded, batch: Batch) -> Float[Tensor, "head doc row key"]:
    """Return log A^ of every head, with 0 where a query does not see the key."""
    return log_softmax(scores_of(decoder, embedded, decoder.asked(batch)), batch)


def scores_of(
    decoder: Decoder, embedded: Embedded, asked: Float[Tensor, "term doc row key"]
) -> Float[Tensor, "head doc row key"]:
    """Return every head's scores, of which keys that a query does not see are a part."""
    g, place = decoder.terms(embedded.e)
    tau, c = embedded.own[embedded.model_index()].T
    weights = torch.cat((g * tau.exp()[:, None], place[:, :BOS], (place[:, BOS] + c)[:, None]), dim=1)
    return (weights @ asked.flatten(1)).view(-1, *asked.shape[1:])


def stand_in(scores: Float[Tensor, "head doc row key"], batch: Batch) -> Float[Tensor, ""]:
    """Return a number with the gradient of the summed row cross-entropy: d loss / d s = A^ - A, written out."""
    with torch.no_grad():
        slope = scores.masked_fill(~batch.seen, -1e30).softmax(-1)  # even in rows that are not there: they are not told
        slope.sub_(batch.target).mul_((batch.told / batch.real.sum())[..., None])
    return (scores * slope).sum()


def new_decoder(width: int, shape: Shape, *, seed: int = 0) -> Decoder:
    """Return a decoder before training."""
    generator = torch.Generator().manual_seed(seed)
    size, parts, rank, hidden = shape.size, shape.parts, shape.rank, shape.hidden

    def drawn(*sizes: int, scale: float) -> Tensor:
        return torch.randn(*sizes, generator=generator) * scale

    out = parts + POSITIONAL
    return Decoder(
        U=drawn(parts, width, rank, scale=width**-0.5),
        V=drawn(parts, width, rank, scale=width**-0.5),
        straight=drawn(size, out, scale=size**-0.5),
        inner=drawn(size, hidden, scale=size**-0.5),
        outer=torch.zeros(hidden, out),
        offset=torch.zeros(out),
    )


def new_embeddings(groups: Sequence[Group], size: int, *, seed: int, scale: float = 0.3) -> Embedded:
    """Return embeddings before training; what a head starts from depends on the seed and its name alone."""
    heads = tuple(sorted(head for group in groups for head in group.heads))
    models = tuple(sorted(name for group in groups for name in group.models))
    e = torch.empty(len(heads), size)
    for i, head in enumerate(heads):
        own = torch.Generator().manual_seed((seed << 32) + zlib.crc32(str(head).encode()))
        e[i] = torch.randn(size, generator=own) * scale
    return Embedded(heads, e, models, torch.zeros(len(models), 2))


def fit_decoder(
    groups: Sequence[Group],
    features: Features,
    *,
    shape: Shape | None = None,
    training: Training | None = None,
    progress: Progress | None = None,
) -> tuple[Decoder, Embedded]:
    """Fit the decoder and the embeddings of all heads of these models together, streaming their shards.

    Raises
    ------
    DataError
        If the encoder has not read the texts.
    """
    training, shape = training or Training(epochs=8, rate=0.01), shape or Shape()
    decoder = new_decoder(features.width, shape, seed=training.seed)
    embedded = new_embeddings(groups, shape.size, seed=training.seed)
    shared, names = list(decoder.named().values()), list(decoder.named())
    adam = Adam([*shared, embedded.e, embedded.own], decayed=(True, True, *[False] * 6), training=training)
    order = shard_order(groups[0].n_shards, training)
    for step, index in enumerate(order):
        values = [value.requires_grad_() for value in adam.parameters]
        decoder = Decoder(**dict(zip(names, values[:-2], strict=True)))
        embedded = Embedded(embedded.heads, values[-2], embedded.models, values[-1])
        total = [torch.zeros_like(value) for value in values]
        for group in groups:  # one at a time: the graph of one is freed before the next one's shard is read
            batch = group.batch(index, features)
            loss = stand_in(scores_of(decoder, embedded.of(group.heads), decoder.asked(batch)), batch)
            for whole, part in zip(total, torch.autograd.grad(loss, values), strict=True):
                whole += part
        with torch.no_grad():
            for value in values:
                value.requires_grad_(False)
            for whole in total[:-2]:
                whole /= len(embedded.heads)
            total[-2] += 2 * PULL * values[-2]
            total[-1] *= shape.own
            adam.step(total, step / len(order))
        if progress is not None:
            progress("decoder", step + 1, len(order))
    decoder = Decoder(**dict(zip(names, adam.parameters[:-2], strict=True)))
    return decoder, Embedded(embedded.heads, adam.parameters[-2], embedded.models, adam.parameters[-1])


def fit_embeddings(
    decoder: Decoder,
    groups: Sequence[Group],
    features: Features,
    *,
    known: Embedded | None = None,
    own: bool = True,
    documents: int | None = None,
    steps: int = 150,
    rate: float = 0.05,
    seed: int = 0,
    progress: Progress | None = None,
) -> Embedded:
    """Fit the embeddings of heads that the decoder has not seen, on the first documents of their shards.

    Parameters
    ----------
    known
        Heads that it has seen: what their models add is taken from there and stays as it is.
    own
        Whether a model that it has not seen adds terms of its own.
    documents
        How many, in the order of the shards; None for all.

    Raises
    ------
    DataError
        If there are fewer documents than asked for.
    """
    embedded = new_embeddings(groups, decoder.size, seed=seed, scale=0.0)
    there = {} if known is None else dict(zip(known.models, known.own, strict=True))
    for i, model in enumerate(embedded.models):
        if model in there:
            embedded.own[i] = there[model]
    fixed = frozenset(there) if own else frozenset(embedded.models)
    joining = Joining(documents, steps, rate, seed, fixed)
    return merged([_fit_group(decoder, group, features, embedded, joining, progress) for group in groups])


def merged(parts: Sequence[Embedded]) -> Embedded:
    """Return embeddings of several sets of models as one, sorted."""
    heads = tuple(head for part in parts for head in part.heads)
    models = tuple(model for part in parts for model in part.models)
    one = Embedded(heads, torch.cat([part.e for part in parts]), models, torch.cat([part.own for part in parts]))
    order = sorted(range(len(models)), key=models.__getitem__)
    one = Embedded(one.heads, one.e, tuple(models[i] for i in order), one.own[order])
    return one.of(sorted(heads))


@dataclass(frozen=True)
class Joining:
    """How heads join."""

    documents: int | None
    steps: int
    rate: float
    seed: int
    fixed: frozenset[str]
    """Models whose own terms stay as they are."""


def _fit_group(
    decoder: Decoder,
    group: Group,
    features: Features,
    started: Embedded,
    joining: Joining,
    progress: Progress | None,
) -> Embedded:
    """Text is asked once: the parts' scores of every batch are kept, since the decoder does not change."""
    at = [started.models.index(model) for model in group.models]
    mine = started.of(group.heads)
    e, own = mine.e, started.own[at]
    free = torch.tensor([[float(model not in joining.fixed)] for model in group.models])
    batches = list(group.first(joining.documents).batches(features))
    asked = [decoder.asked(batch) for batch in batches]
    training = Training(epochs=1, rate=joining.rate, decay=0.0, seed=joining.seed)
    adam = Adam([e, own], decayed=(False, False), training=training)
    for step in range(joining.steps):
        n = step % len(batches)
        e, own = (value.requires_grad_() for value in adam.parameters)
        now = Embedded(mine.heads, e, tuple(group.models), own)
        loss = stand_in(scores_of(decoder, now, asked[n]), batches[n]) + PULL * e.square().sum()
        on_e, on_own = torch.autograd.grad(loss, (e, own))
        with torch.no_grad():
            for value in (e, own):
                value.requires_grad_(False)
            adam.step((on_e, on_own * free), step / joining.steps)
        if progress is not None:
            progress(f"{', '.join(group.models)}: embeddings", step + 1, joining.steps)
    return Embedded(mine.heads, adam.parameters[0], tuple(group.models), adam.parameters[1])
