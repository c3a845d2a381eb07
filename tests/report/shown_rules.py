"""Rules to show, whose matches can be checked by hand: hostile tokens and labels, an absence, a count, missing numbers."""

import numpy as np
import pyarrow as pa

from headlens._result import Provenance
from headlens.rules.evaluate import METRICS
from headlens.rules.results import SCHEMA, Rules
from tests.report.shown_fra import DIGEST

NAN = float("nan")
WORDS = ("<s>", " Lyon", " never", " the", " speaks")
HOLDS = ([], [1, 5], [2], [5], [7, 3])
LABELS = {1: "French city", 2: "denial", 7: "asks language"}
SIZES = (0, 4, 8)


def rule(query, key, effect):
    return {"query": query, "key": key, "effect": effect}


RULES = [rule(7, 1, 3.9), rule(7, 2, -6.8), rule(-1, 5, 0.5), rule(9, 1, 2.0), rule(7, 8, 0.001)]
COVERAGE = [0.8, 0.1, 0.9, 0.3, 0.0]
ORDER = [0, 1, 3, 2, 4]
"""By effect times coverage: 3.12, 0.68, 0.6, 0.45, 0."""


def level(predictor, n, value=0.5, spread=0.1):
    found = {"predictor": predictor, "rules": n, "threshold": 0.0}
    for i, name in enumerate(METRICS):
        own = value + 0.01 * i
        found |= {name: own, f"{name}_low": own - spread, f"{name}_high": own + spread}
    return found


def make_curve(value=0.5):
    curve = [level(name, n, value + 0.02 * n) for name in ("rules", "key_only", "random") for n in SIZES]
    return [*curve, level("unigram", None, 0.25, NAN), level("full", None, 0.99, 0.0)]


def difference(n, mean):
    return {"n": n, "mean": mean, "low": mean - 0.5, "high": mean + 0.5}


def absence(confirmed=True):
    return {
        "rule": RULES[0], "distractor": RULES[1], "outcompetes": False, "confirmed": confirmed,
        "without_it": difference(34, 2.7), "with_it": difference(190, -2.9), "put_in": difference(24, -5.0),
        "taken_out": difference(0, NAN), "fires_with": 0.25, "fires_without": 1.0,
    }  # fmt: skip


def count(confirmed=True, suppress=2):
    doses = [{"n": n, "m": m, "pre": n - 4.0 * m, "fires": float(n > 4 * m)} for m in (0, 1) for n in range(7)]
    own = {"query": 7, "attract": 1, "suppress": suppress, "ratio": 4.2, "doses": doses}
    return own | {"places": 8, "contexts": 5, "confirmed": confirmed}


def agreement():
    return {
        "rule": RULES[0], "n": 12, "matching": 0.75, "without_key": 0.0, "without_query": NAN,
        "right": difference(12, 0.875),
    }  # fmt: skip


def make_row(feature=3, *, tokens=WORDS, **changed):
    adds = [0.0, 2.5, -1.5, 0.1, NAN]
    exemplar = {"text": 0, "position": len(tokens) - 1, "activation": 4.0, "tokens": list(tokens)}
    exemplar |= {
        "adds": (adds * len(tokens))[: len(tokens)],
        "holds": [*HOLDS[:-1], *[[]] * (len(tokens) - 5), HOLDS[-1]],
    }
    return {
        "feature": feature, "positions": 1635, "texts": 282, "rules": RULES, "coverage": COVERAGE,
        "curve": make_curve(), "exemplars": [exemplar], "examples": [193, 186, 190],
        "absences": [absence(), absence(confirmed=False)], "counts": [count()], "agreement": [agreement()],
    } | changed  # fmt: skip


EMPTY = {
    "rules": [], "coverage": [], "exemplars": [], "absences": [], "counts": [], "agreement": [],
    "curve": [level(name, 0, 0.1) for name in ("rules", "key_only", "random")]
    + [level("unigram", None, 0.1), level("full", None, 0.9)],
}  # fmt: skip


def make_rules(rows=None, *, model="zoo:gpt2-small", layer=1, head=2):
    rows = [make_row(), make_row(11, **EMPTY)] if rows is None else rows
    shown = [row | {"exemplars": [_arrow(one) for one in row["exemplars"]]} for row in rows]
    data = {"texts": {"n": 1500}, "dictionary": {"site": "blocks.1.hook_resid_pre", "digest": DIGEST}}
    arrays = {"head": np.array([layer, head, 12, NAN, NAN, NAN])}
    made = Provenance(({"name": model},), data, 0, "headlens rules", {})
    return Rules(made, pa.Table.from_pylist(shown, SCHEMA), arrays)


def _arrow(exemplar):
    """Tokens as Arrow holds them: it has no lone surrogates."""
    return exemplar | {"tokens": [token.encode("utf-8", "replace").decode() for token in exemplar["tokens"]]}
