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
from jaxtyping import Float, Int
from torch import Tensor

from headlens._errors import DataError
from headlens.data.tokens import Tokens, pack
from headlens.heads.attention import offset_profile
from headlens.heads.setting import Setting, windows_of
from headlens.heads.tally import Measured
from headlens.heads.work import Checkpoint
from headlens.tracing.capture import Batch, capture, groups

CHOOSING = 32
"""Sequences, at most, that an offset is chosen on."""


def offset(setting: Setting, work: Checkpoint | None = None) -> Measured:
    """Measure how much each head gives to the offset that it prefers."""
    model, tokens, work = setting.model, setting.stimulus("random").tokens, work or Checkpoint()
    n = min(CHOOSING, len(tokens) // 2)
    if n < 1:
        raise DataError("An offset is chosen on other sequences than it is measured on: use two samples or more.")
    length, windows, heads = int(tokens.lengths[0]), windows_of(model), (model.n_layers, model.n_heads)
    farthest = max(2, length // 2)  # beyond, too few queries look back so far to tell
    total = np.zeros((*heads, length - _first(setting)))
    for _, profile in _profiles(setting, tokens, np.arange(n), work, "choosing", {"total": total}):
        total += profile.sum(0)
    chosen = 2 + total[..., 2 : farthest + 1].argmax(-1)
    own = np.zeros((len(tokens) - n, *heads))
    for index, profile in _profiles(setting, tokens, np.arange(n, len(tokens)), work, "measuring", {"own": own}):
        own[index - n] = np.take_along_axis(profile, chosen[None, ..., None], -1)[..., 0]
    even = np.stack([_even(length, _first(setting), window) for window in windows])
    null = np.take_along_axis(even, chosen, 1)
    detail = {at: f"{chosen[at]} back" for at in np.ndindex(*chosen.shape)}
    return Measured(own, np.broadcast_to(null, own.shape), None, detail)


def _first(setting: Setting) -> int:
    return int(setting.model.bos is not None)


def _profiles(
    setting: Setting,
    tokens: Tokens,
    some: Int[np.ndarray, " sequence"],
    work: Checkpoint,
    loop: str,
    kept: dict[str, np.ndarray],
) -> Iterator[tuple[Int[np.ndarray, " batch"], Float[np.ndarray, "batch layer head offset"]]]:
    """Yield sequences that run together, and their profiles; `kept` is what the caller makes of them."""
    model, first = setting.model, _first(setting)

    def fold(pattern: Tensor, _: Batch) -> Tensor:
        return offset_profile(pattern, first=first)

    batches = [some[index] for index in groups(tokens.lengths[some], setting.protocol.batch_tokens, model.rotary_limit)]
    for step in work.steps(loop, len(batches), kept):
        rows = pack([tokens[i] for i in batches[step]])
        (batch,) = capture(model, rows, {"blocks.*.attn.hook_pattern": fold}, batch_tokens=len(rows.ids))
        layers = [batch[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.n_layers)]
        yield batches[step], torch.stack(layers, 1).double().cpu().numpy()


def _even(n: int, first: int, window: int | None) -> Float[np.ndarray, " offset"]:
    """What attention spread evenly over the visible keys gives to each offset, on average over its queries."""
    window = n if window is None else window
    share = 1 / np.minimum(np.arange(1, n + 1), window)
    return np.array([share[d + first :].mean() * (d < window) for d in range(n - first)])
