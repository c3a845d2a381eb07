"""Do heads of one kind lie together, across families? Retrieval, a linear test, and chance, on any space of heads.

    query       a head of a kind, of a family that the space was not fitted on
    candidates  heads of all other families, the nearest first;  R = how many of them are of the kind

    recall@k = found among the first k / min(k, R)      MRR = 1 / place of the first one
    AP       = mean over the R of the precision where each is found;  chance: R / candidates
    F1       = of a logistic regression on a head's coordinates, whose penalty and threshold come from other families

One `Fold` for each family left out. Intervals resample models, since heads of one model are not independent.

Axes: head, coordinate.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from headlens._errors import DataError
from headlens._statistics import DRAWS, interval_of
from headlens.axes import HeadId
from headlens.universe.embed import distances

MEASURES = ("recall", "mrr", "ap", "prevalence")


@dataclass(frozen=True)
class Fold:
    """A space of heads, fitted without one family, and that family's heads in it."""

    family: str
    heads: tuple[HeadId, ...]
    """Of the other families."""
    known: Float[np.ndarray, "head coordinate"]
    left_out: tuple[HeadId, ...]
    new: Float[np.ndarray, "new coordinate"]
    metric: Literal["cosine", "euclidean"] = "cosine"

    def distances(self) -> Float[np.ndarray, "new head"]:
        """How far every head that was left out is from every other."""
        if self.metric == "cosine":
            return distances(self.new, self.known)
        return np.sqrt(((self.new[:, None] - self.known[None]) ** 2).sum(-1))


def ranked(relevant: Bool[np.ndarray, " candidate"], k: int | None = None) -> dict[str, float]:
    """Return the measures of one query, from which candidates are of its kind, the nearest first; `k` None for R.

    Raises
    ------
    DataError
        If none is, or `k` is below 1.
    """
    n = int(relevant.sum())
    if not n or (k is not None and k < 1):
        raise DataError("A query needs at least one head of its kind among the candidates, and k of 1 or more.")
    k = n if k is None else k
    places = np.flatnonzero(relevant) + 1
    return {
        "recall": float((places <= k).sum() / min(k, n)),
        "mrr": float(1 / places[0]),
        "ap": float((np.arange(1, n + 1) / places).mean()),
        "prevalence": n / len(relevant),
    }


def retrieval(folds: Sequence[Fold], positives: Collection[HeadId], *, k: int | None = None) -> list[dict[str, Any]]:
    """Return the measures of every query: each head of the kind whose family was left out."""
    positives, rows = set(positives), []
    for fold in folds:
        relevant = np.array([head in positives for head in fold.heads])
        if not relevant.any():
            continue
        apart = fold.distances()
        for head, row in zip(fold.left_out, apart, strict=True):
            if head in positives:
                order = sorted(range(len(row)), key=lambda i, row=row: (row[i], fold.heads[i]))
                rows.append({"query": head} | ranked(relevant[order], k))
    return rows


def over_models(values: Mapping[HeadId, float], *, seed: int = 0, draws: int = DRAWS) -> tuple[float, float, float]:
    """Return the mean over heads, and the limits of 95 % when whole models are drawn anew; NaN for one model."""
    models = sorted({head.model for head in values})
    if not models:
        return np.nan, np.nan, np.nan
    own = [[value for head, value in values.items() if head.model == model] for model in models]
    sums, sizes = np.array([sum(v) for v in own]), np.array([len(v) for v in own])
    mean = float(sums.sum() / sizes.sum())
    if len(models) < 2:
        return mean, np.nan, np.nan
    counts = drawn_models(len(models), seed=seed, draws=draws)
    return mean, *interval_of((counts @ sums) / (counts @ sizes))


def median_over_models(values: Mapping[HeadId, float], draws: int = 500) -> tuple[float, float, float]:
    """Return the median over heads, and the limits of 95 % when whole models are drawn anew."""
    by_model: dict[str, list[float]] = {}
    for head, value in values.items():
        by_model.setdefault(head.model, []).append(value)
    models = sorted(by_model)
    if not models:
        return np.nan, np.nan, np.nan
    rng = np.random.Generator(np.random.PCG64(0))
    chosen = rng.integers(len(models), size=(draws, len(models)))
    drawn = [np.median(np.concatenate([by_model[models[i]] for i in draw])) for draw in chosen]
    return float(np.median(list(values.values()))), *interval_of(np.array(drawn))


def drawn_models(n: int, *, seed: int = 0, draws: int = DRAWS) -> Int[np.ndarray, "draw model"]:
    """Return how often each draw takes each of `n` models: the same draws for whatever is compared on them."""
    return np.random.Generator(np.random.PCG64(seed)).multinomial(n, np.full(n, 1 / n), size=draws)


