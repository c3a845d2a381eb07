"""The answer of mining: for each output feature its rules, how well they do, and where it fires.

`Rules` is a table of one row a feature, nested; `rule_set` makes rules that run, `to_csv`, `to_json` and `to_markdown`
write them for people. Numbers that rules need to run are arrays beside the table.

Axes: feature = output features; rule = the rules of all features one after the other; offset; level; kind.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from headlens._errors import DataError
from headlens._result import Provenance, Result
from headlens._statistics import bootstrap_mean
from headlens.fra.labels import FeatureLabels
from headlens.rules.agreement import Agreement
from headlens.rules.counting import FoundCount
from headlens.rules.distractors import FoundAbsence
from headlens.rules.evaluate import METRICS
from headlens.rules.exemplars import N_BUCKETS
from headlens.rules.language import Absence, Count, RuleSet, SkipGram
from headlens.rules.replace import Difference
from headlens.rules.restrict import Rest
from headlens.rules.select import SIZES

_RULE = pa.struct([("query", pa.int64()), ("key", pa.int64()), ("effect", pa.float64())])
_LEVEL = pa.struct([("predictor", pa.string()), ("rules", pa.int64()), ("threshold", pa.float64())] + [
    (name + end, pa.float64()) for name in METRICS for end in ("", "_low", "_high")
])  # fmt: skip
_EXEMPLAR = pa.struct([
    ("text", pa.int64()), ("position", pa.int64()), ("activation", pa.float64()), ("tokens", pa.list_(pa.string())),
    ("adds", pa.list_(pa.float64())), ("holds", pa.list_(pa.list_(pa.int64()))),
])  # fmt: skip
_DIFFERENCE = pa.struct([("n", pa.int64()), ("mean", pa.float64()), ("low", pa.float64()), ("high", pa.float64())])
_ABSENCE = pa.struct([
    ("rule", _RULE), ("distractor", _RULE), ("outcompetes", pa.bool_()),
    *((name, _DIFFERENCE) for name in ("with_it", "without_it", "put_in", "taken_out")),
    ("fires_with", pa.float64()), ("fires_without", pa.float64()), ("confirmed", pa.bool_()),
])  # fmt: skip
_DOSE = pa.struct([("n", pa.int64()), ("m", pa.int64()), ("pre", pa.float64()), ("fires", pa.float64())])
_COUNT = pa.struct([
    ("query", pa.int64()), ("attract", pa.int64()), ("suppress", pa.int64()), ("ratio", pa.float64()),
    ("doses", pa.list_(_DOSE)), ("places", pa.int64()), ("contexts", pa.int64()), ("confirmed", pa.bool_()),
])  # fmt: skip
_AGREEMENT = pa.struct([
    ("rule", _RULE), ("n", pa.int64()), ("matching", pa.float64()), ("without_key", pa.float64()),
    ("without_query", pa.float64()), ("right", _DIFFERENCE),
])  # fmt: skip
SCHEMA = pa.schema([
    ("feature", pa.int64()), ("positions", pa.int64()), ("texts", pa.int64()), ("rules", pa.list_(_RULE)),
    ("coverage", pa.list_(pa.float64())),
    ("curve", pa.list_(_LEVEL)), ("exemplars", pa.list_(_EXEMPLAR)), ("examples", pa.list_(pa.int64())),
    ("absences", pa.list_(_ABSENCE)), ("counts", pa.list_(_COUNT)),
    ("agreement", pa.list_(_AGREEMENT)),
])  # fmt: skip
"""positions, texts: where the feature fires in the corpus; coverage: of what fires in the mining part, the share at
which each rule matches; examples: how many were mined, selected and tested on; adds, holds: of each token, what it
adds, and which features that rules name it holds."""


@dataclass(frozen=True)
class Mined:
    """What mining found of one output feature."""

    feature: int
    positions: int
    texts: int
    rules: RuleSet
    sizes: list[int]
    rests: list[Rest]
    curve: list[dict[str, Any]]
    exemplars: list[dict[str, Any]]
    examples: tuple[int, int, int]
    coverage: list[float]
    absences: list[FoundAbsence]
    counts: list[FoundCount]
    agreement: list[Agreement]


@dataclass(frozen=True)
class Rules(Result):
    """Rules of the features that one head writes."""

    table: pa.Table
    """One row a feature: the columns of `SCHEMA`."""
    arrays: Mapping[str, np.ndarray]
    """What rules need to run: score (offset rule), value (rule); bounds (feature + 1) into both; by level, with
    level_bounds: sizes, beta and rho (level kind), rest, threshold; bias (feature); head: layer, head, d_sae, window,
    softcap and sink (NaN: none)."""

    @property
    def layer(self) -> int:
        return int(self.arrays["head"][0])

    @property
    def head(self) -> int:
        return int(self.arrays["head"][1])

    @property
    def features(self) -> tuple[int, ...]:
        return tuple(self.table["feature"].to_pylist())

    def to_table(self) -> pa.Table:
        """One row a feature: how often it fires, its rules, the curve and where it fires most."""
        return self.table

    def rules(self, feature: int) -> list[SkipGram]:
        """Return the rules of an output feature, in the order in which they were chosen."""
        return [SkipGram(**row) for row in self.table["rules"][self._row(feature)].as_py()]

    def absences(self, feature: int, *, confirmed: bool = True) -> list[Absence]:
        """Return skip-grams that do not hold beside a distractor; not `confirmed`: all that were tried."""
        rows = self.table["absences"][self._row(feature)].as_py()
        return [
            Absence(SkipGram(**row["rule"]), SkipGram(**row["distractor"]), row["outcompetes"])
            for row in rows if row["confirmed"] or not confirmed
        ]  # fmt: skip

    def counts(self, feature: int, *, confirmed: bool = True) -> list[Count]:
        """Return counts, each with its ratio; not `confirmed`: all that were tried."""
        rows = self.table["counts"][self._row(feature)].as_py()
        names = ("query", "attract", "suppress", "ratio")
        return [Count(**{name: row[name] for name in names}) for row in rows if row["confirmed"] or not confirmed]

    def curve(self, feature: int | None = None) -> pa.Table:
        """Return how well each number of rules and each baseline does: of one feature, or the mean over all.

        A feature that has fewer rules counts with all it has.
        """
        if feature is not None:
            return pa.Table.from_pylist(self.table["curve"][self._row(feature)].as_py(), pa.schema(list(_LEVEL)))
        return mean_curve([row["curve"] for row in self.table.to_pylist()])

    def agreement(self, feature: int) -> list[Agreement]:
        """Return how the feature did on texts made to match its first rules, and on texts made not to."""
        rows = self.table["agreement"][self._row(feature)].as_py()
        told = (row | {"rule": SkipGram(**row["rule"]), "right": Difference(**row["right"])} for row in rows)
        return [Agreement(**row) for row in told]

    def exemplars(self, feature: int) -> list[dict[str, Any]]:
        """Return where a feature fires most in the test part: tokens, and what each adds to it."""
        return self.table["exemplars"][self._row(feature)].as_py()

    def rule_set(self, feature: int, n: int | None = None) -> RuleSet:
        """Return the first n rules (one of the curve's numbers, or None: all) so that they run.

        Raises
        ------
        DataError
            If the curve has no such number.
        """
        row, a = self._row(feature), self.arrays
        levels = slice(*a["level_bounds"][row : row + 2])
        sizes = a["sizes"][levels].tolist()
        if n is not None and n not in sizes:
            there = ", ".join(map(str, sizes))
            raise DataError(f"Rules of feature {feature} were fitted for {there} of them, not for {n}: ask for one.")
        level = levels.start + (len(sizes) - 1 if n is None else sizes.index(n))
        own = slice(a["bounds"][row], a["bounds"][row] + a["sizes"][level])
        window, softcap, sink = (None if np.isnan(one) else float(one) for one in a["head"][3:])
        return RuleSet(
            self.layer, self.head, feature, tuple(self.rules(feature)[: a["sizes"][level]]), a["score"][:, own],
            a["value"][own], float(a["bias"][row]), Rest(a["beta"][level], a["rho"][level], float(a["rest"][level])),
            float(a["threshold"][level]), int(a["head"][2]), None if window is None else int(window), softcap, sink,
        )  # fmt: skip

    def to_csv(self, labels: FeatureLabels | None = None) -> str:
        """Return all rules, one a line."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["feature", "rank", "query", "key", "effect", "rule"])
        for feature in self.features:
            for rank, rule in enumerate(self.rules(feature), 1):
                writer.writerow([feature, rank, rule.query, rule.key, rule.effect, _said(rule, labels)])
        return out.getvalue()

    def to_json(self, labels: FeatureLabels | None = None) -> str:
        """Return all that is known of every feature."""
        rows = [
            row | {"rules": [one | {"rule": _said(SkipGram(**one), labels)} for one in row["rules"]]}
            for row in self.table.to_pylist()
        ]
        return json.dumps({"layer": self.layer, "head": self.head, "features": _finite(rows)}, ensure_ascii=False)

    def to_markdown(
        self,
        labels: FeatureLabels | None = None,
        *,
        n: int = 8,
        phrase: Callable[[int, list[SkipGram]], str] | None = None,
    ) -> str:
        """Return a page: each feature's first n rules, how it does, where it fires.

        Parameters
        ----------
        phrase
            Called with a feature and its first rules; what it returns stands above them. headlens has none of its own.
        """
        parts = [f"# Rules of layer {self.layer}, head {self.head}"]
        for row in self.table.to_pylist():
            rules = [SkipGram(**one) for one in row["rules"][:n]]
            lines = [f"## Output feature {row['feature']}", f"Fires at {row['positions']:,} positions."]
            if phrase is not None:
                lines.append(phrase(row["feature"], rules))
            lines.append("\n".join(f"{i}. `{_said(rule, labels)}`" for i, rule in enumerate(rules, 1)))
            lines.append(_curve_markdown(row["curve"]))
            parts += lines
        return "\n\n".join(parts) + "\n"

    def _row(self, feature: int) -> int:
        if feature not in self._rows:
            raise DataError(f"Feature {feature} was not mined; these were: {', '.join(map(str, self.features))}.")
        return self._rows[feature]

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {feature: row for row, feature in enumerate(self.features)}

    def _arrays(self) -> dict[str, np.ndarray]:
        return dict(self.arrays)

    @classmethod
    def _restore(cls, provenance: Provenance, table: pa.Table, arrays: dict[str, np.ndarray]) -> "Rules":
        return cls(provenance, table.select(SCHEMA.names).cast(SCHEMA), arrays)


def told(made: Provenance, d_sae: int, mined: Sequence[Mined]) -> Rules:
    """Put what was mined into one answer."""
    rows = [
        {
            "feature": one.feature, "positions": one.positions, "texts": one.texts,
            "coverage": one.coverage, "curve": one.curve, "exemplars": one.exemplars,
            "examples": list(one.examples), "absences": [found.to_row() for found in one.absences],
            "counts": [found.to_row() for found in one.counts],
            "agreement": [found.to_row() for found in one.agreement],
        }
        for one in mined
    ]  # fmt: skip
    first = mined[0].rules
    head = [first.layer, first.head, d_sae] + [
        np.nan if one is None else one for one in (first.window, first.softcap, first.sink)
    ]
    rests = [rest for one in mined for rest in one.rests]
    thresholds = [row["threshold"] for one in mined for row in one.curve if row["predictor"] == "rules"]
    arrays = {
        "score": np.concatenate([one.rules.score for one in mined], 1),
        "value": np.concatenate([one.rules.value for one in mined]),
        "bounds": _bounds([len(one.rules.rules) for one in mined]),
        "level_bounds": _bounds([len(one.sizes) for one in mined]),
        "sizes": np.array([n for one in mined for n in one.sizes]),
        "beta": np.array([rest.beta for rest in rests]).reshape(-1, N_BUCKETS),
        "rho": np.array([rest.rho for rest in rests]).reshape(-1, N_BUCKETS),
        "rest": np.array([rest.rest for rest in rests]),
        "threshold": np.array(thresholds, dtype=float),
        "bias": np.array([one.rules.bias for one in mined]),
        "head": np.array(head, dtype=float),
    }
    at = SCHEMA.get_field_index("rules")
    rest = pa.Table.from_pylist(rows, SCHEMA.remove(at))
    return Rules(made, rest.add_column(at, SCHEMA.field(at), _rules_column(mined, arrays["bounds"])), arrays)


def _rules_column(mined: Sequence[Mined], bounds: np.ndarray) -> pa.Array:
    """All rules, by feature: made from columns, for there are thousands of each."""
    every = [rule for one in mined for rule in one.rules.rules]
    columns = [pa.array([getattr(rule, part.name) for rule in every], part.type) for part in _RULE]
    return pa.ListArray.from_arrays(
        pa.array(bounds, pa.int32()), pa.StructArray.from_arrays(columns, fields=list(_RULE))
    )


def _bounds(sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _said(rule: SkipGram, labels: FeatureLabels | None) -> str:
    return rule.text() if labels is None else rule.text(labels.name)


def mean_curve(curves: list[list[dict[str, Any]]]) -> pa.Table:
    """Means over features; low and high are those of the mean of features' values, by resampling features."""
    sizes = sorted({row["rules"] for rows in curves for row in rows if row["rules"] in (0, *SIZES)})
    wanted: list[tuple[str, int | None]] = [(name, n) for name in ("rules", "key_only", "random") for n in sizes]
    wanted += [("unigram", None), ("full", None)]
    found = []
    for name, n in wanted:
        values = np.array([[_at(rows, name, n)[metric] for metric in METRICS] for rows in curves], dtype=float)
        means: dict[str, Any] = {"predictor": name, "rules": n, "threshold": None}
        for metric, column in zip(METRICS, values.T, strict=True):
            there = column[~np.isnan(column)]
            mean, low, high = _mean_of(there)
            means |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
        found.append(means)
    return pa.Table.from_pylist(found, pa.schema(list(_LEVEL)))


def _mean_of(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, low and high of one number a feature."""
    if not len(values):
        return np.nan, np.nan, np.nan
    mean, low, high = bootstrap_mean(values[:, None], seed=0)
    return float(mean[0]), float(low[0]), float(high[0])


def _at(rows: list[dict[str, Any]], name: str, n: int | None) -> dict[str, Any]:
    """The row of so many rules, or of as many as there are."""
    own = [row for row in rows if row["predictor"] == name]
    return own[-1] if n is None else max((row for row in own if row["rules"] <= n), key=lambda row: row["rules"])


def _curve_markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| predictor | rules | precision | recall | F1 | AP | Spearman | R2 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = " | ".join(f"{row[metric]:.3f}" for metric in METRICS)
        lines.append(f"| {row['predictor']} | {'' if row['rules'] is None else row['rules']} | {cells} |")
    return "\n".join(lines)


def _finite(value: Any) -> Any:
    """NaN and infinity, which JSON has not, as null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
