"""Which head looks a fixed number of tokens back, and how many?

    offset = max over 2 <= d <= T/2 of  mean over q of  A[q, q - d]

on random tokens, where nothing but the position tells. d is chosen for each head on other sequences than those its
score comes from: the largest of many noisy means would be too large. Null: even attention.

Such a head imitates induction where the repetition stands at a fixed distance.

Axes: sequence, layer, head, offset.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlens._errors import DataError
from headlens.data.tokens import Tokens, pack
from headlens.heads.attention import offset_profile
from headlens.heads.setting import Setting, windows_of
from headlens.heads.tally import Measured
from headlens.tracing.capture import Batch, capture

CHOOSING = 32
"""Sequences, at most, that an offset is chosen on."""


def offset(setting: Setting) -> Measured:
    """Measure how much each head gives to the offset that it prefers."""
    tokens = setting.stimulus("random").tokens
    n = min(CHOOSING, len(tokens) // 2)
    if n < 1:
        raise DataError("An offset is chosen on other sequences than it is measured on: use two samples or more.")
    choosing, measuring = (pack(tokens[i] for i in some) for some in (range(n), range(n, len(tokens))))
    length, windows = int(tokens.lengths[0]), windows_of(setting.model)
    farthest = max(2, length // 2)  # beyond, too few queries look back so far to tell
    first = np.concatenate([profile for _, profile in _profiles(setting, choosing)])
    chosen = 2 + first.mean(0)[..., 2 : farthest + 1].argmax(-1)
    own = np.empty((len(measuring), *chosen.shape))
    for index, profile in _profiles(setting, measuring):
        own[index] = np.take_along_axis(profile, chosen[None, ..., None], -1)[..., 0]
        setting.tell("offset", int(index[-1]) + 1, len(measuring))
    even = np.stack([_even(length, _first(setting), window) for window in windows])
    null = np.take_along_axis(even, chosen, 1)
    detail = {at: f"{chosen[at]} back" for at in np.ndindex(*chosen.shape)}
    return Measured(own, np.broadcast_to(null, own.shape), None, detail)


def _first(setting: Setting) -> int:
    return int(setting.model.bos is not None)


def _profiles(
    setting: Setting, tokens: Tokens
) -> Iterator[tuple[np.ndarray, Float[np.ndarray, "sequence layer head offset"]]]:
    model, first = setting.model, _first(setting)

    def fold(pattern: Tensor, _: Batch) -> Tensor:
        return offset_profile(pattern, first=first)

    sites = {"blocks.*.attn.hook_pattern": fold}
    for batch in capture(model, tokens, sites, batch_tokens=setting.protocol.batch_tokens):
        layers = [batch[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.n_layers)]
        yield batch.index, torch.stack(layers, 1).cpu().numpy()


def _even(n: int, first: int, window: int | None) -> Float[np.ndarray, " offset"]:
    """What attention spread evenly over the visible keys gives to each offset, on average over its queries."""
    window = n if window is None else window
    share = 1 / np.minimum(np.arange(1, n + 1), window)
    return np.array([share[d + first :].mean() * (d < window) for d in range(n - first)])
