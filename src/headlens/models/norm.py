"""LayerNorm and RMSNorm as formulas that can be frozen into affine maps.

    layer:  y = gain * (x - mean x) / sqrt(var x + eps) + bias          rms:  y = gain * x / sqrt(mean x^2 + eps)

Frozen at a point, the denominator is a number: y becomes affine in x, which is what decompositions
need. Precision follows transformers exactly: its RMSNorms compute in float32 whatever the model's dtype,
and differ in whether the gain is applied before or after the result is cast back.

Axes: last axis is normalised; a frozen scale has size 1 there.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

NormKind = Literal["layer", "rms", "rms_gain_in_float32", "rms_one_plus"]


@dataclass(frozen=True)
class Norm:
    """One normalisation of the model; `scale` is None until it is frozen."""

    kind: NormKind
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    scale: Tensor | None = None
    """(..., 1): 1 / denominator at the point of freezing, one per position frozen at."""

    def __call__(self, x: Tensor) -> Tensor:
        if self.kind == "layer" and self.scale is None:
            # torch's fused kernel, so that half precision agrees with the model bit for bit
            return torch.nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        scale = self.inverse(x) if self.scale is None else self.scale
        if self.kind == "layer":
            y = (x - x.mean(-1, keepdim=True)) * scale
            y = y if self.weight is None else y * self.weight
            return y if self.bias is None else y + self.bias
        assert self.weight is not None
        y = _upcast(x, self.scale is not None) * scale
        if self.kind == "rms":
            return self.weight * y.to(x.dtype)
        if self.kind == "rms_gain_in_float32":
            return (self.weight * y).to(x.dtype)
        return (y * (1.0 + self.weight.to(y.dtype))).to(x.dtype)

    def freeze(self, x: Tensor) -> "Norm":
        """Return this norm with its denominator fixed to what it is at `x`; it is then affine."""
        return Norm(self.kind, self.weight, self.bias, self.eps, self.inverse(x))

    def before(self, W: Tensor) -> Tensor:
        """Return W (d, out) with the linear part of this norm, its denominator 1, put before it: x @ before(W)."""
        if self.weight is not None:
            gain = 1.0 + self.weight if self.kind == "rms_one_plus" else self.weight
            W = gain.to(W.dtype)[:, None] * W
        return W - W.mean(0) if self.kind == "layer" else W

    def inverse(self, x: Tensor) -> Tensor:
        """Return 1 / the denominator at each row: (..., 1)."""
        if self.kind == "layer":
            return torch.rsqrt(x.var(-1, correction=0, keepdim=True) + self.eps)
        return torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)


def _upcast(x: Tensor, frozen: bool) -> Tensor:
    # A frozen norm is used on parts whose sum matters: it keeps float64 where it is given float64.
    return x if frozen and x.dtype == torch.float64 else x.float()


def read_norm(module: Any, kind: NormKind) -> Norm:
    """Return the formula of a transformers norm module."""
    eps = next(getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name))
    return Norm(kind, module.weight, getattr(module, "bias", None), float(eps))
