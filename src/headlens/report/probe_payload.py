"""Turn what was measured of probes, and what they say of texts, into what views/probe.js reads.

    evaluations    [{name, model, n, unit, classes, threshold, metrics, roc, reliability}]
        unit           what n counts: documents or tokens
        threshold      null for more than two classes
        metrics        [{metric, at, from, to, value, low, high, n}]         as in metrics.SCHEMA
        roc            [{of: index into classes, fpr, tpr, threshold}]       each a list, a point an entry
        reliability    [[from, to, n, mean, share], ...]
    readings       [{name, model, classes, threshold, by_token, n_heads, documents}]     classes: null for numbers
        documents      [{start, tokens, score, rest, probability, towards, prediction, label, wrong, cut}]
    reading_R_D    of document D: {tokens, gaps, contribution, attention, units}
        gaps           positions before which there is text that the probe does not read
        attention      base64 of zlib of int16: 32767 = 1, head after head
        units          null; with the pooling "token" {score, probability, towards, prediction, label}, each by token

`wrong` counts answers that are not the label, null where there is none. With the pooling "token" a document has no
answer of its own; its score is then its highest token's. Numbers that are not finite become null.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from headlens._errors import ResultError
from headlens._result import Result
from headlens.probes.evaluation.metrics import Evaluation
from headlens.probes.readings import ProbeReadings
from headlens.report.plain import pack, short_names, shown

_START = 90
"""Characters of a text that a list shows."""
_ANSWER = ("score", "probability", "towards", "prediction", "label")


def probe_traits(results: Sequence[Result]) -> dict[str, Any]:
    """Return the named values of evaluations and readings.

    Raises
    ------
    ResultError
        If a result contradicts itself.
    """
    evaluations = [r for r in results if isinstance(r, Evaluation)]
    readings = [r for r in results if isinstance(r, ProbeReadings)]
    documents = [_documents(one) for one in readings]
    return {
        "evaluations": _named(evaluations, [_evaluation(one) for one in evaluations]),
        "readings": _named(readings, [_reading(*both) for both in zip(readings, documents, strict=True)]),
        **{
            f"reading_{r}_{d}": _tokens(rows, one.attention[first : first + len(rows)], _by_token(one))
            for r, one in enumerate(readings)
            for d, (first, rows) in enumerate(documents[r])
        },
    }


def _named(results: Sequence[Result], values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put names before values; where two are alike, they are numbered."""
    probes = [result.provenance.data.get("probe", {}) for result in results]
    names = short_names([_name(probe) for probe in probes])
    return [{"name": n, "model": _model(p), **v} for n, p, v in zip(names, probes, values, strict=True)]


def _name(probe: dict[str, Any]) -> str:
    if not probe:
        return "A probe"
    kind = "Probe" if probe["kind"] == "AttentionProbe" else probe["kind"]
    heads = f", {probe['n_heads']} heads" if probe["n_heads"] > 1 else ""
    head = "" if probe["head"] is None else f", head {probe['head']},"
    return f"{kind} with pooling {probe['pooling']}{heads}, at {probe['site']}{head} of {_model(probe)}"


def _model(probe: dict[str, Any]) -> str | None:
    """Name a model for the page: a path by its last part."""
    name = probe.get("model")
    return name and short_names([name])[0]


# --- evaluations ------------------------------------------------------------------------------------------


def _evaluation(result: Evaluation) -> dict[str, Any]:
    said = result.provenance.data["evaluation"]
    metrics = [
        {"metric": row["metric"], "at": row["at"], "from": row["tokens_from"], "to": row["tokens_to"], "n": row["n"]}
        | {name: shown(row[name]) for name in ("value", "low", "high")}
        for row in result.table.to_pylist()
    ]
    return {
        "n": next((row["n"] for row in metrics if row["metric"] == "accuracy" and row["from"] is None), None),
        "unit": "tokens" if result.provenance.data.get("probe", {}).get("pooling") == "token" else "documents",
        "classes": [f"{name:g}" if isinstance(name, float) else str(name) for name in said["classes"]],
        "threshold": shown(said["threshold"]) if len(said["classes"]) == 2 else None,
        "metrics": metrics,
        "roc": [
            _curve(int(k), np.array(list(points))) for k, points in groupby(result.roc, key=lambda point: point[0])
        ],
        "reliability": [[shown(x) for x in row] for row in result.reliability.tolist()],
    }


