"""Which heads are of which kind? A head may be of several, or of none.

    excess = score - null, where the null is above 0; else the score itself
    q      = false-discovery rate of (excess > 0), over all heads and kinds of a model     Benjamini and Hochberg 1995
    level  = high if excess >= high, medium if excess >= medium, else low; low where q > 5 %, and where the head is
             low in a kind that this one needs (heads/kinds.py)

Without the behaviour anywhere, the chance that any head of a model is labelled is at most 5 %, as far as a p-value is
of a head drawn at random: a trained or random head always leans a little to one side, which many samples make
certain. So both are asked for: that it is no accident of the samples, and that it is large. Every kind's score is 0
where there is nothing, so a null below 0 makes no head one that scores 0.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from headlens._errors import DataError
from headlens._statistics import false_discovery
from headlens.heads.kinds import KINDS

RATE = 0.05
"""The false-discovery rate that is allowed."""
LEVELS = ("low", "medium", "high")
Thresholds = Mapping[str, tuple[float, float]]
"""Kind -> (medium, high)."""


def thresholds(changed: Thresholds | None = None) -> dict[str, tuple[float, float]]:
    """Return the thresholds of all kinds, some of them changed.

    Raises
    ------
    DataError
        If a kind is unknown, or its medium threshold is above its high one.
    """
    found = {name: (kind.medium, kind.high) for name, kind in KINDS.items()}
    for name, (medium, high) in (changed or {}).items():
        if name not in found:
            raise DataError(f"'{name}' is no kind of head; the kinds are {', '.join(KINDS)}.")
        if not medium <= high:
            raise DataError(f"The thresholds of {name} must rise: medium is {medium} and high is {high}.")
        found[name] = (medium, high)
    return found


def labelled(table: pa.Table, changed: Thresholds | None = None) -> pa.Table:
    """Return a table of scores with the columns `q` and `level` added.

    A kind that needs another which was not measured has no level; nor has one that is not in `KINDS`.
    """
    bounds = thresholds(changed)
    model, kind = (np.asarray(table[name].to_pylist(), dtype=object) for name in ("model", "kind"))
    layer, head = table["layer"].to_numpy(), table["head"].to_numpy()
    p = table["p"].to_numpy()
    excess = table["score"].to_numpy() - np.maximum(table["null"].to_numpy(), 0)
    q = np.full(len(p), np.nan)
    for name in dict.fromkeys(model):
        q[model == name] = false_discovery(p[model == name])
    strength = np.full(len(p), -1)  # -1: not decided
    for name in KINDS:
        rows = kind == name
        strength[rows] = np.digitize(excess[rows], bounds[name]) * (q[rows] <= RATE)
    _, place = np.unique([f"{x}/{y}/{z}" for x, y, z in zip(model, layer, head, strict=True)], return_inverse=True)
    final = strength.copy()
    for name, needed in ((one, two) for one, row in KINDS.items() for two in row.needs):
        rows, others = kind == name, kind == needed
        other = np.full(len(p), -1)  # by place
        other[place[others]] = strength[others]
        other = other[place[rows]]
        final[rows] = np.where(other <= 0, np.minimum(final[rows], other), final[rows])
    level = [None if strong < 0 else LEVELS[strong] for strong in final]
    table = table.append_column("q", pa.array(q, pa.float64(), from_pandas=True))
    return table.append_column("level", pa.array(level, pa.string()))
