"""What is a probe worth, on documents it never met, beside what needs no model at all?

    train         the probe learns from these, and so do the baselines
    validation    calibrates, and sets the threshold where one is asked for (the lowest that at most a share `fpr` of
                  the first class exceeds; else the likelier class is said)
    test          the figures are of these; nothing was chosen on them

Baselines (`baselines.py`) go by the same rule: where a threshold is asked for, what they say of two classes is cut at
their own, set on the same validation documents at the same rate. The probe itself is fitted anew to permuted labels,
and to a control task, whose accuracy it has to beat (selectivity; both say the likelier class). AdamW, which has to be
told when to stop, takes a tenth of "train" for it.

Where the data have no test documents a fifth of all are dealt out, and where they have no validation documents a fifth
of those that train; classes keep their shares, and groups stay whole.

Axes: document, class.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import clone

from headlens._errors import DataError
from headlens._result import Provenance, versions
from headlens.data.labelled import Labelled
from headlens.probes.evaluation.baselines import (
    BagOfWords,
    Majority,
    RandomDirection,
    Selectivity,
    selectivity,
)
from headlens.probes.evaluation.calibrate import Platt
from headlens.probes.evaluation.metrics import Evaluation, entropy_ratio, evaluate
from headlens.probes.evaluation.roc import coded, threshold_at_fpr
from headlens.probes.experiments.controls import with_labels_of_nothing
from headlens.probes.labels import check_groups, likeliest
from headlens.probes.readings import described
from headlens.probes.targets import deal
from headlens.store.rows import Chosen, Rows

FIFTH = 5
Calibration = Literal["temperature", "platt", "none"]


@dataclass(frozen=True)
class Judged:
    """A fitted probe, and what it and its rivals came to on the test documents."""

    probe: Any
    evaluation: Evaluation
    baselines: Mapping[str, Evaluation]
    selectivity: Selectivity | None
    """Of the probe's kind; None where it was not asked for, or the words of the data make no control task."""


def with_splits(data: Labelled, *, seed: int = 0) -> Labelled:
    """Return the data with train, validation and test documents, dealing out those that are missing.

    Raises
    ------
    DataError
        If labels are no classes, or a class is too rare to be in all three.
    """
    if data.labels.dtype.kind == "f":
        raise DataError(f"{data.source} has labels that are numbers, not classes: fit headlens.probes.Probe in Python.")
    codes = np.unique(data.labels, return_inverse=True)[1]
    groups = check_groups(data.groups, len(data))
    splits = np.array(["train"] * len(data), dtype="<U10") if data.splits is None else data.splits.astype("<U10")
    for name in ("test", "validation"):
        at = np.flatnonzero(splits == "train")
        if (splits == name).any() or not len(at):
            continue
        fold = deal(len(at), FIFTH, codes[at], None if groups is None else groups[at], seed)
        splits[at[fold == 0]] = name
    for name in ("train", "validation", "test"):
        n_classes = len(np.unique(codes[splits == name]))
        if n_classes < 2:
            there = "no document" if not n_classes else "documents of one class only"
            raise DataError(f"{data.source} has {there} to {_USE[name]} ({name}): it needs more, or other splits.")
    return replace(data, splits=splits)


_USE = {"train": "learn from", "validation": "set the threshold on", "test": "be judged on"}