def _curve(of: float, points: np.ndarray) -> dict[str, Any]:
    fpr, tpr, threshold = ([shown(x) for x in column] for column in points[:, 1:].T.tolist())
    return {"of": int(of), "fpr": fpr, "tpr": tpr, "threshold": threshold}


# --- readings ---------------------------------------------------------------------------------------------


def _by_token(result: ProbeReadings) -> bool:
    return result.probe["pooling"] == "token"


def _documents(result: ProbeReadings) -> list[tuple[int, list[dict[str, Any]]]]:
    """The rows of each document, and the place of the first of them."""
    rows = result.table.to_pylist()
    if len(rows) != len(result.attention):
        raise ResultError("ProbeReadings do not fit their attention: one row a token. Make them again.")
    found = [list(own) for _, own in groupby(rows, key=lambda row: row["document"])]
    firsts = np.cumsum([0, *map(len, found)]).tolist()
    return list(zip(firsts, found, strict=False))


def _reading(result: ProbeReadings, documents: list[tuple[int, list[dict[str, Any]]]]) -> dict[str, Any]:
    probe = result.probe
    summary = _of_tokens if _by_token(result) else _of_document
    return {
        "classes": probe["classes"],
        "threshold": shown(probe["threshold"]),
        "by_token": _by_token(result),
        "n_heads": result.attention.shape[1],
        "documents": [
            {
                "start": "".join(row["token"] for row in _read(rows))[:_START],
                "tokens": len(_read(rows)),
                "cut": rows[0]["cut"],
                **summary(rows, probe["classes"] is not None),
            }
            for _, rows in documents
        ],
    }


def _read(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tokens among the rows: a document without any has one row that is none."""
    return [row for row in rows if row["position"] is not None]


def _of_document(rows: list[dict[str, Any]], has_classes: bool) -> dict[str, Any]:
    row = rows[0]
    answer = {name: shown(x) if isinstance(x := row[name], float) else x for name in (*_ANSWER, "rest")}
    return answer | {"wrong": _wrong([row]) if has_classes else None}


def _of_tokens(rows: list[dict[str, Any]], has_classes: bool) -> dict[str, Any]:
    tokens = _read(rows)
    one_scale = len({row["towards"] for row in tokens}) == 1  # scores of many classes have no highest
    highest = max(tokens, key=lambda row: row["score"]) if one_scale else None
    answer = dict.fromkeys((*_ANSWER, "rest")) | ({"score": shown(highest["score"])} if highest else {})
    return answer | {"wrong": _wrong(tokens) if has_classes else None}


def _wrong(rows: list[dict[str, Any]]) -> int | None:
    labelled = [row for row in rows if row["label"] is not None]
    return sum(row["label"] != row["prediction"] for row in labelled) if labelled else None


def _tokens(rows: list[dict[str, Any]], attention: np.ndarray, by_token: bool) -> dict[str, Any]:
    tokens = _read(rows)
    ends = [0, *(row["end"] for row in tokens)]
    taken = np.nan_to_num(attention[: len(tokens)].T).clip(-1, 1)
    columns = {name: [row[name] for row in tokens] for name in _ANSWER} if by_token else None
    if columns:
        columns |= {name: [shown(x) for x in columns[name]] for name in ("score", "probability")}
    return {
        "tokens": [row["token"] for row in tokens],
        "gaps": [i for i, row in enumerate(tokens) if row["start"] > ends[i]],
        "contribution": [shown(row["contribution"]) for row in tokens],
        "attention": pack(np.round(32767 * taken).astype("<i2")),
        "units": columns,
    }
