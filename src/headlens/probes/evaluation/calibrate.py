"""How sure is a probe really? Scores made into log-odds that can be believed.

    temperature    z' = z / T              one number for all classes; never changes which class is likeliest
    Platt          z' = slope z + offset   two classes; may move the threshold, and turns a score that points backwards

Both minimise the log loss of held-out documents: of `softmax(z')`, or of `sigmoid(z')` where two classes have one
score. Multiplying the scores by c multiplies T by c and divides the slope by c.

Axes: document, class. Unit: logits in, logits out. Source: Guo et al. 2017; Platt 1999; Lin, Lin and Weng 2007.
"""

from typing import Any, cast

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq, minimize
from scipy.special import expit, log_expit, softmax
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from headlens._errors import DataError

_STEEPEST = 1e3  # largest and, inverted, smallest 1 / T, in units of the scores' root mean square
Scores = Float[np.ndarray, " document"] | Float[np.ndarray, "document class"]


class _Calibration(BaseEstimator):
    """What both have in common: parameters that fit in a card."""

    kind: str
    _learned: tuple[str, ...]

    def parameters(self) -> dict[str, Any]:
        """Return what was learned as plain numbers, for `from_parameters`."""
        check_is_fitted(self)
        return {"kind": self.kind, **{name: getattr(self, f"{name}_") for name in self._learned}}


class Temperature(_Calibration):
    """Divide scores by one number, `temperature_`.

    Scores that tell nothing, or that always tell, have no best temperature: it then stops where the scores' root mean
    square becomes a thousandth, or a thousand.
    """

    kind = "temperature"
    _learned = ("temperature",)

    def fit(self, scores: Any, y: Any) -> "Temperature":
        """Fit to labels 0, 1, ... (columns of `scores`), or to soft labels: probabilities shaped like the scores."""
        z, wanted = _checked(scores, y)
        size = float(np.sqrt((z**2).mean())) or 1.0
        z = z / size

        def slope(log_scale: float) -> float:  # of the log loss, which is convex in the scale 1 / T
            scaled = np.exp(log_scale) * z
            return float(((_probabilities(scaled) - wanted) * z).sum())

        ends = -np.log(_STEEPEST), np.log(_STEEPEST)
        if slope(ends[0]) >= 0:
            best = ends[0]
        elif slope(ends[1]) <= 0:
            best = ends[1]
        else:
            best = cast(float, brentq(slope, *ends, xtol=1e-14))
        self.temperature_ = float(size * np.exp(-best))
        return self

    def transform(self, scores: Any) -> Scores:
        check_is_fitted(self)
        return _finite(scores) / self.temperature_


class Platt(_Calibration):
    """Map scores of two classes by a line, `slope_` and `offset_`.

    The labels are smoothed towards each other as Platt does, by one document a class, so that separable scores have an
    answer too; soft labels are taken as they are.
    """

    kind = "platt"
    _learned = ("slope", "offset")

    def fit(self, scores: Any, y: Any) -> "Platt":
        """Fit to labels 0 and 1, or to soft labels: the probability of class 1."""
        z, wanted = _checked(scores, y)
        if z.ndim != 1:
            raise DataError(f"Platt takes one score a document, not {z.shape[1]}: use Temperature for many classes.")
        if np.isin(wanted, (0, 1)).all():
            ones = wanted.sum()
            wanted = np.where(wanted == 1, (ones + 1) / (ones + 2), 1 / (len(wanted) - ones + 2))
        middle, size = z.mean(), float(z.std()) or 1.0
        u = (z - middle) / size

        def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
            logit = line[0] * u + line[1]
            gap = expit(logit) - wanted
            loss = -(wanted * log_expit(logit) + (1 - wanted) * log_expit(-logit)).mean()
            return float(loss), np.array([(gap * u).mean(), gap.mean()])

        def curvature(line: np.ndarray) -> np.ndarray:
            weight = expit(line[0] * u + line[1]) * expit(-line[0] * u - line[1])
            off = (weight * u).mean()
            return np.array([[(weight * u**2).mean(), off], [off, weight.mean()]])

        found = minimize(loss, np.zeros(2), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-12})
        self.slope_ = float(found.x[0] / size)
        self.offset_ = float(found.x[1] - found.x[0] * middle / size)
        return self

    def transform(self, scores: Any) -> Float[np.ndarray, " document"]:
        check_is_fitted(self)
        scores = _finite(scores)
        if scores.ndim != 1:
            raise DataError(f"Platt takes one score a document, not scores of shape {scores.shape}.")
        return self.slope_ * scores + self.offset_


def from_parameters(parameters: dict[str, Any]) -> Temperature | Platt:
    """Return the calibration whose `parameters()` these are.

    Raises
    ------
    DataError
        If they are of no kind of calibration, or one is missing.
    """
    kinds: dict[str, type[Temperature] | type[Platt]] = {one.kind: one for one in (Temperature, Platt)}
    kind = kinds.get(parameters.get("kind", ""))
    if kind is None or set(parameters) != {"kind", *kind._learned}:
        raise DataError(f"{parameters} are not the parameters of a calibration: kind must be one of {sorted(kinds)}.")
    calibration = kind()
    for name in kind._learned:
        setattr(calibration, f"{name}_", float(parameters[name]))
    return calibration


def _probabilities(z: np.ndarray) -> np.ndarray:
    return expit(z) if z.ndim == 1 else softmax(z, axis=1)


def _checked(scores: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return scores, and labels as probabilities of the same shape."""
    z, y = _finite(scores), np.asarray(y)
    if z.ndim not in (1, 2) or len(y) != len(z) or not len(z):
        raise DataError(
            f"scores must be (document,) or (document, class) with as many labels, not {z.shape} with {y.shape}."
        )
    if y.dtype.kind not in "biuf":
        raise DataError(f"Labels to calibrate on must be numbers, columns of the scores, not {y.dtype}.")
    if y.shape == z.shape:
        wanted = y.astype(float)
        if not ((wanted >= 0) & (wanted <= 1)).all() or (z.ndim == 2 and np.abs(wanted.sum(1) - 1).max() > 1e-6):
            raise DataError("Labels to calibrate on must be 0 or 1, or probabilities that sum to one.")
        return z, wanted
    columns = np.arange(z.shape[-1]) if z.ndim == 2 else np.arange(2)
    if y.ndim != 1 or not np.isin(y, columns).all():
        raise DataError(f"Labels to calibrate on must be columns of the scores, 0 to {columns[-1]}.")
    return z, np.eye(len(columns))[y.astype(int)]


def _finite(scores: Any) -> np.ndarray:
    z = np.asarray(scores, dtype=float)
    if not np.isfinite(z).all():
        raise DataError("Scores to calibrate must be finite numbers.")
    return z
