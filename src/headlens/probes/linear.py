"""Which probes need no training? Those linear in one pooled row a document, solved at once.

    score_k(x) = w_k . x + b_k          log-odds; two classes have one score, of the second against the first

    difference of means   w_k = m_k / s^2               s^2 = tr(B W) / tr(B): variance along what parts the means
    LDA                   w_k = W^-1 m_k                W shrunk as Ledoit and Wolf (scikit-learn's own)
    ridge                 least squares on 1 for the class and -1 for others, penalised: `paths.py`
    logistic              log loss, penalised: `paths.py`

m_k, W, B: the classes' means, and the covariance within and between classes; the first two add each class's log
frequency. Ridge and logistic regression see features of mean 0 and spread 1 and choose one of `penalties` by what they
predict of documents (or groups) left out. All is folded back into weights on the activations as they come.

A document without rows has no direction to read: its score is the bias alone. Fitting refuses one.

Axes: document, width, score (1 for two classes), penalty. Source: Hastie, Tibshirani and Friedman 2009, 3.4 and 4.3.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from headlens._errors import DataError
from headlens.probes.card import Kept, same_source
from headlens.probes.evaluation.calibrate import Temperature
from headlens.probes.labels import check_groups, encoded, likeliest, probabilities, same_number
from headlens.probes.paths import PENALTIES, check_penalties, held_out_losses, least, logistic_path, ridge_path
from headlens.probes.training.objective import CHUNK, in_chunks
from headlens.probes.training.pooling import POOLINGS, Packing, pool_rows
from headlens.probes.training.survey import check_finite
from headlens.store.rows import Rows, as_rows

OnePooling = Literal["mean", "last", "max", "absmax"]


# --- one row a document -----------------------------------------------------------------------------------


def pooled(rows: Rows, pooling: str) -> Float[np.ndarray, "document width"]:
    """Return one row a document, reading a bounded number of rows at a time; zeros for a document without rows."""
    return np.concatenate([np.empty((0, rows.width)), *pooled_blocks(rows, pooling)])


def pooled_blocks(rows: Rows, pooling: str) -> Iterator[Float[np.ndarray, "some width"]]:
    """Yield what `pooled` returns, block by block, in the order of the documents."""
    if pooling not in get_args(OnePooling):
        raise DataError(f"pooling must be one of {', '.join(get_args(OnePooling))}, not {pooling!r}.")
    lengths = np.asarray(rows.lengths)
    for some in in_chunks(np.arange(len(lengths)), lengths, max(1, CHUNK // max(1, rows.width))):
        block, at = rows.read(some).detach().cpu(), Packing(torch.as_tensor(lengths[some]))
        check_finite(block, some, at)
        out = np.zeros((len(some), rows.width))
        out[lengths[some] > 0] = pool_rows(POOLINGS[pooling], block.double(), at)[0].numpy()
        yield out


# --- what all of them share -------------------------------------------------------------------------------


class _Linear(Kept):
    """A linear map of one pooled row a document."""

    pooling: OnePooling
    coef_: Float[np.ndarray, "score width"]
    intercept_: Float[np.ndarray, " score"]

    def _scores(self, X: Any, mask: Any, site: str | None) -> Float[np.ndarray, "document score"]:
        check_is_fitted(self)
        rows = _rows(X, mask, site or (self.source_ or {}).get("site"))
        if rows is None:
            return _array(self, X, reset=False) @ self.coef_.T + self.intercept_
        if rows.width != self.n_features_in_:
            raise DataError(f"X has rows of {rows.width} numbers; this probe was fitted to {self.n_features_in_}.")
        same_source(self.source_, rows.source)
        blocks = [block @ self.coef_.T + self.intercept_ for block in pooled_blocks(rows, self.pooling)]
        return np.concatenate([np.empty((0, len(self.coef_))), *blocks])

    def _pooled_to_fit(self, X: Any, mask: Any, site: str | None) -> Float[np.ndarray, "document width"]:
        rows = _rows(X, mask, site)
        self._begin(None if rows is None else rows.source)
        if rows is None:
            return _array(self, X, reset=True)
        if (empty := np.flatnonzero(rows.lengths == 0)).size:
            raise DataError(f"Document {empty[0]} has no rows (all masked?): leave it out of `fit`.")
        if not len(rows.lengths):
            raise DataError("X holds no documents: fitting needs some.")
        self.n_features_in_ = rows.width
        return pooled(rows, self.pooling)


class LinearClassifier(ClassifierMixin, _Linear):
    """Classes from linear scores that are log-odds."""

    def _solve(
        self, X: Float[np.ndarray, "document width"], codes: Int[np.ndarray, " document"], groups: Any
    ) -> tuple[Float[np.ndarray, "score width"], Float[np.ndarray, " score"]]:
        raise NotImplementedError

    def fit(self, X: Any, y: Any, *, groups: Any = None, mask: Any = None, site: str | None = None) -> Any:
        """Learn from documents X and one label each; `groups` are documents that are left out together.

        Raises
        ------
        DataError
            If y has one class only, or as many classes as documents, if numbers of labels and documents differ, if
            activations are NaN or infinite, or if a document has no rows.
        """
        X = self._pooled_to_fit(X, mask, site)
        self.classes_, codes = encoded(y, len(X))
        groups = check_groups(groups, len(X))
        self.coef_, self.intercept_ = self._solve(X, codes, groups)
        return self

    def decision_function(self, X: Any, *, mask: Any = None, site: str | None = None) -> np.ndarray:
        """Return log-odds: (document,) of the second class, or (document, class) where there are more than two."""
        scores = self._scores(X, mask, site)
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any, *, mask: Any = None, site: str | None = None) -> np.ndarray:
        """Return the likeliest class of each document; of two, the second above `threshold_`."""
        scores = self.decision_function(X, mask=mask, site=site)
        return self.classes_[likeliest(scores - self.threshold_ if scores.ndim == 1 else scores)]

    def predict_proba(
        self, X: Any, *, mask: Any = None, site: str | None = None
    ) -> Float[np.ndarray, "document class"]:
        """Return the probability of each class, columns as in `classes_`, calibrated if the probe is."""
        return probabilities(self.calibrated(self.decision_function(X, mask=mask, site=site)))


class DifferenceOfMeans(LinearClassifier):
    """Read along the difference of the classes' means; of many classes, towards each one's mean."""

    @no_type_check  # constructors only store; `fit` checks
    def __init__(self, pooling: OnePooling = "mean") -> None:
        self.pooling = pooling

    def _solve(self, X: np.ndarray, codes: np.ndarray, groups: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        share = np.bincount(codes) / len(X)
        means = np.stack([X[codes == k].mean(0) for k in range(len(share))])
        apart = means - share @ means  # class width
        between = share @ (apart**2).sum(1)
        along = (((X - means[codes]) @ apart.T) ** 2).mean(0) @ share
        # Classes without spread would be told apart with certainty: they count as a thousandth of their distance wide.
        variance = max(along / between, 1e-6 * between) if between > 0 else 1.0
        middle = share @ means
        coef = apart / variance
        return _against_first(coef, np.log(share) - (apart**2).sum(1) / (2 * variance) - coef @ middle)


class LDA(LinearClassifier):
    """Linear discriminant analysis: the best reader of classes that are Gaussians of one covariance.

    `shrinkage` is "auto" (Ledoit and Wolf), a number from 0 to 1, or None; None needs more documents than numbers in a
    row, and leaves directions in which nothing varies unread.
    """

    @no_type_check  # constructors only store; `fit` checks
    def __init__(self, pooling: OnePooling = "mean", *, shrinkage: float | str | None = "auto") -> None:
        self.pooling = pooling
        self.shrinkage = shrinkage

    def _solve(self, X: np.ndarray, codes: np.ndarray, groups: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        scaler = StandardScaler().fit(X)  # changes no answer; keeps the covariance well conditioned
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=self.shrinkage).fit(_scaled(scaler, X), codes)
        return _unscaled(model.coef_, model.intercept_, scaler)


class _RidgePath(_Linear):
    """Ridge at every penalty: `coef_path_` and `intercept_path_`, the strongest first, and `losses_` of each."""

    penalties_: Float[np.ndarray, " penalty"]
    penalty_: float
    losses_: Float[np.ndarray, " penalty"]
    coef_path_: Float[np.ndarray, "penalty score width"]
    intercept_path_: Float[np.ndarray, "penalty score"]

    @no_type_check  # constructors only store; `fit` checks
    def __init__(
        self, pooling: OnePooling = "mean", *, penalties: Sequence[float] = PENALTIES, standardize: bool = True
    ) -> None:
        self.pooling = pooling
        self.penalties = penalties
        self.standardize = standardize

    def _choose(
        self, X: np.ndarray, targets: np.ndarray, groups: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return weights and biases at the best penalty, and what they predict of each document left out."""
        if len(X) < 2:
            raise DataError(f"Ridge needs at least 2 documents to leave one out, not n_samples = {len(X)}.")
        self.penalties_ = check_penalties(self.penalties)
        # The spread of the features belongs to the penalty: it stays that of all documents when some are left out.
        scaler = StandardScaler(with_std=self.standardize).fit(X)
        path = ridge_path(_scaled(scaler, X), targets, self.penalties_, groups)
        self.losses_ = ((path.left_out - targets) ** 2).mean((1, 2))
        at = least(self.losses_)
        self.penalty_ = float(self.penalties_[at])
        unscaled = [_unscaled(coef, bias, scaler) for coef, bias in zip(path.coef, path.intercept, strict=True)]
        self.coef_path_, self.intercept_path_ = (np.stack(part) for part in zip(*unscaled, strict=True))
        return self.coef_path_[at], self.intercept_path_[at], path.left_out[at]


