"""What does a threshold on a score let through? Curves of two classes, with ties kept together.

    TPR at FPR <= f    largest share of positives above a threshold above which at most a share f of negatives lies;
                       documents of one score are above it together, so that ties are never split
    AUROC              chance that a positive scores above a negative, a tie counting half
    AP                 sum over thresholds of (recall gained) * precision

Documents may count several times, or not at all: a row of weights is one draw of them.

Axes: document, draw, cut = distinct scores, best first. Source: Fawcett 2006.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from headlens._errors import DataError


def tpr_at_fpr(y: Any, scores: Any, target: float) -> float:
    """Return the largest TPR of a threshold whose FPR is at most `target`; NaN without positives or negatives."""
    ranking = _ranked(y, scores)
    fp, tp = ranking.curve(np.ones((1, ranking.n)))
    return float(tpr_within(fp, tp, allowed(target))[0])


def threshold_at_fpr(y: Any, scores: Any, target: float) -> float:
    """Return the lowest threshold above which (score > threshold) at most a share `target` of the negatives lies.

    It lies midway to the next score below. Positives do not matter, so documents without any will do.

    Raises
    ------
    DataError
        If there are no negatives.
    """
    ranking = _ranked(y, scores)
    (fp,), _ = ranking.curve(np.ones((1, ranking.n)))
    if not fp[-1]:
        raise DataError("A threshold at an FPR needs documents of class 0.")
    taken = int(np.flatnonzero(fp / fp[-1] <= allowed(target))[-1])  # distinct scores above the threshold
    below = np.append(ranking.cuts, np.nextafter(ranking.cuts[-1], -np.inf))[taken]
    if taken == 0 or taken == len(ranking.cuts):
        return float(below)
    middle = below / 2 + ranking.cuts[taken - 1] / 2
    return float(middle if below <= middle < ranking.cuts[taken - 1] else below)


class Ranking:
    """Documents of two classes, best score first, documents of one score together."""

    def __init__(self, positive: Bool[np.ndarray, " document"], scores: Float[np.ndarray, " document"]) -> None:
        self.n = len(scores)
        self._order = np.argsort(-scores, kind="stable")
        self._positive = positive[self._order]
        ranked = scores[self._order]
        self._last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of each score
        self.cuts = ranked[self._last]

    def curve(
        self, weights: Float[np.ndarray, "draw document"]
    ) -> tuple[Float[np.ndarray, "draw cut_and_none"], Float[np.ndarray, "draw cut_and_none"]]:
        """Return the weight of negatives, and of positives, with at least each score; 0 first, for no document."""
        ranked = weights[:, self._order]
        none = np.zeros((len(weights), 1))
        tp = np.cumsum(ranked * self._positive, axis=1)[:, self._last]
        fp = np.cumsum(ranked * ~self._positive, axis=1)[:, self._last]
        return np.hstack([none, fp]), np.hstack([none, tp])


def auroc(fp: np.ndarray, tp: np.ndarray) -> Float[np.ndarray, " draw"]:
    return ratio((np.diff(fp) * (tp[:, 1:] + tp[:, :-1])).sum(1) / 2, fp[:, -1] * tp[:, -1])


def average_precision(fp: np.ndarray, tp: np.ndarray) -> Float[np.ndarray, " draw"]:
    taken = np.maximum(fp + tp, np.finfo(float).tiny)[:, 1:]
    precision = ratio((np.diff(tp) * tp[:, 1:] / taken).sum(1), tp[:, -1])
    return np.where(fp[:, -1] > 0, precision, np.nan)


def tpr_within(fp: np.ndarray, tp: np.ndarray, target: float) -> Float[np.ndarray, " draw"]:
    inside = ratio(fp, fp[:, -1:]) <= target
    return np.where(fp[:, -1] > 0, ratio(np.where(inside, tp, 0).max(1), tp[:, -1]), np.nan)


def allowed(target: float) -> float:
    if not 0 <= target <= 1:
        raise DataError(f"The FPR allowed must be from 0 to 1, not {target}.")
    return float(target)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide; NaN by 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)


# --- checks -----------------------------------------------------------------------------------------------


def as_scores(scores: Any) -> np.ndarray:
    """Return (document,) log-odds of two classes, or (document, class) of more."""
    scores = np.asarray(scores, dtype=float)
    if scores.ndim not in (1, 2) or not scores.size:
        raise DataError(f"scores must be (document,) or (document, class) of some documents, not {scores.shape}.")
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores.reshape(len(scores), -1)).all(1))[0]
        raise DataError(f"The score of document {bad} is NaN or infinite: metrics need finite scores.")
    if scores.ndim == 2 and scores.shape[1] <= 2:
        return scores[:, -1] - (scores[:, 0] if scores.shape[1] == 2 else 0)
    return scores


def coded(y: Any, names: list[Any], n: int) -> Int[np.ndarray, " document"]:
    y = np.asarray(y)
    if y.shape != (n,):
        raise DataError(f"y must be one label a document, ({n},) as the scores are, not {y.shape}.")
    place = {name: k for k, name in enumerate(names)}
    if unseen := sorted({str(label) for label in y.tolist() if label not in place}):
        raise DataError(
            f"Labels {', '.join(unseen[:5])} are none of the classes that were scored, {names}: "
            "leave such documents out, or pass classes= in the order of the scores."
        )
    return np.array([place[label] for label in y.tolist()])


def _ranked(y: Any, scores: Any) -> Ranking:
    scores = as_scores(scores)
    if scores.ndim != 1:
        raise DataError("TPR and FPR are of two classes: give one score a document.")
    return Ranking(coded(y, [0, 1], len(scores)) == 1, scores)