def fit_and_judge(
    probe: Any,
    rows: Rows,
    data: Labelled,
    *,
    fpr: float | None = None,
    calibration: Calibration = "temperature",
    controls: bool = True,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> Judged:
    """Fit a probe to the train documents, set it up on the validation ones, and judge it on the test ones.

    Parameters
    ----------
    rows
        Of the data's documents, in their order.
    data
        With all three splits: `with_splits`.
    fpr
        None: the likelier class is said. Of more than two classes it always is.
    controls
        Fit the same kind of probe to permuted labels and a control task too.
    note
        Called with a sentence on a baseline that these data cannot have.

    Raises
    ------
    DataError
        If rows and documents differ in number, or the probe cannot be fitted to them.
    """
    check_documents(rows, data)
    train, held = (np.flatnonzero(_split_of(data) == name) for name in ("train", "validation"))
    y, groups = data.labels, data.groups
    fresh: Any = clone(probe)
    probe.fit(Chosen(rows, train), y[train], groups=None if groups is None else groups[train])
    on = f"{data.source}: validation"
    if len(probe.classes_) == 2 and fpr is not None:
        probe.choose_threshold(Chosen(rows, held), y[held], fpr=fpr, on=on)
    if calibration != "none":
        probe.calibrate(Chosen(rows, held), y[held], kind=calibration, on=on)
        _check_slope(probe.calibration_)
        if isinstance(probe.calibration_, Platt) and fpr is None:  # where its log-odds are 0
            probe.threshold_ = -probe.calibration_.offset_ / probe.calibration_.slope_
    baselines, selective = _baselines(rows, data, fpr=fpr, seed=seed, note=note), None
    if controls:
        permuted, selective = _controls(fresh, probe, rows, data, fpr=fpr, seed=seed, note=note)
        baselines |= permuted
    said = {"split": "test", "beside": {name: _overall(one) for name, one in baselines.items()}}
    said["selectivity"] = None if selective is None else vars(selective)
    tested = np.flatnonzero(_split_of(data) == "test")
    judged = judge(probe, Chosen(rows, tested), data.take(tested), seed=seed, said=said)
    return Judged(probe, judged, baselines, selective)


def _check_slope(calibration: Any) -> None:
    if isinstance(calibration, Platt) and calibration.slope_ <= 0:
        raise DataError("On the validation documents this probe points backwards: calibrate by temperature.")


def judge(
    probe: Any, rows: Rows, data: Labelled, *, seed: int = 0, said: Mapping[str, Any] | None = None
) -> Evaluation:
    """Return what a fitted probe is worth on documents; its scores are calibrated as far as it has been.

    `provenance.data["entropy_ratio"]` is how evenly a probe with attention attends over the tokens that there are, 0 to
    1, a mean over heads and documents.

    Raises
    ------
    DataError
        If rows and documents differ in number, come from another model or site than the probe was fitted to, or a
        label is none of its classes.
    """
    check_documents(rows, data)
    scores = probe.calibrated(probe.decision_function(rows))
    threshold = float(probe.calibrated(np.array([probe.threshold_]))[0]) if scores.ndim == 1 else 0.0
    source = None if rows.source is None else dict(rows.source)
    entropy = _entropy(probe, rows)
    told = {"probe": described(probe), "rows": source, "documents": data.described, "entropy_ratio": entropy}
    told |= said or {}
    provenance = Provenance(data=told, versions=versions())
    return evaluate(
        data.labels, scores, classes=probe.classes_, lengths=rows.lengths, groups=data.groups, threshold=threshold,
        seed=seed, provenance=provenance,
    )  # fmt: skip


def _entropy(probe: Any, rows: Rows) -> float | None:
    if probe.pooling != "attention":
        return None
    ratios = [
        entropy_ratio(weights.reshape(len(weights), -1), [0, len(weights)])
        for weights in probe.attention(rows)
    ]  # fmt: skip
    told = np.concatenate(ratios)[~np.isnan(np.concatenate(ratios))]
    return float(told.mean()) if told.size else None


def check_documents(rows: Rows, data: Labelled) -> None:
    if len(rows.lengths) != len(data):
        raise DataError(f"There are rows of {len(rows.lengths)} documents and {len(data)} labels: capture them again.")


def _split_of(data: Labelled) -> np.ndarray:
    if data.splits is None:
        raise DataError(f"{data.source} names no splits: deal them out with `with_splits`.")
    return data.splits


# --- rivals -----------------------------------------------------------------------------------------------


def _baselines(
    rows: Rows, data: Labelled, *, fpr: float | None, seed: int, note: Callable[[str], None] | None
) -> dict[str, Evaluation]:
    texts = np.array([*data.texts, None], dtype=object)[:-1]  # an array of texts of whatever length
    rivals: dict[str, tuple[Any, Callable[[np.ndarray], Any]]] = {
        "majority": (Majority(), lambda some: texts[some]),
        "bag of words": (BagOfWords(seed=seed), lambda some: texts[some]),
        "random direction": (RandomDirection(seed=seed), lambda some: Chosen(rows, some)),
    }
    found = {}
    for name, (rival, read) in rivals.items():
        try:
            found[name] = _judged_rival(rival, read, data, fpr=fpr, seed=seed)
        except DataError as error:
            _say(note, f"{name}: none here ({error})")
    return found


def _judged_rival(
    rival: Any, read: Callable[[Int[np.ndarray, " some"]], Any], data: Labelled, *, fpr: float | None, seed: int
) -> Evaluation:
    train, held, test = (np.flatnonzero(_split_of(data) == name) for name in ("train", "validation", "test"))
    rival.fit(read(train), data.labels[train])
    scores: Float[np.ndarray, "*any"] = rival.decision_function(read(test))
    threshold = 0.0
    if scores.ndim == 1 and fpr is not None:
        codes = coded(data.labels[held], rival.classes_.tolist(), len(held))
        threshold = threshold_at_fpr(codes, rival.decision_function(read(held)), fpr)
    groups = None if data.groups is None else data.groups[test]
    return evaluate(
        data.labels[test], scores, classes=rival.classes_, groups=groups, threshold=threshold, seed=seed
    )  # fmt: skip


def _controls(
    fresh: Any, probe: Any, rows: Rows, data: Labelled, *, fpr: float | None, seed: int,
    note: Callable[[str], None] | None,
) -> tuple[dict[str, Evaluation], Selectivity | None]:  # fmt: skip
    """Fit the probe's kind to labels of nothing."""
    train, tested = (np.flatnonzero(_split_of(data) == name) for name in ("train", "test"))
    permuted, selective = {}, None
    try:
        nothing = replace(data, labels=with_labels_of_nothing(data, "permuted_labels", seed=seed))
        permuted["permuted labels"] = _judged_rival(
            clone(fresh), lambda some: Chosen(rows, some), nothing, fpr=fpr, seed=seed
        )
    except DataError as error:
        _say(note, f"permuted labels: none here ({error})")
    try:
        words = with_labels_of_nothing(data, "control_task", seed=seed)
        control: Any = clone(fresh)
        control.fit(Chosen(rows, train), words[train])
        answers = (likeliest(one.decision_function(Chosen(rows, tested))) for one in (probe, control))
        said, by_heart = (one.classes_[codes] for one, codes in zip((probe, control), answers, strict=True))
        selective = selectivity(data.labels[tested], said, words[tested], by_heart, seed=seed)
    except DataError as error:
        _say(note, f"control task: none here ({error})")
    return permuted, selective


def _say(note: Callable[[str], None] | None, sentence: str) -> None:
    if note is not None:
        note(sentence)


def _overall(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Metrics over all documents, for a card to hold."""
    keep = ("metric", "at", "value", "low", "high")
    rows = [row for row in evaluation.table.to_pylist() if row["tokens_from"] is None]
    return [{name: row[name] for name in keep} for row in rows]
