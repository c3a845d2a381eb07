"""From one number per sample and head to a row per head: mean, interval, null, p.

Samples are folded in as they come and are not kept; a sample that says nothing (NaN for every head) is left out.

Axes: sample, layer, head. Memory: about `DRAWS` numbers per head.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from headlens._statistics import Resampling, Tally, paired_p, spread_p
from headlens.heads.scores import SCHEMA

AT_ONCE = 256
"""Samples whose draws are in memory together."""


class Measured(NamedTuple):
    """One number per sample and head, the same under the null, and the same weighted by what keys write."""

    own: Float[np.ndarray, "sample layer head"]
    null: Float[np.ndarray, "sample layer head"]
    weighted: Float[np.ndarray, "sample layer head"] | None = None
    detail: dict[tuple[int, int], str] | None = None
    """What more there is to say of a head."""


@dataclass
class HeadTally:
    """Running sums of what was measured in every head."""

    shape: tuple[int, int]
    """(layer, head)"""
    test: Literal["paired", "spread"] = "paired"
    """Own against null, sample by sample; or the mean among nulls, where samples share what varies between heads."""
    detail: dict[tuple[int, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.own = Tally(self.shape)
        self.sums = {name: np.zeros(self.shape) for name in ("null", "null squared", "gap", "gap squared", "weighted")}

    def add(self, measured: Measured, counts: Int[np.ndarray, "draw sample"]) -> None:
        """Take in samples, with how often each bootstrap draw takes them."""
        says = ~np.isnan(measured.own).all((1, 2))
        own, null = measured.own[says], measured.null[says]
        self.own.add(own, counts[:, says])
        gap = own - null
        weighted = np.nan if measured.weighted is None else measured.weighted[says].sum(0)
        more = (null.sum(0), (null**2).sum(0), gap.sum(0), (gap**2).sum(0), weighted)
        for name, sums in zip(self.sums, more, strict=True):
            self.sums[name] += sums
        self.detail |= measured.detail or {}

    def add_all(self, measured: Measured, resampling: Resampling) -> None:
        """Take in samples, some at a time: how often every draw takes each is more numbers than were measured."""
        for start in range(0, len(measured.own), AT_ONCE):
            own, null, weighted = (x if x is None else x[start : start + AT_ONCE] for x in measured[:3])
            assert own is not None and null is not None
            self.add(Measured(own, null, weighted, measured.detail), resampling.take(len(own)))

    @property
    def n(self) -> int:
        return self.own.n

    def p(self) -> Float[np.ndarray, "layer head"]:
        """How likely a score this far above its null is by chance, one-sided."""
        n, sums = self.n, self.sums
        if self.test == "paired":
            return paired_p(n, sums["gap"], sums["gap squared"])
        mean = sums["null"] / n
        sd = np.sqrt(np.maximum(sums["null squared"] / n - mean**2, 0) * n / max(1, n - 1))
        return spread_p(self.own.mean(), mean, sd) if n > 1 else np.full(self.shape, np.nan)

    def table(self, model: str, kind: str) -> pa.Table:
        """One row per head."""
        low, high = self.own.interval()
        layers, heads = np.indices(self.shape)
        columns = {
            "model": np.full(low.size, model),
            "layer": layers.ravel(),
            "head": heads.ravel(),
            "kind": np.full(low.size, kind),
            "score": self.own.mean().ravel(),
            "low": low.ravel(),
            "high": high.ravel(),
            "null": (self.sums["null"] / self.n).ravel(),
            "n": np.full(low.size, self.n),
            "weighted": (self.sums["weighted"] / self.n).ravel(),
            "p": self.p().ravel(),
            "detail": [self.detail.get(at) for at in np.ndindex(*self.shape)],
        }
        arrays = [pa.array(columns[f.name], f.type, from_pandas=f.name == "weighted") for f in SCHEMA]
        return pa.table(arrays, schema=SCHEMA)

    # --- what a checkpoint holds ---

    def state(self) -> dict[str, np.ndarray]:
        """All numbers so far."""
        own = {"n": np.array(self.own.n), "total": self.own.total, "drawn": self.own.drawn, "weight": self.own.weight}
        return own | self.sums

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` returned."""
        self.own.n = state["n"].item()
        self.own.total, self.own.drawn, self.own.weight = state["total"], state["drawn"], state["weight"]
        self.sums = {name: state[name] for name in self.sums}
