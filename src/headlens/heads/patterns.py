"""What every head attends to over a few texts: quantised patterns to look at, not to compute with.

For one text of T tokens the causal half of each pattern is kept as bytes, row by row:

    weights[layer, head, q * (q + 1) // 2 + k] = round(255 * A[q, k])        k <= q < T

so that the worst error is 1/510 and a 512-token text of a 144-head model takes 19 MB.

Axes: layer, head, entry. Unit: 255 = attention 1. Texts longer than the context are cut, and say so.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from headlens._result import Provenance, Result


@dataclass(frozen=True)
class AttentionPatterns(Result):
    """Patterns of every head of one model over some texts, quantised for display."""

    model: str
    tokens: tuple[tuple[str, ...], ...]
    """Per text, one display string per token (as decoded: may hold any character)."""
    weights: tuple[UInt8[np.ndarray, "layer head entry"], ...]
    """Per text, the causal half of each pattern, row by row; entry = T (T + 1) / 2."""

    def to_table(self) -> pa.Table:
        """One row per token: model, text, position, token."""
        rows = [(text, position, token) for text, row in enumerate(self.tokens) for position, token in enumerate(row)]
        texts, positions, tokens = zip(*rows, strict=True) if rows else ((), (), ())
        return pa.table(
            {
                "model": pa.array([self.model] * len(rows), pa.string()),
                "text": pa.array(texts, pa.int32()),
                "position": pa.array(positions, pa.int32()),
                "token": pa.array(tokens, pa.string()),
            }
        )

    def _arrays(self) -> dict[str, np.ndarray]:
        return {f"weights.{i}": w for i, w in enumerate(self.weights)}

    @classmethod
    def _restore(cls, provenance: Provenance, table: pa.Table, arrays: dict[str, np.ndarray]) -> "AttentionPatterns":
        columns = table.to_pydict()
        tokens: list[list[str]] = [[] for _ in arrays]
        for text, token in zip(columns["text"], columns["token"], strict=True):
            tokens[text].append(token)
        weights = tuple(arrays[f"weights.{i}"] for i in range(len(arrays)))
        return cls(provenance, columns["model"][0], tuple(map(tuple, tokens)), weights)
