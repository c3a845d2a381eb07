"""Turn rules of output features into what views/rules.js reads.

    rules      [{name, model, layer, head, texts, labelled, curve, features}]
        labelled   whether some input feature has a label
        curve      means over features, as below
        features   [{feature, positions, texts, rules, ap, full, strongest, absences, counts}], one a feature
            ap, full   average precision of all its rules, and of the model's own pre-activation
            strongest  words for the key of its first rule here, or null
            absences, counts   how many were confirmed
    rules_R_F  of feature F (by place) of result R:
               {rules, left_out, labels, examples, curve, exemplars, absences, counts, agreement}
        rules      [[query, key, effect, coverage, place], ...], those first that move most over all that fires; place
                   is that in the order in which they were chosen; query -1: whatever the query
        labels     {input feature: text}, of features that are named here
        examples   how many positions were mined, selected and tested on
        curve      [{predictor, rules, METRIC: [value, low, high], ...}]; rules null where it has no number of them
        exemplars  [{activation, tokens, adds, marks}]; marks: of each token, places in `rules` of those it matches
        absences   [{rule, distractor, outcompetes, measured, fires_with, fires_without, confirmed}]; both rules are
                   [query, key, effect]; measured: {with_it, without_it, put_in, taken_out: [n, mean, low, high]}
        counts     [{query, attract, suppress, ratio, doses, places, contexts, confirmed}]; doses: [n, m, pre, fires]
        agreement  [{rule, n, matching, without_key, without_query, right: [mean, low, high]}]: shares that fire

A rule matches a token of an exemplar that holds its key feature, where the last token holds its query feature. Numbers
that cannot be told are null.
"""

from collections.abc import Sequence
from typing import Any

from headlens._result import Result
from headlens.fra.labels import FeatureLabels
from headlens.report.feature_labels import LONGEST_LABEL, labels_of, model_names
from headlens.report.plain import shown
from headlens.rules.evaluate import METRICS
from headlens.rules.language import NONE
from headlens.rules.results import Rules

LISTED = 100
"""Rules that a page lists of one feature."""
DIFFERENCES = ("without_it", "with_it", "put_in", "taken_out")


def rules_traits(results: Sequence[Result]) -> dict[str, Any]:
    """Return the named values of rules, with labels of the dictionaries that they are in words of."""
    found = [r for r in results if isinstance(r, Rules)]
    labels = [r for r in results if isinstance(r, FeatureLabels)]
    values: dict[str, Any] = {"rules": []}
    names: list[str] = []
    for r, (result, model) in enumerate(zip(found, model_names(found), strict=True)):
        named = labels_of(result, labels)
        contents = [_feature(row, named) for row in result.table.to_pylist()]
        values |= {f"rules_{r}_{f}": content for f, content in enumerate(contents)}
        name = f"Layer {result.layer}, head {result.head} of {model}"
        names.append(name)
        values["rules"].append(
            {
                "name": f"{name} ({names.count(name)})" if names.count(name) > 1 else name,
                "model": model, "layer": result.layer, "head": result.head,
                "texts": result.provenance.data.get("texts", {}).get("n"),
                "labelled": any(c["labels"] for c in contents),
                "curve": _curve(result.curve().to_pylist()),
                "features": [_listed(row, c) for row, c in zip(result.table.to_pylist(), contents, strict=True)],
            }
        )  # fmt: skip
    return values


def _listed(row: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    def ap(name: str) -> float | None:
        own = [level["ap"][0] for level in content["curve"] if level["predictor"] == name]
        return own[-1] if own else None

    first = content["rules"][0][1] if content["rules"] else None
    return {
        **{name: row[name] for name in ("feature", "positions", "texts")},
        "rules": len(row["rules"]), "ap": ap("rules"), "full": ap("full"),
        "strongest": None if first is None else content["labels"].get(str(first), f"feature {first}"),
        **{name: sum(one["confirmed"] for one in row[name]) for name in ("absences", "counts")},
    }  # fmt: skip


def _feature(row: dict[str, Any], labels: FeatureLabels | None) -> dict[str, Any]:
    weight = [abs(rule["effect"]) * share for rule, share in zip(row["rules"], row["coverage"], strict=True)]
    order = sorted(range(len(weight)), key=lambda i: -weight[i])[:LISTED]
    rules = [row["rules"][i] for i in order]
    named = {feature for rule in rules for feature in (rule["query"], rule["key"])}
    for one in row["absences"]:
        named |= {one[side][end] for side in ("rule", "distractor") for end in ("query", "key")}
    for one in row["counts"]:
        named |= {one["query"], one["attract"], one["suppress"]}
    named |= {one["rule"][end] for one in row["agreement"] for end in ("query", "key")}
    known = sorted(named - {None, NONE}) if labels is not None else []
    told = {i: label for i in known if labels is not None and (label := labels.label(i)) is not None}
    return {
        "rules": [
            [rule["query"], rule["key"], shown(rule["effect"]), shown(row["coverage"][i]), i]
            for i, rule in zip(order, rules, strict=True)
        ],
        "left_out": len(row["rules"]) - len(rules),
        "labels": {str(i): label[:LONGEST_LABEL] for i, label in told.items()},
        "examples": row["examples"],
        "curve": _curve(row["curve"]),
        "exemplars": [_exemplar(one, rules) for one in row["exemplars"]],
        "absences": [_absence(one) for one in row["absences"]],
        "counts": [
            {name: one[name] for name in ("query", "attract", "suppress", "places", "contexts", "confirmed")}
            | {"ratio": shown(one["ratio"])}
            | {"doses": [[d["n"], d["m"], shown(d["pre"]), shown(d["fires"])] for d in one["doses"]]}
            for one in row["counts"]
        ],
        "agreement": [_agreement(one) for one in row["agreement"]],
    }


def _agreement(one: dict[str, Any]) -> dict[str, Any]:
    rule, right = one["rule"], one["right"]
    return {
        "rule": [rule["query"], rule["key"], shown(rule["effect"])], "n": one["n"],
        **{name: shown(one[name]) for name in ("matching", "without_key", "without_query")},
        "right": [shown(right[name]) for name in ("mean", "low", "high")],
    }  # fmt: skip


def _curve(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"predictor": row["predictor"], "rules": row["rules"]}
        | {name: [shown(row[name + end]) for end in ("", "_low", "_high")] for name in METRICS}
        for row in rows
    ]


def _exemplar(one: dict[str, Any], rules: list[dict[str, Any]]) -> dict[str, Any]:
    holds = one["holds"] or [[] for _ in one["tokens"]]
    here = {NONE, *holds[-1]}
    matching: dict[int, list[int]] = {}
    for place, rule in enumerate(rules):
        if rule["query"] in here:
            matching.setdefault(rule["key"], []).append(place)
    return {
        "activation": shown(one["activation"]), "tokens": one["tokens"], "adds": [shown(x) for x in one["adds"]],
        "marks": [sorted(place for feature in own for place in matching.get(feature, ())) for own in holds],
    }  # fmt: skip


def _absence(one: dict[str, Any]) -> dict[str, Any]:
    rules = {side: [*(one[side][end] for end in ("query", "key")), shown(one[side]["effect"])]
             for side in ("rule", "distractor")}  # fmt: skip
    measured = {
        name: [one[name]["n"], *(shown(one[name][what]) for what in ("mean", "low", "high"))] for name in DIFFERENCES
    }
    fires = {name: shown(one[name]) for name in ("fires_with", "fires_without")}
    return rules | fires | {"measured": measured} | {name: one[name] for name in ("outcompetes", "confirmed")}
