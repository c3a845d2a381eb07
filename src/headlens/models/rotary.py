"""Rotary position embedding: turn pairs of dimensions of a query or key by position-dependent angles.

    (a, b) -> (a cos t - b sin t,  b cos t + a sin t),      t = position * frequency

The angles come from the model's own module (scaled, per-layer and partial variants are its business);
which dimensions form a pair is `layout`. A rotation is linear in the vector that is turned.

Source: Su et al. 2021. Axes: last axis is d_head; positions index the axes before it.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from headlens._errors import UnsupportedArchitecture

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rotary types of transformers whose frequencies change beyond the original context."""


@dataclass(frozen=True)
class Rotary:
    """The rotation one layer applies to its queries and keys."""

    module: Any
    """transformers' rotary module, or (GPT-J) its (position, 2 * pairs) table of sines and cosines."""
    layout: Literal["half", "pairs"]
    layer_type: str | None = None
    """Passed on to modules that keep several bases (Gemma 3: local and global)."""

    def __call__(self, x: Tensor, position: Tensor | int) -> Tensor:
        """Rotate `x` (..., d_head) by its position(s), broadcast over all but the last axis of `x`."""
        cos, sin = self._angles(torch.as_tensor(position, device=x.device), x)
        return rotate(x, cos, sin, self.layout)

    def by_row(self, x: Tensor, position: Tensor) -> Tensor:
        """Rotate rows `x` (row, d_head), many at one position: the angles of each position are made once."""
        if not len(position):
            return x
        cos, sin = self._angles(torch.arange(int(position.max()) + 1, device=x.device), x)
        return rotate(x, cos[position], sin[position], self.layout)

    def _angles(self, position: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.module, Tensor):
            sin, cos = self.module.to(like.device)[position].to(like.dtype).chunk(2, -1)
            return cos, sin
        self._refuse_length_dependent(position)
        flat = position.reshape(1, -1)
        args = (like, flat) if self.layer_type is None else (like, flat, self.layer_type)
        cos, sin = self.module(*args)
        pairs = self._frequencies().shape[0]  # most modules return the angles twice over
        shape = (*position.shape, pairs)
        return cos[0, :, :pairs].reshape(shape), sin[0, :, :pairs].reshape(shape)

    def _frequencies(self) -> Tensor:
        name = "inv_freq" if self.layer_type is None else f"{self.layer_type}_inv_freq"
        return getattr(self.module, name)

    @property
    def limit(self) -> int | None:
        """Length up to which the angles do not depend on the sequence's length; None where they never do."""
        if isinstance(self.module, Tensor):
            return None
        kind, parameters = self.module.rope_type, self.module.config.rope_parameters or {}
        if self.layer_type is not None:
            kind, parameters = kind[self.layer_type], parameters[self.layer_type]
        if kind not in LENGTH_DEPENDENT:
            return None
        config = self.module.config
        original = parameters.get("original_max_position_embeddings")
        return int(original or getattr(config, "original_max_position_embeddings", config.max_position_embeddings))

    def _refuse_length_dependent(self, position: Tensor) -> None:
        limit = self.limit
        if limit is not None and position.numel() and int(position.max()) >= limit:
            raise UnsupportedArchitecture(
                f"This rotary embedding changes its angles with the sequence length beyond {limit} tokens, so a "
                f"head has no fixed map there. Keep positions below {limit}."
            )


def rotate(x: Tensor, cos: Tensor, sin: Tensor, layout: Literal["half", "pairs"]) -> Tensor:
    """Turn the first 2 * pairs dimensions of `x`; `cos` and `sin` are (..., pairs)."""
    width = 2 * cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    if layout == "half":
        a, b = turned.chunk(2, -1)
        whole = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    else:
        a, b = turned[..., ::2], turned[..., 1::2]
        whole = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    return torch.cat((whole.to(x.dtype), rest), -1) if rest.shape[-1] else whole.to(x.dtype)
