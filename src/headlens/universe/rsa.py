"""Do two heads find the same texts alike? Dissimilarity matrices over texts, on units that all tokenizers share.

    x_d   = a head's pattern over the first `units` words of text d, rows after one another
    RDM   = 1 - correlation of x_d and x_d', for all pairs of texts
    RSA   = Spearman's rho of two heads' RDMs, where asked with what other RDMs explain regressed out of both (ranks)
    p     = share of permutations of one head's texts with at least this rho (Mantel 1967), the identity among them

Texts differ in length and in the words that they share; `length_rdm` and `overlap_rdm` hold just that.

Axes: text, unit, pair = text < text.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import linalg, stats

from headlens._errors import DataError


def rdm(vectors: Float[np.ndarray, "text entry"]) -> Float[np.ndarray, " pair"]:
    """Return 1 - correlation of each pair of texts' vectors; 1 where one of them does not vary."""
    centred = vectors - vectors.mean(1, keepdims=True)
    size = np.sqrt((centred**2).sum(1))
    unit = centred / np.where(size > 1e-12, size, 1)[:, None]
    return 1 - (unit @ unit.T)[np.triu_indices(len(vectors), 1)]


def length_rdm(texts: Sequence[str]) -> Float[np.ndarray, " pair"]:
    """Return how much the texts differ in words."""
    lengths = np.array([len(text.split()) for text in texts], dtype=float)
    return np.abs(lengths[:, None] - lengths[None])[np.triu_indices(len(texts), 1)]


def overlap_rdm(texts: Sequence[str]) -> Float[np.ndarray, " pair"]:
    """Return 1 - shared words / all words of each pair of texts."""
    words = [set(text.split()) for text in texts]
    pairs = zip(*np.triu_indices(len(texts), 1), strict=True)
    return np.array([1 - len(words[a] & words[b]) / max(1, len(words[a] | words[b])) for a, b in pairs])


def rsa(
    a: Float[np.ndarray, " pair"], b: Float[np.ndarray, " _"], without: Sequence[Float[np.ndarray, " _"]] = ()
) -> float:
    """Return Spearman's rho of two RDMs; partial, where others are given. NaN where one does not vary.

    Raises
    ------
    DataError
        If they are not of the same texts.
    """
    if len({len(x) for x in (a, b, *without)}) > 1:
        raise DataError("RDMs are compared over the same texts: their sizes differ.")
    left, right = (_without(stats.rankdata(x), without) for x in (a, b))
    size = np.sqrt((left**2).sum() * (right**2).sum())
    return float((left * right).sum() / size) if size > 1e-9 else np.nan


def mantel(
    a: Float[np.ndarray, " pair"],
    b: Float[np.ndarray, " pair"],
    *,
    without: Sequence[Float[np.ndarray, " pair"]] = (),
    permutations: int = 999,
    seed: int = 0,
) -> tuple[float, float]:
    """Return rho, and how likely one as large is when one head's texts are permuted, one-sided."""
    found = rsa(a, b, without)
    n = round((1 + np.sqrt(1 + 8 * len(a))) / 2)
    upper = np.triu_indices(n, 1)
    square = np.zeros((n, n))
    square[upper] = stats.rankdata(a)  # ranks go where their pairs go
    square += square.T
    rng = np.random.Generator(np.random.PCG64(seed))
    orders = np.stack([rng.permutation(n) for _ in range(permutations)])
    basis = linalg.orth(_design(len(a), without))
    left = square[orders[:, upper[0]], orders[:, upper[1]]]  # (permutation, pair)
    left -= left @ basis @ basis.T
    right = _without(stats.rankdata(b), without)
    size = np.sqrt((left**2).sum(1) * (right**2).sum())
    drawn = np.divide(left @ right, size, out=np.full(len(left), np.nan), where=size > 1e-9)
    return found, (1 + int((drawn >= found - 1e-12).sum())) / (permutations + 1)


def _without(x: Float[np.ndarray, " pair"], others: Sequence[np.ndarray]) -> Float[np.ndarray, " pair"]:
    design = _design(len(x), others)
    return x - design @ np.linalg.lstsq(design, x, rcond=None)[0]


def _design(n: int, others: Sequence[np.ndarray]) -> Float[np.ndarray, "pair column"]:
    return np.stack([np.ones(n), *(stats.rankdata(other) for other in others)], axis=1)
