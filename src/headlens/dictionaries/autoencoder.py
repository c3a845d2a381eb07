"""A sparse autoencoder: one linear map in, one linear map out, and a rule for which features stay.

    own  = norm(x)                                        none, or each row by itself
    pre  = (own - b_dec) W_enc + b_enc                    b_dec is taken off only where the dictionary was trained so
    f    = keep(pre)
    x    ~ norm back(f W_dec + b_dec)

    relu       positive ones                              topk      the k largest, where positive
    jumprelu   those above a threshold of their own       abstopk   the k largest in size, with their sign
    gated      where `pre` is positive: relu(own (W_enc exp(r_mag)) + b_mag), b_dec off `own` as in `pre`

Some topk dictionaries count a feature times the length of its vector, and divide by it to decode. What norms do:

    layer_norm             own = (x - mean) / (std + 1e-5)        back: y std + mean
    constant_norm_rescale  own = x sqrt(d_in) / |x|               back: y |x| / sqrt(d_in)

The order of operations is SAELens', so that its numbers come out to the last bit.

Axes: d_in, d_sae; `...` are any rows. Source: SAELens; Gao et al. 2024; Rajamanoharan et al. 2024.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from headlens._errors import DataError, InvalidWeights
from headlens.dictionaries.dictionary import Active, Dictionary

Activation = Literal["relu", "topk", "abstopk", "jumprelu", "gated"]
RowNorm = Literal["none", "layer_norm", "constant_norm_rescale"]


class _Rows(NamedTuple):
    """Rows in the dictionary's own coordinates, and the way back: y * times / over + plus."""

    own: Tensor
    times: Tensor | None = None
    over: Tensor | None = None
    plus: Tensor | None = None

    def back(self, y: Tensor) -> Tensor:
        y = y if self.times is None else y * self.times
        y = y if self.over is None else y / self.over
        return y if self.plus is None else y + self.plus


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Autoencoder(Dictionary):
    """A dictionary whose numbers are known."""

    # Shapes are in words, and checked below by name: these come from files.
    W_enc: Tensor
    """(d_in, d_sae)"""
    b_enc: Tensor
    """(d_sae,); of a gated one, the gate's."""
    W_dec: Tensor
    """(d_sae, d_in)"""
    b_dec: Tensor
    """(d_in,)"""
    activation: Activation = "relu"
    k: int | None = None
    threshold: Tensor | None = None
    """(d_sae,), as are the next two."""
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None
    takes_b_dec_off: bool = True
    scaled_by_decoder: bool = False
    """Whether a feature counts times the length of its vector."""
    norm: RowNorm = "none"
    takes_mean_off: bool = False
    gain: Tensor | None = None
    """(d_in,); with `shift`: the site shows gain * x + shift of what was trained on."""
    shift: Tensor | None = None
    log_frequency: Tensor | None = None
    """(d_sae,): log10 of the share of tokens on which each feature was active, where its maker kept that."""

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_rule()
        for name, value in self._tensors():
            off = torch.isnan(value) if name in ("threshold", "log_frequency") else ~torch.isfinite(value)
            if bool(off.any()):  # a threshold of infinity is a feature that never fires
                raise InvalidWeights(
                    f"This dictionary has NaN or infinite values in {name}: its file is damaged, or its training "
                    "diverged. Use another one."
                )

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.W_enc.dtype

    @property
    def device(self) -> torch.device:
        return self.W_enc.device

    @property
    def vectors(self) -> Float[Tensor, "d_sae d_in"]:
        return self._vectors

    @property
    def digest(self) -> str:
        return self._digest

    @cached_property
    def _vectors(self) -> Tensor:
        return self.W_dec if self.gain is None else self.W_dec * self.gain

    @cached_property
    def _digest(self) -> str:
        found = hashlib.sha256()
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("card", "log_frequency")}
        plain = {name: value for name, value in said.items() if not isinstance(value, Tensor)}
        found.update(json.dumps(plain, sort_keys=True).encode())
        for name, value in self._tensors():
            if name != "log_frequency":
                found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
                found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return found.hexdigest()[:16]

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Return how active each feature is.

        Raises
        ------
        DataError
            If rows are not as wide as the dictionary reads. z may be (..., head, d_head) where its dictionary reads
            all heads.
        """
        own = self._rows(x.to(self.dtype)).own
        own = own - self.b_dec if self.takes_b_dec_off else own
        pre = own @ self.W_enc + self.b_enc
        pre = pre * self._lengths if self.scaled_by_decoder else pre
        match self.activation:
            case "relu":
                return pre.relu()
            case "jumprelu":
                assert self.threshold is not None
                return pre.relu() * (pre > self.threshold).to(pre.dtype)
            case "topk":
                found = pre.topk(self._kept, dim=-1, sorted=False)
                return torch.zeros_like(pre).scatter_(-1, found.indices, found.values.relu())
            case "abstopk":
                at = pre.abs().topk(self._kept, dim=-1, sorted=False).indices
                return torch.zeros_like(pre).scatter_(-1, at, pre.gather(-1, at))
            case "gated":
                assert self.b_mag is not None
                return (pre > 0).to(pre.dtype) * (own @ self._magnitude + self.b_mag).relu()

    def decode(
        self, features: Float[Tensor, "... d_sae"], *, like: Float[Tensor, "... d_in"] | None = None
    ) -> Float[Tensor, "... d_in"]:
        """Return what features amount to, in the shape of `like`.

        Raises
        ------
        DataError
            If features are not as many as the dictionary's; or it normalises each row and `like` is not given.
        """
        if features.shape[-1] != self.d_sae:
            raise DataError(f"These are {features.shape[-1]} features a row; this dictionary has {self.d_sae}.")
        if like is None and (self.norm != "none" or self.takes_mean_off):
            raise DataError(
                "This dictionary normalises each row before it encodes it: pass the rows too, decode(features, like=x)."
            )
        features = features.to(self.dtype)
        features = features * (1 / self._lengths) if self.scaled_by_decoder else features
        y = features @ self.W_dec + self.b_dec
        if like is None:
            return self._site_of(y, None)
        like = like.to(self.dtype)
        return self._site_of(self._rows(like).back(y), self._flat(like)).reshape(like.shape)

    def to(self, *, device: Any = None, dtype: torch.dtype | None = None) -> "Autoencoder":
        moved = {name: value.to(device, dtype) for name, value in self._tensors()}
        if all(value is getattr(self, name) for name, value in moved.items()):
            return self  # another one would be checked again
        return replace(self, **moved)

    # --- rows in the dictionary's own coordinates, and back ---

    def _flat(self, x: Tensor) -> Tensor:
        """Rows of d_in numbers: heads one after the other, where they come apart."""
        if x.ndim and x.shape[-1] == self.d_in:
            return x
        if self.head is None and x.ndim > 1 and x.shape[-2] * x.shape[-1] == self.d_in:
            return x.flatten(-2)
        raise DataError(
            f"These rows are {x.shape[-1] if x.ndim else 1} wide and this dictionary"
            f"{f' of {self.site}' if self.site else ''} reads {self.d_in}: they come from another site or model."
        )

    def _rows(self, x: Tensor) -> _Rows:
        x = self._flat(x)
        x = x - x.mean(-1, keepdim=True) if self.takes_mean_off else x
        x = x if self.shift is None else x - self.shift.to(x.dtype)
        x = x if self.gain is None else x / self.gain.to(x.dtype)
        match self.norm:
            case "none":
                return _Rows(x)
            case "layer_norm":
                mean = x.mean(-1, keepdim=True)
                centred = x - mean
                std = centred.std(-1, keepdim=True) if centred.numel() else mean  # torch warns of no rows
                return _Rows(centred / (std + 1e-5), times=std, plus=mean)
            case "constant_norm_rescale":
                length = x.norm(dim=-1, keepdim=True)
                scale = self.d_in**0.5 / torch.where(length == 0, self.d_in**0.5, length)  # a row of zeros stays one
                return _Rows(x * scale, over=scale)

    def _site_of(self, y: Tensor, x: Tensor | None) -> Tensor:
        """From what was trained on to what the site shows of the row `x`."""
        y = y if self.gain is None else y * self.gain.to(y.dtype)
        y = y if self.shift is None else y + self.shift.to(y.dtype)
        return y + x.mean(-1, keepdim=True) if self.takes_mean_off and x is not None else y

    def _scales(self, x: Tensor, active: Active) -> tuple[Tensor, Tensor]:
        x = self._flat(x)
        rows = self._rows(x)
        one = torch.ones_like(x[:, :1])
        scale = (one if rows.times is None else rows.times) / (one if rows.over is None else rows.over)
        weights = active.values.to(x.dtype) * scale[active.rows, 0]
        if self.scaled_by_decoder:
            weights = weights / self.W_dec.to(x.dtype).norm(dim=-1)[active.features]
        bias = self._site_of(rows.back(self.b_dec.to(x.dtype)), x)
        return weights, bias

    def _at_site(self, x: Tensor) -> Tensor:
        return self._flat(x)

    # --- what follows from the numbers ---

    @property
    def _kept(self) -> int:
        assert self.k is not None
        return self.k

    @cached_property
    def _lengths(self) -> Tensor:
        return self.W_dec.norm(dim=-1)

    @cached_property
    def _magnitude(self) -> Tensor:
        assert self.r_mag is not None
        return self.W_enc * self.r_mag.exp()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Tensor):
                yield one.name, value

    def _check_shapes(self) -> None:
        if self.W_enc.ndim != 2 or 0 in self.W_enc.shape:
            raise DataError(f"W_enc must be (d_in, d_sae), not {tuple(self.W_enc.shape)}.")
        wanted = {"W_enc": (self.d_in, self.d_sae), "W_dec": (self.d_sae, self.d_in), "b_dec": (self.d_in,)}
        wanted |= {"gain": (self.d_in,), "shift": (self.d_in,)}
        for name, value in self._tensors():
            shape = wanted.get(name, (self.d_sae,))
            if tuple(value.shape) != shape:
                raise DataError(
                    f"{name} must be {shape} beside a W_enc of {tuple(self.W_enc.shape)}, and is {tuple(value.shape)}."
                )

    def _check_rule(self) -> None:
        if self.activation in ("topk", "abstopk") and not (type(self.k) is int and 1 <= self.k <= self.d_sae):
            raise DataError(
                f"k must be from 1 to the {self.d_sae} features of this {self.activation} one, not {self.k}."
            )
        if self.activation == "jumprelu" and self.threshold is None:
            raise DataError("A jumprelu dictionary needs its threshold.")
        if self.activation == "gated" and (self.r_mag is None or self.b_mag is None):
            raise DataError("A gated dictionary needs r_mag and b_mag.")
        if self.gain is not None and bool((self.gain == 0).any()):
            raise DataError("gain holds 0: what stood before it cannot be told from the site.")
