"""The table of head scores: one row per model, layer, head and kind."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headlens._result import Provenance, Result

SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("layer", pa.int32()),
        ("head", pa.int32()),
        ("kind", pa.string()),
        ("score", pa.float64()),  # mean over samples (sequences, prompts or tokens)
        ("low", pa.float64()),  # 95 % bootstrap interval over samples
        ("high", pa.float64()),
        ("null", pa.float64()),  # what a head without the behaviour would score
        ("n", pa.int64()),  # samples
        ("weighted", pa.float64()),  # the score with keys weighted by what they write; null where no keys are scored
        ("p", pa.float64()),  # one-sided, of a score this far above its null
        ("detail", pa.string()),  # what more there is to say (which offset)
    ]
)


@dataclass(frozen=True)
class HeadScores(Result):
    """How much each head does each thing, with its interval, null and sample size."""

    table: pa.Table
    """Columns as in `SCHEMA`; rows sorted by model, kind, layer, head."""

    def to_table(self) -> pa.Table:
        return self.table

    @classmethod
    def _restore(cls, provenance: Provenance, table: pa.Table, arrays: dict[str, np.ndarray]) -> "HeadScores":  # noqa: ARG003
        return cls(provenance, table.cast(SCHEMA))
