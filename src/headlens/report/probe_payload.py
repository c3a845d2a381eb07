"""Turn what was measured of probes, and what they say of texts, into what views/probe_*.js read.

    evaluations    [{name, short, model, n, unit, classes, threshold, calibration, metrics, beside, roc, reliability}]
        short          of the name what tells it from the other evaluations of the page
        unit           what n counts: documents or tokens
        threshold      null for more than two classes
        calibration    how scores became log-odds: temperature or platt; null where they did not
        metrics        [{metric, at, from, to, value, low, high, n}]         as in metrics.SCHEMA
        beside         [{name, metrics: [{metric, at, value, low, high}]}]   baselines on the same documents
        roc            [{of: index into classes, fpr, tpr, threshold}]       each a list, a point an entry
        reliability    [[from, to, n, mean, share, low, high], ...]          bins with documents; Wilson's interval
    readings       [{name, short, model, classes, threshold, calibration, by_token, n_heads, documents}]
        classes        null for numbers
        threshold      of scores as they are here: before calibration
        documents      [{start, tokens, score, rest, probability, towards, prediction, label, wrong, cut}]
    reading_R_D    of document D: {tokens, gaps, contribution, attention, units}
        gaps           positions before which there is text that the probe does not read
        attention      base64 of zlib of int16: 32767 = 1, head after head
        units          null; with the pooling "token" {score, rest, probability, towards, prediction, label}, each by
                       token; names of classes are their index

`wrong` counts answers that are not the label, null where there is none. With the pooling "token" a document has no
answer of its own; its score is then its highest token's. Numbers that are not finite become null.
"""

import math
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
_MEASURED = ("value", "low", "high")
_NUMBERS = ("score", "rest", "probability")
_NAMES = ("towards", "prediction", "label")


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
            f"reading_{r}_{d}": _tokens(rows, one.attention[first : first + len(rows)], one.probe)
            for r, one in enumerate(readings)
            for d, (first, rows) in enumerate(documents[r])
        },
    }


