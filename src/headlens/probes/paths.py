"""Which penalty? Ridge and logistic regression at every one of them, judged on documents that were left out.

    ridge       min  sum_i |y_i - w . x_i - b|^2 + penalty |w|^2
    logistic    min  sum_i -log p(y_i | x_i) + penalty |w|^2 / 2

b is not penalised. Ridge leaves out each document (or group) exactly, without fitting again: with X, centred,
U S V^T, the fit to all is H y, and the residuals of group g, when the others alone are fitted, are

    (1 - H_gg)^-1 (y - H y)_g        H = 1/n + U diag(s^2 / (s^2 + penalty)) U^T

Logistic regression leaves out folds: each walks its own path from the strongest penalty to the weakest, from nothing.

Axes: document, width, target or score, penalty (strongest first). Source: Allen 1974; Golub, Heath and Wahba 1979.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from headlens._errors import DataError
from headlens.probes.labels import probabilities

PENALTIES = tuple(float(10.0**power) for power in range(-2, 7))


def check_penalties(penalties: Any) -> Float[np.ndarray, " penalty"]:
    """Return penalties, the strongest first."""
    found = np.atleast_1d(np.asarray(penalties, dtype=float))
    if found.ndim != 1 or not found.size or not (np.isfinite(found) & (found > 0)).all():
        raise DataError(f"penalties must be finite numbers above 0, not {penalties!r}.")
    return np.sort(found)[::-1].copy()


def least(losses: Float[np.ndarray, " penalty"]) -> int:
    """Return the least loss's place; of equal ones the strongest penalty's, and 0 where there was no choice."""
    return 0 if np.isnan(losses).all() else int(np.nanargmin(losses))


# --- ridge: one decomposition, every penalty --------------------------------------------------------------


@dataclass(frozen=True)
class RidgePath:
    """A ridge regression at every penalty."""

    coef: Float[np.ndarray, "penalty target width"]
    intercept: Float[np.ndarray, "penalty target"]
    left_out: Float[np.ndarray, "penalty document target"]
    """What a fit to all documents of other groups predicts for each."""


def ridge_path(
    X: Float[np.ndarray, "document width"],
    Y: Float[np.ndarray, "document target"],
    penalties: Float[np.ndarray, " penalty"],
    groups: Int[np.ndarray, " document"] | None = None,
) -> RidgePath:
    """Solve ridge regression at every penalty from one decomposition of X."""
    n = len(X)
    x_mean, y_mean = X.mean(0), Y.mean(0)
    U, S, Vt = np.linalg.svd(X - x_mean, full_matrices=False)
    along = U.T @ (Y - y_mean)  # rank target
    members = [np.arange(n)[:, None]] if groups is None else _members(groups)
    coef, left_out = [], []
    for penalty in penalties:
        kept = S**2 / (S**2 + penalty)
        coef.append((Vt.T @ (along * (S / (S**2 + penalty))[:, None])).T)
        residual = Y - y_mean - U @ (kept[:, None] * along)
        for of in members:  # groups of one size together
            hat = 1 / n + np.einsum("gir,r,gjr->gij", U[of], kept, U[of], optimize=True)
            residual[of] = np.linalg.solve(np.eye(of.shape[1]) - hat, residual[of])
        left_out.append(Y - residual)
    coefs = np.stack(coef)
    return RidgePath(coefs, y_mean - coefs @ x_mean, np.stack(left_out))


def _members(groups: Int[np.ndarray, " document"]) -> list[Int[np.ndarray, "group member"]]:
    """Return the documents of each group, groups of one size in one array."""
    order = np.argsort(groups, kind="stable")
    each = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    if len(each) < 2:
        raise DataError("groups has one group only: leaving it out leaves nothing. Give at least two.")
    return [np.stack([one for one in each if len(one) == size]) for size in sorted({*map(len, each)})]


# --- logistic regression: a path in every fold ------------------------------------------------------------


def logistic_path(X: Any, codes: Int[np.ndarray, " document"], penalties: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return weights and biases at every penalty (strongest first), each fit starting where the one before ended."""
    model = LogisticRegression(warm_start=True, tol=1e-6, max_iter=10_000)
    path = []
    for penalty in penalties:
        model.set_params(C=1 / float(penalty)).fit(X, codes)
        path.append((model.coef_.copy(), np.array(model.intercept_)))
    return path


def held_out_losses(
    prepare: Callable[[np.ndarray, np.ndarray], tuple[Any, Any]],
    codes: Int[np.ndarray, " document"],
    penalties: Float[np.ndarray, " penalty"],
    *,
    folds: int,
    groups: Int[np.ndarray, " document"] | None,
    seed: int,
) -> Float[np.ndarray, " penalty"]:
    """Return the log loss a document at every penalty, of documents whose fold was left out of everything.

    `prepare(train, test)` makes both folds' features from the training fold alone. Documents of a class that lies in
    no other fold cannot be predicted and are not counted. One penalty leaves nothing to choose: its loss is NaN.

    Raises
    ------
    DataError
        If no fold leaves two classes to train on.
    """
    if len(penalties) == 1:
        return np.full(1, np.nan)
    total, counted = np.zeros(len(penalties)), 0
    for train, test in split_folds(codes, groups, folds=folds, seed=seed):
        known = np.unique(codes[train])
        test = test[np.isin(codes[test], known)]
        if len(known) < 2 or not len(test):
            continue
        features, unseen = prepare(train, test)
        wanted = np.searchsorted(known, codes[test])
        for i, (coef, bias) in enumerate(logistic_path(features, codes[train], penalties)):
            scores = unseen @ coef.T + bias
            chance = probabilities(scores[:, 0] if len(known) == 2 else scores)
            total[i] -= np.log(np.maximum(chance[np.arange(len(test)), wanted], 1e-300)).sum()
        counted += len(test)
    if not counted:
        raise DataError(
            "No fold leaves two classes to train on: every class needs documents in two groups, or give one penalty."
        )
    return total / counted


def split_folds(
    codes: Int[np.ndarray, " document"], groups: Int[np.ndarray, " document"] | None, *, folds: int, seed: int
) -> list[tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]]:
    """Return at most `folds` folds with groups kept whole and the classes' shares as alike as that allows."""
    if folds < 2:
        raise DataError(f"folds must be at least 2, not {folds}.")
    groups = np.arange(len(codes)) if groups is None else groups
    most = min(folds, len(np.unique(groups)), int(np.bincount(codes).max()))
    if most < 2:
        raise DataError("Choosing among penalties needs two groups and a class of two documents; give one penalty.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # such a class is counted where it can
        return list(StratifiedGroupKFold(most, shuffle=True, random_state=seed).split(codes, codes, groups))
