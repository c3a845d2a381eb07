"""Does sharing a decoder pay, where there are few texts? Heads that join on n of them, beside what needs no decoder.

    phase 2         numbers of a head that joins a decoder of other families, on n texts
    clone           a map of its own, from scratch, on the same n texts; `shuffled texts`: shown another text
    nearest head    the clone (on all texts) of a head of another family that fits best on these n texts
    position only, symbolic, mean pattern, sink    of the same n texts;  uniform    of none

    above = sum of KL / sum of KL on the most texts - 1       gap = mean of (KL of phase 2 - KL of the method)

Every fit takes at least as many steps as on all texts, at the same rates and decay; nothing is chosen on held-out
texts. Skill is relative to the position-only fit of all texts.

Axes: as in study.py. Unit: nats a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from headlens._statistics import interval_of
from headlens.axes import HeadId
from headlens.universe.baselines import Predictor
from headlens.universe.batches import Group, grouped
from headlens.universe.clone import RANK, Clones, Training
from headlens.universe.evaluate import mean_divergences, skill_of
from headlens.universe.retrieval import drawn_models, median_over_models, over_models
from headlens.universe.study import FEW, OURS, Progress, Recorded, counts_of, fits_of, methods_of, same_models
from headlens.universe.tables import LEAST, named

Told = Mapping[str, Mapping[int, Mapping[HeadId, float]]]
"""Method -> number of texts -> KL of each head on held-out texts."""


def few_study(
    recorded: Recorded,
    clones: Clones,
    *,
    few: Sequence[int] = FEW,
    rank: int = RANK,
    training: Training | None = None,
    progress: Progress | None = None,
) -> Told:
    """Return what every method tells that is fitted on the texts which heads join on, and on nothing else.

    Parameters
    ----------
    clones
        Of all heads, on all texts: the nearest head is chosen from them.
    training
        That of the clones on all texts.
    """
    training, features, counts = training or Training(), recorded.features, counts_of(recorded, few)
    found: dict[str, dict[int, dict[HeadId, float]]] = {}
    for group in grouped(recorded.train):
        methods: dict[tuple[str, int], Predictor] = {}
        for i, n in enumerate(counts):
            part = group.first(n)
            fitted = fits_of(part, features, rank=rank, training=as_long(training, group, part))
            own = methods_of(part, features, fitted, clones, recorded.families, shards=part.n_shards)
            methods |= {(name, n): predict for name, predict in own.items()}
            if progress is not None:
                progress(f"{', '.join(group.models)}: few texts", i + 1, len(counts))
        for (name, n), kl in mean_divergences(same_models(recorded.test, group), features, methods).items():
            found.setdefault(name, {}).setdefault(n, {}).update(kl)
    return found


def as_long(training: Training, group: Group, part: Group) -> Training:
    """Return the training that goes at least as many steps on a part of the texts as this one on all of them."""
    return replace(training, epochs=-(-training.epochs * group.n_shards // part.n_shards))


def few_rows(told: Told, position: Mapping[HeadId, float]) -> list[dict[str, Any]]:
    """Return a row for every number of texts and method, phase 2 the first; heads without a KL are left out.

    Parameters
    ----------
    position
        KL of the position-only fit of all texts.
    """
    known = {
        name: {n: {head: value for head, value in kl.items() if not np.isnan(value)} for n, kl in by_count.items()}
        for name, by_count in told.items()
    }
    rows = []
    for n in sorted(known[OURS]):
        for name, by_count in known.items():
            kl = by_count[n]
            skill = {head: skill_of(kl[head], position[head]) for head in kl if position[head] > LEAST}
            row = {"method": name, "documents": n, "heads": len(kl), "kl": float(np.mean(list(kl.values())))}
            row |= named("above", excess(kl, by_count[max(by_count)])) | named("skill", median_over_models(skill))
            if name != OURS:
                row |= named("gap", over_models({head: known[OURS][n][head] - kl[head] for head in kl}))
            rows.append(row)
    return rows


def excess(kl: Mapping[HeadId, float], full: Mapping[HeadId, float]) -> tuple[float, float, float]:
    """Return how far the summed KL is above that of the most texts, and the limits when whole models are drawn anew."""
    models = sorted({head.model for head in kl})
    sums = np.array([[sum(of[h] for h in of if h.model == model) for model in models] for of in (kl, full)])
    drawn = drawn_models(len(models)) @ sums.T  # (draw, few or full)
    return float(sums[0].sum() / sums[1].sum() - 1), *interval_of(drawn[:, 0] / drawn[:, 1] - 1)
