"""A study's answers as tables: what `headlens universe eval --save FOLDER` keeps, and pages are made of.

heads     a row a head: family, kinds (labels of the atlas, all that it is of), KL of position only, of phase 1 and of
          phase 2 (`joined_kl`, its family left out), skills, both outlier scores with q and whether they are flagged;
          and `left_by_*`, what baselines leave of it on the same texts (1 - skill; that of phase 1 is `unclonable`)
methods   a row a method and kind of text (`held out`, `repeats`): medians over heads whose position-only KL exceeds
          `LEAST`, the skill with 95 % over models
spaces    a row a split, kind and space: recall, MRR, AP and F1 with 95 % over models; `gain` is the AP of phase 2 above
          this space's, `f1_gain` its F1 above this one's, paired by head and by draw; None for phase 2 itself
queries   a row a split, kind, space and query head: its measures, and `nearest`: the first `SHOWN` heads of other
          families, the nearest first, each with its distance and whether it is of the kind
few       a row a number of texts and method: phase 2, of heads that joined on that many, and what has been fitted on
          the same ones without a decoder. `above`: its KL above that on the most; `gap`: the KL of phase 2 minus its
          own, None for phase 2 itself; skill is relative to the position-only fit of all texts
alike     a row a kind: how alike dissimilarities over texts are in pairs of such heads, and in other pairs
facts     one row: texts, decoders, clusters

`split` is `family left out` (the decoder has not seen the query's family) or `heads held out` (nor the query head, but
others of its family; F1 is not asked there).

Axes: none. Unit: nats a row for every KL.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from headlens._errors import DataError
from headlens._result import Provenance, Result

LEAST = 0.1
"""Position-only KL below which there is nothing to tell."""
SHOWN = 24
LEFT_BY = {
    "left_by_mean_pattern": "mean pattern",
    "left_by_symbolic": "symbolic",
    "left_by_nearest_head": "nearest head",
    "left_by_shuffled_texts": "shuffled texts",
}
"""Columns of heads: what a baseline leaves."""
_HEAD = [("model", pa.string()), ("layer", pa.int32()), ("head", pa.int32())]


def _numbers(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.float64()) for name in names]


def _with_limits(*names: str) -> list[tuple[str, pa.DataType]]:
    return _numbers(*(column for name in names for column in (name, f"{name}_low", f"{name}_high")))


def named(what: str, told: Sequence[float]) -> dict[str, float]:
    """Return a value and its limits as the columns that hold them."""
    return dict(zip((what, f"{what}_low", f"{what}_high"), told, strict=True))


_NEAR = pa.list_(pa.struct([*_HEAD, ("distance", pa.float64()), ("relevant", pa.bool_())]))
SCHEMAS = {
    "heads": pa.schema(
        [
            *_HEAD, ("family", pa.string()), ("kinds", pa.list_(pa.string())),
            *_numbers("position_kl", "clone_kl", "joined_kl"), *_with_limits("clone_skill"), *_numbers("joined_skill"),
            *_numbers(*LEFT_BY), *_numbers("unclonable", "unclonable_q"), ("is_unclonable", pa.bool_()),
            *_numbers("uncompressible", "uncompressible_q"), ("is_uncompressible", pa.bool_()),
        ]
    ),
    "methods": pa.schema(
        [("method", pa.string()), ("text", pa.string()), ("heads", pa.int32()), *_numbers("kl"), *_with_limits("skill")]
    ),
    "spaces": pa.schema(
        [
            ("split", pa.string()), ("kind", pa.string()), ("space", pa.string()), ("queries", pa.int32()),
            *_numbers("prevalence"), *_with_limits("recall", "mrr", "ap", "gain", "f1", "f1_gain"),
        ]
    ),
    "queries": pa.schema(
        [
            ("split", pa.string()), ("kind", pa.string()), ("space", pa.string()), *_HEAD,
            *_numbers("recall", "mrr", "ap", "prevalence"), ("nearest", _NEAR),
        ]
    ),
    "few": pa.schema(
        [
            ("method", pa.string()), ("documents", pa.int32()), ("heads", pa.int32()), *_numbers("kl"),
            *_with_limits("above", "skill", "gap"),
        ]
    ),
    "alike": pa.schema(
        [
            ("kind", pa.string()), ("pairs", pa.int32()), *_numbers("rho"), *_with_limits("partial_rho"),
            ("significant", pa.int32()), ("other_pairs", pa.int32()), *_with_limits("other_rho"),
        ]
    ),
    "facts": pa.schema([("texts_compared", pa.int32()), ("folds", pa.int32()), *_numbers("rand_index")]),
}  # fmt: skip


@dataclass(frozen=True)
class UniverseStudy(Result):
    """What a study of the universe of heads measured."""

    format: ClassVar[int] = 2  # 1 knew neither paired F1 nor baselines of few texts and of outliers

    tables: Mapping[str, pa.Table]
    """By name, with the columns of `SCHEMAS`."""

    def __getitem__(self, name: str) -> pa.Table:
        """Return one table.

        Raises
        ------
        DataError
            If there is none of this name.
        """
        if name not in self.tables:
            raise DataError(f"A study has no table '{name}'; it has {', '.join(self.tables)}.")
        return self.tables[name]

    def to_table(self) -> pa.Table:
        """One row per head: the table `heads`."""
        return self["heads"]

    def _arrays(self) -> dict[str, np.ndarray]:
        """The other tables, each as the bytes of an Arrow stream."""
        return {name: _packed(table) for name, table in self.tables.items() if name != "heads"}

    @classmethod
    def _restore(cls, provenance: Provenance, table: pa.Table, arrays: dict[str, np.ndarray]) -> "UniverseStudy":
        tables = {"heads": table} | {name: _unpacked(bytes_) for name, bytes_ in arrays.items()}
        return cls(provenance, {name: tables[name].cast(schema) for name, schema in SCHEMAS.items()})


def _packed(table: pa.Table) -> np.ndarray:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return np.frombuffer(sink.getvalue(), dtype=np.uint8)


def _unpacked(content: np.ndarray) -> pa.Table:
    return pa.ipc.open_stream(content.tobytes()).read_all()
