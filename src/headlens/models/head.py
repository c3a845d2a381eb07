"""What is a head? Its exact query-key and output-value maps, whatever the architecture.

A head reads the residual stream x through a norm, and

    query(x, p) = rotate_p( qk_norm( norm(x) W_Q + b_Q ) )            score = scale * query . key
    key(x, p)   = rotate_p( qk_norm( norm(x) W_K + b_K ) )            logit = softcap * tanh(score / softcap)
    value(x)    = norm(x) W_V + b_V                                   pattern = softmax over visible keys, and sink
    output(z)   = z W_O                                               z = pattern value

Grouped heads share W_K and W_V. The attention block adds post_norm(sum over heads of output(z) + b_O).
Norms make query, key and value non-affine in x; `freeze_norms` fixes their denominators at a true input,
after which all three are affine and any sum of parts of x decomposes exactly.

Axes: d_model, d_head; `...` are any batch axes, broadcast as usual. Unit of scores: attention logits.
Source: Elhage et al. 2021; rotary Su et al. 2021; soft-cap Gemma 2; sinks GPT-OSS.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headlens.models.norm import Norm
from headlens.models.rotary import Rotary

Position = Tensor | int | None


@dataclass(frozen=True)
class QKNorm:
    """The norm on a head's query or key, over that head alone or over all heads of the layer (OLMo 2)."""

    norm: Norm
    over: str
    weight: Tensor
    """(d_model, heads * d_head): the projections of all heads; read only when the norm is over the layer."""
    bias: Tensor | None
    part: slice
    """This head's place among the projected dimensions."""

    def __call__(self, projected: Tensor, y: Tensor) -> Tensor:
        if self.over == "head":
            return self.norm(projected)
        if self.norm.scale is not None:  # frozen: one number a position, so this head's part is enough
            return self.own(projected)
        return self.norm(self._all_heads(y))[..., self.part]

    @property
    def own(self) -> Norm:
        """The norm with this head's gains only; what it does once it is frozen."""
        if self.over == "head":
            return self.norm
        assert self.norm.weight is not None
        return replace(self.norm, weight=self.norm.weight[self.part])

    def freeze(self, projected: Tensor, y: Tensor) -> "QKNorm":
        return replace(self, norm=self.norm.freeze(projected if self.over == "head" else self._all_heads(y)))

    def _all_heads(self, y: Tensor) -> Tensor:
        return torch.nn.functional.linear(y, self.weight.T, self.bias)


