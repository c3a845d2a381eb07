"""What is a probe to learn? Labels of any kind as numbers, and which loss fits them.

    task          labels                                              loss
    binary        two classes; or one probability each ("soft")       logistic
    multiclass    more classes; or (unit, class) probabilities        softmax
    multilabel    (unit, label) of 0 and 1, or probabilities          logistic, mean over labels
    regression    numbers, (unit,) or (unit, number)                  squared, mean over numbers

Axes: unit = document, or row where every token has a label of its own; output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from headlens._errors import DataError
from headlens.probes.labels import encoded, same_number

Task = Literal["auto", "binary", "multiclass", "multilabel", "regression"]
LOSS: dict[str, Literal["logistic", "softmax", "squared"]] = {
    "binary": "logistic",
    "multiclass": "softmax",
    "multilabel": "logistic",
    "regression": "squared",
}


@dataclass(frozen=True)
class Targets:
    """Labels, as training takes them."""

    task: str
    values: Float[np.ndarray, "unit output"]
    known: Int[np.ndarray, " unit"]
    """1 where there is a label; a row may have none."""
    classes: np.ndarray | None
    """Of a binary or multi-class task, sorted."""
    flat: bool
    """Whether labels came without an output axis."""

    def spread(self) -> tuple[Float[np.ndarray, " output"], Float[np.ndarray, " output"]]:
        """Return the standard deviation, 1 where it is 0, and the mean of targets that are there."""
        own = self.values[self.known > 0]
        scale = own.std(0)
        return np.where(scale > 0, scale, 1.0), own.mean(0)

    def standardised(self) -> "Targets":
        """Return targets of mean 0 and spread 1."""
        scale, shift = self.spread()
        return replace(self, values=(self.values - shift) / scale)

    @property
    def strata(self) -> Int[np.ndarray, " unit"]:
        """What splits keep the shares of: the class, the first label, or for numbers nothing."""
        if self.task == "regression":
            return np.zeros(len(self.values), dtype=np.int64)
        return self.values.argmax(1) if self.task == "multiclass" else (self.values[:, 0] > 0.5).astype(np.int64)

    def class_weights(self, wanted: Any) -> Float[np.ndarray, " unit"]:
        """Return what `class_weight` gives each unit: None, "balanced", or numbers by class."""
        if wanted is None:
            return np.ones(len(self.values))
        if self.classes is None:
            raise DataError(f"class_weight goes with classes; for a {self.task} task it must be None.")
        shares = self.values if self.task == "multiclass" else np.concatenate([1 - self.values, self.values], 1)
        if isinstance(wanted, str) and wanted == "balanced":
            counts = (shares * self.known[:, None]).sum(0)
            return shares @ (counts.sum() / (len(counts) * np.maximum(counts, 1e-12)))
        if not isinstance(wanted, Mapping) or set(wanted) - set(self.classes.tolist()):
            raise DataError(f'class_weight must be None, "balanced", or a number for some of {list(self.classes)}.')
        return shares @ np.array([float(wanted.get(name, 1.0)) for name in self.classes.tolist()])


def read_targets(y: Any, task: str, n: int, *, what: str = "documents") -> Targets:
    """Return labels of n units as targets; with the task "auto", of the task that they look like.

    Classes (text, truth values, whole numbers) are a binary or multi-class task, other numbers a regression; columns of
    0 and 1 are several labels. Probabilities look like numbers: they need the task's name. A row's label may be NaN.

    Raises
    ------
    DataError
        If labels and units differ in number, labels do not fit the task, or there is one class only or one for each.
    """
    if task not in get_args(Task):
        raise DataError(f"task must be one of {', '.join(get_args(Task))}, not {task!r}.")
    if y is None:
        raise DataError("requires y to be passed, but the target y is None: give a label for each document.")
    y = np.asarray(y)
    if y.ndim not in (1, 2):
        raise DataError(f"y must be (document,) or (document, output), not {y.shape}.")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if what == "rows" and len(y) != n:
        raise DataError(f"y has {len(y)} labels and X has {n} rows: give one label a row, NaN where there is none.")
    same_number(len(y), n)
    known = _known(y, rows=what == "rows")
    task = _looks_like(y[known]) if task == "auto" else task
    soft = y.dtype.kind == "f" and not _whole(y[known])
    if y.ndim == 1 and (task == "multiclass" or (task == "binary" and not soft)):
        return _of_classes(y, known, task)
    values = _numbers(y, known)
    if task != "regression" and not ((values >= 0) & (values <= 1)).all():
        raise DataError(f"y of a {task} task must be classes, or probabilities between 0 and 1.")
    if task == "binary" and y.ndim == 2:
        raise DataError("y of a binary task must be one label a document; several labels are a multilabel task.")
    if task == "multiclass" and not np.allclose(values[known].sum(1), 1, atol=1e-4):
        raise DataError("y of a multiclass task must be classes, or rows of probabilities that sum to 1.")
    classes = {"binary": np.arange(2), "multiclass": np.arange(values.shape[1])}.get(task)
    return Targets(task, values, known.astype(np.int64), classes, y.ndim == 1)


def _of_classes(y: np.ndarray, known: np.ndarray, task: str) -> Targets:
    classes, codes = encoded(y[known], int(known.sum()))
    if task == "binary" and len(classes) > 2:
        raise DataError(f"y has {len(classes)} classes; a binary task has two.")
    values = np.zeros((len(y), len(classes)))
    values[known, codes] = 1.0
    task = "binary" if len(classes) == 2 and task != "multiclass" else "multiclass"
    return Targets(task, values[:, 1:] if task == "binary" else values, known.astype(np.int64), classes, True)


def _known(y: np.ndarray, *, rows: bool) -> np.ndarray:
    missing = np.isnan(y) if y.dtype.kind == "f" else np.zeros(y.shape, bool)
    missing = np.asarray(missing.any(1) if y.ndim == 2 else missing)
    if missing.any() and not rows:
        raise DataError(f"y has no label for document {np.flatnonzero(missing)[0]} (NaN): leave it out.")
    if missing.all() and len(y):
        raise DataError("y has no label at all: every one is NaN.")
    return ~missing


def _looks_like(y: np.ndarray) -> str:
    if y.ndim == 2:
        return "multilabel" if y.dtype.kind in "biuf" and np.isin(y, (0, 1)).all() else "regression"
    if y.dtype.kind == "f" and not _whole(y):
        return "regression"
    return "binary" if len(np.unique(y)) <= 2 else "multiclass"


def _whole(y: np.ndarray) -> bool:
    return bool((np.isfinite(y) & (y == np.round(y))).all())


def _numbers(y: np.ndarray, known: np.ndarray) -> Float[np.ndarray, "unit output"]:
    try:
        values = y.astype(float).reshape(len(y), -1)
    except (TypeError, ValueError):
        raise DataError("y must be numbers for this task; classes are a binary or a multiclass task.") from None
    values = np.where(known[:, None], values, 0.0)
    if not np.isfinite(values).all():
        raise DataError("y holds infinite numbers.")
    return values


def packed_labels(y: Any, lengths: Int[np.ndarray, " document"]) -> Any:
    """Return labels of rows, given document by document or already packed, as one array."""
    if isinstance(y, Sequence) and not isinstance(y, str) and len(y) and np.ndim(y[0]) >= 1:
        for i, (own, length) in enumerate(zip(y, lengths, strict=False)):
            if len(own) != length:
                raise DataError(f"Document {i} has {length} rows and {len(own)} labels: give one label a row.")
        same_number(len(y), len(lengths))
        return np.concatenate([np.asarray(own) for own in y])
    return y


def deal(
    n: int, folds: int, strata: Int[np.ndarray, " document"], groups: Int[np.ndarray, " document"] | None, seed: int
) -> Int[np.ndarray, " document"]:
    """Return the fold of each of n documents: groups stay whole, and folds get alike shares of the strata.

    Groups are shuffled, sorted by stratum (that of the group's first document), and dealt out like cards.
    """
    groups = np.arange(n) if groups is None else groups
    names, first, of_document = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(strata[first][order], kind="stable")]
    fold = np.empty(len(names), dtype=np.int64)
    fold[order] = np.arange(len(names)) % folds
    return fold[of_document]
