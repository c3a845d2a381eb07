"""From what a study found to the tables that are kept: retrieval, detection, outliers, few texts, dissimilarities.

Every figure comes with its interval: over documents for reconstruction, over models for what is said of heads.

Axes: as in retrieval.py; the tables are described in tables.py.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from headlens._result import Provenance
from headlens._statistics import interval_of
from headlens.axes import HeadId
from headlens.universe.clone import Training
from headlens.universe.evaluate import POSITION, Reconstruction, skill_of
from headlens.universe.few import Told, few_rows, few_study
from headlens.universe.outliers import outliers
from headlens.universe.retrieval import (
    Detection,
    Fold,
    detection,
    drawn_models,
    median_over_models,
    over_models,
    retrieval,
)
from headlens.universe.rsa import length_rdm, mantel, overlap_rdm, rdm, rsa
from headlens.universe.spaces import baseline_folds, word_patterns
from headlens.universe.study import (
    CLONE,
    JOINING,
    OURS,
    Joined,
    Progress,
    Recorded,
    clone_study,
    labelled,
    leave_heads_out,
    leave_one_family_out,
    whole_texts,
)
from headlens.universe.tables import LEAST, LEFT_BY, SCHEMAS, SHOWN, UniverseStudy, named

HELD_OUT, REPEATS = "held out", "repeats"
FAMILY, HEADS = "family left out", "heads held out"
"""Splits of the heads."""


@dataclass(frozen=True)
class Study:
    """What a study found, before it is summed up."""

    provenance: Provenance
    families: Mapping[str, str]
    held_out: Reconstruction
    other: Reconstruction
    joined: Mapping[str, Sequence[Joined]]
    """By split, `FAMILY` and `HEADS`."""
    baselines: Mapping[str, Mapping[str, Sequence[Fold]]]
    """By split and space."""
    few: Told
    """Of what is fitted on few texts without a decoder."""
    labels: Mapping[str, Collection[HeadId]]
    """Kind -> heads that are of it."""
    words: Mapping[HeadId, np.ndarray]
    texts: Sequence[str]
    """Those that `words` are patterns on."""

    def spaces(self, split: str) -> dict[str, list[Fold]]:
        ours = [fold for part in self.joined[split] for fold in part.folds]
        return {OURS: ours} | {name: list(folds) for name, folds in self.baselines[split].items()}


def studied(
    recorded: Recorded,
    labels: Sequence[Mapping[str, Any]],
    *,
    training: Training | None = None,
    progress: Progress | None = None,
) -> UniverseStudy:
    """Return the whole study: both phases, every split and baseline.

    Parameters
    ----------
    labels
        Rows of a `HeadAtlas` of the models.

    Raises
    ------
    DataError
        If all models are of one family.
    """
    training = training or Training()
    clones, held_out, other = clone_study(recorded, training=training, progress=progress)
    few = few_study(recorded, clones, training=training, progress=progress)
    later = replace(JOINING, seed=training.seed)
    joined = {
        FAMILY: leave_one_family_out(recorded, training=later, progress=progress),
        HEADS: leave_heads_out(recorded, training=later, progress=progress),
    }
    words = word_patterns(recorded.whole)
    folds = {split: [fold for part in parts for fold in part.folds] for split, parts in joined.items()}
    spaces = {k: baseline_folds(recorded.train, words, ours, seed=training.seed) for k, ours in folds.items()}
    return measured(
        Study(
            held_out.provenance, recorded.families, held_out, other, joined, spaces, few, labelled(labels), words,
            whole_texts(recorded),
        )
    )  # fmt: skip


def measured(study: Study) -> UniverseStudy:
    """Return everything that a study says, as tables."""
    spaces, queries = [], []
    for split in study.joined:
        for kind in kinds_of(study, split):
            own = space_rows(study, split, kind)
            spaces += own[0]
            queries += own[1]
    rows = {
        "heads": head_rows(study),
        "methods": method_rows(study),
        "spaces": spaces,
        "queries": queries,
        "few": few_rows({**_joined_on_few(study), **study.few}, study.held_out.column(POSITION, "kl")),
        "alike": alike_rows(study),
        "facts": [{"texts_compared": len(study.texts), **_clusters(study)}],
    }
    return UniverseStudy(study.provenance, {k: pa.Table.from_pylist(rows[k], SCHEMAS[k]) for k in SCHEMAS})


def kinds_of(study: Study, split: str) -> list[str]:
    """Kinds that heads of three families or more are of: fewer cannot be learned and found again."""
    joined = {head for part in study.joined[split] for head in part.joined}
    count = {kind: {study.families[h.model] for h in heads if h in joined} for kind, heads in study.labels.items()}
    return [kind for kind, families in count.items() if len(families) >= 3]


def head_rows(study: Study) -> list[dict[str, Any]]:
    """Return a row for every head; phase 2 is that of the decoder which its family joined."""
    joined = {head: part.kl[head] for part in study.joined[FAMILY] for head in part.joined}
    position, cloned = study.held_out.column(POSITION, "kl"), study.held_out.column(CLONE, "kl")
    skills = {name: study.held_out.column(CLONE, name) for name in ("skill", "skill_low", "skill_high")}
    left = {name: study.held_out.column(method, "skill") for name, method in LEFT_BY.items()}
    rows = []
    for row in outliers(position, cloned, joined, least=LEAST):
        head = HeadId(row["model"], row["layer"], row["head"])
        said = {"family": study.families[head.model], "kinds": [k for k, of in study.labels.items() if head in of]}
        kls = {
            "clone_kl": cloned[head],
            "joined_kl": joined[head],
            "joined_skill": skill_of(joined[head], position[head]),
        }
        row |= said | kls | {f"clone_{name}": values[head] for name, values in skills.items()}
        rows.append(row | {name: 1 - values[head] for name, values in left.items()})
    return rows


def method_rows(study: Study) -> list[dict[str, Any]]:
    """Return medians of every method, and of phase 2 on each split, on both kinds of text."""
    rows = []
    for text, found in ((HELD_OUT, study.held_out), (REPEATS, study.other)):
        position = found.column(POSITION, "kl")
        kept = [head for head, kl in position.items() if kl > LEAST]
        kls = {method: found.column(method, "kl") for method in found.methods}
        for method, kl in (kls | _embedded(study, text)).items():
            there = [head for head in kept if head in kl]
            median = median_over_models({head: skill_of(kl[head], position[head]) for head in there})
            middle = float(np.median([kl[head] for head in there])) if there else np.nan
            row = {"method": method, "text": text, "heads": len(there), "kl": middle}
            rows.append(row | named("skill", median))
    return rows


def _embedded(study: Study, text: str) -> dict[str, dict[HeadId, float]]:
    """KL of phase 2: of heads that the decoder was fitted on (the mean over decoders), and of those that joined."""
    found = {}
    for split, parts in study.joined.items():
        kls = [part.kl if text == HELD_OUT else part.other_kl for part in parts]
        found[f"{OURS}, {split}"] = {
            head: kl[head] for part, kl in zip(parts, kls, strict=True) for head in part.joined
        }
        if split == FAMILY:
            fitted: dict[HeadId, list[float]] = {}
            for part, kl in zip(parts, kls, strict=True):
                for head in kl.keys() - set(part.joined):
                    fitted.setdefault(head, []).append(kl[head])
            found[f"{OURS}, heads of the fit"] = {head: float(np.mean(own)) for head, own in sorted(fitted.items())}
    return found


def space_rows(study: Study, split: str, kind: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return retrieval and detection of one kind in every space, and the queries that they are the means of."""
    positives = study.labels[kind]
    spaces = study.spaces(split)
    found = {name: {row["query"]: row for row in retrieval(folds, positives)} for name, folds in spaces.items()}
    rows, queries = [], []
    if not found[OURS]:  # held out together with every other head of the kind
        return rows, queries
    detected = _detections(study, spaces, positives) if split == FAMILY else {}
    for name, folds in spaces.items():
        own = found[name]
        row = {"split": split, "kind": kind, "space": name, "queries": len(own)}
        row["prevalence"] = float(np.mean([one["prevalence"] for one in own.values()]))
        told = {what: over_models({q: one[what] for q, one in own.items()}) for what in ("recall", "mrr", "ap")}
        if name != OURS:
            told["gain"] = over_models({q: found[OURS][q]["ap"] - one["ap"] for q, one in own.items()})
        if detected:
            told["f1"] = detected[name].f1(), *detected[name].interval()
        if detected and name != OURS:
            told["f1_gain"] = detected[OURS].above(detected[name])
        for what, values in told.items():
            row |= named(what, values)
        rows.append(row)
        places = {head: (fold, i) for fold in folds for i, head in enumerate(fold.left_out) if head in own}
        for head, one in own.items():
            said = {name: one[name] for name in ("recall", "mrr", "ap", "prevalence")}
            near = _nearest(*places[head], positives)
            queries.append({"split": split, "kind": kind, "space": name} | head._asdict() | said | {"nearest": near})
    return rows, queries


