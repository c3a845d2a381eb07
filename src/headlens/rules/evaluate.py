"""How well do rules predict? On texts that mining never saw, at natural prevalence, beside baselines.

    precision, recall, f1   of "fires", said above the threshold that has the best F1 on the selecting part
    ap                      average precision: no threshold
    spearman, r2            with the model's own pre-activation

All are of weighted examples, and so estimate what they are over all positions of the test part. Intervals are
percentiles over draws of whole texts. Every predictor is judged alike:

    rules       the first n                          key_only   rules that name no query feature, chosen alike
    random      n pairs that match, at random        unigram    the mean pre-activation at a query token, mined
    full        all pairs and all else at its true value: the model's own pre-activation, the ceiling

Axes: example; draw; tie = groups of equal predictions, descending.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from headlens._statistics import LEVEL
from headlens.rules.exemplars import Examples

METRICS = ("precision", "recall", "f1", "ap", "spearman", "r2")


@dataclass(frozen=True)
class Scores:
    """What one predictor scores, with intervals."""

    value: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]


def best_threshold(predicted: Float[np.ndarray, " example"], examples: Examples) -> float:
    """Return the threshold of the best F1: half way between two predictions."""
    if not examples.fires.any():
        return float(np.inf)
    order, ends = _ties(predicted)
    hits, says = _running(examples, examples.weight[None], order, ends)
    f1 = 2 * hits[0] / (says[0] + (examples.weight * examples.fires).sum())
    best = int(np.argmax(f1))
    values = predicted[order][ends]
    if best + 1 == len(values):
        return float(np.nextafter(values[best], -np.inf))
    return float((values[best] + values[best + 1]) / 2)


def judged(
    predicted: Float[np.ndarray, " example"], examples: Examples, threshold: float, *, draws: int, seed: int
) -> Scores:
    """Score one predictor, with intervals over texts."""
    weights = np.concatenate([examples.weight[None], resampled(examples, draws=draws, seed=seed)])
    found = _metrics(predicted, examples, threshold, weights)
    tail = (1 - LEVEL) / 2
    low, high = {}, {}
    for name, values in found.items():
        told = values[1:][~np.isnan(values[1:])]
        low[name], high[name] = np.quantile(told, [tail, 1 - tail]).tolist() if len(told) > 1 else (np.nan, np.nan)
    return Scores({name: float(values[0]) for name, values in found.items()}, low, high)


@lru_cache(maxsize=1)  # every predictor of a feature is judged on the same draws
def resampled(examples: Examples, *, draws: int, seed: int) -> Float[np.ndarray, "draw example"]:
    """Return weights times how often each draw takes the example's text."""
    texts, which = np.unique(examples.text, return_inverse=True)
    rng = np.random.Generator(np.random.PCG64(seed))
    taken = rng.multinomial(len(texts), np.full(len(texts), 1 / max(len(texts), 1)), size=draws)
    return taken[:, which] * examples.weight


def unigram(
    tokens: Int[np.ndarray, " token"], pre: Float[np.ndarray, " token"], query: Int[np.ndarray, " example"]
) -> Float[np.ndarray, " example"]:
    """Return the mean pre-activation at each query token; where it was never seen, that of all."""
    size = int(max(tokens.max(initial=0), query.max(initial=0))) + 1
    count = np.bincount(tokens, minlength=size)
    mean = pre.mean() if len(pre) else 0.0
    means = (np.bincount(tokens, pre, size) + mean) / (count + 1)
    return means[query]


# --- weighted metrics -------------------------------------------------------------------------------------


def _metrics(
    predicted: Float[np.ndarray, " example"], examples: Examples, threshold: float, weights: np.ndarray
) -> dict[str, Float[np.ndarray, " draw"]]:
    fires, says = examples.fires, predicted > threshold
    hits, positive, called = ((weights * one).sum(-1) for one in (fires & says, fires, says))
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = hits / called, hits / positive
        f1 = np.where(positive > 0, 2 * hits / (called + positive), np.nan)
    precision = np.where(called > 0, precision, 0.0)  # who says nothing is not right
    found = {"precision": precision, "recall": recall, "f1": f1}
    found |= {"ap": _average_precision(predicted, examples, weights)}
    return found | {
        "spearman": _spearman(predicted, examples.pre, weights),
        "r2": _r2(predicted, examples.pre, weights),
    }


def _ties(values: Float[np.ndarray, " example"]) -> tuple[Int[np.ndarray, " example"], Int[np.ndarray, " tie"]]:
    """Examples by descending value, and the last of each group of equal values."""
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True)) if len(order) else np.zeros(0, np.int64)
    return order, ends


def _running(examples: Examples, weights: np.ndarray, order: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, ...]:
    """Hits, and all that was called, down to each group."""
    ordered = weights[:, order]
    return (ordered * examples.fires[order]).cumsum(-1)[:, ends], ordered.cumsum(-1)[:, ends]


def _average_precision(
    predicted: Float[np.ndarray, " example"], examples: Examples, weights: np.ndarray
) -> Float[np.ndarray, " draw"]:
    if not len(predicted):
        return np.full(len(weights), np.nan)
    hits, called = _running(examples, weights, *_ties(predicted))
    gained = np.diff(hits, axis=-1, prepend=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(called > 0, hits / called, 0.0)
        return np.where(hits[:, -1] > 0, (gained * precision).sum(-1) / hits[:, -1], np.nan)


def _ranks(values: Float[np.ndarray, " example"], weights: np.ndarray) -> Float[np.ndarray, "draw example"]:
    """The middle of what weighs less and what weighs as much or less."""
    order, ends = _ties(values)
    running = weights[:, order].cumsum(-1)[:, ends]
    before = np.concatenate([np.zeros((len(weights), 1)), running[:, :-1]], -1)
    group = np.empty(len(values), np.int64)
    group[order] = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1))
    return -((running + before) / 2)[:, group]


def _spearman(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> Float[np.ndarray, " draw"]:
    if not len(a):
        return np.full(len(weights), np.nan)
    x, y = _ranks(a, weights), _ranks(b, weights)
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = (one - (weights * one).sum(-1, keepdims=True) / total for one in (x, y))
        spread = (weights * x**2).sum(-1) * (weights * y**2).sum(-1)
        flat = spread <= 1e-18 * total[:, 0] ** 6
        return np.where(flat, np.nan, (weights * x * y).sum(-1) / np.sqrt(np.where(flat, 1, spread)))


def _r2(predicted: np.ndarray, pre: np.ndarray, weights: np.ndarray) -> Float[np.ndarray, " draw"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (weights * pre).sum(-1, keepdims=True) / weights.sum(-1, keepdims=True)
        over = (weights * (pre - mean) ** 2).sum(-1)
        return np.where(over > 0, 1 - (weights * (pre - predicted) ** 2).sum(-1) / over, np.nan)