class Ridge(LinearClassifier, _RidgePath):
    """Least squares on the classes as -1 and 1, with the penalty that predicts documents (or groups) left out best.

    Its scores are divided by `temperature_`, at which those of left-out documents are the best log-odds; those of
    `coef_path_` are not.
    """

    def _solve(self, X: np.ndarray, codes: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        targets = 2 * np.eye(len(self.classes_))[codes] - 1
        coef, bias, left_out = self._choose(X, targets[:, 1:] if len(self.classes_) == 2 else targets, groups)
        scores = left_out[:, 0] if len(self.classes_) == 2 else left_out
        self.temperature_ = Temperature().fit(scores, codes).temperature_
        return coef / self.temperature_, bias / self.temperature_


class RidgeRegression(RegressorMixin, _RidgePath):
    """Ridge on numbers instead of classes: y is (document,) or (document, target)."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(
        self, X: Any, y: Any, *, groups: Any = None, mask: Any = None, site: str | None = None
    ) -> "RidgeRegression":
        """Learn from documents X and numbers y; `groups` are documents that are left out together.

        Raises
        ------
        DataError
            If y is not finite or differs from X in number, if activations are NaN or infinite, or if a document has
            no rows.
        """
        X = self._pooled_to_fit(X, mask, site)
        if y is None:
            raise DataError("requires y to be passed, but the target y is None: give one number a document.")
        targets = np.asarray(check_array(y, ensure_2d=False, dtype="float64", input_name="y"))
        if targets.ndim == 2 and targets.shape[1] == 1:
            targets = column_or_1d(targets, warn=True)
        same_number(len(targets), len(X))
        self.flat_ = targets.ndim == 1
        self.coef_, self.intercept_, _ = self._choose(X, targets.reshape(len(X), -1), check_groups(groups, len(X)))
        return self

    def predict(self, X: Any, *, mask: Any = None, site: str | None = None) -> np.ndarray:
        """Return the number, or numbers, of each document."""
        scores = self._scores(X, mask, site)
        return scores[:, 0] if self.flat_ else scores


class Logistic(LinearClassifier):
    """Logistic regression with the penalty whose log loss on left-out folds is least; `losses_` has them all.

    Folds are drawn by `seed`, keep groups whole and the classes' shares alike.
    """

    @no_type_check  # constructors only store; `fit` checks
    def __init__(
        self, pooling: OnePooling = "mean", *, penalties: Sequence[float] = PENALTIES, standardize: bool = True,
        folds: int = 5, seed: int = 0,
    ) -> None:  # fmt: skip
        self.pooling = pooling
        self.penalties = penalties
        self.standardize = standardize
        self.folds = folds
        self.seed = seed

    def _solve(self, X: np.ndarray, codes: np.ndarray, groups: Any) -> tuple[np.ndarray, np.ndarray]:
        def prepare(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            scaler = StandardScaler(with_std=self.standardize).fit(X[train])
            return _scaled(scaler, X[train]), _scaled(scaler, X[test])

        self.penalties_ = check_penalties(self.penalties)
        self.losses_ = held_out_losses(prepare, codes, self.penalties_, folds=self.folds, groups=groups, seed=self.seed)
        at = least(self.losses_)
        self.penalty_ = float(self.penalties_[at])
        scaler = StandardScaler(with_std=self.standardize).fit(X)
        path = [_unscaled(*one, scaler) for one in logistic_path(_scaled(scaler, X), codes, self.penalties_)]
        self.coef_path_, self.intercept_path_ = (np.stack(part) for part in zip(*path, strict=True))
        return self.coef_path_[at], self.intercept_path_[at]


# --- small parts ------------------------------------------------------------------------------------------


def _against_first(coef: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one score for two classes, else a score a class."""
    return (coef[1:] - coef[:1], bias[1:] - bias[:1]) if len(bias) == 2 else (coef, bias)


def _scaled(scaler: StandardScaler, X: np.ndarray) -> np.ndarray:
    return np.asarray(scaler.transform(X))


def _unscaled(coef: np.ndarray, bias: np.ndarray, scaler: StandardScaler) -> tuple[np.ndarray, np.ndarray]:
    """Return weights on what comes in, of weights on what `scaler` makes of it."""
    coef = coef if scaler.scale_ is None else coef / scaler.scale_
    return coef, bias - coef @ np.asarray(scaler.mean_)


def _rows(X: Any, mask: Any, site: str | None) -> Rows | None:
    """Return documents of rows; None for an array of one row each, which is scikit-learn's to check."""
    several = isinstance(X, Sequence) and not isinstance(X, str) and len(X) and getattr(X[0], "ndim", 0) == 2
    if mask is not None or several or isinstance(X, Rows) or callable(getattr(X, "rows", None)):
        return as_rows(X, mask=mask, site=site)
    return as_rows(X) if getattr(X, "ndim", 0) == 3 or isinstance(X, Tensor) else None


def _array(probe: Any, X: Any, *, reset: bool) -> Float[np.ndarray, "document width"]:
    return np.asarray(validate_data(probe, X, reset=reset, dtype=float))
