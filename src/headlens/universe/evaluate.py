"""How well is a pattern told, on texts that nothing was fitted on? For every head and method, with intervals.

    KL           mean over rows of sum_j A_ij log (A_ij / A^_ij), in nats
    skill        1 - KL / KL of the position-only fit on the same rows
    MSE, r       of A and A^ over causal entries

Intervals resample documents (Efron 1979): all rows of a document go together. Rows in which a head attends to nothing
do not count; where it never attends to anything, every figure is NaN.

Axes: doc, head. Unit: nats a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float

from headlens._errors import DataError
from headlens._result import Provenance, Result
from headlens._statistics import Resampling, interval_of
from headlens.axes import HeadId
from headlens.universe.baselines import Predictor
from headlens.universe.batches import Group
from headlens.universe.clone import divergence
from headlens.universe.features import Features

POSITION = "position only"
SCHEMA = pa.schema(
    [
        ("model", pa.string()), ("layer", pa.int32()), ("head", pa.int32()), ("method", pa.string()),
        *((name, pa.float64()) for name in ("kl", "low", "high", "skill", "skill_low", "skill_high", "mse", "r")),
        ("documents", pa.int32()), ("rows", pa.int32()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Reconstruction(Result):
    """How well each method tells each head's pattern on held-out texts."""

    table: pa.Table
    """Columns as in `SCHEMA`."""

    def to_table(self) -> pa.Table:
        return self.table

    @classmethod
    def _restore(cls, provenance: Provenance, table: pa.Table, arrays: dict[str, np.ndarray]) -> "Reconstruction":  # noqa: ARG003
        return cls(provenance, table.cast(SCHEMA))

    def column(self, method: str, name: str) -> dict[HeadId, float]:
        """Return one column of one method, by head.

        Raises
        ------
        DataError
            If there is no such method.
        """
        rows = [row for row in self.table.to_pylist() if row["method"] == method]
        if not rows:
            raise DataError(f"'{method}' was not measured; there are {', '.join(sorted(self.methods))}.")
        return {HeadId(row["model"], row["layer"], row["head"]): row[name] for row in rows}

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.table["method"].to_pylist()))

    def summary(self, least: float = 0.1) -> list[dict[str, Any]]:
        """Return medians of each method over the heads whose position-only KL exceeds `least`."""
        base = self.column(POSITION, "kl")
        kept = [head for head, kl in base.items() if kl > least]
        rows = []
        for method in self.methods:
            kl, skill = self.column(method, "kl"), self.column(method, "skill")
            told = [head for head in kept if head in kl]
            rows.append(
                {
                    "method": method,
                    "heads": len(told),
                    "kl": float(np.median([kl[h] for h in told])) if told else float("nan"),
                    "skill": float(np.median([skill[h] for h in told])) if told else float("nan"),
                }
            )
        return rows


@dataclass
class _Sums:
    """Of one method: per document and head, and the moments of all entries."""

    kl: list[np.ndarray]
    squared: np.ndarray
    moments: np.ndarray
    """(5, head): sums of A, A^, A A, A^ A^, A A^."""


