"""Turn results into what the views read: named JSON values, the patterns compressed inside them.

    heads            [{model, layers, heads}]                  one entry per model, under a short name
    kinds            [{kind, name, short, group, meaning, high}]      all but kind and group may be null
    scores           {model, kind: indices; layer, head; score, low, high, null, n, weighted, q, level, detail}, as
                     columns; level is an index into LEVELS; the last four are null where they were not decided
    patterns         per model of `heads`: null, or {texts: [[token, ...], ...]}
    packed_M_T       [layer][head] -> base64 of zlib of the causal half, for model M and text T
    circuits         per model of `heads`: whether there are any
    circuits_M       {tokens: [token, ...], rows: [layer][head] -> [[list, offset, source, target, value, place], ...]}
                     for model M; source and target are indices of tokens
    fra, fra_R       of feature-resolved attention: see fra_payload.py
    searches         of conceptual induction: see induction_payload.py
    rules, rules_R_F of rules: see rules_payload.py
    universe, study  of a universe of heads: see universe_payload.py
    evaluations, readings, reading_R_D          of probes: see probe_payload.py
    provenance       [{results: [name, ...], provenance: {...}}]

Each pattern is packed alone: a page opens without inflating any of them, and inflates the one that is
looked at. Numbers that are not finite become null, which JSON has a word for.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from headlens._errors import ResultError
from headlens._result import Result
from headlens.fra.attention import FeatureAttention
from headlens.fra.conceptual.found import ConceptualInduction
from headlens.fra.labels import FeatureLabels
from headlens.heads.atlas import ATLAS_SCHEMA
from headlens.heads.circuit_tokens import CIRCUITS_SCHEMA, HeadCircuits
from headlens.heads.kinds import KINDS
from headlens.heads.labels import LEVELS
from headlens.heads.patterns import AttentionPatterns
from headlens.heads.scores import SCHEMA, HeadScores
from headlens.probes.evaluation.metrics import Evaluation
from headlens.probes.readings import ProbeReadings
from headlens.report.fra_payload import fra_traits
from headlens.report.induction_payload import induction_traits
from headlens.report.plain import pack, short_names, shown
from headlens.report.probe_payload import probe_traits
from headlens.report.rules_payload import rules_traits
from headlens.report.universe_payload import models_of, universe_traits
from headlens.rules.results import Rules
from headlens.universe.embed import HeadUniverse
from headlens.universe.tables import UniverseStudy

_DECIDED = ("q", "level")
"""Columns of an atlas that plain scores do not have."""


_ELSEWHERE = (
    FeatureAttention, FeatureLabels, ConceptualInduction, Rules, HeadUniverse, UniverseStudy, Evaluation, ProbeReadings,
)  # fmt: skip
"""What the other payload files know."""


def traits(results: Sequence[Result]) -> dict[str, Any]:
    """Return every named value that the views read, ready for JSON.

    Raises
    ------
    ResultError
        If there is nothing to show, a result is of a type that no view shows, two results answer
        the same question for the same head, or a result contradicts itself.
    """
    of_probes = [r for r in results if isinstance(r, Evaluation | ProbeReadings)]
    of_fra = [r for r in results if isinstance(r, FeatureAttention | FeatureLabels)]
    searches = [r for r in results if isinstance(r, ConceptualInduction | FeatureLabels)]
    scores, patterns, circuits = _sorted_by_type([r for r in results if not isinstance(r, _ELSEWHERE)])
    table = _score_columns(scores)
    heads = _heads(table, patterns, circuits)
    of_search = induction_traits(searches)
    of_rules = rules_traits(results)
    elsewhere = of_search["searches"] or of_rules["rules"]
    labels_alone = elsewhere and not any(isinstance(r, FeatureAttention) for r in of_fra)
    fra = fra_traits([] if labels_alone else of_fra)  # labels may be of what a search found, or of what rules name
    universe = models_of(results)
    if not heads and not of_probes and not of_fra and not elsewhere and not universe:
        if not results:
            raise ResultError(
                "A report needs at least one result: pass a HeadAtlas or HeadScores, AttentionPatterns and "
                "HeadCircuits if you have them, a FeatureAttention, a ConceptualInduction, Rules, a HeadUniverse "
                "and its UniverseStudy, or the Evaluation and ProbeReadings of a probe."
            )
        raise ResultError("These results hold no head: pass HeadScores with at least one row.")
    models = [h["model"] for h in heads]
    kinds = _kinds(table)
    every = [*models, *(name for name in universe if name not in models)]
    short = dict(zip(every, short_names(every), strict=True))
    shown_patterns = _texts(patterns, models)
    places = {name: i for i, name in enumerate(models) if shown_patterns[i]}
    return {
        "heads": [{**h, "model": short[h["model"]]} for h in heads],
        "kinds": [_described(kind) for kind in kinds],
        "scores": _indexed(table, models, kinds),
        "patterns": shown_patterns,
        **_packed(patterns, models),
        "circuits": [any(c.model == name for c in circuits) for name in models],
        **{f"circuits_{models.index(c.model)}": _by_head(c, heads[models.index(c.model)]) for c in circuits},
        **fra,
        **of_search,
        **of_rules,
        **universe_traits(results, short, places),
        **probe_traits(of_probes),
        "provenance": _provenance(results),
    }


GROUPS = {"looks": "Where it looks", "writes": "What it writes", "does": "What the model does with it"}
OTHERS = "Others"


def _described(name: str) -> dict[str, str | float | None]:
    """Return what a page says of a kind; `high` is the excess from which on a head is one, strongly."""
    if name not in KINDS:  # measured by someone else: it goes by its raw name
        return {"kind": name, "name": None, "short": None, "group": OTHERS, "meaning": None, "high": None}
    kind = KINDS[name]
    return {
        "kind": name,
        "name": kind.title or name.replace("_", " ").capitalize(),
        "short": kind.short,
        "group": GROUPS[kind.shows],
        "meaning": f"{kind.definition.capitalize()}.",
        "high": kind.high,
    }


def _sorted_by_type(
    results: Sequence[Result],
) -> tuple[list[HeadScores], list[AttentionPatterns], list[HeadCircuits]]:
    for result in results:
        if not isinstance(result, HeadScores | AttentionPatterns | HeadCircuits):
            raise ResultError(
                "A report shows HeadAtlas, HeadScores, AttentionPatterns, HeadCircuits, FeatureAttention, "
                "FeatureLabels, ConceptualInduction, Rules, HeadUniverse, UniverseStudy, Evaluation and ProbeReadings, "
                f"not {type(result).__name__}: leave it out."
            )
    scores = [r for r in results if isinstance(r, HeadScores)]
    patterns = [r for r in results if isinstance(r, AttentionPatterns)]
    circuits = [r for r in results if isinstance(r, HeadCircuits) and r.table.num_rows]
    _check_patterns(patterns)
    _check_circuits(circuits)
    return scores, patterns, circuits


def _texts_of(result: AttentionPatterns) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """Tokens and weights of each text that has something to look at."""
    return [(tokens, weights) for tokens, weights in zip(result.tokens, result.weights, strict=True) if tokens]


def _check_circuits(circuits: list[HeadCircuits]) -> None:
    if twice := _twice([c.model for c in circuits]):
        raise ResultError(f"Two HeadCircuits are of {twice}: pass one of them.")
    for result in circuits:
        if result.table.column_names != CIRCUITS_SCHEMA.names or len(result.table["model"].unique()) > 1:
            raise ResultError(
                f"HeadCircuits must have the columns {', '.join(CIRCUITS_SCHEMA.names)}, all of one model: "
                "make them again."
            )


def _twice(names: list[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def _check_patterns(patterns: list[AttentionPatterns]) -> None:
    if twice := _twice([p.model for p in patterns]):
        raise ResultError(f"Two AttentionPatterns are of {twice}: pass one that holds all its texts.")
    for result in patterns:
        if len(result.tokens) != len(result.weights):
            raise ResultError(f"The AttentionPatterns of {result.model} miss a text or its weights: make them again.")
        sizes = [(len(t) * (len(t) + 1) // 2, w.shape[-1]) for t, w in zip(result.tokens, result.weights, strict=True)]
        if any(expected != got for expected, got in sizes):
            raise ResultError(
                f"The AttentionPatterns of {result.model} do not fit their tokens: T tokens need T (T + 1) / 2 "
                "entries per head. Make them again."
            )
        if len({w.shape[:2] for w in result.weights}) > 1:
            raise ResultError(
                f"The AttentionPatterns of {result.model} differ in heads between texts: make them again."
            )


def _score_columns(scores: list[HeadScores]) -> dict[str, list]:
    for result in scores:
        if not set(SCHEMA.names) <= set(result.table.column_names):
            raise ResultError(
                f"HeadScores must have the columns {', '.join(SCHEMA.names)}; "
                f"these have {', '.join(result.table.column_names)}."
            )
    parts = [ATLAS_SCHEMA.empty_table(), *(_as_atlas(s.table) for s in scores)]
    table = pa.concat_tables(parts).to_pydict()
    keys = Counter(zip(*(table[name] for name in ("model", "kind", "layer", "head")), strict=True))
    (model, kind, layer, head), times = next(iter(keys.most_common(1)), ((None,) * 4, 0))
    if times > 1:
        raise ResultError(f"{kind} of {model}:L{layer}H{head} is given twice: pass HeadScores that do not overlap.")
    return table


def _as_atlas(table: pa.Table) -> pa.Table:
    """The columns that a page shows; what plain scores did not decide is null."""
    for name in _DECIDED:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), ATLAS_SCHEMA.field(name).type))
    return table.select(ATLAS_SCHEMA.names).cast(ATLAS_SCHEMA)


def _heads(
    table: dict[str, list], patterns: list[AttentionPatterns], circuits: list[HeadCircuits]
) -> list[dict[str, Any]]:
    """The shape of each model, in order of appearance, as far as the results show it."""
    shapes: dict[str, tuple[int, int]] = {}
    for name, layer, head in zip(table["model"], table["layer"], table["head"], strict=True):
        layers, heads = shapes.get(name, (0, 0))
        shapes[name] = (max(layers, layer + 1), max(heads, head + 1))
    for result in patterns:
        layers, heads = shapes.get(result.model, (0, 0))
        for _, weights in _texts_of(result)[:1]:
            layers, heads = max(layers, weights.shape[0]), max(heads, weights.shape[1])
            shapes[result.model] = (layers, heads)
    for result in circuits:
        layers, heads = shapes.get(result.model, (0, 0))
        deepest, widest = (max(result.table[name].to_pylist()) + 1 for name in ("layer", "head"))
        shapes[result.model] = (max(layers, deepest), max(heads, widest))
    return [{"model": name, "layers": layers, "heads": heads} for name, (layers, heads) in shapes.items()]


def _kinds(table: dict[str, list]) -> list[str]:
    found = dict.fromkeys(table["kind"])
    return [k for k in KINDS if k in found] + [k for k in found if k not in KINDS]


def _indexed(table: dict[str, list], models: list[str], kinds: list[str]) -> dict[str, list | None]:
    """The columns with names as indices, which keeps large tables small."""
    model_index = {name: i for i, name in enumerate(models)}
    kind_index = {name: i for i, name in enumerate(kinds)}
    return {
        "model": [model_index[name] for name in table["model"]],
        "kind": [kind_index[name] for name in table["kind"]],
        "layer": table["layer"],
        "head": table["head"],
        **{name: [shown(x) for x in table[name]] for name in ("score", "low", "high", "null")},
        "n": table["n"],
        "weighted": _unless_empty([shown(x) for x in table["weighted"]]),
        "q": _unless_empty([shown(x) for x in table["q"]]),
        "level": _unless_empty([LEVELS.index(x) if x in LEVELS else None for x in table["level"]]),
        "detail": _unless_empty(table["detail"]),
    }


def _unless_empty(column: list) -> list | None:
    return column if any(x is not None for x in column) else None


def _by_head(circuits: HeadCircuits, shape: dict[str, Any]) -> dict[str, Any]:
    """The lists of each head, with tokens as indices."""
    table = circuits.table.to_pydict()
    tokens = list(dict.fromkeys([*table["source"], *table["target"]]))
    index = {token: i for i, token in enumerate(tokens)}
    rows: list[list[list]] = [[[] for _ in range(shape["heads"])] for _ in range(shape["layers"])]
    names = ("layer", "head", "list", "offset", "source", "target", "value", "place")
    for layer, head, name, offset, source, target, value, place in zip(*(table[n] for n in names), strict=True):
        value = None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
        rows[layer][head].append([name, offset, index[source], index[target], value, place])
    return {"tokens": tokens, "rows": rows}


def _texts(patterns: list[AttentionPatterns], models: list[str]) -> list[dict[str, Any] | None]:
    by_model = {p.model: {"texts": [list(tokens) for tokens, _ in _texts_of(p)]} for p in patterns if _texts_of(p)}
    return [by_model.get(name) for name in models]


def _packed(patterns: list[AttentionPatterns], models: list[str]) -> dict[str, list[list[str]]]:
    return {
        f"packed_{models.index(result.model)}_{text}": [[pack(head) for head in layer] for layer in weights]
        for result in patterns
        for text, (_, weights) in enumerate(_texts_of(result))
    }


def _provenance(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Where the results came from; results of one run share one entry."""
    entries: list[dict[str, Any]] = []
    for result in results:
        came_from = asdict(result.provenance)
        entry = next((e for e in entries if e["provenance"] == came_from), None)
        if entry is None:
            entry = {"results": [], "provenance": came_from}
            entries.append(entry)
        entry["results"].append(_name(result))
    return entries


def _name(result: Result) -> str:
    if isinstance(result, AttentionPatterns):
        return f"Attention patterns of {result.model}"
    if isinstance(result, HeadCircuits):
        return f"Circuits of {result.model}"
    if isinstance(result, FeatureAttention):
        return f"Feature-resolved attention of layer {result.layer}, head {result.head}"
    if isinstance(result, FeatureLabels):
        return "Labels of features"
    if isinstance(result, ConceptualInduction):
        return "Search for conceptual induction"
    if isinstance(result, Rules):
        return f"Rules of layer {result.layer}, head {result.head}"
    if isinstance(result, HeadUniverse):
        return "Universe of heads"
    if isinstance(result, UniverseStudy):
        return "Study of the universe of heads"
    if isinstance(result, Evaluation):
        return "Evaluation of a probe"
    if isinstance(result, ProbeReadings):
        return "Readings of a probe"
    return "Head scores"
