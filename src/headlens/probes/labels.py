"""What do labels say, and what do scores? Labels as numbers of classes, scores as classes and probabilities.

Axes: document, class. Unit: scores are log-odds; two classes have one, of the second against the first.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit, softmax
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from headlens._errors import DataError


def encoded(y: Any, n: int) -> tuple[np.ndarray, Int[np.ndarray, " document"]]:
    """Return the classes of n labels, sorted, and which of them each label is.

    Raises
    ------
    DataError
        If there is one class only, or as many as documents, or not one label a document.
    """
    if y is None:
        raise DataError("requires y to be passed, but the target y is None: give one label a document.")
    y = column_or_1d(y, warn=True)
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise DataError("Input y contains NaN or infinity: leave such documents out.")
    check_classification_targets(y)
    same_number(len(y), n)
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"y has one class only ({classes[0]!r}): telling classes apart needs documents of two.")
    if len(classes) >= n:
        raise DataError(f"y has {len(classes)} classes for {n} documents: some class needs more than one document.")
    return classes, codes


def same_number(labels: int, documents: int) -> None:
    if labels != documents:
        raise DataError(f"y has {labels} labels and X has {documents} documents: give one label a document.")


def check_groups(groups: Any, n: int) -> Int[np.ndarray, " document"] | None:
    """Return groups as numbers from 0."""
    if groups is None:
        return None
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise DataError(f"groups must be one name a document, ({n},), not {groups.shape}.")
    return np.unique(groups, return_inverse=True)[1]


def likeliest(scores: np.ndarray) -> Int[np.ndarray, " document"]:
    return (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)


def probabilities(scores: np.ndarray) -> Float[np.ndarray, "document class"]:
    """Return each class's probability from log-odds of two classes, or from a score a class."""
    return np.stack([expit(-scores), expit(scores)], 1) if scores.ndim == 1 else softmax(scores, axis=1)