def _named(results: Sequence[Result], values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put names before values; where two are alike, they are numbered."""
    parts = [_parts(result) for result in results]
    common = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    names = short_names([", ".join(own) for own in parts])
    short = short_names([", ".join(part for part in own if part not in common) or own[0] for own in parts])
    models = [_model(result.provenance.data.get("probe", {})) for result in results]
    return [
        {"name": name, "short": brief, "model": model, **value}
        for name, brief, model, value in zip(names, short, models, values, strict=True)
    ]


def _parts(result: Result) -> list[str]:
    """What a probe is and what it read, as the parts of its name."""
    data = result.provenance.data
    probe, documents = data.get("probe"), data.get("documents")
    on = [f"on {short_names([documents['source']])[0]}"] if documents else []
    if not probe:
        return ["A probe", *on]
    kind = "Probe" if probe["kind"] == "AttentionProbe" else probe["kind"]
    heads = [f"{probe['n_heads']} heads"] if probe["n_heads"] > 1 else []
    hidden = [
        f"hidden layer{'s' if len(probe[where]) > 1 else ''} of {' and '.join(map(str, probe[where]))} {where} it"
        for where in ("before", "after")
        if probe[where]
    ]
    head = "" if probe["head"] is None else f" head {probe['head']}"
    at = f"{probe['site']}{head} of {_model(probe)}" if probe["site"] else "bare arrays"
    return [f"{kind} with pooling {probe['pooling']}", *heads, *hidden, f"at {at}", *on]


def _model(probe: dict[str, Any]) -> str | None:
    """Name a model for the page: a path by its last part."""
    name = probe.get("model")
    return name and short_names([name])[0]


# --- evaluations ------------------------------------------------------------------------------------------


def _evaluation(result: Evaluation) -> dict[str, Any]:
    data = result.provenance.data
    said, probe = data["evaluation"], data.get("probe", {})
    metrics = [
        {"metric": row["metric"], "at": row["at"], "from": row["tokens_from"], "to": row["tokens_to"], "n": row["n"]}
        | {name: shown(row[name]) for name in _MEASURED}
        for row in result.table.to_pylist()
    ]
    return {
        "n": next((row["n"] for row in metrics if row["metric"] == "accuracy" and row["from"] is None), None),
        "unit": "tokens" if probe.get("pooling") == "token" else "documents",
        "classes": [f"{name:g}" if isinstance(name, float) else str(name) for name in said["classes"]],
        "threshold": shown(said["threshold"]) if len(said["classes"]) == 2 else None,
        "calibration": probe.get("calibration"),
        "metrics": metrics,
        "beside": [_baseline(name, rows) for name, rows in data.get("beside", {}).items()],
        "roc": [
            _curve(int(k), np.array(list(points))) for k, points in groupby(result.roc, key=lambda point: point[0])
        ],
        "reliability": [_bin(row, grouped=said["grouped"]) for row in result.reliability.tolist() if row[2] > 0],
    }


def _baseline(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    metrics = [{"metric": row["metric"], "at": row["at"]} | {key: shown(row[key]) for key in _MEASURED} for row in rows]
    return {"name": name, "metrics": metrics}


def _curve(of: int, points: np.ndarray) -> dict[str, Any]:
    fpr, tpr, threshold = ([shown(x) for x in column] for column in points[:, 1:].T.tolist())
    return {"of": of, "fpr": fpr, "tpr": tpr, "threshold": threshold}


def _bin(row: list[float], *, grouped: bool) -> list[float | None]:
    """A bin of the reliability diagram, with the interval of its share; none where documents come in groups."""
    n, share = row[2], row[4]
    ends = (None, None) if grouped else wilson(share, int(n))
    return [shown(x) for x in (*row, *ends)]


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the interval of a share of `n` that vary by themselves: at 0 and 1, too, it has a width (Wilson 1927)."""
    z2 = 1.959964**2  # 95 %
    middle, half = share + z2 / (2 * n), math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2)))
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return max(0.0, min(share, low)), min(1.0, max(share, high))  # rounding must not part it from its share


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
        "calibration": probe["calibration"],
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
    answer = {name: shown(rows[0][name]) for name in _NUMBERS} | {name: rows[0][name] for name in _NAMES}
    return answer | {"wrong": _wrong(rows[:1]) if has_classes else None}


def _of_tokens(rows: list[dict[str, Any]], has_classes: bool) -> dict[str, Any]:
    tokens = _read(rows)
    one_scale = len({row["towards"] for row in tokens}) == 1  # scores of many classes have no highest
    highest = max(row["score"] for row in tokens) if one_scale else None
    answer = dict.fromkeys((*_NUMBERS, *_NAMES)) | {"score": shown(highest)}
    return answer | {"wrong": _wrong(tokens) if has_classes else None}


def _wrong(rows: list[dict[str, Any]]) -> int | None:
    labelled = [row for row in rows if row["label"] is not None]
    return sum(row["label"] != row["prediction"] for row in labelled) if labelled else None


def _tokens(rows: list[dict[str, Any]], attention: np.ndarray, probe: dict[str, Any]) -> dict[str, Any]:
    tokens = _read(rows)
    ends = [0, *(row["end"] for row in tokens)]
    taken = np.nan_to_num(attention[: len(tokens)].T).clip(-1, 1)
    return {
        "tokens": [row["token"] for row in tokens],
        "gaps": [i for i, row in enumerate(tokens) if row["start"] > ends[i]],
        "contribution": [shown(row["contribution"]) for row in tokens],
        "attention": pack(np.round(32767 * taken).astype("<i2")),
        "units": _units(tokens, probe["classes"]) if probe["pooling"] == "token" else None,
    }


def _units(tokens: list[dict[str, Any]], classes: list[str] | None) -> dict[str, list]:
    """What is said of each token; a class takes its index, for its name may be long."""

    def named(name: str | None) -> str | int | None:
        return name if name is None or classes is None else classes.index(name)

    numbers = {name: [shown(row[name]) for row in tokens] for name in _NUMBERS}
    return numbers | {name: [named(row[name]) for row in tokens] for name in _NAMES}