def reconstruction_rows(
    group: Group, features: Features, methods: Mapping[str, Predictor], *, seed: int = 0
) -> list[dict[str, Any]]:
    """Return the rows of one group of models: every head under every method, of which one is `POSITION`.

    Raises
    ------
    DataError
        If `POSITION` is not among the methods.
    """
    if POSITION not in methods:
        raise DataError(f"Skill is measured against '{POSITION}': give it among the methods.")
    n_heads = len(group.heads)
    sums = {name: _Sums([], np.zeros(n_heads), np.zeros((5, n_heads))) for name in methods}
    told, entries = [], np.zeros(n_heads)
    for batch in group.batches(features):
        told.append(batch.told.sum(2).T.double().numpy())
        entries += (batch.told * batch.seen.sum(-1)).sum((1, 2)).numpy()
        for name, predict in methods.items():
            log_p = predict(batch)
            own, p = sums[name], log_p.exp() * batch.seen * batch.told[..., None]
            own.kl.append(divergence(batch.target, log_p).sum(2).T.double().numpy())
            flat_a, flat_p = batch.target.flatten(1).double(), p.flatten(1).double()
            own.squared += (flat_a - flat_p).square().sum(1).numpy()
            pairs = ((flat_a,), (flat_p,), (flat_a, flat_a), (flat_p, flat_p), (flat_a, flat_p))
            own.moments += torch.stack([torch.stack(x).prod(0).sum(1) for x in pairs]).numpy()
    rows = np.concatenate(told)  # (doc, head)
    counts = Resampling(len(rows), seed=seed).take(len(rows)).astype(float)
    base = np.concatenate(sums[POSITION].kl)
    found = []
    for name, own in sums.items():
        kl = np.concatenate(own.kl)
        columns = {
            "kl": _ratio(kl.sum(0), rows.sum(0)),
            "skill": 1 - _ratio(kl.sum(0), base.sum(0)),
            "mse": _ratio(own.squared, entries),
            "r": _correlation(own.moments, entries),
        }
        drawn = counts @ kl
        columns["low"], columns["high"] = _limits(_ratio(drawn, counts @ rows), len(rows))
        columns["skill_low"], columns["skill_high"] = _limits(1 - _ratio(drawn, counts @ base), len(rows))
        for i, head in enumerate(group.heads):
            values = {key: float(value[i]) for key, value in columns.items()}
            size = {"documents": len(rows), "rows": int(rows[:, i].sum())}
            found.append(head._asdict() | {"method": name} | size | values)
    return found


def mean_divergences(
    group: Group, features: Features, methods: Mapping[Any, Predictor]
) -> dict[Any, dict[HeadId, float]]:
    """Return each head's KL under every method, in nats a row; NaN for one that attends to nothing on these texts."""
    sums, rows = {name: np.zeros(len(group.heads)) for name in methods}, np.zeros(len(group.heads))
    for batch in group.batches(features):
        rows += batch.told.sum((1, 2)).numpy()
        for name, predict in methods.items():
            sums[name] += divergence(batch.target, predict(batch)).sum((1, 2)).double().numpy()
    return {name: dict(zip(group.heads, _ratio(own, rows).tolist(), strict=True)) for name, own in sums.items()}


def skill_of(kl: float, position: float) -> float:
    """Return 1 - KL / KL of position only; NaN where position tells all."""
    return 1 - kl / position if position > 0 else np.nan


def reconstruction(rows: Sequence[dict[str, Any]], provenance: Provenance) -> Reconstruction:
    """Return rows of all groups as one answer."""
    order = [("method", "ascending"), ("model", "ascending"), ("layer", "ascending"), ("head", "ascending")]
    return Reconstruction(provenance, pa.Table.from_pylist(list(rows), schema=SCHEMA).sort_by(order))


def _limits(drawn: Float[np.ndarray, "draw head"], documents: int) -> Any:
    if documents < 2:
        return np.full((2, drawn.shape[1]), np.nan)
    return np.stack([interval_of(own) for own in drawn.T], axis=1)


def _ratio(above: Float[np.ndarray, "*any"], below: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """NaN where there is nothing to compare: a head that attends to nothing, or one that position tells altogether."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _correlation(moments: Float[np.ndarray, "5 head"], n: Float[np.ndarray, " head"]) -> Float[np.ndarray, " head"]:
    """Pearson's r; NaN where either side does not vary."""
    a, p, aa, pp, ap = moments / np.maximum(n, 1)
    spread = np.sqrt(np.maximum(aa - a**2, 0) * np.maximum(pp - p**2, 0))
    return np.where(spread > 1e-12, (ap - a * p) / np.where(spread > 1e-12, spread, 1), np.nan)
