"""What do the texts say by themselves? The rivals of a sweep that need no model, judged on the same documents.

    majority        the classes' shares
    bag_of_words    logistic regression on TF-IDF, which sees the documents that train and those that choose

They are told as a `Sweep` whose configs have no site, so that they stand beside probes and are drawn with them.

Axes as in `sweep.py`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from headlens._errors import DataError
from headlens._result import Provenance, versions
from headlens.data.labelled import Labelled
from headlens.probes.evaluation.baselines import BagOfWords, Majority
from headlens.probes.labels import check_groups
from headlens.probes.sweep import SCHEMA, Config, Sweep, _check_classes, _folds, _given
from headlens.probes.targets import read_targets

RIVALS = ("majority", "bag_of_words")


def sweep_texts(data: Labelled, *, folds: int | None = 5, split: Any = None, seed: int = 0) -> Sweep:
    """Return what the rivals say of the documents; `folds`, `split` and `seed` as in the `sweep` they stand beside.

    Raises
    ------
    DataError
        If labels are no classes, one is missing where it is needed, or no text has a word.
    """
    n = len(data)
    targets = read_targets(data.labels, "auto", n)
    if targets.classes is None:
        raise DataError(f"A sweep compares probes of classes, and {data.source} looks like a {targets.task} task.")
    units = check_groups(data.groups, n)
    rounds = (
        _given(split, n, targets, units, seed) if split is not None else _folds(n, folds or 5, targets, units, seed)
    )
    _check_classes(rounds, targets)
    texts = np.array([*data.texts, None], dtype=object)[:-1]  # an array of texts of whatever length
    logits = np.full((len(RIVALS), 1, n, targets.values.shape[1]), np.nan, np.float32)
    judged, table = np.full(n, -1), []
    for k, one in enumerate(rounds):
        learn = one.train | one.choose
        judged[one.judge] = k
        for i, (name, rival) in enumerate(zip(RIVALS, (Majority(), BagOfWords(seed=seed)), strict=True)):
            some = {} if isinstance(rival, Majority) or units is None else {"groups": units[learn]}
            rival.fit(texts[learn], data.labels[learn], **some)
            logits[i, 0, one.judge] = _columns(rival, texts[one.judge], targets.classes)
            penalty = getattr(rival, "penalty_", None)
            table.append(
                {
                    "site": "",
                    "pooling": name,
                    "n_heads": 1,
                    "optimizer": "",
                    "penalty": penalty,
                    "round": k,
                    "chosen": True,
                }
            )
    said = {
        "configs": [list(Config("", name, 1, "")) for name in RIVALS], "classes": targets.classes.tolist(),
        "seeds": [0], "rounds": len(rounds), "given_split": split is not None, "grouped": units is not None,
    }  # fmt: skip
    provenance = Provenance(data={"sweep": said, "documents": data.described}, seed=seed, versions=versions())
    codes = targets.values.argmax(1) if targets.task == "multiclass" else targets.values[:, 0].astype(np.int64)
    units = np.arange(n) if units is None else units
    return Sweep(provenance, pa.Table.from_pylist(table, SCHEMA), logits, codes, judged, units)


def _columns(rival: Any, texts: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Scores, a column for each output of a probe; a class that a rival has never met is all but impossible."""
    scores = np.asarray(rival.decision_function(texts), dtype=float)
    if scores.ndim == 1 and len(classes) == 2:
        return scores[:, None]
    scores = scores if scores.ndim == 2 else np.stack([0 * scores, scores], 1)
    out = np.full((len(texts), len(classes)), scores.min() - 20)
    out[:, np.searchsorted(classes, rival.classes_)] = scores
    return out


def beside(probes: Sweep, rivals: Sequence[Sweep]) -> Sweep:
    """Return one sweep of probes at one site and of rivals, as if these had been at that site.

    Raises
    ------
    DataError
        If they are not of the same documents, or were not judged in the same rounds.
    """
    (site,) = {config.site for config in probes.configs}
    logits, tables, configs = [probes.logits], [probes.table], list(probes.configs)
    for one in rivals:
        for name in ("codes", "rounds", "units"):
            if not np.array_equal(getattr(one, name), getattr(probes, name)):
                raise DataError("The sweeps to compare are of other documents or rounds: make both again.")
        logits.append(np.repeat(one.logits, probes.logits.shape[1], axis=1))
        tables.append(one.table)
        configs += [config._replace(site=site) for config in one.configs]
    said = {**probes.provenance.data["sweep"], "configs": [list(config) for config in configs]}
    provenance = replace(probes.provenance, data={**probes.provenance.data, "sweep": said})
    moved = pa.concat_tables(
        [part.set_column(0, "site", pa.array([site] * part.num_rows, pa.string())) for part in tables]
    )
    return Sweep(provenance, moved, np.concatenate(logits), probes.codes, probes.rounds, probes.units)