@dataclass(frozen=True)
class Head:
    """One query head with the key/value head it reads. Weights are views into the model: nothing is copied."""

    layer: int
    head: int
    W_Q: Float[Tensor, "d_model d_head"]
    W_K: Float[Tensor, "d_model d_head"]
    W_V: Float[Tensor, "d_model d_head"]
    W_O: Float[Tensor, "d_head d_model"]
    b_Q: Float[Tensor, " d_head"] | None
    b_K: Float[Tensor, " d_head"] | None
    b_V: Float[Tensor, " d_head"] | None
    query_norm: Norm | None
    """Norm between the residual stream and the query; the key side has its own, so that each freezes alone."""
    key_norm: Norm | None
    query_qk_norm: QKNorm | None
    key_qk_norm: QKNorm | None
    rotary: Rotary | None
    scale: float
    softcap: float | None
    window: int | None
    """Query q sees keys q - window < k <= q; None: all keys up to q."""
    sink: Float[Tensor, ""] | None
    """A learned logit that takes part in the softmax and attends to nothing (GPT-OSS)."""

    def query(self, x: Float[Tensor, "*any d_model"], position: Position) -> Float[Tensor, "*any d_head"]:
        """Return the query read from residual stream `x` at `position` (None: before rotation)."""
        return self._side(x, position, self.query_norm, self.W_Q, self.b_Q, self.query_qk_norm)

    def key(self, x: Float[Tensor, "*any d_model"], position: Position) -> Float[Tensor, "*any d_head"]:
        """Return the key read from residual stream `x` at `position` (None: before rotation)."""
        return self._side(x, position, self.key_norm, self.W_K, self.b_K, self.key_qk_norm)

    def value(self, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_head"]:
        """Return the value read from residual stream `x`."""
        return _affine(x if self.key_norm is None else self.key_norm(x), self.W_V, self.b_V)

    def output(self, z: Float[Tensor, "*any d_head"]) -> Float[Tensor, "*any d_model"]:
        """Return what `z` contributes to the attention block's output, before b_O and any post-norm."""
        return z @ self.W_O

    def score(
        self,
        query_x: Float[Tensor, "*any d_model"],
        key_x: Float[Tensor, "*any d_model"],
        *,
        at: tuple[Position, Position],
    ) -> Float[Tensor, "*any"]:
        """Return the scaled score of query against key positions `at`, before soft-cap, mask and softmax."""
        return self.scale * (self.query(query_x, at[0]) * self.key(key_x, at[1])).sum(-1)

    def scores(
        self, x: Float[Tensor, "*any token d_model"], position: Tensor | None = None
    ) -> Float[Tensor, "*any token token"]:
        """Return what enters the mask: soft-capped scores of every query (rows) against every key."""
        position = torch.arange(x.shape[-2], device=x.device) if position is None else position
        return self.cap(self.scale * self.query(x, position) @ self.key(x, position).transpose(-1, -2))

    def cap(self, score: Tensor) -> Tensor:
        """Apply the soft-cap, where the architecture has one."""
        return capped(score, self.softcap)

    def visible(
        self, n_tokens: int, keys: Bool[Tensor, "*any token"] | None = None
    ) -> Bool[Tensor, "*any token token"]:
        """Return which keys (columns) each query sees: causal, within the window, and not padding."""
        seen = visible(n_tokens, self.window, device=self.W_Q.device)
        return seen if keys is None else seen & keys[..., None, :]

    def pattern(
        self, scores: Float[Tensor, "*any token token"], visible: Bool[Tensor, "*any token token"]
    ) -> Float[Tensor, "*any token token"]:
        """Return attention from scores; rows sum to 1, or to less where a sink takes its share.

        A row that sees nothing (a padding query) is all zero.
        """
        masked = torch.where(visible, scores, -math.inf).to(torch.promote_types(scores.dtype, torch.float32))
        top = masked.amax(-1, keepdim=True).clamp(min=torch.finfo(masked.dtype).min)
        if self.sink is not None:
            top = torch.maximum(top, self.sink.to(masked.dtype))
        weight = (masked - top).exp()
        total = weight.sum(-1, keepdim=True)
        if self.sink is not None:
            total = total + (self.sink.to(masked.dtype) - top).exp()
        return (weight / torch.where(total == 0, 1, total)).to(scores.dtype)

    def z(
        self, pattern: Float[Tensor, "*any token token"], x: Float[Tensor, "*any token d_model"]
    ) -> Float[Tensor, "*any token d_head"]:
        """Return the mix of values that `pattern` reads from residual stream `x`."""
        return pattern @ self.value(x)

    def freeze_norms(self, query_x: Float[Tensor, "*any d_model"], key_x: Float[Tensor, "*any d_model"]) -> "Head":
        """Return this head with all norms fixed at these true inputs: its maps are then affine there.

        The query map is exact at `query_x`, the key and value maps at `key_x`; shapes must broadcast
        against what is later mapped. A frozen head gives accounting, not counterfactuals.
        """
        query_norm = self.query_norm and self.query_norm.freeze(query_x)
        key_norm = self.key_norm and self.key_norm.freeze(key_x)
        frozen = replace(self, query_norm=query_norm, key_norm=key_norm)
        if self.query_qk_norm is None or self.key_qk_norm is None:
            return frozen
        query_y = query_x if self.query_norm is None else self.query_norm(query_x)
        key_y = key_x if self.key_norm is None else self.key_norm(key_x)
        return replace(
            frozen,
            query_qk_norm=self.query_qk_norm.freeze(_affine(query_y, self.W_Q, self.b_Q), query_y),
            key_qk_norm=self.key_qk_norm.freeze(_affine(key_y, self.W_K, self.b_K), key_y),
        )

    def _side(
        self,
        x: Tensor,
        position: Position,
        norm: Norm | None,
        W: Tensor,
        b: Tensor | None,
        qk_norm: QKNorm | None,
    ) -> Tensor:
        y = x if norm is None else norm(x)
        vector = _affine(y, W, b)
        vector = vector if qk_norm is None else qk_norm(vector, y)
        return vector if position is None or self.rotary is None else self.rotary(vector, position)


def capped(score: Tensor, softcap: float | None) -> Tensor:
    """Apply a soft-cap, where there is one."""
    return score if softcap is None else softcap * torch.tanh(score / softcap)


def visible(n_tokens: int, window: int | None = None, *, device: Any = None) -> Bool[Tensor, "query key"]:
    """Return which keys each query sees: those up to itself, or of these the last `window`."""
    index = torch.arange(n_tokens, device=device)
    distance = index[:, None] - index[None, :]
    return (distance >= 0) & (distance < (n_tokens if window is None else window))


def _affine(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return x @ W if b is None else x @ W + b


@dataclass(frozen=True)
class HeadCount:
    """Sizes that say how a layer's projections divide into heads."""

    heads: int
    kv_heads: int
    d_head: int

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    def kv_head(self, head: int) -> int:
        """Return the key/value head that query head `head` reads."""
        return head // self.group
