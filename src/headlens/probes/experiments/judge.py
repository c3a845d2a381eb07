"""What is a probe worth, on documents it never met, beside what needs no model at all?

    train         the probe learns from these, and so do the baselines
    validation    sets the threshold (the lowest that at most a share `fpr` of the first class exceeds), and calibrates
    test          the figures are of these; nothing was chosen on them

Baselines (`baselines.py`) go by the same rule: what they say of two classes is cut at their own threshold, set on the
same validation documents at the same rate. AdamW, which has to be told when to stop, takes a tenth of "train" for it.

Where the data have no test documents a fifth of all are dealt out, and where they have no validation documents a fifth
of those that train; classes keep their shares, and groups stay whole.

Axes: document, class.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from headlens._errors import DataError
from headlens._result import Provenance, versions
from headlens.data.labelled import Labelled
from headlens.probes.evaluation.baselines import BagOfWords, Majority, RandomDirection
from headlens.probes.evaluation.calibrate import Platt
from headlens.probes.evaluation.metrics import Evaluation, evaluate
from headlens.probes.evaluation.roc import coded, threshold_at_fpr
from headlens.probes.labels import check_groups
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
    fpr: float | None = 0.01,
    calibration: Calibration = "temperature",
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
    probe.fit(Chosen(rows, train), y[train], groups=None if groups is None else groups[train])
    on = f"{data.source}: validation"
    if len(probe.classes_) == 2 and fpr is not None:
        probe.choose_threshold(Chosen(rows, held), y[held], fpr=fpr, on=on)
    if calibration != "none":
        probe.calibrate(Chosen(rows, held), y[held], kind=calibration, on=on)
        if isinstance(probe.calibration_, Platt) and probe.calibration_.slope_ <= 0:
            raise DataError("On the validation documents this probe points backwards: calibrate by temperature.")
    baselines = _baselines(rows, data, fpr=fpr, seed=seed, note=note)
    values = {name: _overall(one) for name, one in baselines.items()}
    tested = np.flatnonzero(_split_of(data) == "test")
    judged = judge(probe, Chosen(rows, tested), data.take(tested), seed=seed, said={"split": "test", "beside": values})
    return Judged(probe, judged, baselines)


def judge(
    probe: Any, rows: Rows, data: Labelled, *, seed: int = 0, said: Mapping[str, Any] | None = None
) -> Evaluation:
    """Return what a fitted probe is worth on documents; its scores are calibrated as far as it has been.

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
    told = {"probe": described(probe), "rows": source, "documents": data.described, **(said or {})}
    provenance = Provenance(data=told, versions=versions())
    return evaluate(
        data.labels, scores, classes=probe.classes_, lengths=rows.lengths, groups=data.groups, threshold=threshold,
        seed=seed, provenance=provenance,
    )  # fmt: skip


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
            if note is not None:
                note(f"{name}: none here ({error})")
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


def _overall(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Metrics over all documents, for a card to hold."""
    keep = ("metric", "at", "value", "low", "high")
    rows = [row for row in evaluation.table.to_pylist() if row["tokens_from"] is None]
    return [{name: row[name] for name in keep} for row in rows]
