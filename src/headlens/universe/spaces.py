"""Spaces of heads that need no decoder: what retrieval and detection would find without one.

    random           64 numbers of the seed's              relative depth   layer / last layer
    same index       (layer, head)                         RDM              ranks of dissimilarities over texts
    mean pattern PCA the mean pattern over the first words of a text, on the components of the heads that are fitted on

Axes: as in retrieval.py and rsa.py; entry = (query word, key word).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headlens.axes import HeadId
from headlens.data.align import membership, to_words, word_spans
from headlens.universe.patterns import Patterns
from headlens.universe.retrieval import Fold
from headlens.universe.rsa import rdm

UNITS = 30
"""Words of a text that comparisons look at; BOS is one more."""


def word_patterns(whole: Sequence[Patterns]) -> dict[HeadId, np.ndarray]:
    """Return each head's patterns on the first words of a few texts, (text, entry): units that all models share."""
    found: dict[HeadId, np.ndarray] = {}
    for patterns in whole:
        own = [_on_words(shard, i) for shard in patterns.shards() for i in range(len(shard.texts))]
        found |= dict(zip(patterns.heads, np.stack(own, axis=1), strict=True))
    return found


def _on_words(shard: Any, i: int) -> np.ndarray:
    """(head, entry) of one text: the causal half over its first units."""
    kept = shard.rows[i]
    n_heads, n_tokens = len(shard.weights[i]), len(shard.spans[i])
    pattern = np.zeros((n_heads, n_tokens, n_tokens), dtype=np.float32)
    pattern[:, 0, 0] = 1
    for q, row in zip(kept, np.split(shard.weights[i], np.cumsum(kept + 1)[:-1], axis=1), strict=True):
        pattern[:, q, : q + 1] = row
    words = to_words(pattern, membership(shard.spans[i], word_spans(shard.texts[i])).astype(np.float32))
    out = np.zeros((n_heads, UNITS + 1, UNITS + 1), dtype=np.float32)
    n = min(UNITS + 1, words.shape[1])
    out[:, :n, :n] = words[:, :n, :n]
    lower = np.tril_indices(UNITS + 1)
    return out[:, lower[0], lower[1]]


def baseline_folds(
    models: Sequence[Patterns], words: Mapping[HeadId, np.ndarray], ours: Sequence[Fold], *, seed: int = 0
) -> dict[str, list[Fold]]:
    """Return each of these spaces in the folds of a decoder's: the same heads are known and the same ones new."""
    heads = sorted(words)
    layers = {p.model: p.manifest["model"]["n_layers"] for p in models}
    rng = np.random.Generator(np.random.PCG64([seed, 5]))
    spaces = {
        "random": rng.standard_normal((len(heads), 64)),
        "relative depth": np.array([[head.layer / max(1, layers[head.model] - 1)] for head in heads]),
        "same index": np.array([[head.layer, head.head] for head in heads], dtype=float),
        "RDM": np.stack([_ranked(rdm(words[head].astype(np.float64))) for head in heads]),
    }
    mean = np.stack([words[head].mean(0) for head in heads]).astype(np.float64)
    at = {head: i for i, head in enumerate(heads)}
    folds: dict[str, list[Fold]] = {name: [] for name in (*spaces, "mean pattern PCA")}
    for fold in ours:
        old, new = ([at[head] for head in side] for side in (fold.heads, fold.left_out))
        for name, space in (spaces | {"mean pattern PCA": _components(mean, old)}).items():
            metric = "euclidean" if name in ("relative depth", "same index") else "cosine"
            folds[name].append(Fold(fold.family, fold.heads, space[old], fold.left_out, space[new], metric))
    return folds


def _ranked(x: np.ndarray) -> np.ndarray:
    ranks = np.argsort(np.argsort(x, kind="stable"), kind="stable").astype(float)
    return (ranks - ranks.mean()) / max(ranks.std(), 1e-12)


def _components(mean: np.ndarray, fitted: Sequence[int], n: int = 32) -> np.ndarray:
    """Coordinates on the principal components of the heads that are fitted on."""
    centre = mean[fitted].mean(0)
    _, _, axes = np.linalg.svd(mean[fitted] - centre, full_matrices=False)
    return (mean - centre) @ axes[:n].T
