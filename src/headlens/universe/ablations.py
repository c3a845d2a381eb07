"""What does phase 2 owe to its parts? The families left out again, with one part of the decoder changed at a time.

    numbers a head         64, 4, 1                per-model terms   with tau and c of every model, and without
    decoder                a tanh layer beside an affine map, and the affine map alone; fewer parts; more passes

Each row is a decoder of the same texts and seed. Skill is that of the heads that joined, on held-out texts, against the
position-only fit of the same texts.

Axes: as in study.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from headlens._errors import DataError
from headlens.axes import HeadId
from headlens.universe.batches import grouped
from headlens.universe.clone import Training, fit_clones
from headlens.universe.decoder import Shape
from headlens.universe.evaluate import POSITION, mean_divergences, skill_of
from headlens.universe.retrieval import median_over_models, over_models, retrieval
from headlens.universe.study import JOINING, Progress, Recorded, labelled, leave_one_family_out, same_models
from headlens.universe.tables import LEAST, named

DOCUMENTS = 64
"""Texts that heads join on: more change little."""
CHANGES: dict[str, tuple[Shape, int]] = {
    "64 numbers a head": (Shape(), 1),
    "4 numbers": (Shape(size=4), 1),
    "1 number": (Shape(size=1), 1),
    "no terms of a model's own": (Shape(own=False), 1),
    "no tanh layer": (Shape(hidden=0), 1),
    "16 parts": (Shape(parts=16), 1),
    "three times the passes": (Shape(), 3),
}
"""Name -> shape of the decoder, and how much longer it is trained."""


def ablations(
    recorded: Recorded,
    labels: Sequence[Mapping[str, Any]],
    kind: str = "induction",
    *,
    only: Sequence[str] | None = None,
    changes: Mapping[str, tuple[Shape, int]] = CHANGES,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Return a row for each change: skill of the joined heads, and how well heads of a kind are found, with intervals.

    Parameters
    ----------
    only
        Families that are left out; None for all.

    Raises
    ------
    DataError
        If no two families have heads of the kind.
    """
    positives = labelled(labels).get(kind, set())
    if len({recorded.families[head.model] for head in positives}) < 2:
        raise DataError(f"No two of these families have {kind} heads: there is nothing to find; ask for another kind.")
    position = _position(recorded, seed)
    rows = []
    for name, (shape, longer) in changes.items():
        training = replace(JOINING, epochs=JOINING.epochs * longer, seed=seed)
        options = {"training": training, "few": (DOCUMENTS,), "shape": shape, "only": only}
        parts = leave_one_family_out(recorded, **options, progress=progress)
        kl = {head: part.kl[head] for part in parts for head in part.joined}
        skill = median_over_models({h: skill_of(kl[h], position[h]) for h in kl if position[h] > LEAST})
        found = {row["query"]: row for row in retrieval([fold for part in parts for fold in part.folds], positives)}
        row: dict[str, Any] = {"decoder": name}
        told = {"skill": skill} | {m: over_models({q: one[m] for q, one in found.items()}) for m in ("recall", "ap")}
        for what, values in told.items():
            row |= named(what, values)
        rows.append(row)
    return rows


def _position(recorded: Recorded, seed: int) -> dict[HeadId, float]:
    """KL of the position-only fit on held-out texts."""
    found = {}
    for group in grouped(recorded.train):
        fit = fit_clones(group, recorded.features, rank=0, training=Training(epochs=2, decay=0.0, seed=seed))
        test, methods = same_models(recorded.test, group), {POSITION: fit.log_patterns}
        found |= mean_divergences(test, recorded.features, methods)[POSITION]
    return found