def _detections(
    study: Study, spaces: Mapping[str, Sequence[Fold]], positives: Collection[HeadId]
) -> dict[str, Detection]:
    return {name: detection(folds, positives, study.families) for name, folds in spaces.items()}


def _nearest(fold: Fold, i: int, positives: Collection[HeadId]) -> list[dict[str, Any]]:
    apart = fold.distances()[i]
    order = sorted(range(len(apart)), key=lambda j: (apart[j], fold.heads[j]))[:SHOWN]
    return [
        fold.heads[j]._asdict() | {"distance": float(apart[j]), "relevant": fold.heads[j] in positives} for j in order
    ]


def _joined_on_few(study: Study) -> Told:
    """KL of phase 2, by number of texts."""
    found: dict[int, dict[HeadId, float]] = {}
    for part in study.joined[FAMILY]:
        for row in part.few:
            found.setdefault(row["documents"], {})[row["head"]] = row["kl"]
    return {OURS: found}


def alike_rows(study: Study, permutations: int = 199) -> list[dict[str, Any]]:
    """Return how alike the texts' dissimilarities are in heads of a kind, of different families, and in other heads."""
    rdms = {head: rdm(x.astype(np.float64)) for head, x in study.words.items()}
    without = (length_rdm(study.texts), overlap_rdm(study.texts))
    rows = []
    for kind in kinds_of(study, FAMILY):
        same = sorted(head for head in study.labels[kind] if head in rdms)
        rest = [head for head in sorted(rdms) if head not in same]
        pairs = [(a, b) for i, a in enumerate(same) for b in same[i + 1 :] if _apart(study, a, b)]
        mixed = [(a, rest[(7 * i) % len(rest)]) for i, a in enumerate(same * 10)]
        mixed = [(a, b) for a, b in mixed if _apart(study, a, b)]
        tests = [mantel(rdms[a], rdms[b], without=without, permutations=permutations) for a, b in pairs]
        rows.append(
            {
                "kind": kind,
                "pairs": len(pairs),
                "rho": _mean([rsa(rdms[a], rdms[b]) for a, b in pairs]),
                "significant": sum(p <= 0.05 for _, p in tests),
                "other_pairs": len(mixed),
            }
            | named("partial_rho", _over_pairs(pairs, [rho for rho, _ in tests]))
            | named("other_rho", _over_pairs(mixed, [rsa(rdms[a], rdms[b], without) for a, b in mixed]))
        )
    return rows


