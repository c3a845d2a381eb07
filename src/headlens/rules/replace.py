"""What does a feature do if one token of its text is another? Tokens replaced in place, and the model run again.

Replacing, not inserting: every other token keeps its position. What a token does is compared with what a neutral one
does at the same place, so that the change itself is not taken for the token's doing.

    carrier    the token at which an input feature is most active on average, of those seen often enough
    neutral    a token of the corpus at which none of the features in question is active

Axes: context = a text up to a position at which the output feature is read; token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headlens._statistics import bootstrap_mean
from headlens.models import Model
from headlens.rules.exemplars import attention
from headlens.rules.matches import NONE, Sparse
from headlens.rules.observe import Observed
from headlens.tracing.capture import Batch, capture, groups

SEEN_OFTEN = 3
"""A carrier was seen so many times at least."""
BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Difference:
    """A paired mean with its interval, over contexts."""

    n: int
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Float[np.ndarray, " context"], *, seed: int) -> "Difference":
        if not len(values):
            return cls(0, np.nan, np.nan, np.nan)
        mean, low, high = bootstrap_mean(values[:, None], seed=seed)
        return cls(len(values), float(mean[0]), float(low[0]), float(high[0]))


class Replacements:
    """Runs contexts with tokens replaced, and reads output features of one head."""

    def __init__(self, observed: Observed, head: int, active: Sparse) -> None:
        self.observed, self.head, self.active = observed, head, active
        self.ids = observed.tokens.ids
        starts = observed.tokens.offsets[:-1]
        self.is_first = np.zeros(len(self.ids), bool)
        self.is_first[starts[observed.tokens.lengths > 0]] = True
        self.start_of = np.repeat(starts, observed.tokens.lengths)
        self.text_of = observed.text_of
        self._seen = np.bincount(self.ids[~self.is_first])
        order = np.argsort(active.features, kind="stable")
        self._rows, self._values = active.rows[order], active.values[order]
        self._bounds = np.searchsorted(active.features[order], np.arange(observed.active.d_sae + 1))

    def where(self, feature: int) -> tuple[Int[np.ndarray, " row"], Float[np.ndarray, " row"]]:
        """Return the tokens at which an input feature is active, ascending, and how much."""
        if feature == NONE:
            return np.arange(len(self.ids)), np.ones(len(self.ids))
        own = slice(self._bounds[feature], self._bounds[feature + 1])
        return self._rows[own], self._values[own]

    def carriers(self, feature: int, n: int) -> Int[np.ndarray, " token"]:
        """Return the n tokens at which a feature is most active on average; fewer, or none, if it hardly ever is."""
        rows, values = self.where(feature)
        rows, values = rows[~self.is_first[rows]], values[~self.is_first[rows]]
        if not len(rows):
            return np.zeros(0, np.int64)
        ids = self.ids[rows]
        count, mean = np.bincount(ids, minlength=len(self._seen)), np.bincount(ids, values, len(self._seen))
        mean = mean / np.maximum(self._seen, 1)
        mean[count < min(SEEN_OFTEN, int(count.max()))] = -np.inf
        best = np.argsort(-mean, kind="stable")[:n]
        return best[mean[best] > 0]

    def carrier(self, feature: int) -> int | None:
        """Return the token at which a feature is most active on average; None if it hardly ever is."""
        found = self.carriers(feature, 1)
        return int(found[0]) if len(found) else None

    def neutral(self, features: Sequence[int]) -> Int[np.ndarray, " row"]:
        """Return tokens (as rows) at which none of these features is active; the first of a text is none."""
        kept = ~self.is_first
        for feature in features:
            if feature != NONE:
                kept[self.where(feature)[0]] = False
        return np.flatnonzero(kept)

    def first_seen(self, feature: int) -> Int[np.ndarray, " text"]:
        """Return the first token of each text at which a feature is active; beyond all tokens where there is none."""
        found = np.full(len(self.observed.tokens), len(self.ids))
        rows = self.where(feature)[0]
        np.minimum.at(found, self.text_of[rows], rows)
        return found

    def rows_where(self, query: int, key: int) -> Int[np.ndarray, " row"]:
        """Return the positions at which a skip-gram matches."""
        rows = self.where(query)[0]
        return rows[self.first_seen(key)[self.text_of[rows]] <= rows]

    def context(self, row: int) -> Int[np.ndarray, " token"]:
        """Return a text up to a position."""
        return self.ids[self.start_of[row] : row + 1].copy()

    @torch.no_grad()
    def read(
        self, contexts: Sequence[Int[np.ndarray, "_"]], feature: int
    ) -> tuple[Float[np.ndarray, " context"], Float[np.ndarray, " context"]]:
        """Return an output feature's pre-activation and activation at the last token of each context."""
        if not contexts:
            return np.zeros(0), np.zeros(0)
        seen = self.observed.heads[self.head]
        order = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))  # batches of one length hold no padding
        lengths = np.array([len(contexts[i]) for i in order])
        some = groups(lengths, BATCH_TOKENS, self.observed.model.rotary_limit)
        z = torch.cat([self._z([contexts[order[i]] for i in own]) for own in some]).to(seen.dictionary.dtype)
        pre = z @ seen.reader.weight[:, feature].to(z.dtype) + seen.reader.bias[feature]
        found = np.empty((2, len(contexts)))
        found[:, order] = torch.stack([pre, seen.dictionary.encode(z)[:, feature]]).cpu().numpy()
        return found[0], found[1]

    def _z(self, contexts: list[Int[np.ndarray, "_"]]) -> Float[Tensor, "context d_in"]:
        """Return z at the last token of each context: of the head, or of all where the dictionary reads all.

        The model runs no further than to what the layer reads, and nothing is computed for other queries.
        """
        model, layer = self.observed.model, self.observed.layer
        alone = self.observed.heads[self.head].dictionary.head is not None
        x, mask = _entering(model, contexts, layer)
        token, last = torch.arange(x.shape[1], device=x.device), mask.sum(-1) - 1
        at_last = x[torch.arange(len(x), device=x.device), last]
        parts = []
        for of in (model.head(layer, h) for h in ([self.head] if alone else range(model.n_heads))):
            scores = of.scale * (of.key(x, token) @ of.query(at_last, last)[:, :, None])[..., 0]
            visible = mask if of.window is None else mask & (token > last[:, None] - of.window)
            pattern = attention(scores.double().cpu().numpy(), visible.cpu().numpy(), of)
            parts.append((torch.from_numpy(pattern).to(x)[:, None] @ of.value(x))[:, 0])
        return torch.cat(parts, -1)


class _Seen(Exception):  # no error: the way out of a forward pass
    """Carries what a layer reads, the moment it is there."""


def _entering(
    model: Model, contexts: list[Int[np.ndarray, "_"]], layer: int
) -> tuple[Float[Tensor, "context token d_model"], Bool[Tensor, "context token"]]:
    """Return what a layer reads, and which tokens are there; it and those after it are not run."""

    def leave(value: Tensor, batch: Batch) -> None:
        raise _Seen(value, batch.mask)

    try:
        next(capture(model, contexts, {f"blocks.{layer}.hook_resid_pre": leave}, batch_tokens=BATCH_TOKENS))
    except _Seen as seen:
        return seen.args
    raise AssertionError("every layer reads something")
