"""What kind of head is it? Each kind says which keys a head of that kind would attend to.

A kind is one function: from token ids to the set of (query, key) targets. The score of a head is

    score = mean over rows with a target of  sum over targets k of  A[q, k]

so 1 means that all attention of every such row goes to targets. Rows without a target do not count.

    previous_token    k = q - 1                           q >= 2 after a BOS: what precedes q = 1 is the BOS
    duplicate_token   t_k = t_q, k < q                    earlier copies of the query's token
    induction         t_{k-1} = t_q, k < q                what followed earlier copies of the query's token
    self              k = q, q >= 1
    sink              k = 0, q >= 1                       the first token, BOS where there is one

BOS is never a token that repeats. To add a kind: write its targets and a row of KINDS.

Axes: batch, query, key. Source: Olsson et al. 2022; Wang et al. 2023 (IOI); Gu et al. 2024 (sinks).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Ids = Int[Tensor, "batch token"]
Mask = Bool[Tensor, "batch token"]
Targets = Bool[Tensor, "batch token token"]


@dataclass(frozen=True)
class Kind:
    """One way a head can attend."""

    definition: str
    targets: Callable[[Ids, Mask, int | None], Targets]
    """From padded ids, their mask, and the BOS id that begins each sequence (None: no BOS)."""
    stimulus: Literal["repeats", "text"]
    """What it is measured on; `text` falls back to random tokens where no corpus is given."""


def previous_token_targets(ids: Ids, mask: Mask, bos: int | None) -> Targets:
    """Mark the token before each query."""
    return _offset(ids, mask, 1, first=1 if bos is None else 2)


def self_targets(ids: Ids, mask: Mask, bos: int | None) -> Targets:  # noqa: ARG001
    """Mark each query's own position."""
    return _offset(ids, mask, 0, first=1)


def sink_targets(ids: Ids, mask: Mask, bos: int | None) -> Targets:  # noqa: ARG001
    """Mark the first position."""
    targets = torch.zeros(*ids.shape, ids.shape[1], dtype=torch.bool, device=ids.device)
    targets[:, 1:, 0] = mask[:, 1:]
    return targets


def duplicate_token_targets(ids: Ids, mask: Mask, bos: int | None) -> Targets:
    """Mark earlier copies of the query's own token."""
    same = ids[:, :, None] == ids[:, None, :]
    counts = mask if bos is None else mask & (ids != bos)
    return (same & counts[:, :, None] & counts[:, None, :]).tril(-1)


def induction_targets(ids: Ids, mask: Mask, bos: int | None) -> Targets:
    """Mark the tokens that followed earlier copies of the query's token."""
    after = torch.zeros_like(same := duplicate_token_targets(ids, mask, bos))
    after[:, :, 1:] = same[:, :, :-1]
    return after.tril(-1)  # k + 1 < q: the query itself is no target


def _offset(ids: Ids, mask: Mask, back: int, first: int) -> Targets:
    n = ids.shape[1]
    query = torch.arange(n, device=ids.device)
    band = (query[:, None] - query[None, :] == back) & (query[:, None] >= first)
    return band & mask[:, :, None]


def target_mass(pattern: Float[Tensor, "batch head token token"], targets: Targets) -> Float[Tensor, "batch head"]:
    """Return each head's mean attention to targets over the rows that have one; NaN where no row has.

    Reads only the targeted entries of the pattern: a few per row, not all of it.
    """
    row, query, key = targets.nonzero(as_tuple=True)
    precise = torch.float32 if pattern.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    mass = pattern.new_zeros(pattern.shape[:2], dtype=precise)
    mass.index_add_(0, row, pattern[row, :, query, key].to(precise))
    return mass / targets.any(-1).sum(-1, keepdim=True)


def uniform_mass(targets: Targets, window: int | None = None) -> Float[Tensor, " batch"]:
    """Return the score of a head that attends to all visible keys alike: the analytic null."""
    n = targets.shape[-1]
    index = torch.arange(n, device=targets.device)
    visible = index[:, None] - index[None, :] < (n if window is None else window)
    seen = visible.tril().sum(-1)
    rows = (targets & visible).sum(-1) / seen
    return rows.double().sum(-1) / targets.any(-1).sum(-1)


KINDS: dict[str, Kind] = {
    "previous_token": Kind("attends to the token before", previous_token_targets, "text"),
    "induction": Kind("attends to what followed earlier copies of the current token", induction_targets, "repeats"),
    "duplicate_token": Kind("attends to earlier copies of the current token", duplicate_token_targets, "repeats"),
    "self": Kind("attends to the current token itself", self_targets, "text"),
    "sink": Kind("parks its attention on the first token", sink_targets, "text"),
}
