"""Turn a universe of heads, and a study of one, into what views/universe.js reads.

    universe   null, or {models, kinds, heads, maps, neighbours, fitted, left_out}
        models      [{model, family, layers, heads, joined, at}]; joined: later than the fit; at: its place in `heads`
                    of the page, if the page has its patterns, or null
        kinds       [{kind, name, meaning}] that some head is of
        heads       columns: model, layer, head, depth (0 to 1), kinds (lists of places), kl; and what a study told:
                    position_kl, clone_skill, joined_skill
        maps        {neighbours, components}, each {x, y, spread} or missing; from 0 to 1, null where there is no place
        neighbours  of each head its nearest in other models, the nearest first: [[head, distance], ...]
        fitted      whether there is a universe; without one there are no maps and no neighbours
        left_out    heads that are not shown: a page has at most `MOST_HEADS`
    study      null, or {spaces, queries, outliers, methods, few, flagged, judged, medians}
        spaces      [{split, kind, space, queries, prevalence, recall, mrr, ap, gain, f1, f1_gain}], the last six
                    [value, low, high]
        queries     [{split, kind, space, head, recall, mrr, ap, nearest: [[head, distance, right], ...]}]
        outliers    [[head, position_kl, unclonable, q, flagged, uncompressible, q, flagged, left], ...], the surest
                    first; left: 1 - skill of each of `less`
        less        [method]: what knows less than a clone, and what it leaves of a head stands beside it
        methods     [{method, text, heads, kl, skill: [value, low, high]}]
        few         [{method, documents, heads, kl, above, skill, gap}], the last three [value, low, high]
        medians     {unclonable, uncompressible} of all heads that were judged

A head is its place in the columns of `heads`, a kind its place in `kinds`. Maps are of what each head asks of the
decoder, at length 1, so that what is near has a small distance:

    components  its two principal components, each with the share of the variance that it has (spread)
    neighbours  t-SNE, which keeps near what is near, from those; spread null. Far distances in it say nothing

Signs are such that the coordinate that is largest is positive: the same universe gives the same maps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from headlens._errors import ResultError
from headlens._result import Result
from headlens.axes import HeadId
from headlens.heads.atlas import HeadAtlas
from headlens.heads.kinds import KINDS
from headlens.report.plain import shown
from headlens.universe.embed import HeadUniverse, distances
from headlens.universe.tables import LEFT_BY, UniverseStudy

MOST_HEADS = 4000
MOST_EMBEDDED = 1500
"""Heads of which t-SNE takes seconds; it needs some, too."""
LEAST_EMBEDDED = 8
NEAREST = 12
_LIMITS = ("", "_low", "_high")
_SCORES = ("position_kl", "clone_skill", "joined_skill")


def universe_traits(results: Sequence[Result], short: Mapping[str, str], places: Mapping[str, int]) -> dict[str, Any]:
    """Return the named values of a universe and of its study.

    Parameters
    ----------
    short
        Names of models as the page has them.
    places
        Models whose patterns the page has, by their place among its heads.

    Raises
    ------
    ResultError
        If there are two of a kind.
    """
    found = _only(results, HeadUniverse)
    study = _only(results, UniverseStudy)
    if found is None and study is None:
        return {"universe": None, "study": None}
    told = {} if study is None else {_id(row): row for row in study["heads"].to_pylist()}
    every = sorted({*(() if found is None else found.heads), *told})
    heads = every[:: math.ceil(len(every) / MOST_HEADS)]
    index = {head: i for i, head in enumerate(heads)}
    kinds_of = {head: row["kinds"] for head, row in told.items()} if told else _of_atlas(results)
    kinds = [kind for kind in KINDS if any(kind in own for own in kinds_of.values())]
    kinds += sorted({kind for own in kinds_of.values() for kind in own} - set(kinds))
    return {
        "universe": {
            "models": _models(found, study, every, short, places),
            "kinds": [_kind(kind) for kind in kinds],
            "maps": {} if found is None else _maps(found, heads),
            "neighbours": [[] for _ in heads] if found is None else _neighbours(found, heads),
            "fitted": found is not None,
            "heads": _columns(found, told, heads, kinds_of, kinds, every),
            "left_out": len(every) - len(heads),
        },
        "study": None if study is None else _study(study, index, kinds),
    }


def models_of(results: Sequence[Result]) -> list[str]:
    """Return the models of universes and studies, by their own names."""
    names = [head.model for r in results if isinstance(r, HeadUniverse) for head in r.heads]
    names += [name for r in results if isinstance(r, UniverseStudy) for name in r["heads"]["model"].to_pylist()]
    return sorted(set(names))


def _only(results: Sequence[Result], kind: type) -> Any:
    found = [r for r in results if isinstance(r, kind)]
    if len(found) > 1:
        raise ResultError(f"A page shows one {kind.__name__}, and {len(found)} were given: pass one.")
    return found[0] if found else None


def _id(row: Mapping[str, Any]) -> HeadId:
    return HeadId(row["model"], row["layer"], row["head"])


def _of_atlas(results: Sequence[Result]) -> dict[HeadId, list[str]]:
    """Kinds that an atlas has of each head, where there is no study that says so."""
    found: dict[HeadId, list[str]] = {}
    for atlas in (r for r in results if isinstance(r, HeadAtlas)):
        for row in atlas.table.to_pylist():
            if row["level"] in ("medium", "high"):
                found.setdefault(_id(row), []).append(row["kind"])
    return found


def _kind(kind: str) -> dict[str, Any]:
    if kind not in KINDS:
        return {"kind": kind, "name": kind, "meaning": None}
    known = KINDS[kind]
    return {"kind": kind, "name": known.title or kind.replace("_", " ").capitalize(), "meaning": known.definition}


def _models(
    found: HeadUniverse | None, study: UniverseStudy | None, every: Sequence[HeadId], short: Mapping[str, str],
    places: Mapping[str, int],
) -> list[dict[str, Any]]:  # fmt: skip
    named = [model for one in (found, study) if one is not None for model in one.provenance.models]
    families = {model["name"]: model.get("family") for model in named}
    if study is not None:
        families |= {row["model"]: row["family"] for row in study["heads"].to_pylist()}
    rows = []
    for model in sorted({head.model for head in every}):
        own = [head for head in every if head.model == model]
        rows.append(
            {
                "model": short[model], "family": families.get(model), "layers": 1 + max(h.layer for h in own),
                "heads": 1 + max(h.head for h in own), "at": places.get(model),
                "joined": found is not None and model in found.embedded.models and model not in found.fitted,
            }
        )  # fmt: skip
    return rows


def _columns(
    found: HeadUniverse | None, told: Mapping[HeadId, Mapping[str, Any]], heads: Sequence[HeadId],
    kinds_of: Mapping[HeadId, Sequence[str]], kinds: Sequence[str], every: Sequence[HeadId],
) -> dict[str, list]:  # fmt: skip
    models = sorted({head.model for head in every})
    deepest = {model: max(h.layer for h in every if h.model == model) for model in models}
    kl = {} if found is None else dict(zip(found.heads, found.kl, strict=True))
    return {
        "model": [models.index(head.model) for head in heads],
        "layer": [head.layer for head in heads],
        "head": [head.head for head in heads],
        "depth": [shown(head.layer / max(1, deepest[head.model])) for head in heads],
        "kinds": [sorted(kinds.index(kind) for kind in kinds_of.get(head, ())) for head in heads],
        "kl": [shown(kl.get(head)) for head in heads],
        **{name: [shown(told.get(head, {}).get(name)) for head in heads] for name in _SCORES},
    }


def _maps(found: HeadUniverse, heads: Sequence[HeadId]) -> dict[str, dict[str, Any]]:
    order = sorted(range(len(found.heads)), key=found.heads.__getitem__)  # t-SNE starts from rows as they stand
    terms, place = found.terms[order], {found.heads[i]: n for n, i in enumerate(order)}
    xy, spread = projected(terms)
    made: dict[str, dict[str, Any]] = {"components": _framed(xy, heads, place) | {"spread": list(map(shown, spread))}}
    if LEAST_EMBEDDED <= len(place) <= MOST_EMBEDDED:
        made["neighbours"] = _framed(by_neighbours(terms), heads, place) | {"spread": None}
    return made


def _framed(xy: Float[np.ndarray, "head 2"], heads: Sequence[HeadId], place: Mapping[HeadId, int]) -> dict[str, Any]:
    """Coordinates from 0 to 1, with one unit for both directions."""
    low, high = xy.min(0), xy.max(0)
    unit = max(float((high - low).max()), 1e-12)
    at = (xy - (low + high) / 2) / unit + 0.5
    return {
        name: [float(f"{at[place[head], axis]:.4f}") if head in place else None for head in heads]
        for axis, name in enumerate("xy")
    }


def by_neighbours(terms: Float[np.ndarray, "head term"]) -> Float[np.ndarray, "head 2"]:
    """Return a place for each head such that heads that are near each other by `distance` stay so."""
    from sklearn.manifold import TSNE

    start, _ = projected(terms)
    start = (1e-4 * start / max(float(start[:, 0].std()), 1e-12)).astype(np.float32)
    apart = np.maximum(distances(terms, terms), 0)
    np.fill_diagonal(apart, 0)
    perplexity = min(12, (len(terms) - 1) / 3)
    made = TSNE(perplexity=perplexity, metric="precomputed", init=start, random_state=0)  # pyright: ignore[reportArgumentType]
    return made.fit_transform(apart).astype(np.float64)


def projected(
    terms: Float[np.ndarray, "head term"],
) -> tuple[Float[np.ndarray, "head 2"], Float[np.ndarray, "2"]]:
    """Return each head on the two principal components of all, at length 1; and their shares of the variance."""
    unit = terms.astype(np.float64) / np.maximum(np.linalg.norm(terms, axis=1, keepdims=True), 1e-12)
    centred = unit - unit.mean(0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    left, size = (np.pad(left, ((0, 0), (0, 2)))[:, :2], np.pad(size, (0, 2)))
    xy = left * size[:2]
    xy *= np.where(xy[np.abs(xy).argmax(0), [0, 1]] < 0, -1.0, 1.0)
    return xy, size[:2] ** 2 / max(float((size**2).sum()), 1e-30)


def _neighbours(found: HeadUniverse, heads: Sequence[HeadId]) -> list[list]:
    """The nearest of each head in other models."""
    at = {head: i for i, head in enumerate(found.heads)}
    own = [i for i, head in enumerate(heads) if head in at]
    terms = found.terms[[at[heads[i]] for i in own]]
    model = np.array([heads[i].model for i in own])
    near: list[list] = [[] for _ in heads]
    for row, i in enumerate(own):
        apart = distances(terms[[row]], terms)[0]
        apart[model == model[row]] = np.inf
        order = np.argsort(apart, kind="stable")[:NEAREST]
        near[i] = [[own[j], float(f"{apart[j]:.4f}")] for j in order if np.isfinite(apart[j])]
    return near


# --- the study --------------------------------------------------------------------------------------------


def _study(study: UniverseStudy, index: Mapping[HeadId, int], kinds: Sequence[str]) -> dict[str, Any]:
    heads = study["heads"].to_pylist()
    judged = [row for row in heads if row["unclonable"] is not None]
    return {
        "spaces": [
            {name: row[name] for name in ("split", "space", "queries")}
            | {"kind": kinds.index(row["kind"]), "prevalence": shown(row["prevalence"])}
            | {name: _limits(row, name) for name in ("recall", "mrr", "ap", "gain", "f1", "f1_gain")}
            for row in study["spaces"].to_pylist()
            if row["kind"] in kinds
        ],
        "queries": [
            {name: row[name] for name in ("split", "space")}
            | {"kind": kinds.index(row["kind"]), "head": index[_id(row)]}
            | {name: shown(row[name]) for name in ("recall", "mrr", "ap")}
            | {"nearest": [[index[_id(one)], shown(one["distance"]), one["relevant"]] for one in row["nearest"]
                           if _id(one) in index]}
            for row in study["queries"].to_pylist()
            if row["kind"] in kinds and _id(row) in index
        ],
        "outliers": [_outlier(row, index) for row in sorted(judged, key=_surest) if _id(row) in index],
        "less": list(LEFT_BY.values()),
        "flagged": sum(row["is_unclonable"] or row["is_uncompressible"] for row in judged),
        "judged": len(judged),
        "medians": {
            name: shown(float(np.median([row[name] for row in judged]))) if judged else None
            for name in ("unclonable", "uncompressible")
        },
        "methods": [
            {name: row[name] for name in ("method", "text", "heads")}
            | {"kl": shown(row["kl"]), "skill": _limits(row, "skill")}
            for row in study["methods"].to_pylist()
        ],
        "few": [
            {name: row[name] for name in ("method", "documents", "heads")}
            | {"kl": shown(row["kl"])}
            | {name: _limits(row, name) for name in ("above", "skill", "gap")}
            for row in study["few"].to_pylist()
        ],
    }  # fmt: skip


def _limits(row: Mapping[str, Any], name: str) -> list[float | None]:
    return [shown(row[name + end]) for end in _LIMITS]


def _surest(row: Mapping[str, Any]) -> tuple:
    return min(row["unclonable_q"], row["uncompressible_q"]), -row["unclonable"], _id(row)


def _outlier(row: Mapping[str, Any], index: Mapping[HeadId, int]) -> list:
    scores = [
        (shown(row[name]), shown(row[f"{name}_q"]), row[f"is_{name}"]) for name in ("unclonable", "uncompressible")
    ]
    left = [shown(row[column]) for column in LEFT_BY]
    return [index[_id(row)], shown(row["position_kl"]), *scores[0], *scores[1], left]