@dataclass(frozen=True)
class Detection:
    """What a linear test said of every head whose family was left out."""

    scores: dict[HeadId, float]
    """Log-odds above the training families' threshold."""
    positives: frozenset[HeadId]

    def f1(self) -> float:
        """F1 over the heads of all families; NaN where none is of the kind."""
        return float(_f1(self._counts().sum(0)))

    def interval(self, *, seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
        """The limits of 95 % when whole models are drawn anew."""
        return interval_of(self._drawn(seed, draws))

    def above(self, other: "Detection", *, seed: int = 0, draws: int = DRAWS) -> tuple[float, float, float]:
        """Return how far F1 is above that of another test of the same heads, and the limits of 95 %: paired draws.

        Raises
        ------
        DataError
            If they are not of the same heads and kind.
        """
        if self.scores.keys() != other.scores.keys() or self.positives != other.positives:
            raise DataError("Two tests are compared on the heads of one kind: give both the same folds and positives.")
        return self.f1() - other.f1(), *interval_of(self._drawn(seed, draws) - other._drawn(seed, draws))

    def _drawn(self, seed: int, draws: int) -> Float[np.ndarray, " draw"]:
        """F1 of whole models drawn anew."""
        counts = self._counts()
        return _f1(drawn_models(len(counts), seed=seed, draws=draws) @ counts)

    def _counts(self) -> Int[np.ndarray, "model 3"]:
        """How many heads of each model are called, are of the kind, and both."""
        found = {head.model: np.zeros(3, dtype=np.int64) for head in sorted(self.scores)}
        for head, score in self.scores.items():
            called, real = score > 0, head in self.positives
            found[head.model] += (called, real, called and real)
        return np.stack(list(found.values()))


def _f1(counts: Int[np.ndarray, "*draw 3"]) -> Float[np.ndarray, "*draw"]:
    called, real, right = np.moveaxis(counts, -1, 0)
    return np.where(real > 0, 2 * right / np.maximum(called + real, 1), np.nan)


PENALTIES = (0.01, 0.1, 1.0, 10.0)


def detection(folds: Sequence[Fold], positives: Collection[HeadId], families: Mapping[str, str]) -> Detection:
    """Return what a logistic regression, fitted on the other families, says of each family that was left out.

    Parameters
    ----------
    families
        Model -> family. Penalty and threshold are chosen with each training family left out in turn.

    Raises
    ------
    DataError
        If a fold has fewer than two training families with heads of the kind.
    """
    positives, scores = frozenset(positives), {}
    for fold in folds:
        y = np.array([head in positives for head in fold.heads])
        family = np.array([families[head.model] for head in fold.heads])
        if len(set(family[y])) < 2:
            raise DataError(f"Without {fold.family} fewer than two families have such heads: nothing can be chosen.")
        mean, spread = fold.known.mean(0), fold.known.std(0)
        spread = np.where(spread > 0, spread, 1)
        x, new = (fold.known - mean) / spread, (fold.new - mean) / spread
        held = {penalty: _held_out_scores(x, y, family, penalty) for penalty in PENALTIES}
        best = max(held, key=lambda penalty: (_best_f1(held[penalty], y)[0], -penalty))
        _, threshold = _best_f1(held[best], y)
        scores |= dict(zip(fold.left_out, (_scored(x, y, new, best) - threshold).tolist(), strict=True))
    there = {head for fold in folds for head in fold.left_out}
    return Detection(scores, frozenset(positives & there))


def _held_out_scores(x: Any, y: Any, family: Any, penalty: float) -> Float[np.ndarray, " head"]:
    scores = np.empty(len(y))
    for name in sorted(set(family)):
        out = family == name
        scores[out] = _scored(x[~out], y[~out], x[out], penalty) if y[~out].any() else 0.0
    return scores


def _scored(x: Any, y: Any, new: Any, penalty: float) -> Float[np.ndarray, " new"]:
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it may not have converged: it then is what 2000 steps give
        model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000).fit(x, y)
    return model.decision_function(new)


def _best_f1(scores: Float[np.ndarray, " head"], y: Bool[np.ndarray, " head"]) -> tuple[float, float]:
    """The best F1 of any threshold, and the middle of the gap where it is reached."""
    order = np.argsort(-scores, kind="stable")
    f1 = 2 * np.cumsum(y[order]) / (np.arange(1, len(y) + 1) + y.sum())
    at = int(f1.argmax())
    below = scores[order[at + 1]] if at + 1 < len(y) else scores[order[at]] - 1
    return float(f1[at]), float((scores[order[at]] + below) / 2)
