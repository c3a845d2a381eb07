"""The axis vocabulary, and how one head is named.

Axis names used in signatures, einops patterns and tables throughout:

    batch     sequences that go through the model together
    token     position in a sequence          query, key    the same, in their role in a pattern
    layer     block of the model, from 0      head          query head of a layer, from 0
    kv_head   key/value head: query head h reads kv head h // (n_heads // n_kv_heads)
    d_model   residual stream                 d_head        one head's query, key or value
    pair      one (sequence, query, key) that a score looks at
"""

from typing import NamedTuple


class HeadId(NamedTuple):
    """One head of one model, and the only key by which results of different models are joined."""

    model: str
    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.model}:L{self.layer}H{self.head}"