def _over_pairs(pairs: Sequence[tuple[HeadId, HeadId]], values: Sequence[float]) -> tuple[float, float, float]:
    """The mean over pairs, and its limits when models are drawn anew: a pair counts as often as both of its models."""
    models = sorted({head.model for pair in pairs for head in pair})
    at = np.array([[models.index(head.model) for head in pair] for pair in pairs])
    counts = drawn_models(len(models))
    weights = (counts[:, at[:, 0]] * counts[:, at[:, 1]]).astype(float)
    known = np.array(values)
    weights[:, np.isnan(known)] = 0
    total = weights.sum(1)
    drawn = np.divide(weights @ np.nan_to_num(known), total, out=np.full(len(total), np.nan), where=total > 0)
    return _mean(values), *interval_of(drawn)


def _mean(values: Sequence[float]) -> float:
    """Over those that can be told; NaN where none can, as on very few texts."""
    told = [value for value in values if not np.isnan(value)]
    return float(np.mean(told)) if told else np.nan


def _clusters(study: Study) -> dict[str, Any]:
    """How far clusters of labelled heads' directions agree with the labels: the mean adjusted Rand index."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import adjusted_rand_score

    scores = []
    for fold in study.spaces(FAMILY)[OURS]:
        kinds = [next((k for k, heads in study.labels.items() if head in heads), None) for head in fold.heads]
        chosen = [i for i, kind in enumerate(kinds) if kind is not None]
        n = len({kinds[i] for i in chosen})
        if n < 2:
            continue
        made = AgglomerativeClustering(n, metric="cosine", linkage="average").fit_predict(fold.known[chosen])
        scores.append(adjusted_rand_score([kinds[i] for i in chosen], made))
    return {"folds": len(scores), "rand_index": float(np.mean(scores)) if scores else None}


def _apart(study: Study, a: HeadId, b: HeadId) -> bool:
    return study.families[a.model] != study.families[b.model]
