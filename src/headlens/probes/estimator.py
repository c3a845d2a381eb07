"""A probe as scikit-learn knows estimators: construct, fit, predict.

    X       documents of rows, in any form that `as_rows` takes: an ActivationStore, a list of (token, width) arrays, a
            padded (document, token, width) array with mask=, a (document, width) array, or `Rows`
    y       what `targets.py` reads: classes, several labels, probabilities or numbers, one a document; with the
            pooling "token" one a row, as a list of arrays or packed, NaN where a row has none (labels of spans)

Scores are logits, of one class against the other where there are two. A document without rows is refused by `fit` and
has the probe's bias as its score everywhere else. X and y are never changed.

Axes: document; row; output = one logit for two classes, else one a class, label or number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import expit
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import ClassifierTags, RegressorTags
from sklearn.utils.validation import check_is_fitted

from headlens._errors import DataError, ResultError
from headlens.probes.card import Kept, same_source
from headlens.probes.labels import check_groups, likeliest, probabilities
from headlens.probes.stream import Stream
from headlens.probes.targets import LOSS, Targets, Task, deal, packed_labels, read_targets
from headlens.probes.training.apply import chunks, read_logits
from headlens.probes.training.module import ProbeModule, Shape, shifts, start
from headlens.probes.training.objective import LOSSES
from headlens.probes.training.pooling import POOLINGS
from headlens.probes.training.train import Optimizer, Spec, train
from headlens.store.rows import Rows, as_rows

PENALTIES = (0.0, 0.001, 0.01, 0.1)
HELD_OUT = 0.1
"""Share of the documents on which AdamW is judged."""


class Probe(Kept):
    """Any pooling, with or without hidden layers, trained by gradients.

    Parameters
    ----------
    pooling
        A name in `POOLINGS`.
    n_heads
        None: 8 where the pooling takes several (10 for "rolling_attention"), else 1.
    before, after
        Widths of hidden layers that each row, or what was pooled, goes through.
    slopes, setting
        Whether heads may look by position; the pooling's temperature, window or alpha.
    task
        "auto": what y looks like.
    penalty
        How much weights shrink: decoupled weight decay with AdamW, penalty / 2 |w|^2 beside the mean loss with L-BFGS.
        "cv": the one of `penalties` with the least loss on documents left out, in `folds` folds that keep groups whole.
    class_weight
        None, "balanced", or numbers by class.
    standardize
        Train on rows of mean 0 and spread 1 in each feature; the weights that come out are for rows as they are.
    validation_fraction
        Share of the documents (whole groups) that AdamW does not train on but is judged by. None: a tenth. 0: it makes
        all its steps, and the last is kept. L-BFGS takes none.
    learning_rate, steps, batch, patience, tolerance
        As in `train`.
    seed
        Of the start, the minibatches and the splits: the same seed gives the same bytes.

    Attributes
    ----------
    module_
        The `ProbeModule`, reading rows as they are.
    classes_
        Of a binary or multi-class task.
    task_, source_, n_features_in_
        What was learned; where the rows came from (None for bare arrays); width of a row.
    threshold_
        Logit above which `predict` says the second class; 0 until `choose_threshold` sets it.
    penalty_, losses_
        The penalty used; with "cv" the loss on left-out documents at each of `penalties`.
    loss_, steps_, converged_
        How training ended, as in `Trained`; of numbers the loss is of numbers of spread 1.
    """

    def __init__(
        self, pooling: str = "attention", *, n_heads: int | None = None, before: Sequence[int] = (),
        after: Sequence[int] = (), slopes: bool = True, setting: float | None = None, task: Task = "auto",
        optimizer: Optimizer = "adamw", penalty: float | Literal["cv"] = 0.0, penalties: Sequence[float] = PENALTIES,
        folds: int = 5, class_weight: Any = None, standardize: bool = True, validation_fraction: float | None = None,
        learning_rate: float = 0.01, steps: int = 1000, batch: int = 256, patience: int = 20, tolerance: float = 1e-5,
        device: str = "cpu", seed: int = 0,
    ) -> None:  # fmt: skip
        self.pooling = pooling
        self.n_heads = n_heads
        self.before = before
        self.after = after
        self.slopes = slopes
        self.setting = setting
        self.task = task
        self.optimizer = optimizer
        self.penalty = penalty
        self.penalties = penalties
        self.folds = folds
        self.class_weight = class_weight
        self.standardize = standardize
        self.validation_fraction = validation_fraction
        self.learning_rate = learning_rate
        self.steps = steps
        self.batch = batch
        self.patience = patience
        self.tolerance = tolerance
        self.device = device
        self.seed = seed

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        regression = self.task == "regression"
        tags.estimator_type = "regressor" if regression else "classifier"
        tags.regressor_tags = RegressorTags() if regression else None
        tags.classifier_tags = None if regression else ClassifierTags()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.input_tags.three_d_array = True
        return tags

    # --- fit ---

    def fit(
        self, X: Any, y: Any, *, mask: Any = None, groups: Any = None, site: str | None = None,
        sample_weight: Any = None,
    ) -> "Probe":  # fmt: skip
        """Learn from documents and their labels.

        Parameters
        ----------
        groups
            One name a document: documents of one group are never on both sides of a split.
        sample_weight
            How much each document counts.

        Raises
        ------
        DataError
            If y does not fit X or the task, there is one class only, a document has no rows, an activation is no
            number, or an option of this probe does not fit the others.
        """
        rows = as_rows(X, mask=mask, site=site)
        n = len(rows.lengths)
        if not n:
            raise DataError("X holds no documents: fitting needs some.")
        by_row = self.pooling == "token"
        labels = packed_labels(y, rows.lengths) if by_row else y
        units = int(np.sum(rows.lengths)) if by_row else n
        targets = read_targets(labels, self.task, units, what="rows" if by_row else "documents")
        groups = check_groups(groups, n)
        weights = _sample_weights(sample_weight, n)

        numbers = targets if targets.task == "regression" else None
        if numbers is not None:  # so that steps are as large as the numbers, whatever their unit
            targets = numbers.standardised()
        if isinstance(self.penalty, str) and self.penalty != "cv":
            raise DataError(f'penalty must be a number of at least 0, or "cv", not {self.penalty!r}.')
        specs = [self._spec(0.0 if isinstance(self.penalty, str) else self.penalty)]
        strata = np.zeros(n, dtype=np.int64) if by_row else targets.strata
        if self.penalty == "cv":
            self.losses_ = self._cross_validate(rows, targets, specs[0], strata, groups, weights)
            specs = [replace(specs[0], penalty=float(self.penalties[_least(self.losses_, self.penalties)]))]
        judging = self._hold_out(np.ones(n, bool), strata, groups)
        trained = self._train(rows, targets, specs, [weights * ~judging], [weights * judging])[0]

        self.module_ = trained.module
        if numbers is not None:
            self.module_ = self.module_.told_in(*map(torch.from_numpy, numbers.spread()))
        self.loss_, self.steps_, self.converged_ = trained.loss, trained.steps, trained.converged
        self._begin(rows.source)
        self.penalty_, self.task_, self.n_features_in_ = specs[0].penalty, targets.task, rows.width
        self.flat_ = targets.flat
        if targets.classes is not None:
            self.classes_ = targets.classes
        return self

    def _spec(self, penalty: float) -> Spec:
        if self.pooling not in POOLINGS:
            raise DataError(f"pooling must be one of {', '.join(POOLINGS)}, not {self.pooling!r}.")
        usual = {"rolling_attention": 10}.get(self.pooling, 8) if POOLINGS[self.pooling].several_heads else 1
        return Spec(
            self.pooling, usual if self.n_heads is None else self.n_heads, tuple(self.before), tuple(self.after),
            self.slopes, self.setting, float(penalty), self.learning_rate, self.standardize, self.seed,
        )  # fmt: skip

    def _train(
        self, rows: Rows, targets: Targets, specs: list[Spec], weights: list[np.ndarray], judging: list[np.ndarray]
    ) -> list[Any]:
        importance = targets.known * targets.class_weights(self.class_weight)
        return train(
            rows, torch.as_tensor(targets.values).float(), specs, torch.as_tensor(np.stack(weights)),
            validation=torch.as_tensor(np.stack(judging)), importance=torch.as_tensor(importance),
            loss=LOSS[targets.task], optimizer=cast(Optimizer, self.optimizer), steps=self.steps, batch=self.batch,
            patience=self.patience, tolerance=self.tolerance, seed=self.seed, device=self.device,
        )  # fmt: skip

    def _hold_out(self, inside: np.ndarray, strata: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        """Choose the documents, among those inside, that training is judged by."""
        usual = HELD_OUT if self.optimizer == "adamw" else 0.0
        share = usual if self.validation_fraction is None else self.validation_fraction
        if not 0 <= share < 1:
            raise DataError(f"validation_fraction must be at least 0 and less than 1, not {share}.")
        out = np.zeros(len(inside), dtype=bool)
        if share:
            at = np.flatnonzero(inside)
            parts = max(2, round(1 / min(share, 1 - share)))
            fold = deal(len(at), parts, strata[at], None if groups is None else groups[at], self.seed)
            out[at] = (fold == 0) == (share <= 0.5)
        return out

    def _cross_validate(
        self, rows: Rows, targets: Targets, spec: Spec, strata: np.ndarray, groups: np.ndarray | None,
        weights: np.ndarray,
    ) -> Float[np.ndarray, " penalty"]:  # fmt: skip
        """Return the loss on documents left out at each penalty; every fold and penalty is trained together."""
        n = len(rows.lengths)
        if not 2 <= self.folds <= n:
            raise DataError(f"folds must be from 2 to the number of documents ({n}), not {self.folds}.")
        fold = deal(n, self.folds, strata, groups, self.seed + 1)
        if len(np.unique(fold)) < self.folds:
            raise DataError(f"{self.folds} folds need as many groups at least, not {len(np.unique(fold))}.")
        specs, training, judging = [], [], []
        for k in range(self.folds):
            judges = self._hold_out(fold != k, strata, groups)
            for penalty in self.penalties:
                specs.append(replace(spec, penalty=float(penalty)))
                training.append(weights * ((fold != k) & ~judges))
                judging.append(weights * judges)
        trained = self._train(rows, targets, specs, training, judging)
        target = torch.as_tensor(targets.values)[:, None]
        importance = targets.known * targets.class_weights(self.class_weight)
        of_unit = np.repeat(np.arange(n), rows.lengths) if self.pooling == "token" else np.arange(n)
        losses = np.zeros(len(self.penalties))
        for i, logit in enumerate(read_logits([one.module for one in trained], rows)):
            left_out = (fold == i // len(self.penalties))[of_unit] * importance * weights[of_unit]
            own = LOSSES[LOSS[targets.task]](logit[:, None].double(), target)[:, 0].numpy()
            losses[i % len(self.penalties)] += (own * left_out).sum() / max(left_out.sum(), 1e-300) / self.folds
        return losses

    # --- predict ---

    def decision_function(self, X: Any, *, mask: Any = None, site: str | None = None) -> Any:
        """Return logits: (document,) of the second of two classes, else (document, output).

        With the pooling "token", a list of such arrays: one for each document, a logit for each row.

        Raises
        ------
        DataError
            If X comes from another model or site than the probe was fitted to, has another width, or holds NaN.
        """
        rows, logits = self._logits(X, mask, site)
        return self._by_document(logits, rows)

    def predict(self, X: Any, *, mask: Any = None, site: str | None = None) -> Any:
        """Return the class of each document (of two, the second above `threshold_`), its labels, or its numbers."""
        rows, logits = self._logits(X, mask, site)
        return self._by_document(self._answers(logits), rows)

    def predict_proba(self, X: Any, *, mask: Any = None, site: str | None = None) -> Any:
        """Return the probability of each class, columns as in `classes_`, or of each label; calibrated if the probe is.

        Raises
        ------
        DataError
            If the probe was fitted to numbers, which have none.
        """
        rows, logits = self._logits(X, mask, site)
        if self.task_ == "regression":
            raise DataError("A probe of numbers has no probabilities: call predict.")
        chances = expit(logits) if self.task_ == "multilabel" else probabilities(self.calibrated(logits))
        return self._by_document(chances, rows)

    def score(self, X: Any, y: Any, sample_weight: Any = None, *, mask: Any = None, site: str | None = None) -> float:
        """Return the share of documents (or labelled rows) whose answer is right; of numbers, R^2."""
        rows, logits = self._logits(X, mask, site)
        answers = self._answers(logits)
        y = np.asarray(packed_labels(y, rows.lengths) if self.pooling == "token" else y)
        if y.ndim == 2 and self.flat_:
            y = y[:, 0]
        known = ~np.isnan(y.reshape(len(y), -1)).any(1) if y.dtype.kind == "f" else np.ones(len(y), bool)
        measure = r2_score if self.task_ == "regression" else accuracy_score
        weight = None if sample_weight is None else np.asarray(sample_weight)[known]
        return float(measure(y[known], answers[known], sample_weight=weight))

    def _answers(self, logits: np.ndarray) -> np.ndarray:
        if self.task_ == "regression":
            return logits
        if self.task_ == "multilabel":
            return (logits > self.threshold_).astype(np.int64)
        return self.classes_[likeliest(logits - self.threshold_ if logits.ndim == 1 else logits)]

    def _logits(self, X: Any, mask: Any, site: str | None) -> tuple[Rows, np.ndarray]:
        rows = self._rows(X, mask, site)
        logits = read_logits([self.module_], rows)[0].numpy()
        return rows, logits[:, 0] if self.task_ == "binary" or (self.flat_ and self.task_ == "regression") else logits

    def _rows(self, X: Any, mask: Any, site: str | None) -> Rows:
        check_is_fitted(self)
        if site is None and hasattr(X, "rows") and self.source_ is not None:
            site = self.source_.get("site")
        rows = as_rows(X, mask=mask, site=site)
        same_source(self.source_, rows.source)
        if rows.width != self.n_features_in_:
            raise DataError(f"X has rows of {rows.width} numbers; this probe was fitted to {self.n_features_in_}.")
        return rows

    def _by_document(self, units: np.ndarray, rows: Rows) -> Any:
        return np.split(units, np.cumsum(rows.lengths)[:-1]) if self.pooling == "token" else units

    # --- look inside ---

    def attention(
        self, X: Any, *, mask: Any = None, site: str | None = None
    ) -> list[Float[np.ndarray, "token head *output"]]:
        """Return how much of each token's score is taken, head by head; of "absmax" the share of features.

        Where several outputs each choose their tokens (max, rolling windows, ...) there is a third axis, output.
        """
        return self._of_tokens(ProbeModule.weights, X, mask, site)

    def score_tokens(self, X: Any, *, mask: Any = None, site: str | None = None) -> list[np.ndarray]:
        """Return what each token adds to the logit, (token,) or (token, output) for each document.

        With `module_.bias` they sum to the logit; behind hidden layers they do so at first order, as
        `ProbeModule.contributions` says.
        """
        return self._of_tokens(ProbeModule.contributions, X, mask, site)

    def _of_tokens(self, read: Any, X: Any, mask: Any, site: str | None) -> list[np.ndarray]:
        rows, out = self._rows(X, mask, site), []
        for _, part, at in chunks(rows, self.module_.shape.width):
            with torch.no_grad():
                values = read(self.module_, part, at.lengths)
            values = values[..., 0] if values.shape[-1] == 1 else values
            out += [one.numpy() for one in values.split(at.lengths.tolist())]
        return out

    def stream(self) -> Stream:
        """Begin to follow one text, row by row."""
        check_is_fitted(self)
        return Stream(self.module_)

    def with_pooling(self, pooling: str) -> "Probe":
        """Return a fitted probe with these weights and another pooling, as in "trained as attention, used as multimax".

        Its threshold and calibration have to be set anew: the scores are others.
        """
        check_is_fitted(self)
        other = Probe(**{**self.get_params(), "pooling": pooling, "setting": None})
        vars(other).update({name: value for name, value in vars(self).items() if name.endswith("_")})
        other._begin(self.source_)
        other.module_ = self.module_.with_pooling(pooling)
        return other

    # --- keep ---

    def _learned(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        plain, arrays = super()._learned()
        shape = vars(plain.pop("module_").shape)
        weights = {f"module.{name}": value.numpy() for name, value in self.module_.state_dict().items()}
        return plain | {"shape": shape}, arrays | weights

    def _restore(self, card: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        learned: dict[str, Any] = dict(card["learned"])
        said = learned.pop("shape")
        shape = Shape(**(said | {"before": tuple(said["before"]), "after": tuple(said["after"])}))
        own = {name: value for name, value in arrays.items() if not name.startswith("module.")}
        super()._restore({**card, "learned": learned}, own)
        weights = {}
        for name, first in (shifts(shape) | start(shape, 0)).items():
            weights[name] = torch.from_numpy(arrays[f"module.{name}"])
            if weights[name].shape != first.shape:
                raise ResultError(f"{name} is {tuple(weights[name].shape)} and must be {tuple(first.shape)}.")
        self.module_ = ProbeModule(shape, weights)


class AttentionProbe(Probe):
    """The published attention probe, with a start from which a head finds the last token: `Probe` with its pooling."""

    def __init__(
        self, n_heads: int = 8, *, before: Sequence[int] = (), after: Sequence[int] = (), slopes: bool = True,
        task: Task = "auto", optimizer: Optimizer = "adamw", penalty: float | Literal["cv"] = 0.0,
        penalties: Sequence[float] = PENALTIES, folds: int = 5, class_weight: Any = None, standardize: bool = True,
        validation_fraction: float | None = None, learning_rate: float = 0.01, steps: int = 1000, batch: int = 256,
        patience: int = 20, tolerance: float = 1e-5, device: str = "cpu", seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(
            "attention", n_heads=n_heads, before=before, after=after, slopes=slopes, task=task, optimizer=optimizer,
            penalty=penalty, penalties=penalties, folds=folds, class_weight=class_weight, standardize=standardize,
            validation_fraction=validation_fraction, learning_rate=learning_rate, steps=steps, batch=batch,
            patience=patience, tolerance=tolerance, device=device, seed=seed,
        )  # fmt: skip


def _sample_weights(sample_weight: Any, n: int) -> Float[np.ndarray, " document"]:
    if sample_weight is None:
        return np.ones(n)
    weights = np.asarray(sample_weight, dtype=float)
    if weights.shape != (n,) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise DataError(f"sample_weight must be one number of at least 0 a document, ({n},).")
    return weights


def _least(losses: np.ndarray, penalties: Sequence[float]) -> int:
    """The least loss's place; of equal ones the strongest penalty's."""
    return min(range(len(losses)), key=lambda i: (losses[i], -penalties[i]))
