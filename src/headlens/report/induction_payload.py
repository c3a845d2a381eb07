"""Turn a search for conceptual induction into what views/conceptual_induction.js reads.

    searches   [{name, model, rate, texts, tested, targets, heads, channels, cuts, counts}]
        texts      held-out texts
        targets    in the order in which they are offered
        heads      {target, layer, head, token, token_head, concept_head, attention, elsewhere, twin, lead, tested,
                   found, share, low, high, of_features, of_shuffled}
        channels   {target, layer, head, query, key, share, low, high, places, twin, shuffled, q, n, words}, found ones;
                   places, twin and shuffled are shares too: of the same lead
        cuts       {layer, head, channels, effect, own, random, difference, low, high, n}
        left_out   channels that were found and are not listed

query and key are labels of features where there are any, else their numbers. Numbers that cannot be told are null.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from headlens._result import Result
from headlens.fra.conceptual.found import ConceptualInduction
from headlens.fra.conceptual.prompts import TARGETS
from headlens.fra.labels import FeatureLabels
from headlens.report.feature_labels import LONGEST_LABEL, model_names
from headlens.report.plain import shown

MOST = 500
"""Channels that a page lists of one search."""


def induction_traits(results: Sequence[Result]) -> dict[str, Any]:
    """Return the named values of searches, with labels of their dictionaries."""
    found = [r for r in results if isinstance(r, ConceptualInduction)]
    labels = [r for r in results if isinstance(r, FeatureLabels)]
    return {"searches": [_search(r, name, labels) for r, name in zip(found, model_names(found), strict=True)]}


def _search(result: ConceptualInduction, model: str, labels: Sequence[FeatureLabels]) -> dict[str, Any]:
    heads, channels = result.heads.to_pylist(), result.found.to_pylist()
    lead = {(row["target"], row["layer"], row["head"]): row["lead"] for row in heads}
    named = _labels_by_layer(result, labels)
    prompts = result.provenance.data.get("prompts", {})
    source = prompts.get("source", prompts.get("kind", "own prompts"))
    return {
        "name": f"{model}, {source}{' with tokens shuffled' if 'shuffled' in prompts else ''}",
        "model": model,
        "rate": result.provenance.data.get("rate", 0.05),
        "texts": max((row["n"] for row in heads), default=0),
        "tested": sum(row["tested"] for row in heads),
        "targets": list(TARGETS),
        "heads": [_head(row) for row in heads],
        "channels": [
            _channel(row, lead[row["target"], row["layer"], row["head"]], named.get(row["layer"]))
            for row in channels[:MOST]
        ],
        "left_out": max(0, len(channels) - MOST),
        "cuts": [
            {name: shown(value) if isinstance(value, float) else value for name, value in row.items()}
            for row in result.cuts.to_pylist()
        ],
    }  # fmt: skip


def _head(row: Mapping[str, Any]) -> dict[str, Any]:
    numbers = ("attention", "elsewhere", "lead", "share", "low", "high", "of_features", "of_shuffled")
    return {
        **{name: row[name] for name in ("target", "layer", "head", "tested", "found")},
        **{name: shown(row[name]) for name in numbers},
        "token": shown(row["token_induction"]), "token_head": row["is_token_head"],
        "concept_head": row["is_concept_head"], "twin": shown(row["at_twin"]),
    }  # fmt: skip


def _channel(row: Mapping[str, Any], lead: float, labels: FeatureLabels | None) -> dict[str, Any]:
    def share(own: float) -> float | None:
        return shown(own / lead) if row["share"] == row["share"] else None

    return {
        **{name: row[name] for name in ("target", "layer", "head", "n", "words")},
        **{name: shown(row[name]) for name in ("share", "low", "high", "q")},
        "query": _name(row["query_feature"], labels), "key": _name(row["key_feature"], labels),
        "places": share(row["other_places"]), "twin": share(row["twin"]), "shuffled": share(row["shuffled"]),
    }  # fmt: skip


def _name(feature: int, labels: FeatureLabels | None) -> str:
    label = None if labels is None else labels.label(feature)
    return f"{feature}" if label is None else f"{feature}: {label[:LONGEST_LABEL]}"


def _labels_by_layer(result: ConceptualInduction, labels: Sequence[FeatureLabels]) -> dict[int, FeatureLabels]:
    """Labels of each layer's dictionary: those that say that they are of it."""
    found = {}
    for one in result.provenance.data.get("dictionaries", []):
        own = [r for r in labels if r.provenance.data.get("dictionary", {}).get("digest") == one["digest"]]
        if own:
            found[int(one["layer"])] = own[0]
    return found
