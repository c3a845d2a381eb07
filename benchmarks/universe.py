"""Cloning heads: all that read alike together, against one head at a time.

Two rows. The first is what a user has: patterns in a folder, and one call that fits all heads beside one call for each
head; both read the shards, put them beside the features and train. The second has all batches in memory before the
clock starts, and one head at a time is plain autograd and Adam: products alone, which more heads cannot share.
Losses are compared before anything is timed.
"""

import math
import tempfile
from collections.abc import Iterator

import torch

import headlens as hl
from benchmarks import harness
from headlens.data import world
from headlens.universe.batches import POSITIONAL, Batch, Group, grouped
from headlens.universe.clone import (
    PLACE,
    Adam,
    Clones,
    Training,
    fit_clones,
    gradients,
    joined,
    losses,
    shard_order,
    start,
)
from headlens.universe.features import Features, fit_features
from headlens.universe.patterns import record_patterns

MODELS = ("zoo:gpt2-small", "zoo:gpt2-twin", "zoo:mistral-small")
TRAINING = Training(epochs=1, rate=0.02, decay=0.0)


def rows(*, small: bool = False) -> Iterator[harness.Row]:
    """One epoch of phase 1 over a few shards, rank 16."""
    texts = [document.text[:300] for document in world.documents(16 if small else 64, seed=1)]
    features = fit_features(hl.load("zoo:neox-small"), texts)
    rounds = 3 if small else 5
    with tempfile.TemporaryDirectory() as folder:
        recorded = [record_patterns(hl.load(name), texts, f"{folder}/{name[4:]}") for name in MODELS]
        (group,) = grouped(recorded)
        batches = list(group.batches(features))
        what = f"clone {len(group.heads)} heads, {len(texts)} texts, 16 rows each, rank 16"
        ours, theirs = fit_clones(group, features, training=TRAINING), each(group, features)
        _same(ours, theirs, batches)
        yield harness.ratio(
            f"{what}, from recorded patterns",
            lambda: fit_clones(group, features, training=TRAINING),
            "the same, one head at a time",
            lambda: each(group, features),
            bar=0.1,
            rounds=rounds,
        )
    begun = start(group.heads, features.width, rank=16, n_place=POSITIONAL, seed=0)
    _same(ours, one_at_a_time(begun, batches), batches)
    yield harness.ratio(
        f"{what}, batches in memory",
        lambda: together(begun, batches),
        "autograd and torch.optim.Adam, one head at a time",
        lambda: one_at_a_time(begun, batches),
        bar=None,
        rounds=rounds,
    )


def _same(ours: Clones, theirs: Clones, batches: list[Batch]) -> None:
    for batch in batches:
        a, b = losses(ours, batch), losses(theirs.of(ours.heads), batch)
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4), float((a - b).abs().max())


def each(group: Group, features: Features) -> Clones:
    """All heads, one call each."""
    return joined([fit_clones(group.only([head]), features, training=TRAINING) for head in group.heads])


def together(begun: Clones, batches: list[Batch]) -> Clones:
    """All heads at once, without reading anything."""
    adam = Adam([begun.W_Q, begun.W_K, begun.place], decayed=(False,) * 3, training=TRAINING, faster=(1.0, 1.0, PLACE))
    for step, index in enumerate(order(batches)):
        adam.step(gradients(Clones(begun.heads, *adam.parameters), batches[index]), step / len(batches))
    return Clones(begun.heads, *adam.parameters)


def order(batches: list[Batch]) -> list[int]:
    return shard_order(len(batches), TRAINING)


def one_at_a_time(begun: Clones, batches: list[Batch]) -> Clones:
    return joined([_one(begun, batches, head) for head in range(len(begun.heads))])


def _one(begun: Clones, batches: list[Batch], head: int) -> Clones:
    W_Q, W_K, place = (x[head].clone().requires_grad_() for x in (begun.W_Q, begun.W_K, begun.place))
    groups = [{"params": [W_Q, W_K], "lr": TRAINING.rate}, {"params": [place], "lr": TRAINING.rate * PLACE}]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-10)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda n: 0.5 * (1 + math.cos(math.pi * n / len(batches))))
    for batch in (batches[index] for index in order(batches)):
        q, k = batch.queries @ W_Q.T, batch.phi @ W_K.T
        scores = q @ k.transpose(1, 2) / math.sqrt(begun.rank) + place[batch.bucket] + place[-1] * batch.bos
        log_p = scores.masked_fill(~batch.seen, -1e30).log_softmax(-1)
        loss = -(batch.target[head] * log_p).sum() / batch.real.sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return Clones((begun.heads[head],), *(x.detach()[None] for x in (W_Q, W_K, place)))
