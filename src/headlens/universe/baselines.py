"""What would a clone have to beat? Predictions of patterns that know less than it does.

    uniform       1 / (i + 1) on every key                   sink       what BOS gets on average, the rest even
    mean pattern  the mean at (i, j) over training texts     nearest    the clone of the head of another family that
    sentence MLP  a hidden layer from the mean state of the             fits best on training texts
                  text to a fixed 32 x 32 map (the seed's)   shuffled   its own clone, shown another text

Position-only and symbolic ones are clones of rank 0 (clone.py). Each is a function from a batch to log A^.

Axes: as in batches.py.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from headlens.universe.batches import Batch, Group
from headlens.universe.clone import Adam, Clones, Training, log_softmax, shard_order
from headlens.universe.decoder import stand_in
from headlens.universe.features import Features

Predictor = Callable[[Batch], Tensor]
"""From a batch to log A^ (head, doc, row, key), 0 where a query does not see the key."""
GRID = 32
_FLOOR = 1e-6
"""Attention below which a mean is not believed."""


def uniform(batch: Batch) -> Float[Tensor, "head doc row key"]:
    """Return log of even attention, for every head of the batch."""
    return log_softmax(torch.zeros_like(batch.target), batch)


def sink(group: Group, features: Features) -> Predictor:
    """Return a predictor that gives the first key what it gets on training texts, and all others the same."""
    mass, rows = torch.zeros(len(group.heads)), 0.0
    for batch in group.batches(features):
        mass, rows = mass + batch.target[..., 0].sum((1, 2)), rows + float(batch.real.sum())
    share = (mass / rows).clamp(_FLOOR, 1 - _FLOOR)

    def predict(batch: Batch) -> Tensor:
        others = batch.rows[None].float().clamp_min(1)  # query i sees i keys beside the first
        log_p = ((1 - share)[:, None, None] / others).log()[..., None].expand_as(batch.target).clone()
        log_p[..., 0] = share.log()[:, None, None]
        return log_p.masked_fill_(~batch.seen, 0.0)

    return predict


def mean_pattern(group: Group, features: Features) -> Predictor:
    """Return a predictor that gives each (i, j) its mean on training texts, and even attention where there is none."""
    size = 1 + max(max(batch.tokens) for batch in group.batches(features))
    total, count = torch.zeros(len(group.heads), size, size), torch.zeros(size)
    for batch in group.batches(features):
        keys = batch.target.shape[-1]
        real = batch.real.bool()
        total[:, :, :keys].index_add_(1, batch.rows[real], batch.target[:, real])
        count.index_add_(0, batch.rows[real], torch.ones(int(real.sum())))

    def predict(batch: Batch) -> Tensor:
        rows, keys = batch.rows.clamp_max(size - 1), batch.target.shape[-1]
        even = uniform(batch).exp() * batch.seen
        known = torch.nn.functional.pad(total, (0, max(0, keys - size)))[:, :, :keys]
        mixed = (known[:, rows] * batch.seen + even) / (count[rows] + 1)[..., None]
        return log_softmax(mixed.clamp_min(_FLOOR).log(), batch)

    return predict


def nearest(
    group: Group, features: Features, clones: Clones, families: Mapping[str, str], *, shards: int = 2
) -> tuple[Predictor, list[str]]:
    """Return a predictor by the clone of the best head of another family, and which head that is for each."""
    cross = torch.zeros(len(group.heads), len(clones.heads))
    for index in range(min(shards, group.n_shards)):
        batch = group.batch(index, features)
        cross -= batch.target.flatten(1) @ clones.log_patterns(batch).flatten(1).T
    for i, head in enumerate(group.heads):
        for j, other in enumerate(clones.heads):
            if families[head.model] == families[other.model]:
                cross[i, j] = torch.inf
    best = cross.argmin(1).tolist()
    chosen = clones.of([clones.heads[j] for j in best])
    return chosen.log_patterns, [str(clones.heads[j]) for j in best]


def shuffled(clones: Clones) -> Predictor:
    """Return a predictor by the clones, of what they are shown of the next document."""
    return lambda batch: clones.log_patterns(replace(batch, phi=batch.phi.roll(1, 0)))


def sentence_mlp(group: Group, features: Features, *, hidden: int = 64, training: Training | None = None) -> Predictor:
    """Return the seed study's model: a text's mean state, one hidden layer, a fixed map of positions for each head."""
    training = training or Training(epochs=4, rate=0.01)
    heads, width = len(group.heads), features.width
    generator = torch.Generator().manual_seed(training.seed)
    first = torch.randn(width, hidden, generator=generator) / math.sqrt(width)
    start = [first, torch.zeros(hidden, heads * GRID * GRID), torch.zeros(heads * GRID * GRID)]
    longest = max(max(batch.tokens) for batch in group.batches(features))
    adam = Adam(start, decayed=(True, True, False), training=training)
    order = shard_order(group.n_shards, training)
    for step, index in enumerate(order):
        batch = group.batch(index, features)
        values = [value.requires_grad_() for value in adam.parameters]
        gradient = torch.autograd.grad(stand_in(_map_scores(values, batch, longest), batch), values)
        with torch.no_grad():
            for value in values:
                value.requires_grad_(False)
            adam.step(gradient, step / len(order))
    return lambda batch: log_softmax(_map_scores(adam.parameters, batch, longest), batch)


def _map_scores(values: list[Tensor], batch: Batch, longest: int) -> Float[Tensor, "head doc row key"]:
    first, second, offset = values
    lengths = torch.tensor(batch.tokens, dtype=torch.float32)
    inside = torch.arange(batch.phi.shape[1])[None] < lengths[:, None]
    mean = (batch.phi * inside[..., None]).sum(1) / lengths[:, None]
    out = (torch.tanh(mean @ first) @ second + offset).view(len(mean), -1, GRID * GRID)  # (doc, head, cell)
    rows = (batch.rows * GRID // longest).clamp_max(GRID - 1)
    keys = (torch.arange(batch.target.shape[-1]) * GRID // longest).clamp_max(GRID - 1)
    cells = (rows[..., None] * GRID + keys).flatten(1)  # (doc, row key)
    picked = out.gather(2, cells[:, None].expand(-1, out.shape[1], -1))
    return picked.view(len(mean), -1, *batch.target.shape[2:]).transpose(0, 1)
